"""Recall and latency of Milvus indexes, against exact search over the same vectors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from imgsearch.errors import CollectionNotFound, ConfigError
from imgsearch.evaluation import ranking, statistics
from imgsearch.stores.vectors import IndexSpec

if TYPE_CHECKING:
    from imgsearch.gallery import Gallery

SWEEP = (
    "FLAT",
    *(f"IVF_FLAT:nlist=128,nprobe={n}" for n in (1, 4, 16)),
    *(f"HNSW:M=16,efConstruction=200,ef={n}" for n in (10, 32, 64, 256)),
)
"""Indexes that :func:`sweep` measures by default."""

TOLERANCE = 1e-6
"""A hit whose exact score is at most this far below that of the exact k-th
counts as found: float32 scores of one pair differ by about as much between programs."""


class IndexPoint(NamedTuple):
    """How one index, with one set of parameters, does against exact search.

    Attributes
    ----------
    index : str
        As :meth:`imgsearch.stores.vectors.IndexSpec.parse` takes it.
    k : int
    recall : float
        Mean over queries of the share of the k hits that belong to the exact top
        k; the denominator is k (or the size of the collection, if smaller). A hit
        with the exact score of the k-th, to 1e-6, belongs to it.
    low, high : float
        95 % bootstrap interval over queries.
    queries : int
    median_ms, p95_ms : float
        Of one search of one vector, milliseconds, one after the other.
    build_seconds : float
        Writing, indexing and loading all vectors; 0 for the collection's own index.
    vectors : int
        Size of the collection.
    """

    index: str
    k: int
    recall: float
    low: float
    high: float
    queries: int
    median_ms: float
    p95_ms: float
    build_seconds: float
    vectors: int


def sweep(
    gallery: Gallery,
    indexes: Sequence[str] = SWEEP,
    *,
    k: int = 10,
    queries: int = 200,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[IndexPoint]:
    """Measure recall and latency of indexes over the vectors of a collection.

    Each index with build parameters other than the collection's own is built in a
    temporary collection, which is dropped at the end, also after a failure.

    Parameters
    ----------
    gallery : Gallery
        Its vectors; a sample of them are the queries. A query's own vector is
        left out of both rankings.
    indexes : sequence of str
        Such as ``FLAT``, ``HNSW:M=16,efConstruction=200,ef=32``. Milvus needs
        ``ef`` to be at least what is asked for, and the store raises it to that.
    k : int
        Depth of recall.
    queries : int
        Size of the sample, at most that of the collection.
    seed : int
        Of the sample and of the intervals.
    progress : callable, optional
        Gets a line for each index.

    Returns
    -------
    list of IndexPoint
        In the order of `indexes`.

    Raises
    ------
    ConfigError
        An index is unknown, `k` or `queries` is below 1, or there are fewer than
        two vectors.
    StoreError
        The store failed.
    """
    specs = [IndexSpec.parse(text) for text in indexes]
    if k < 1 or queries < 1:
        raise ConfigError("sweep", f"k={k} and queries={queries} must be at least 1")
    ids, vectors = gallery.embeddings()
    if len(ids) < 2:
        raise ConfigError("sweep", f"collection {gallery.name!r} has fewer than two vectors")
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(len(ids), min(queries, len(ids)), replace=False))
    depth = min(k, len(ids) - 1)
    skip = ranking.same(ids[chosen], ids)
    blocks = (make() for make in ranking.exact(vectors[chosen], vectors, skip))
    kth = np.array([b.scores(row)[depth - 1] for b in blocks for row in range(len(b.order))])
    own = IndexSpec.parse(str(gallery.row.index))
    found: list[IndexPoint | None] = [None] * len(specs)
    builds: dict[tuple, list[int]] = {}
    for i, spec in enumerate(specs):
        builds.setdefault((spec.kind, tuple(sorted(spec.params.items()))), []).append(i)
    for same in builds.values():
        spec = specs[same[0]]
        name, seconds = gallery.name, 0.0
        temporary = (spec.kind, spec.params) != (own.kind, own.params)
        if temporary:
            name = f"{gallery.name[:40]}_sweep_{os.getpid()}"
        try:
            if temporary:
                start = time.perf_counter()
                gallery.vectors.create(name, vectors.shape[1], spec)
                gallery.vectors.upsert(name, ids, vectors)
                gallery.vectors.flush(name)
                gallery.vectors.search(name, vectors[:1], 1)
                seconds = time.perf_counter() - start
            for i in same:
                if progress is not None:
                    progress(f"{specs[i]}: {len(chosen)} queries")
                found[i] = _measure(
                    gallery, name, specs[i], ids, vectors, chosen, kth, depth, seconds, seed
                )
        finally:
            if temporary:
                _drop(gallery, name)
    return found


def _measure(
    gallery: Gallery,
    name: str,
    spec: IndexSpec,
    ids: np.ndarray,
    vectors: np.ndarray,
    chosen: np.ndarray,
    kth: np.ndarray,
    depth: int,
    build_seconds: float,
    seed: int,
) -> IndexPoint:
    def search(i: int) -> np.ndarray:
        # One more, since the query finds itself.
        answer = gallery.vectors.search(
            name, vectors[i : i + 1], depth + 1, search_params=spec.search
        )
        return answer[0][0]

    for i in chosen[:5]:
        search(i)  # caches and connections warm up
    recall, seconds = np.empty(len(chosen)), np.empty(len(chosen))
    for row, i in enumerate(chosen):
        start = time.perf_counter()
        hits = search(i)
        seconds[row] = time.perf_counter() - start
        hits = np.searchsorted(ids, hits[hits != ids[i]][:depth])
        scores = ranking.cosine(vectors[i], vectors[hits])
        recall[row] = np.count_nonzero(scores >= kth[row] - TOLERANCE) / depth
    weights = statistics.bootstrap_weights(len(chosen), 1000, seed)
    low, high = statistics.interval(statistics.weighted_means(weights, recall))
    median, p95 = np.percentile(seconds * 1000, [50, 95])
    return IndexPoint(
        str(spec), depth, float(recall.mean()), float(low), float(high), len(chosen),
        float(median), float(p95), build_seconds, len(ids),
    )  # fmt: skip


def _drop(gallery: Gallery, name: str) -> None:
    try:
        gallery.vectors.drop(name)
    except CollectionNotFound:
        return  # it was never made
