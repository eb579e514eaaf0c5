"""Intervals and tests on values whose answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from imgsearch.evaluation import statistics


def test_bootstrap_samples_are_of_full_size_and_repeat_with_their_seed():
    weights = statistics.bootstrap_weights(50, 200, seed=3)
    assert (weights.sum(axis=1) == 50).all()
    assert (weights == statistics.bootstrap_weights(50, 200, seed=3)).all()
    assert (weights != statistics.bootstrap_weights(50, 200, seed=4)).any()
    assert weights.mean() == 1


def test_the_interval_has_the_width_that_theory_gives():
    values = np.random.default_rng(0).normal(0.4, 0.2, 900)
    weights = statistics.bootstrap_weights(900, 4000, seed=0)
    low, high = statistics.interval(statistics.weighted_means(weights, values))
    error = values.std() / 30
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error
    )


def test_intervals_have_their_nominal_coverage():
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(400):
        values = generator.random(60)
        weights = statistics.bootstrap_weights(60, 200, 1000 + seed)
        low, high = statistics.interval(statistics.weighted_means(weights, values))
        covered += low <= 0.5 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_samples_without_a_query_are_ignored():
    weights = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 2.0]])
    means = statistics.weighted_means(weights, np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert np.isnan(means[1]).all()
    assert means[[0, 2]].tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert [float(x[0]) for x in statistics.interval(means, 0.0)] == [0.75, 0.75]
    assert np.isnan(statistics.interval(np.full((3, 1), np.nan))).all()


def test_few_differences_are_tested_exactly():
    moved = np.array([0.3, -0.1, 0.2, 0.05, 0.4])
    signs = np.array(list(itertools.product([1, -1], repeat=5)))
    expected = np.mean(np.abs(signs @ moved) >= abs(moved.sum()) - 1e-9)
    with_ties = np.concatenate([moved, np.zeros(100)])
    assert statistics.paired_randomisation(with_ties) == pytest.approx(expected)
    assert statistics.paired_randomisation(np.zeros(9)) == 1.0
    assert statistics.paired_randomisation(np.array([0.5])) == 1.0


def test_sampled_signs_approximate_the_enumeration(monkeypatch):
    moved = np.random.default_rng(2).normal(0.15, 0.3, 14)
    exact = statistics.paired_randomisation(moved)
    monkeypatch.setattr(statistics, "EXACT_UP_TO", 0)
    drawn = statistics.paired_randomisation(moved, draws=20_000, seed=1)
    assert drawn == pytest.approx(exact, abs=0.01)
    assert drawn == statistics.paired_randomisation(moved, draws=20_000, seed=1)


def test_p_values_of_no_difference_are_uniform_and_of_a_large_one_small():
    generator = np.random.default_rng(5)
    p = [statistics.paired_randomisation(generator.normal(0, 1, 40), 400, s) for s in range(200)]
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert statistics.paired_randomisation(generator.normal(1, 1, 100), 999) == 1 / 1000


def test_effect_size_and_holm():
    assert statistics.effect_size(np.array([1.0, 3.0])) == pytest.approx(2 / np.sqrt(2))
    assert statistics.effect_size(np.zeros(3)) == 0
    assert statistics.effect_size(np.full(3, -0.5)) == -np.inf
    assert statistics.effect_size(np.full(3, 0.1)) == np.inf  # whose standard deviation is 1e-17
    assert np.isnan(statistics.effect_size(np.array([0.5])))
    assert statistics.holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm(np.array([0.9, 0.8])).max() == 1.0
