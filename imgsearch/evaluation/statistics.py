"""Confidence intervals and significance tests for means over queries.

The queries are the sample; the gallery and its labels are fixed. Leave-one-out queries share
their gallery and are not completely independent, so that intervals may be slightly too narrow.
"""

from __future__ import annotations

import numpy as np

EXACT_UP_TO = 16
"""Number of differing pairs up to which all sign changes are enumerated, not sampled."""


def ratio(numerator: np.ndarray, denominator: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Divide; the result is `empty` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    result = np.full(denominator.shape, empty)
    return np.divide(numerator, denominator, out=result, where=denominator != 0)


def bootstrap_weights(queries: int, resamples: int, seed: int) -> np.ndarray:
    """Draw how often each query is in each bootstrap sample, float64 (resamples, queries)."""
    generator = np.random.default_rng(seed)
    weights = np.empty((resamples, queries))
    for row in weights:
        row[:] = np.bincount(generator.integers(0, queries, queries), minlength=queries)
    return weights


def weighted_means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean of some queries' values, (q,) or (q, m), in each bootstrap sample.

    The denominator is the number of these queries in the sample, which is random if they are
    a subset of all queries. The mean is NaN if a sample contains none of them.
    """
    size = weights.sum(axis=1).reshape((-1,) + (1,) * (values.ndim - 1))
    return ratio(weights @ values, size, empty=np.nan)


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile interval of bootstrap means, (b,) or (b, m), ignoring NaN.

    See Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapter 13.
    """
    valid = ~np.isnan(samples).all(axis=0)
    filled = np.where(valid, samples, 0.0)
    tail = (1 - level) / 2
    low, high = np.nanquantile(filled, [tail, 1 - tail], axis=0)
    return np.where(valid, low, np.nan), np.where(valid, high, np.nan)


def mean_interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of values, (q,)."""
    weights = bootstrap_weights(len(values), resamples, seed)
    low, high = interval(weighted_means(weights, values))
    return float(low), float(high)


def paired_randomisation(differences: np.ndarray, draws: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value for the hypothesis that two systems have the same mean.

    `differences` are the values of one system minus those of the other, for the same
    queries. Under the null hypothesis the two values of each query are exchangeable. The
    p-value is the share of sign changes for which the mean is at least as far from 0 as
    observed: of all sign changes if at most 16 queries differ, else of `draws` random ones
    and the observed one, (1 + count) / (1 + draws). See Smucker, Allan, Carterette: A
    comparison of statistical significance tests for information retrieval evaluation, CIKM
    2007.
    """
    changed = differences[differences != 0]
    n = len(changed)
    if n == 0:
        return 1.0
    # Count sums that equal the observed one except for rounding.
    observed = abs(changed.sum()) - 1e-12 * np.abs(changed).sum()
    if n <= EXACT_UP_TO:
        signs = (np.arange(1 << n)[:, None] >> np.arange(n) & 1) * 2.0 - 1
        return float(np.mean(np.abs(signs @ changed) >= observed))
    generator = np.random.default_rng(seed)
    count, left, step = 0, draws, max(1, (1 << 22) // n)
    while left:
        rows = min(step, left)
        signs = generator.integers(0, 2, (rows, n), np.int8).astype(np.float64)
        count += int(np.sum(np.abs(signs @ (2 * changed) - changed.sum()) >= observed))
        left -= rows
    return (1 + count) / (1 + draws)


def effect_size(differences: np.ndarray) -> float:
    """Return Cohen's d for paired samples: the mean difference over its standard deviation.

    The variance has the denominator q - 1. With thousands of queries nearly every difference
    is significant; the effect size shows whether it is large. It is 0 if no query differs,
    infinite if all differ by the same amount, and NaN for a single query that differs.
    """
    if not differences.any():
        return 0.0
    if len(differences) < 2:
        return float("nan")
    mean = float(differences.mean())
    if np.ptp(differences) < 1e-9:  # rounding leaves a tiny deviation
        return float(np.copysign(np.inf, mean))
    return mean / float(differences.std(ddof=1))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust the p-values of several tests by Holm's step-down method."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted
