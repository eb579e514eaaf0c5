"""The exact search of the embedded store: one product with all vectors, part by part."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

SCORES_AT_ONCE = 2**24  # 64 MiB
PIECE = 2**25  # bytes of vectors that a thread multiplies at a time
FEW = 0.2  # share of the rows up to which to copy them costs less than to multiply all


class Part(NamedTuple):
    """Rows of a segment or of the memory table; `alive` is None where all of them are."""

    ids: np.ndarray
    vectors: np.ndarray
    lengths: np.ndarray
    alive: np.ndarray | None


def among(part: Part, ids: np.ndarray) -> Part:
    """A part with no other rows alive than those with these ids."""
    near = ids[np.searchsorted(ids, part.ids).clip(max=len(ids) - 1)]
    alive = near == part.ids if part.alive is None else part.alive & (near == part.ids)
    if np.count_nonzero(alive) > FEW * len(alive):
        return part._replace(alive=alive)
    rows = np.flatnonzero(alive)
    return Part(part.ids[rows], part.vectors[rows], part.lengths[rows], None)


def nearest(
    parts: list[Part], queries: np.ndarray, top_k: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and distances of the nearest to each query, equal distances by id."""
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    queries = queries / np.where(lengths == 0, 1, lengths)
    step = max(1, SCORES_AT_ONCE // max((len(part.ids) for part in parts), default=1))
    answer = []
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        found = [np.empty((len(rows), 0), np.int64)], [np.empty((len(rows), 0), np.float32)]
        for part in parts:
            far = 1 - _products(part.vectors, rows) / part.lengths
            if part.alive is not None:
                far[:, ~part.alive] = np.inf
            kept = min(top_k, len(part.ids))
            best = np.argpartition(far, kept - 1, axis=1)[:, :kept]
            found[0].append(part.ids[best])
            found[1].append(np.take_along_axis(far, best, axis=1))
        for ids, far in zip(*(np.concatenate(f, axis=1) for f in found), strict=True):
            order = np.lexsort((ids, far))[:top_k]
            order = order[far[order] < np.inf]
            answer.append((ids[order], far[order]))
    return answer


def _products(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Products of each query with all vectors, a row for each query."""
    products = np.empty((len(queries), len(vectors)), np.float32)
    step = max(1, PIECE // max(1, 4 * vectors.shape[1]))

    def multiply(start: int) -> None:
        rows = slice(start, start + step)
        if len(queries) == 1:  # which starts no threads of BLAS
            np.vecdot(vectors[rows], queries, out=products[0, rows])
        else:
            np.matmul(queries, vectors[rows].T, out=products[:, rows])

    if len(vectors) <= step:
        multiply(0)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(multiply, range(0, len(vectors), step)))
    return products
