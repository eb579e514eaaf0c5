"""Collections on PASCAL VOC: protocols, rankings exact and as served, quality of indexes.

Two things are measured and never mixed: how good the *embedding* is (figures of a
ranking against labels, :func:`exact` and :func:`as_served`), and how much of the
exact ranking an *index* finds (:func:`sweep`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from imgsearch.datasets.voc import CLASSES, Voc
from imgsearch.errors import CollectionNotFound, ConfigError, DatasetError
from imgsearch.evaluation import ranking, scoring, statistics
from imgsearch.evaluation.scoring import Evaluation, Task
from imgsearch.stores.vectors import IndexSpec

if TYPE_CHECKING:
    from imgsearch.gallery import Gallery

TOLERANCE = 1e-6
"""An index's hit whose exact score is at most this far below that of the exact k-th
counts as found: float32 scores of one pair differ by about as much between programs."""

_LEAVE_ONE_OUT = "leave-one-out"


@dataclass(frozen=True)
class Protocol:
    """Which images are queries, and which are searched.

    Attributes
    ----------
    gallery, query : str
        Image sets of ``ImageSets/Main``. The same set twice is leave-one-out: each
        image in turn is the query, and the others the gallery. In either case
        a query's own id is never in its ranking, nor so a byte-identical copy.
    distractors : bool
        Whether images of the collection that are in no set of ``Main`` are
        searched too. They are never relevant; where their own annotation (of
        another task, and not complete) shares a class with the query they are
        junk. What is not annotated in them counts against the ranking, so
        figures are a lower bound.
    """

    gallery: str = "train"
    query: str = "val"
    distractors: bool = False

    @classmethod
    def parse(cls, text: str, *, distractors: bool = False) -> Protocol:
        """Read ``train -> val`` (gallery, then queries) or ``leave-one-out trainval``.

        Parameters
        ----------
        text : str
        distractors : bool

        Returns
        -------
        Protocol

        Raises
        ------
        ConfigError
            The text has another form.
        """
        name = "([A-Za-z0-9_-]+)"
        if found := re.fullmatch(rf"{_LEAVE_ONE_OUT}[ :]+{name}", text.strip()):
            return cls(found[1], found[1], distractors)
        if found := re.fullmatch(rf"{name}\s*(?:->|→)\s*{name}", text.strip()):
            return cls(found[1], found[2], distractors)
        raise ConfigError(
            "protocol", f"{text[:60]!r} is none: 'train -> val' (gallery, then queries), or "
            f"'{_LEAVE_ONE_OUT} trainval'"
        )  # fmt: skip

    def __str__(self) -> str:
        text = (
            f"{_LEAVE_ONE_OUT} {self.gallery}"
            if self.gallery == self.query
            else f"{self.gallery} -> {self.query}"
        )
        return text + (", with distractors" if self.distractors else "")


def prepare(
    gallery: Gallery,
    voc: Voc,
    protocol: Protocol | str = "train -> val",
    *,
    classes: Sequence[str] = (),
    allow_missing: bool = False,
) -> Task:
    """Bring a collection and a dataset together.

    Parameters
    ----------
    gallery : Gallery
        An image of it is a VOC image if its path is in the dataset's ``JPEGImages``.
    voc : Voc
        Only sets of ``ImageSets/Main`` are ground truth.
    protocol : Protocol or str
        As :meth:`Protocol.parse` takes it.
    classes : sequence of str
        If given, only images count all of whose objects are of one class, and of
        one of these.
    allow_missing : bool
        Go on without the images that the collection does not hold. They are then
        counted in the reports, and are neither queries nor relevant.

    Returns
    -------
    Task

    Raises
    ------
    DatasetError
        The dataset is damaged, or the collection does not hold all its images.
    ConfigError
        The protocol is unknown.
    """
    if isinstance(protocol, str):
        protocol = Protocol.parse(protocol)
    searched, asked = voc.image_set(protocol.gallery), voc.image_set(protocol.query)
    wanted = tuple(dict.fromkeys(searched + asked))
    if classes:
        wanted = voc.single_label(wanted, classes)
    ids, vectors = gallery.embeddings()
    rows = gallery.metadata.by_id(gallery.name, ids.tolist())
    paths = [[row.path for row in rows.get(i, [])] for i in ids.tolist()]
    where = {
        name: (number, path)
        for number, some in enumerate(paths)
        for path in some
        if (name := voc.name_of(path)) is not None
    }
    here = [name for name in wanted if name in where]
    if not here or (len(here) < len(wanted) and not allow_missing):
        lost = [name for name in wanted if name not in where]
        raise DatasetError(
            voc.root / "JPEGImages",
            f"{len(lost)} of {len(wanted)} images of {protocol} are not in collection "
            f"{gallery.name!r} under this folder, the first is {lost[0] if lost else '(none)'}: "
            "ingest the folder"
            + (", or go on without them by allow_missing" if here else ", under this very path"),
        )
    present, difficult = voc.labels(here)
    numbers = [where[name][0] for name in here]
    files = [where[name][1] for name in here]
    others: list[int] = []
    if protocol.distractors:
        main = {name for part in voc.image_sets() for name in voc.image_set(part)}
        known = {number for name, (number, _) in where.items() if name in main}
        others = [number for number in range(len(ids)) if number not in known]
        shown = _shown(voc, [[voc.name_of(path) for path in paths[i]] for i in others])
        present = np.concatenate([present, np.zeros_like(shown)])
        difficult = np.concatenate([difficult, shown])
    in_gallery, in_queries = set(searched), set(asked)
    row = gallery.row
    return scoring.task(
        ids[numbers + others],
        vectors[numbers + others],
        present,
        difficult,
        names=here + [f"distractor-{ids[i]}" for i in others],
        paths=files + [paths[i][0] if paths[i] else "" for i in others],
        queries=np.array([n in in_queries for n in here] + [False] * len(others)),
        gallery=np.array([n in in_gallery for n in here] + [True] * len(others)),
        about={
            "collection": gallery.name,
            "encoder": row.encoder,
            "fingerprint": row.fingerprint,
            "identity": row.identity,
            "index": str(row.index),
            "dataset": voc.root.name,
            "protocol": str(protocol),
            "single_label_classes": list(classes),
            "distractors": len(others),
            "missing_images": len(wanted) - len(here),
        },
    )


def _shown(voc: Voc, names: list[list[str | None]]) -> np.ndarray:
    """Classes that annotations outside ``Main`` mention, bool (n, 20)."""
    annotated = {path.stem for path in (voc.root / "Annotations").glob("*.xml")}
    first = [next((n for n in some if n in annotated), None) for some in names]
    shown = np.zeros((len(names), len(CLASSES)), bool)
    rows = [i for i, name in enumerate(first) if name is not None]
    if rows:
        present, difficult = voc.labels([first[i] for i in rows])
        shown[rows] = present | difficult
    return shown


def exact(task: Task, *, ks: Sequence[int] = scoring.KS, seed: int = 0) -> Evaluation:
    """Evaluate the exact ranking of the whole gallery: the quality of the embedding.

    Parameters
    ----------
    task : Task
    ks : sequence of int
        Depths of P@k, R@k and nDCG@k.
    seed : int
        Of the intervals.

    Returns
    -------
    Evaluation
    """
    return scoring.evaluate(task, ks=ks, seed=seed, about={"ranking": "exact, full depth"})


def as_served(
    gallery: Gallery,
    task: Task,
    top_k: int = 100,
    *,
    search_params: dict | None = None,
    ks: Sequence[int] = scoring.KS,
    seed: int = 0,
) -> Evaluation:
    """Evaluate what the vector store answers: embedding, index and cut together.

    Parameters
    ----------
    gallery : Gallery
        That the task was prepared from.
    task : Task
    top_k : int
        How many hits are asked for. Hits that are not in the protocol's gallery
        are out of the ranking, so that fewer may remain; relevant items beyond
        count as missed.
    search_params : dict, optional
        Of the index, such as ``{"ef": 64}``.
    ks, seed
        As in :func:`exact`.

    Returns
    -------
    Evaluation

    Raises
    ------
    StoreError
        The store failed.
    """
    answers = gallery.vectors.search(
        gallery.name, task.vectors[task.queries], top_k, search_params=search_params
    )
    block = ranking.served(answers, task.ids[task.queries], task.ids[task.gallery])
    depth = float((block.order >= 0).sum(axis=1).mean())
    return scoring.evaluate(
        task,
        [block],
        ks=ks,
        seed=seed,
        about={
            "ranking": f"as served by {gallery.row.index}, to top_k {top_k}",
            "top_k": top_k,
            "search_params": search_params or {},
            "mean_depth": depth,
        },
    )


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
    indexes: Sequence[str],
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
