"""Comparing two evaluations of the same queries."""

from __future__ import annotations

import numpy as np
import pytest

from imgsearch.errors import ConfigError
from imgsearch.evaluation import scoring
from imgsearch.evaluation.comparison import compare
from tests.evaluation.test_scoring import CLASSES, random_task


def test_a_better_embedding_is_found_better_and_the_same_one_equal():
    task = random_task(signal=0.3)
    better = scoring.Task(**(vars(random_task(signal=3.0)) | {"about": {}}))
    assert task.fingerprint == better.fingerprint
    weak, strong = scoring.evaluate(task), scoring.evaluate(better)
    comparison = compare(weak, strong, draws=999)
    d = comparison.overall
    a, b = (e.views["all"].values["AP"] for e in (weak, strong))
    assert d.difference == pytest.approx((b - a).mean())
    assert 0 < d.low < d.difference < d.high
    assert d.p == 1 / 1000
    assert d.effect_size == pytest.approx((b - a).mean() / (b - a).std(ddof=1))
    wins, losses = (b - a > 1e-9).sum(), (a - b > 1e-9).sum()
    assert (d.wins, d.losses, d.ties) == (wins, losses, len(a) - wins - losses)
    assert [c.view for c in comparison.classes] == list(CLASSES)
    assert all(c.p >= 1 / 1000 for c in comparison.classes)
    back = compare(strong, weak, draws=999).overall
    assert back.difference == pytest.approx(-d.difference)
    assert (back.wins, back.losses) == (d.losses, d.wins)
    same = compare(weak, weak).overall
    assert (same.difference, same.p, same.effect_size, same.ties) == (0, 1, 0, len(a))


def test_different_ground_truths_are_not_compared():
    one, two = (scoring.evaluate(random_task(seed=s), resamples=2) for s in (0, 1))
    with pytest.raises(ConfigError, match="different queries, labels or galleries"):
        compare(one, two)
    with pytest.raises(ConfigError, match="different"):
        compare(one, scoring.evaluate(one.task.permuted(), resamples=2))
    for wrong in ({"metric": "AP"}, {"view": "unicorn"}):
        with pytest.raises(ConfigError, match="to compare"):
            compare(one, one, **wrong)


def test_the_fingerprint_of_the_truth_depends_on_each_part_of_it():
    task = random_task()
    half = np.arange(120) % 2 == 0
    others = [random_task(seed=1), task.permuted(3), random_task(queries=half)]
    others += [random_task(gallery=half), random_task(names=[f"n{i}" for i in range(120)])]
    missing = np.zeros((120, 3), bool)
    missing[5] = True
    others += [random_task(unjudged=missing, unpooled=some) for some in (missing, ~missing)]
    assert len({t.fingerprint for t in [task, *others]}) == 8
    assert random_task(signal=9).fingerprint == task.fingerprint
