"""From a ranking and labels to figures: per query, per class, micro and macro.

Figures are taken in *views*. A view is a set of classes that count, everything
else being invisible: in the view ``all`` every class counts, in ``without person``
every one but person, and there is a view of each class alone. A view's queries
are those that show one of its classes by an object that is not difficult.

- A *micro* figure is the mean over the queries of ``all`` or ``without person``.
- The figure of a class is the mean over the queries of its own view.
- A *macro* figure is the mean over classes of the figures of the classes.

Queries with no relevant item in the gallery enter no mean; they are counted in
``without_relevant``.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

import numpy as np

from imgsearch.datasets.voc import CLASSES
from imgsearch.errors import ConfigError
from imgsearch.evaluation import metrics, ranking, relevance, statistics
from imgsearch.evaluation.ranking import Block
from imgsearch.evaluation.relevance import Labels

KS = (1, 5, 10, 100)
"""Depths of P@k, R@k and nDCG@k."""

LEVELS = tuple(i / 100 for i in range(101))
"""Levels of recall of the precision-recall curves; every tenth is of the 11 points."""

NEIGHBOURS = 20
"""How many of a query's nearest neighbours are kept."""

T, R = TypeVar("T"), TypeVar("R")

ALL, PERSON = "all", "person"
WITHOUT = f"without {PERSON}"


