"""Comparison of two evaluations: which one is better, by how much, and on which classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from imgsearch.errors import ConfigError
from imgsearch.evaluation import statistics
from imgsearch.evaluation.scoring import ALL, Evaluation


class Difference(NamedTuple):
    """Difference of two evaluations on the queries of one view.

    `first` and `second` are means; `difference` is second minus first, with a 95 % bootstrap
    interval over queries from `low` to `high`. `p` is the p-value of the two-sided paired
    randomisation test; those of classes are adjusted by Holm's method. `effect_size` is
    Cohen's d for paired samples. `wins`, `losses` and `ties` count the queries on which the
    second evaluation is better, worse and equal (to within 1e-9).
    """

    view: str
    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    effect_size: float
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two evaluations of the same queries, returned by :func:`compare`.

    `overall` is their difference on the queries of the chosen view, and `classes` holds that on
    each class.
    """

    first: Evaluation
    second: Evaluation
    overall: Difference
    classes: tuple[Difference, ...]


def compare(
    first: Evaluation,
    second: Evaluation,
    *,
    metric: str = "mAP",
    view: str = ALL,
    draws: int = 10_000,
    seed: int = 0,
    resamples: int = 1000,
) -> Comparison:
    """Compare two evaluations query by query.

    Parameters
    ----------
    first, second : Evaluation
        Evaluations of the same images, labels, queries and gallery.
    metric : str
        One of their metrics.
    view : str
        ``all``, a group or a class.
    draws : int
        Number of random sign changes in the randomisation test.
    seed : int
        Seed of the test and of the bootstrap.
    resamples : int
        Number of bootstrap samples.

    Returns
    -------
    Comparison

    Raises
    ------
    ConfigError
        The evaluations differ in queries, labels or gallery, or lack the metric or the view.
    """
    if first.task.fingerprint != second.task.fingerprint:
        raise ConfigError(
            "comparison",
            "the two evaluations have different queries, labels or galleries "
            f"({first.task.fingerprint} and {second.task.fingerprint}): use the same protocol on "
            "collections that contain the same images",
        )
    for evaluation in (first, second):
        if metric not in evaluation.metrics or view not in evaluation.views:
            raise ConfigError("comparison", f"there is no {metric!r} in view {view!r} to compare")
    if not len(first.views[view].rows):
        raise ConfigError("comparison", f"view {view!r} has no query with a relevant item")
    name = first.metrics[metric]

    def difference(view: str) -> Difference:
        a, b = (e.views[view].values[name] for e in (first, second))
        changes = np.where(np.abs(b - a) > 1e-9, b - a, 0.0)
        return Difference(
            view,
            metric,
            *(float(values.mean()) for values in (a, b, b - a)),
            *statistics.mean_interval(b - a, resamples, seed),
            statistics.paired_randomisation(changes, draws, seed),
            statistics.effect_size(changes),
            *(int(some.sum()) for some in (changes > 0, changes < 0, changes == 0)),
        )

    classes = [difference(view) for view in first.classes]
    adjusted = statistics.holm(np.array([d.p for d in classes]))
    return Comparison(
        first,
        second,
        difference(view),
        tuple(d._replace(p=float(p)) for d, p in zip(classes, adjusted, strict=True)),
    )
