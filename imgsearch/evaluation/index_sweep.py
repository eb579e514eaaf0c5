"""Recall and latency of Milvus indexes, compared with exact search over the same vectors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import groupby
from pathlib import Path
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
"""A hit belongs to the exact top k if its exact score is at most this far below the k-th one:
float32 scores of the same pair differ by about as much between programs."""

# The names of temporary collections identify machine and process, so that the next sweep on the
# same machine drops what a killed process left behind.
_TEMPORARY = re.compile(r"\w+_sweep_([0-9a-f]{8})_([0-9]+)_[0-9a-f]{8}")


class IndexPoint(NamedTuple):
    """Recall and latency of one index with one set of parameters.

    Attributes
    ----------
    collection : str
        Name of the collection whose vectors were searched.
    index : str
        The index as in ``IMGSEARCH_INDEX``, with all parameters.
    k : int
        Depth of recall: the given one, or the number of vectors without the query if smaller.
    recall : float
        Mean over queries of the share of the first k hits that belong to the exact top k.
        The denominator is k. A hit whose exact score equals that of the exact k-th to within
        1e-6 belongs to the top k.
    low, high : float
        95 % bootstrap interval over queries.
    queries : int
        Number of queries.
    median_ms, p95_ms : float
        Latency of a search with one vector, in milliseconds; searches run one after another.
    build_seconds : float
        Time for writing, indexing and loading all vectors; 0 for the collection's own index.
    vectors : int
        Number of vectors in the collection.
    """

    collection: str
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
    indexes: str | Sequence[str] = SWEEP,
    *,
    k: int = 10,
    queries: int = 200,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[IndexPoint]:
    """Measure recall and latency of indexes over the vectors of a collection.

    Indexes with other build parameters than the collection's own are built in a temporary
    collection, which is dropped at the end, even after a failure. Temporary collections that
    killed processes of this machine left behind are dropped at the beginning.

    Parameters
    ----------
    gallery : Gallery
        The collection. Its vectors are indexed, and a sample of them are the queries. A
        query's own vector is left out of both rankings.
    indexes : str or sequence of str
        Such as ``FLAT`` or ``HNSW:M=16,efConstruction=200,ef=32``. Milvus requires `ef` to
        be at least the number of hits, so the store raises it if necessary. Consecutive
        indexes that differ only in search parameters share one temporary collection.
    k : int
        Depth of recall.
    queries : int
        Number of queries, at most the number of vectors.
    seed : int
        Seed of the sample and of the intervals.
    progress : callable, optional
        Called with a line of text for each index. If it raises an exception, the sweep stops.

    Returns
    -------
    list of IndexPoint
        In the order of `indexes`.

    Raises
    ------
    ConfigError
        An index is unknown, `k` or `queries` is below 1, or there are fewer than two
        vectors.
    StoreError
        The store failed.
    """
    embedded = gallery.settings.embedded_vectors
    indexes = [indexes] if isinstance(indexes, str) else indexes
    specs = [IndexSpec.parse(text, embedded) for text in indexes]
    if k < 1 or queries < 1:
        raise ConfigError("sweep", f"k={k} and queries={queries} must be at least 1")
    sample = _Sample(gallery, k, queries, seed)
    drop_abandoned(gallery)
    own = IndexSpec.parse(gallery.row.index)
    points = []
    for build, group in groupby(specs, key=lambda spec: (spec.kind, spec.params)):
        same = list(group)
        if build == (own.kind, own.params):
            collection = nullcontext((gallery.name, 0.0))
        else:
            collection = _temporary(sample, same[0])
        with collection as (name, seconds):
            for spec in same:
                if progress is not None:
                    progress(f"{spec}: {len(sample.chosen)} queries")
                points.append(sample.measure(name, spec, seconds))
    return points


def drop_abandoned(gallery: Gallery) -> None:
    """Drop the temporary collections of processes of this machine that no longer run."""
    for name in gallery.vectors.collections():
        found = _TEMPORARY.fullmatch(name)
        if found and found[1] == _machine() and not _running(int(found[2])):
            with suppress(CollectionNotFound):  # another sweep dropped it in the meantime
                if "sweep" in (gallery.vectors.about(name) or {}):
                    gallery.vectors.drop(name)


class _Sample:
    """A random sample of queries, with the exact score of the k-th neighbour of each."""

    def __init__(self, gallery: Gallery, k: int, queries: int, seed: int):
        self.gallery, self.seed = gallery, seed
        self.ids, self.vectors = ids, vectors = gallery.embeddings()
        if len(ids) < 2:
            raise ConfigError("sweep", f"collection {gallery.name!r} has fewer than two vectors")
        self.depth = min(k, len(ids) - 1)
        generator = np.random.default_rng(seed)
        self.chosen = np.sort(generator.choice(len(ids), min(queries, len(ids)), replace=False))
        skip = ranking.copies(ids[self.chosen], ids)
        blocks = (make() for make in ranking.exact(vectors[self.chosen], vectors, skip))
        last = self.depth - 1
        self.kth = np.concatenate([block.scores(slice(None), last) for block in blocks])

    def measure(self, name: str, spec: IndexSpec, build_seconds: float) -> IndexPoint:
        """Search with each query alone, in a collection that has the index."""

        def search(i: int) -> np.ndarray:
            # Fetch one hit more, because the query finds itself.
            answer = self.gallery.vectors.search(
                name, self.vectors[i : i + 1], self.depth + 1, search_params=spec.search
            )
            return answer[0][0]

        for i in self.chosen[:5]:
            search(i)  # fills caches and opens connections
        recall, seconds = np.empty(len(self.chosen)), np.empty(len(self.chosen))
        for row, i in enumerate(self.chosen):
            start = time.perf_counter()
            hits = search(i)
            seconds[row] = time.perf_counter() - start
            hits = np.searchsorted(self.ids, hits[hits != self.ids[i]][: self.depth])
            scores = ranking.cosine(self.vectors[i], self.vectors[hits])
            recall[row] = np.count_nonzero(scores >= self.kth[row] - TOLERANCE) / self.depth
        low, high = statistics.mean_interval(recall, 1000, self.seed)
        median, p95 = np.percentile(seconds * 1000, [50, 95])
        return IndexPoint(
            self.gallery.name, str(spec), self.depth, float(recall.mean()), low, high,
            len(self.chosen), float(median), float(p95), build_seconds, len(self.ids),
        )  # fmt: skip


@contextmanager
def _temporary(sample: _Sample, spec: IndexSpec) -> Iterator[tuple[str, float]]:
    """Yield the name of a temporary collection of the vectors and the seconds to build it."""
    gallery, host, pid = sample.gallery, socket.gethostname(), os.getpid()
    name = f"{gallery.name[:20]}_sweep_{_machine()}_{pid}_{secrets.token_hex(4)}"
    about = {"sweep": f"index sweep of {gallery.name}, process {pid} on host {host}"}
    start = time.perf_counter()
    try:
        gallery.vectors.create(name, gallery.row.dim, spec, description=json.dumps(about))
        gallery.vectors.upsert(name, sample.ids, sample.vectors)
        gallery.vectors.flush(name)
        gallery.vectors.search(name, sample.vectors[:1], 1)
        yield name, time.perf_counter() - start
    finally:
        with suppress(CollectionNotFound):  # it was never created
            gallery.vectors.drop(name)


def _machine() -> str:
    """Return eight hexadecimal digits that identify this boot of the machine or container."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # only Linux has these
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True