@dataclass(frozen=True, eq=False)
class Task:
    """Images with vectors and labels, and which of them are queries and gallery.

    Make one with :func:`task`, which checks and sorts, or with
    :func:`imgsearch.evaluation.protocols.prepare` from a collection and a dataset.

    Attributes
    ----------
    ids : ndarray of int64, shape (n,)
        Ascending; equal ids are byte-identical files.
    names : tuple of str
        Unique.
    paths : tuple of str
        Empty where there are no files.
    vectors : ndarray of float32, shape (n, d)
    labels : Labels
        Of the n images.
    queries, gallery : ndarray of int64
        Numbers of images, ascending.
    classes : tuple of str
        What the bits of `labels` stand for.
    about : dict
        What is needed to repeat it: collection, encoder, dataset, protocol.
    """

    ids: np.ndarray
    names: tuple[str, ...]
    paths: tuple[str, ...]
    vectors: np.ndarray
    labels: Labels
    queries: np.ndarray
    gallery: np.ndarray
    classes: tuple[str, ...] = CLASSES
    about: dict = field(default_factory=dict)

    @cached_property
    def skip(self) -> np.ndarray:
        """Where each query and its copies are in the gallery, int64 (q, 2)."""
        return ranking.same(self.ids[self.queries], self.ids[self.gallery])

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the ground truth: names, labels, queries and gallery, not vectors."""
        digest = hashlib.sha256("\n".join(self.names + self.classes).encode())
        for part in (self.ids, self.labels.present, self.labels.shown, self.queries, self.gallery):
            digest.update(b"\0" + np.ascontiguousarray(part).astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def ranked(self, *, block_bytes: int = ranking.BLOCK_BYTES) -> Iterator[Callable[[], Block]]:
        """Rank the gallery for each query, exactly and to full depth.

        Parameters
        ----------
        block_bytes : int
            As in :func:`imgsearch.evaluation.ranking.exact`.

        Returns
        -------
        iterator of callable
            As :func:`imgsearch.evaluation.ranking.exact` yields them.
        """
        return ranking.exact(
            self.vectors[self.queries],
            self.vectors[self.gallery],
            self.skip,
            block_bytes=block_bytes,
        )

    def permuted(self, seed: int = 0) -> Task:
        """Deal the labels out anew among the labelled images: a control.

        Whatever the vectors know about the labels is gone, so that figures must
        fall to those of a random ranking.

        Parameters
        ----------
        seed : int
            Of the permutation.

        Returns
        -------
        Task
        """
        labelled = np.flatnonzero(self.labels.present)
        source = np.arange(len(self.ids))
        source[labelled] = np.random.default_rng(seed).permutation(labelled)
        return Task(
            self.ids, self.names, self.paths, self.vectors, self.labels[source], self.queries,
            self.gallery, self.classes, self.about | {"labels": f"permuted with seed {seed}"},
        )  # fmt: skip


def task(
    ids: np.ndarray,
    vectors: np.ndarray,
    present: np.ndarray,
    difficult: np.ndarray | None = None,
    *,
    names: Sequence[str] = (),
    paths: Sequence[str] = (),
    queries: np.ndarray | None = None,
    gallery: np.ndarray | None = None,
    classes: Sequence[str] = CLASSES,
    about: dict | None = None,
) -> Task:
    """Make a task of arrays; leave-one-out over all images if nothing else is said.

    Parameters
    ----------
    ids : ndarray of int, shape (n,)
        Equal ids are byte-identical files; ties rank by id, then by name.
    vectors : ndarray of float, shape (n, d)
        Of any length but zero.
    present, difficult : ndarray of bool, shape (n, c)
        As :meth:`imgsearch.datasets.voc.Voc.labels` returns them.
    names : sequence of str
        Unique; the ids if left out.
    paths : sequence of str
        Files, for galleries of failures.
    queries, gallery : ndarray of bool, shape (n,), optional
        Which images are queries, and which can be found; all if left out.
    classes : sequence of str
        Names of the columns of `present`.
    about : dict, optional
        Stands in every report.

    Returns
    -------
    Task

    Raises
    ------
    ConfigError
        Shapes do not fit, names are not unique, or there is no query or no gallery.
    """
    n = len(ids)
    names = tuple(names) or tuple(map(str, ids))
    everything = np.ones(n, bool)
    queries = everything if queries is None else np.asarray(queries)
    gallery = everything if gallery is None else np.asarray(gallery)
    for what, size in [
        ("vectors", len(vectors)), ("present", len(present)), ("names", len(names)),
        ("queries", len(queries)), ("gallery", len(gallery)), ("paths", len(paths) or n),
    ]:  # fmt: skip
        if size != n:
            raise ConfigError(what, f"{size} of them for {n} ids")
    if len(set(names)) != n:
        raise ConfigError("names", "must be unique; with copies among the ids, give names")
    if present.ndim != 2 or present.shape[1] != len(classes):
        raise ConfigError("present", f"has shape {present.shape} for {len(classes)} classes")
    for what, some in (("queries", queries), ("gallery", gallery)):
        if not some.any():
            raise ConfigError(what, "is empty: there is nothing to evaluate")
    order = np.array(sorted(range(n), key=lambda i: (int(ids[i]), names[i])))
    return Task(
        np.asarray(ids, np.int64)[order],
        tuple(names[i] for i in order),
        tuple(str(paths[i]) for i in order) if paths else (),
        np.asarray(vectors)[order],
        Labels.of(present, difficult)[order],
        np.flatnonzero(queries[order]),
        np.flatnonzero(gallery[order]),
        tuple(classes),
        dict(about or {}),
    )


@dataclass(frozen=True, eq=False)
class View:
    """Figures of the queries that show one of some classes.

    Attributes
    ----------
    name : str
        ``all``, ``without person`` or a class.
    rows : ndarray of int64, shape (v,)
        The view's queries with at least one relevant item, by number among the
        task's queries.
    without_relevant : int
        Further queries, which have none.
    relevant, candidates : ndarray of int64, shape (v,)
        R and N of each.
    values, baseline : dict of str to ndarray of float64, shape (v,)
        Each metric for each query, and its expectation in random order.
    curve, curve_baseline : ndarray of float64, shape (101,)
        Mean interpolated precision at :data:`LEVELS`, and the same of simulated
        random rankings, since that has no closed form.
    """

    name: str
    rows: np.ndarray
    without_relevant: int
    relevant: np.ndarray
    candidates: np.ndarray
    values: dict[str, np.ndarray]
    baseline: dict[str, np.ndarray]
    curve: np.ndarray
    curve_baseline: np.ndarray


class Figure(NamedTuple):
    """One mean with its interval and its baseline.

    Attributes
    ----------
    average : str
        ``micro``, ``micro without person``, ``macro``, ``macro without person``, or a class.
    metric : str
        ``mAP``, ``mAP@R``, ``MRR``, ``Rprec``, ``P@k``, ``R@k``, ``nDCG@k``.
    value : float
    low, high : float
        95 % bootstrap interval over queries.
    baseline : float
        Exact expectation in random order.
    queries : int
        Queries it is a mean over; for macro, pairs of a query and a class.
    without_relevant : int
        Queries (pairs) left out, since nothing in the gallery is relevant to them.
    relevant : float
        Mean number of relevant items of these queries.
    """

    average: str
    metric: str
    value: float
    low: float
    high: float
    baseline: float
    queries: int
    without_relevant: int
    relevant: float


class Case(NamedTuple):
    """A query with its nearest neighbours, for looking at.

    Attributes
    ----------
    name, path : str
        The query; `path` is empty where there are no files.
    value : float
        Of the metric that cases were chosen by.
    relevant : int
        R.
    classes : tuple of str
        Of the query, difficult ones left out.
    neighbours : tuple of Neighbour
        Best first, without junk.
    """

    name: str
    path: str
    value: float
    relevant: int
    classes: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]


class Neighbour(NamedTuple):
    """One neighbour of a :class:`Case`."""

    rank: int
    name: str
    path: str
    score: float
    relevant: bool
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All figures of one ranking.

    Attributes
    ----------
    task : Task
        What was ranked.
    about : dict
        What is needed to repeat it.
    views : dict of str to View
        ``all``, ``without person`` where person is a class, and every class with a query.
    neighbours : ndarray of int32, shape (q, 20)
        Nearest images, by number among the task's images, without junk; -1 for none.
    neighbour_scores : ndarray of float64, shape (q, 20)
    unlabelled : int
        Queries that show no class by an object that is not difficult; they are in no view.
    """

    task: Task
    about: dict
    views: dict[str, View]
    neighbours: np.ndarray
    neighbour_scores: np.ndarray
    unlabelled: int
    seed: int
    resamples: int

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(self.views[ALL].values)

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes with at least one query that has something relevant."""
        return tuple(c for c in self.task.classes if c in self.views and len(self.views[c].rows))

    @cached_property
    def _samples(self) -> dict[str, np.ndarray]:
        """Bootstrap means of every view, (resamples, metrics)."""
        weights = statistics.bootstrap_weights(len(self.task.queries), self.resamples, self.seed)
        return {
            name: statistics.weighted_means(
                weights[:, view.rows], np.stack(list(view.values.values()), axis=1)
            )
            for name, view in self.views.items()
            if len(view.rows)
        }

    def summary(self) -> list[Figure]:
        """Micro and macro figures of every metric, each with and without person.

        Returns
        -------
        list of Figure
        """
        found = []
        for view, average in ((ALL, "micro"), (WITHOUT, f"micro {WITHOUT}")):
            if view in self.views and len(self.views[view].rows):
                found += self._figures(average, [view])
        without = [c for c in self.classes if c != PERSON]
        if self.classes:
            found += self._figures("macro", list(self.classes))
        if without and without != list(self.classes):
            found += self._figures(f"macro {WITHOUT}", without)
        return found

    def per_class(self, metric: str = "mAP") -> list[Figure]:
        """One metric for each class, in the official order.

        Parameters
        ----------
        metric : str
            One of :attr:`metrics`.

        Returns
        -------
        list of Figure

        Raises
        ------
        ConfigError
            The metric is unknown.
        """
        self._check(metric)
        figures = (f for c in self.classes for f in self._figures(c, [c]))
        return [f for f in figures if f.metric == metric]

    def _figures(self, average: str, names: list[str]) -> list[Figure]:
        views = [self.views[name] for name in names]
        samples = np.stack([self._samples[name] for name in names])
        there = ~np.isnan(samples)
        sums = np.where(there, samples, 0).sum(axis=0)
        number = there.sum(axis=0)
        low, high = statistics.interval(
            np.divide(sums, number, out=np.full(sums.shape, np.nan), where=number > 0)
        )
        return [
            Figure(
                average,
                metric,
                float(np.mean([v.values[metric].mean() for v in views])),
                float(low[i]),
                float(high[i]),
                float(np.mean([v.baseline[metric].mean() for v in views])),
                sum(len(v.rows) for v in views),
                sum(v.without_relevant for v in views),
                float(np.concatenate([v.relevant for v in views]).mean()),
            )
            for i, metric in enumerate(self.metrics)
        ]

    def confusion(self, k: int = 1) -> np.ndarray:
        """Which classes the nearest neighbours of each class show.

        Parameters
        ----------
        k : int
            How many neighbours of each query, at most 20.

        Returns
        -------
        ndarray of float64, shape (c, c)
            Row: class of the query; column: class of the neighbour; value: share of
            the row's pairs of a query and one of its k neighbours in which the
            neighbour shows the column's class (not difficult). Images show several
            classes, so rows need not add up to 1. NaN in rows without a query.

        Raises
        ------
        ConfigError
            `k` is not from 1 to 20.
        """
        if not 1 <= k <= NEIGHBOURS:
            raise ConfigError("k", f"is {k}; from 1 to {NEIGHBOURS} neighbours are kept")
        near = self.neighbours[:, :k]
        pairs = (near >= 0).astype(float)
        shown = _indicators(self.task.labels.present[near], self.task.classes) * pairs[..., None]
        own = _indicators(self.task.labels.present[self.task.queries], self.task.classes)
        total = own.T @ pairs.sum(axis=1)
        sums = own.T @ shown.sum(axis=1)
        return np.divide(
            sums, total[:, None], out=np.full(sums.shape, np.nan), where=total[:, None] > 0
        )

    def cases(
        self, n: int = 8, *, worst: bool = False, view: str = ALL, metric: str = "mAP", k: int = 5
    ) -> list[Case]:
        """Show the queries that did best, or worst.

        Parameters
        ----------
        n : int
            How many.
        worst : bool
            The other end.
        view : str
            One of :attr:`views`; what is relevant is judged in it.
        metric : str
            One of :attr:`metrics`. Equal values rank by the query's name.
        k : int
            Neighbours of each, at most 20.

        Returns
        -------
        list of Case

        Raises
        ------
        ConfigError
            The view or the metric is unknown.
        """
        self._check(metric)
        mask = view_mask(self.task.classes, view)
        if view not in self.views:
            raise ConfigError("view", f"{view!r} has no query here")
        chosen = self.views[view]
        values = chosen.values[metric]
        names = [self.task.names[i] for i in self.task.queries[chosen.rows]]
        order = sorted(
            range(len(values)), key=lambda i: (values[i] * (1 - 2 * (not worst)), names[i])
        )
        return [
            self._case(int(chosen.rows[i]), values[i], int(chosen.relevant[i]), mask, k)
            for i in order[:n]
        ]

    def _case(self, row: int, value: float, relevant: int, mask: int, k: int) -> Case:
        task, query = self.task, int(self.task.queries[row])
        own = int(task.labels.present[query]) & mask
        neighbours = tuple(
            Neighbour(
                rank, task.names[i], self._path(i), float(score),
                bool(int(task.labels.present[i]) & own), self._shown(i),
            )
            for rank, (i, score) in enumerate(
                zip(self.neighbours[row, :k], self.neighbour_scores[row, :k], strict=True), 1
            )
            if i >= 0
        )  # fmt: skip
        return Case(
            task.names[query], self._path(query), float(value), relevant, self._shown(query),
            neighbours,
        )  # fmt: skip

    def _path(self, i: int) -> str:
        return self.task.paths[i] if self.task.paths else ""

    def _shown(self, i: int) -> tuple[str, ...]:
        bits = int(self.task.labels.present[i])
        return tuple(name for c, name in enumerate(self.task.classes) if bits >> c & 1)

    def _check(self, metric: str) -> None:
        if metric not in self.metrics:
            raise ConfigError("metric", f"{metric!r} is unknown: one of {', '.join(self.metrics)}")


def evaluate(
    task: Task,
    blocks: Iterable[Block] | None = None,
    *,
    ks: Sequence[int] = KS,
    seed: int = 0,
    resamples: int = 1000,
    about: dict | None = None,
) -> Evaluation:
    """Judge a ranking of each query.

    Parameters
    ----------
    task : Task
        Labels, queries and gallery.
    blocks : iterable of Block, optional
        Rankings of all queries in order; the exact one of full depth if left out.
        Relevant items that a shallower ranking does not reach count as missed.
    ks : sequence of int
        Depths of P@k, R@k and nDCG@k.
    seed : int
        Of the bootstrap and of the simulated curves.
    resamples : int
        Bootstrap samples.
    about : dict, optional
        Of the ranking, for reports.

    Returns
    -------
    Evaluation

    Raises
    ------
    ConfigError
        `ks` are not positive, or the blocks do not cover the queries.
    """
    ks = tuple(sorted({int(k) for k in ks}))
    if not ks or ks[0] < 1:
        raise ConfigError("ks", f"must be whole numbers of at least 1, not {list(ks)}")
    if resamples < 1:
        raise ConfigError("resamples", f"is {resamples}; at least 1 is needed")
    queries, gallery = task.labels[task.queries], task.labels[task.gallery]
    judge = relevance.Judge(gallery)
    parts = {}
    for name, mask in _views(task.classes).items():
        rows = relevance.members(queries, mask)
        if len(rows) or name == ALL:
            counts = relevance.count(queries[rows], gallery, task.skip[rows], mask)
            parts[name] = _Part(mask, rows, counts, ks)
    neighbours = np.full((len(task.queries), NEIGHBOURS), -1, np.int32)
    scores = np.zeros(neighbours.shape)

    def judged(make: Callable[[], Block]) -> tuple[int, int, dict[str, _Judged]]:
        block = make()
        stop = block.start + len(block.order)
        if stop > len(task.queries):
            raise ConfigError("blocks", f"go on to {stop}, past {len(task.queries)} queries")
        places = judge.places(block.order)
        results = {}
        for name, part in parts.items():
            results[name], junk = part.judged(block.start, stop, places, queries)
            if name == ALL:
                _keep(block, part.within(block.start, stop), junk, neighbours, scores)
        return block.start, stop, results

    done = 0
    makers = task.ranked() if blocks is None else (partial(_itself, block) for block in blocks)
    for start, stop, results in _in_threads(judged, makers):
        if start != done:
            raise ConfigError("blocks", f"query {done} is next, not {start}")
        done = stop
        for name, result in results.items():
            parts[name].add(result)
    if done != len(task.queries):
        raise ConfigError("blocks", f"end after {done} of {len(task.queries)} queries")
    return Evaluation(
        task=task,
        about=task.about
        | {"truth": task.fingerprint, "ks": list(ks), "seed": seed, "resamples": resamples}
        | (about or {"ranking": "exact"}),
        views={name: part.view(name, seed) for name, part in parts.items()},
        neighbours=np.where(neighbours >= 0, task.gallery[neighbours], -1).astype(np.int32),
        neighbour_scores=scores,
        unlabelled=len(task.queries) - len(parts[ALL].rows),
        seed=seed,
        resamples=resamples,
    )


def view_mask(classes: tuple[str, ...], view: str) -> int:
    """Give the classes that count in a view.

    Parameters
    ----------
    classes : tuple of str
        Of the task.
    view : str
        ``all``, ``without person`` or one of `classes`.

    Returns
    -------
    int
        As bits, in the order of `classes`.

    Raises
    ------
    ConfigError
        There is no such view.
    """
    views = _views(classes)
    if view not in views:
        raise ConfigError("view", f"{view!r} is unknown: take one of {', '.join(views)}")
    return views[view]


class _Judged(NamedTuple):
    """Figures of a view's queries in one block."""

    values: dict[str, np.ndarray]
    curves: np.ndarray  # float32 (rows, 101)


class _Part:
    """Collects a view, block by block."""

    def __init__(self, mask: int, rows: np.ndarray, counts: relevance.Counts, ks: tuple[int, ...]):
        self.mask, self.rows, self.counts, self.ks = mask, rows, counts, ks
        self._blocks: list[_Judged] = []

    def within(self, start: int, stop: int) -> np.ndarray:
        """Numbers of the view's queries in a block."""
        return self.rows[slice(*np.searchsorted(self.rows, [start, stop]))]

    def judged(
        self, start: int, stop: int, places: Labels, queries: Labels
    ) -> tuple[_Judged, np.ndarray]:
        """Judge a block; also returns its junk, bool (rows of the view in it, depth)."""
        first, last = np.searchsorted(self.rows, [start, stop])
        rows = self.rows[first:last]
        if len(rows) < stop - start:
            places = places[rows - start]
        gains, junk = relevance.Judge.gains(places, queries[rows], self.mask)
        found = metrics.ranks(gains, junk)
        counts = relevance.Counts(*(part[first:last] for part in self.counts))
        curve = metrics.interpolated_precision(found, counts.relevant, LEVELS)
        return _Judged(_values(found, counts, self.ks), curve.astype(np.float32)), junk

    def add(self, result: _Judged) -> None:
        """Take the next block's figures."""
        self._blocks.append(result)

    def view(self, name: str, seed: int) -> View:
        some = self.counts.relevant > 0
        counts = relevance.Counts(*(part[some] for part in self.counts))
        return View(
            name=name,
            rows=self.rows[some],
            without_relevant=int(np.count_nonzero(~some)),
            relevant=counts.relevant,
            candidates=counts.candidates,
            values={
                metric: np.concatenate([block.values[metric] for block in self._blocks])[some]
                for metric in self._blocks[0].values
            },
            baseline=_baseline(counts, self.ks),
            curve=_column_means(np.concatenate([b.curves for b in self._blocks])[some]),
            curve_baseline=metrics.simulated_interpolated_precision(
                counts.relevant, counts.candidates, LEVELS, seed=seed
            ),
        )


