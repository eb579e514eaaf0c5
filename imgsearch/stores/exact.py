"""The exact search of the embedded store: one product with all vectors, part by part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import NamedTuple

import numpy as np

SCORES_AT_ONCE = 2**24  # 64 MiB in each thread
PIECE = 2**24  # bytes of vectors that a thread multiplies at a time
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
    pieces = [piece for part in parts for piece in _pieces(part)]
    step = max(1, SCORES_AT_ONCE // max((len(piece.ids) for piece in pieces), default=1))
    # Among few vectors, other threads cost more than they save.
    large = sum(piece.vectors.nbytes for piece in pieces) > PIECE
    others = (os.cpu_count() or 1) - 1 if large else 0
    answer = []
    for start in range(0, len(queries), step):
        rows, left = queries[start : start + step], iter(pieces)
        work = partial(_nearest_in_each, rows, top_k, left)
        helping = [_threads(os.getpid()).submit(work) for _ in range(others)]
        none = np.empty((len(rows), 0), np.int64), np.empty((len(rows), 0), np.float32)
        parts = [none, *work(), *(one for future in helping for one in future.result())]
        found = zip(*parts, strict=True)
        for ids, far in zip(*(np.concatenate(f, axis=1) for f in found), strict=True):
            order = np.lexsort((ids, far))[:top_k]
            order = order[far[order] < np.inf]
            answer.append((ids[order], far[order]))
    return answer


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads of a process, which stay: to start them takes a tenth of a search."""
    return ThreadPoolExecutor(os.cpu_count(), "imgsearch-exact")


def _pieces(part: Part) -> Iterator[Part]:
    step = max(1, PIECE // max(1, 4 * part.vectors.shape[1]))
    for start in range(0, len(part.ids), step):
        yield Part(*(x if x is None else x[start : start + step] for x in part))


def _nearest_in_each(
    queries: np.ndarray, top_k: int, left: Iterator[Part]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Take one piece after the other, while other threads do the same, until none is left."""
    return [_nearest_in(queries, top_k, piece) for piece in left]


def _nearest_in(queries: np.ndarray, top_k: int, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances of the nearest to each query in one part, in any order."""
    if len(queries) == 1:  # which starts no threads of BLAS
        products = np.vecdot(part.vectors, queries)[None]
    else:
        products = queries @ part.vectors.T
    far = 1 - products / part.lengths
    if part.alive is not None:
        far[:, ~part.alive] = np.inf
    kept = min(top_k, len(part.ids))
    best = np.argpartition(far, kept - 1, axis=1)[:, :kept]
    return part.ids[best], np.take_along_axis(far, best, axis=1)
