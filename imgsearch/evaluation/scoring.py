"""Scores of rankings: per query, per class, micro and macro means with intervals.

Scores are computed in *views*. A view is a set of classes; labels of other classes are
ignored. The view ``all`` contains every class, the view of a group the classes of that group
(such as ``without person``), and each class has its own view. The queries of a view are those
that show an object, not difficult, of one of its classes.

- A *micro* score is the mean over the queries of ``all``, or of a group.
- The score of a class is the mean over the queries of its own view.
- A *macro* score is the mean of the scores of the classes.

Queries without a relevant item in the gallery are excluded from all means and counted in
``without_relevant``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from imgsearch.errors import ConfigError
from imgsearch.evaluation import metrics, ranking, relevance, statistics
from imgsearch.evaluation.ranking import Block
from imgsearch.evaluation.relevance import Counts, Judge, Labels

KS = (1, 5, 10, 100)
"""Default depths of P@k, R@k and nDCG@k."""

LEVELS = tuple(i / 100 for i in range(101))
"""Recall levels of the precision-recall curves; every tenth is one of the 11 points."""

NEIGHBOURS = 20
"""Number of nearest neighbours that are stored for each query."""

ALL = "all"
"""Name of the view that contains every class."""

T, R = TypeVar("T"), TypeVar("R")


@dataclass(frozen=True, eq=False)
class Task:
    """Images with vectors and labels, of which some are queries and some the gallery.

    Created by :func:`task`, which validates and sorts its arguments, or by :func:`prepare`
    from a collection and a dataset.

    Attributes
    ----------
    ids : ndarray of int64, shape (n,)
        Image ids, ascending.
    names, paths, vectors, classes, groups, about
        As for :func:`task`, in the order of `ids`.
    labels : Labels
        Classes of the n images, as bits.
    queries, gallery : ndarray of int64
        Indices of images, ascending.
    """

    ids: np.ndarray
    names: tuple[str, ...]
    paths: tuple[str, ...]
    vectors: np.ndarray
    labels: Labels
    queries: np.ndarray
    gallery: np.ndarray
    classes: tuple[str, ...]
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    about: dict = field(default_factory=dict)

    @cached_property
    def skip(self) -> np.ndarray:
        """Positions of each query and its copies in the gallery, int64 (q, 2)."""
        return ranking.copies(self.ids[self.queries], self.ids[self.gallery])

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the ground truth: names, labels, queries and gallery, not vectors."""
        digest = hashlib.sha256("\n".join(self.names + self.classes).encode())
        labels = self.labels
        parts = (labels.present, labels.shown, labels.unjudged, labels.unpooled)
        known = [part for part in parts if part is not None]
        for part in (self.ids, *known, self.queries, self.gallery):
            digest.update(b"\0" + np.ascontiguousarray(part).astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def masks(self) -> dict[str, int]:
        """Classes of each view, as bits."""
        bit = {name: 1 << column for column, name in enumerate(self.classes)}
        groups = {name: sum(bit[c] for c in set(some)) for name, some in self.groups.items()}
        return {ALL: (1 << len(bit)) - 1} | groups | bit

    def mask(self, view: str) -> int:
        """Return the classes of a view, as bits.

        Parameters
        ----------
        view : str
            ``all``, a group or a class.

        Returns
        -------
        int

        Raises
        ------
        ConfigError
            There is no such view.
        """
        _require_known("view", view, self.masks)
        return self.masks[view]

    def ranked(self, *, block_bytes: int = ranking.BLOCK_BYTES) -> Iterator[Callable[[], Block]]:
        """Rank the gallery for each query, exactly and to full depth.

        Parameters
        ----------
        block_bytes : int
            Memory for the scores of one block, in bytes; does not affect results.

        Yields
        ------
        callable
            Computes the rankings of one block of queries. May be called in parallel threads.
        """
        yield from ranking.exact(
            self.vectors[self.queries],
            self.vectors[self.gallery],
            self.skip,
            block_bytes=block_bytes,
        )

    def permuted(self, seed: int = 0) -> Task:
        """Permute the labels among the labelled images, as a control.

        The vectors are then independent of the labels, so that scores must drop to those of a
        random ranking.

        Parameters
        ----------
        seed : int
            Seed of the permutation.

        Returns
        -------
        Task
        """
        labelled = np.flatnonzero(self.labels.present)
        source = np.arange(len(self.ids))
        source[labelled] = np.random.default_rng(seed).permutation(labelled)
        about = self.about | {"labels": f"permuted with seed {seed}"}
        return replace(self, labels=self.labels[source], about=about)


def task(
    ids: np.ndarray,
    vectors: np.ndarray,
    present: np.ndarray,
    difficult: np.ndarray | None = None,
    *,
    unjudged: np.ndarray | None = None,
    unpooled: np.ndarray | None = None,
    classes: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,
    names: Sequence[str] = (),
    paths: Sequence[str] = (),
    queries: np.ndarray | None = None,
    gallery: np.ndarray | None = None,
    about: dict | None = None,
) -> Task:
    """Create a task from arrays; by default leave-one-out over all images.

    Parameters
    ----------
    ids : ndarray of int, shape (n,)
        Image ids; byte-identical files have equal ids. Equal scores rank by id, then by name.
    vectors : ndarray of float, shape (n, d)
        Not necessarily normalised, but not zero.
    present, difficult : ndarray of bool, shape (n, c)
        Classes of each image; see :meth:`imgsearch.datasets.Dataset.labels`.
    unjudged, unpooled : ndarray of bool, shape (n, c), optional
        Whether an image was not judged for a class, and whether it was not even in the pool
        for judging; pass both or neither. By default every image was judged.
    classes : sequence of str
        Names of the columns of `present`, at most 63.
    groups : mapping of str to sequence of str, optional
        Groups of classes, by name, for which combined scores are reported as well.
    names : sequence of str
        Unique names of the images; by default their ids.
    paths : sequence of str
        Paths of the image files, for figures of the best and worst queries.
    queries, gallery : ndarray of bool, shape (n,), optional
        Which images are queries, and which are searched; by default all.
    about : dict, optional
        What is needed to repeat the evaluation, such as collection, encoder, dataset and
        protocol; it is included in every report.

    Returns
    -------
    Task

    Raises
    ------
    ConfigError
        Shapes do not match, names are not unique, or there is no query or no gallery.
    """
    n = len(ids)
    names = tuple(names) or tuple(map(str, ids))
    queries, gallery = (
        np.ones(n, bool) if some is None else np.asarray(some) for some in (queries, gallery)
    )
    for what, size in [
        ("vectors", len(vectors)), ("present", len(present)), ("names", len(names)),
        ("queries", len(queries)), ("gallery", len(gallery)), ("paths", len(paths) or n),
    ]:  # fmt: skip
        if size != n:
            raise ConfigError(what, f"there are {size}, but {n} ids")
    if len(set(names)) != n:
        raise ConfigError("names", "must be unique; if ids occur twice, pass names")
    if present.ndim != 2 or present.shape[1] != len(classes):
        raise ConfigError(
            "present", f"has shape {present.shape}, but there are {len(classes)} classes"
        )
    if ALL in classes:
        raise ConfigError("classes", f"{ALL!r} stands for all of them: rename the one of this name")
    groups = {name: tuple(some) for name, some in (groups or {}).items()}
    for name, some in groups.items():
        unknown = set(some) - set(classes)
        if unknown or not some or name in (ALL, *classes):
            reason = f"{name!r} must differ from all classes and contain existing ones: {some}"
            raise ConfigError("groups", reason)
    for what, some in (("queries", queries), ("gallery", gallery)):
        if not some.any():
            raise ConfigError(what, "is empty: there is nothing to evaluate")
    order = np.array(sorted(range(n), key=lambda i: (int(ids[i]), names[i])))
    return Task(
        np.asarray(ids, np.int64)[order],
        tuple(names[i] for i in order),
        tuple(str(paths[i]) for i in order) if paths else ("",) * n,
        np.asarray(vectors)[order],
        Labels.of(present, difficult, unjudged, unpooled)[order],
        np.flatnonzero(queries[order]),
        np.flatnonzero(gallery[order]),
        tuple(classes),
        groups,
        dict(about or {}),
    )


class View:
    """Scores of the queries of a view that have a relevant item.

    `rows` are their v indices among the task's queries; `without_relevant` is the number of other
    queries. `values` contains each metric of each query (``AP``, ``RR``, ``P@5``), float64 (v,),
    and `baseline` its expectation in random order. `curves` is the interpolated precision at
    :data:`LEVELS`, `curve` its mean, and `curve_baseline` that of simulated random rankings.
    """

    def __init__(self, mask: int, rows: np.ndarray, counts: Counts, ks: Sequence[int], seed: int):
        some = counts.relevant > 0
        self.without_relevant = int(np.count_nonzero(~some))
        self.rows, self.counts, self._mask = rows[some], counts.of(some), mask
        self._metrics = metrics.at_depths(ks)
        self.values = {name: np.empty(len(self.rows)) for name in self._metrics}
        self.baseline = {name: one.baseline(self.counts) for name, one in self._metrics.items()}
        self.curves = np.empty((len(self.rows), len(LEVELS)), np.float32)
        self.curve_baseline = metrics.simulated_interpolated_precision(
            self.counts, LEVELS, seed=seed
        )

    @property
    def curve(self) -> np.ndarray:
        # Sum in float64, so that the mean does not depend on the size of blocks.
        return self.curves.sum(axis=0, dtype=np.float64) / max(1, len(self.curves))

    def score(self, judge: Judge, start: int, stop: int, places: Labels, queries: Labels) -> None:
        """Fill in the scores of the queries from `start` to `stop`."""
        part = slice(*np.searchsorted(self.rows, [start, stop]))
        rows = self.rows[part]
        found = metrics.ranks(*judge.verdicts(places[rows - start], queries[rows], self._mask))
        counts = self.counts.of(part)
        for name, metric in self._metrics.items():
            self.values[name][part] = metric.value(found, counts)
        self.curves[part] = metrics.interpolated_precision(found, counts.relevant, LEVELS)


class Score(NamedTuple):
    """One mean with its interval and its baseline.

    Attributes
    ----------
    average : str
        ``micro`` or ``macro``, possibly with the name of a group (``micro without person``),
        or a class.
    metric : str
        ``mAP``, ``mAP@R``, ``MRR``, ``Rprec``, ``bpref``, ``infAP``, ``P@k``, ``R@k`` or
        ``nDCG@k``.
    value : float
        The mean.
    low, high : float
        95 % bootstrap interval over queries.
    baseline : float
        Exact expectation in random order.
    queries : int
        Number of queries in the mean; for macro, number of pairs of a query and a class.
    without_relevant : int
        Number of queries (or pairs) that are excluded because they have no relevant item.
    relevant : float
        Mean number of relevant items of the included queries.
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


class Neighbour(NamedTuple):
    """One neighbour of a :class:`Case`."""

    rank: int
    name: str
    image_id: int
    path: str
    score: float
    relevant: bool
    classes: tuple[str, ...]


class Case(NamedTuple):
    """A query with its nearest neighbours, best first and without junk, for inspection.

    `value` is the metric by which it was selected, `relevant` the number of relevant items in
    the gallery. Classes of difficult objects are omitted. Paths are empty if there is no file.
    """

    name: str
    image_id: int
    path: str
    value: float
    relevant: int
    classes: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of one ranking, returned by :func:`evaluate`.

    Attributes
    ----------
    task : Task
        The images, queries and labels.
    about : dict
        What is needed to repeat the evaluation.
    views : dict of str to View
        Scores in the view ``all``, and in those of every group and class that has a query.
    neighbours : ndarray of int32, shape (q, 20)
        Indices of the nearest images, without junk, padded with -1.
    neighbour_scores : ndarray of float64, shape (q, 20)
        Their cosine similarities.
    unlabelled : int
        Number of queries that show no objects, or only difficult ones; they are in no view.
    """

    task: Task
    about: dict
    views: dict[str, View]
    neighbours: np.ndarray
    neighbour_scores: np.ndarray
    unlabelled: int

    def __repr__(self) -> str:
        return "\n".join([f"<Evaluation: {self._extent()}>", *headline_lines(self.headline())])

    def _repr_html_(self) -> str:
        """The mean scores that say most, for a notebook."""
        import pandas as pd

        rows = self.headline()
        table = pd.DataFrame(rows, columns=["metric", "mean", "in random order", "meaning"])
        table["mean"] = [f"{r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f})" for r in rows]
        table["in random order"] = [f"{r['baseline']:.3f}" for r in rows]
        shown = table.to_html(index=False)
        return f"<p>{self._extent()}; means with 95 % confidence intervals</p>{shown}"

    def _extent(self) -> str:
        return f"{len(self.task.queries):,} queries in {len(self.task.gallery):,} images"

    @cached_property
    def metrics(self) -> dict[str, str]:
        """Name of each mean (``mAP``), mapped to that of its value for one query (``AP``)."""
        known = metrics.at_depths(self.about["ks"])
        return {known[name].mean: name for name in self.views[ALL].values}

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes with at least one query that has a relevant item."""
        return tuple(c for c in self.task.classes if c in self.views and len(self.views[c].rows))

    @cached_property
    def _samples(self) -> dict[str, np.ndarray]:
        """Bootstrap means of every view, (resamples, metrics)."""
        resamples, seed = self.about["resamples"], self.about["seed"]
        weights = statistics.bootstrap_weights(len(self.task.queries), resamples, seed)
        return {
            name: statistics.weighted_means(
                weights[:, view.rows], np.stack(list(view.values.values()), axis=1)
            )
            for name, view in self.views.items()
            if len(view.rows)
        }

    def summary(self) -> list[Score]:
        """Return micro and macro scores of every metric, over all classes and each group."""
        means = {"micro": [ALL], **{f"micro {name}": [name] for name in self.task.groups}}
        means["macro"] = list(self.classes)
        for name, group in self.task.groups.items():
            some = [c for c in self.classes if c in group]
            if len(some) < len(self.classes):
                means[f"macro {name}"] = some
        return [
            score
            for average, views in means.items()
            if self._samples.keys() & views
            for score in self._scores(average, views)
        ]

    def headline(self) -> list[dict]:
        """Return the means over all queries that say most.

        Returns
        -------
        list of dict
            The fields of a :class:`Score`, and its ``meaning`` in words.
        """
        depths = [int(name[2:]) for name in self.metrics if name.startswith("P@")]
        first, page = min(depths), 10 if 10 in depths else max(depths)
        among = "share of relevant images among the first {} results".format
        meanings = {
            "mAP": "precision averaged over the ranks of all relevant images; 1 if they come first",
            "MRR": "1 / rank of the first relevant image",
            f"P@{first}": among(first) if first > 1 else "share of first results that are relevant",
            f"P@{page}": among(page),
            f"R@{page}": f"share of the relevant images that are among the first {page} results",
            f"nDCG@{page}": f"as P@{page}, with earlier ranks counting more; 1 in the best order",
        }
        scores = {s.metric: s._asdict() for s in self.summary() if s.average == "micro"}
        return [scores[m] | {"meaning": text} for m, text in meanings.items() if m in scores]

    def per_class(self, metric: str = "mAP") -> list[Score]:
        """Return the scores of one metric for each class that has queries.

        Parameters
        ----------
        metric : str
            One of :attr:`metrics`.

        Returns
        -------
        list of Score
            In the order of the task's classes.

        Raises
        ------
        ConfigError
            The metric is unknown.
        """
        _require_known("metric", metric, self.metrics)
        return [score for score in self._class_scores if score.metric == metric]

    @cached_property
    def _class_scores(self) -> list[Score]:
        return [score for name in self.classes for score in self._scores(name, [name])]

    def _scores(self, average: str, names: list[str]) -> list[Score]:
        """Average over the queries of each view, and then over the views."""
        views = [self.views[name] for name in names]
        samples = np.stack([self._samples[name] for name in names])
        number = np.count_nonzero(~np.isnan(samples), axis=0)
        means = statistics.ratio(np.nansum(samples, axis=0), number, empty=np.nan)
        low, high = statistics.interval(means)
        return [
            Score(
                average,
                mean,
                float(np.mean([v.values[metric].mean() for v in views])),
                float(low[i]),
                float(high[i]),
                float(np.mean([v.baseline[metric].mean() for v in views])),
                sum(len(v.rows) for v in views),
                sum(v.without_relevant for v in views),
                float(np.concatenate([v.counts.relevant for v in views]).mean()),
            )
            for i, (mean, metric) in enumerate(self.metrics.items())
        ]

    def confusion(self, k: int = 1) -> np.ndarray:
        """Return the confusion matrix of the classes of queries and nearest neighbours.

        Parameters
        ----------
        k : int
            Number of neighbours of each query, at most 20.

        Returns
        -------
        ndarray of float64, shape (c, c)
            Rows are classes of queries, columns classes of neighbours. The value is the share
            of neighbours that show the column's class among the k neighbours of all queries
            that show the row's class, without difficult objects. Images may show several
            classes, so rows need not add up to 1. Rows without a query are NaN.

        Raises
        ------
        ConfigError
            `k` is not from 1 to 20.
        """
        if not 1 <= k <= NEIGHBOURS:
            raise ConfigError("k", f"must be from 1 to {NEIGHBOURS}, not {k}")
        near = self.neighbours[:, :k]
        pairs = (near >= 0).astype(float)
        present, classes = self.task.labels.present, self.task.classes
        shown = _indicators(present[near], classes) * pairs[..., None]
        own = _indicators(present[self.task.queries], classes)
        total = own.T @ pairs.sum(axis=1)
        return statistics.ratio(own.T @ shown.sum(axis=1), total[:, None], empty=np.nan)

    def cases(
        self, n: int = 8, *, worst: bool = False, view: str = ALL, metric: str = "AP", k: int = 5
    ) -> list[Case]:
        """Return the queries with the best or the worst values of a metric.

        Parameters
        ----------
        n : int
            Number of queries.
        worst : bool
            Whether to return the worst instead of the best.
        view : str
            One of :attr:`views`, which decides what is relevant.
        metric : str
            A metric of one query, such as ``AP``. Equal values rank by the query's name.
        k : int
            Number of neighbours of each query, at most 20.

        Returns
        -------
        list of Case

        Raises
        ------
        ConfigError
            The view or the metric is unknown.
        """
        _require_known("metric", metric, self.metrics.values())
        _require_known("view", view, self.views)
        task, chosen = self.task, self.views[view]
        values, queries = chosen.values[metric], task.queries[chosen.rows]
        sign = 1 if worst else -1
        order = sorted(range(len(values)), key=lambda i: (sign * values[i], task.names[queries[i]]))
        return [
            Case(
                task.names[queries[i]], int(task.ids[queries[i]]), task.paths[queries[i]],
                float(values[i]), int(chosen.counts.relevant[i]), self._class_names(queries[i]),
                self._neighbours(chosen.rows[i], task.mask(view), k),
            )
            for i in order[:n]
        ]  # fmt: skip

    def _neighbours(self, row: int, mask: int, k: int) -> tuple[Neighbour, ...]:
        task = self.task
        own = int(task.labels.present[task.queries[row]]) & mask
        nearest = zip(self.neighbours[row, :k], self.neighbour_scores[row, :k], strict=True)
        return tuple(
            Neighbour(
                rank, task.names[i], int(task.ids[i]), task.paths[i], float(score),
                bool(int(task.labels.present[i]) & own), self._class_names(i),
            )
            for rank, (i, score) in enumerate(nearest, 1)
            if i >= 0
        )  # fmt: skip

    def _class_names(self, i: int) -> tuple[str, ...]:
        bits = int(self.task.labels.present[i])
        return tuple(name for c, name in enumerate(self.task.classes) if bits >> c & 1)


def headline_lines(rows: Sequence[dict]) -> list[str]:
    """Format what :meth:`Evaluation.headline` returns for printing."""
    return [
        f"  {'':9}{'score':>5}  {'95 % interval':16}{'random order':14}meaning",
        *(
            f"  {row['metric']:9}{row['value']:.3f}  {row['low']:.3f} to {row['high']:.3f}  "
            f"{row['baseline']:<14.3f}{row['meaning']}"
            for row in rows
        ),
    ]


def evaluate(
    task: Task,
    blocks: Iterable[Block] | None = None,
    *,
    ks: Sequence[int] = KS,
    seed: int = 0,
    resamples: int = 1000,
) -> Evaluation:
    """Score a ranking of the gallery for each query.

    Parameters
    ----------
    task : Task
        The images, queries and labels.
    blocks : iterable of Block, optional
        Rankings of all queries in order. By default they are exact and of full depth, and so
        measure the quality of the embedding. Relevant items below the depth of a shallower
        ranking count as missed.
    ks : sequence of int
        Depths of P@k, R@k and nDCG@k.
    seed : int
        Seed of the bootstrap and of the simulated curves.
    resamples : int
        Number of bootstrap samples.

    Returns
    -------
    Evaluation

    Raises
    ------
    ConfigError
        A value of `ks` is not positive, or the blocks do not cover the queries.
    """
    ks = tuple(sorted({int(k) for k in ks}))
    if not ks or ks[0] < 1:
        raise ConfigError("ks", f"must be whole numbers of at least 1, not {list(ks)}")
    if resamples < 1:
        raise ConfigError("resamples", f"must be at least 1, not {resamples}")
    queries, gallery = task.labels[task.queries], task.labels[task.gallery]
    judge = Judge(gallery)
    views = {}
    for name, mask in task.masks.items():
        rows = relevance.members(queries, mask)
        if len(rows) or name == ALL:
            counts = relevance.count(queries[rows], gallery, task.skip[rows], mask)
            views[name] = View(mask, rows, counts, ks, seed)
    neighbours = np.full((len(task.queries), NEIGHBOURS), -1, np.int32)
    scores = np.zeros(neighbours.shape)

    def score(make: Callable[[], Block]) -> tuple[int, int]:
        block = make()
        start, stop = block.start, block.start + len(block.order)
        if stop > len(task.queries):
            raise ConfigError(
                "blocks", f"extend to {stop}, but there are {len(task.queries)} queries"
            )
        places = judge.places(block.order)
        for view in views.values():
            view.score(judge, start, stop, places, queries)
        junk = judge.verdicts(places, queries[start:stop], task.masks[ALL]).junk
        for row, out in enumerate(junk):
            nearest = np.flatnonzero(~out)[:NEIGHBOURS]
            neighbours[start + row, : len(nearest)] = block.order[row, nearest]
            scores[start + row, : len(nearest)] = block.scores(row, nearest)
        return start, stop

    done = 0
    makers = task.ranked() if blocks is None else ((lambda b=block: b) for block in blocks)
    for start, stop in _in_threads(score, makers):
        if start != done:
            raise ConfigError("blocks", f"must be in order: query {done} is next, not {start}")
        done = stop
    if done != len(task.queries):
        raise ConfigError("blocks", f"cover only {done} of {len(task.queries)} queries")
    return Evaluation(
        task=task,
        about=task.about
        | {
            "truth": task.fingerprint,
            "ks": list(ks),
            "seed": seed,
            "resamples": resamples,
            "ranking": "exact, full depth" if blocks is None else "given as blocks",
        },
        views=views,
        neighbours=np.where(neighbours >= 0, task.gallery[neighbours], -1).astype(np.int32),
        neighbour_scores=scores,
        unlabelled=int(np.count_nonzero(queries.present == 0)),
    )


def _indicators(bits: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    one = bits.dtype.type(1)
    return (bits[..., None] >> np.arange(len(classes), dtype=bits.dtype) & one).astype(float)


def _require_known(what: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise ConfigError(what, f"{name!r} is unknown; use one of {', '.join(names)}")


def _in_threads(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Map in threads, in order, with one item per core at a time; NumPy releases the GIL."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores of this container
    workers = len(affinity(0)) if affinity else os.cpu_count() or 1
    items = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(items, workers)):
            yield from pool.map(call, some)