def _values(
    found: metrics.Ranks, counts: relevance.Counts, ks: tuple[int, ...]
) -> dict[str, np.ndarray]:
    r = counts.relevant
    return (
        {
            "mAP": metrics.average_precision(found, r),
            "mAP@R": metrics.average_precision_at_r(found, r),
            "MRR": metrics.reciprocal_rank(found),
            "Rprec": metrics.r_precision(found, r),
        }
        | {f"P@{k}": metrics.precision_at(found, k) for k in ks}
        | {f"R@{k}": metrics.recall_at(found, r, k) for k in ks}
        | {f"nDCG@{k}": metrics.ndcg_at(found, counts.at_least, k) for k in ks}
    )


def _baseline(counts: relevance.Counts, ks: tuple[int, ...]) -> dict[str, np.ndarray]:
    r, n = counts.relevant, counts.candidates
    return (
        {
            "mAP": metrics.expected_average_precision(r, n),
            "mAP@R": metrics.expected_average_precision(r, n, r),
            "MRR": metrics.expected_reciprocal_rank(r, n),
            "Rprec": metrics.expected_r_precision(r, n),
        }
        | {f"P@{k}": metrics.expected_precision_at(r, n, k) for k in ks}
        | {f"R@{k}": metrics.expected_recall_at(r, n, k) for k in ks}
        | {f"nDCG@{k}": metrics.expected_ndcg_at(counts.at_least, n, k) for k in ks}
    )


def _views(classes: tuple[str, ...]) -> dict[str, int]:
    """Name and bits of every view."""
    everything = (1 << len(classes)) - 1
    views = {ALL: everything}
    if PERSON in classes and len(classes) > 1:
        views[WITHOUT] = everything & ~(1 << classes.index(PERSON))
    return views | {name: 1 << c for c, name in enumerate(classes)}


def _keep(
    block: Block,
    rows: np.ndarray,
    junk: np.ndarray,
    neighbours: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Keep the first places that are not junk."""
    for row, out in zip(rows, junk, strict=True):
        places = np.flatnonzero(~out)[:NEIGHBOURS]
        neighbours[row, : len(places)] = block.order[row - block.start, places]
        scores[row, : len(places)] = block.scores(row - block.start, places)


def _indicators(bits: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    return (bits[..., None] >> np.arange(len(classes), dtype=np.uint32) & 1).astype(float)


def _column_means(curves: np.ndarray) -> np.ndarray:
    """Mean over queries, the same however they were cut into blocks."""
    return curves.sum(axis=0, dtype=np.float64) / max(1, len(curves))


def _itself(block: Block) -> Block:
    return block


def _in_threads(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Map in threads, in order, with no more than two items for each core in memory.

    Sorting and array arithmetic let go of Python's lock.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
