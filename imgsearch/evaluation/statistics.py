"""How sure a mean over queries is, and whether two rankings differ.

Queries are the sample; the gallery and its labels are held fixed. Leave-one-out
queries share their gallery and are not quite independent, so that intervals are,
if anything, too narrow.
"""

from __future__ import annotations

import numpy as np

EXACT_UP_TO = 16
"""Pairs that differ, up to which all changes of sign are tried instead of drawn ones."""


def bootstrap_weights(queries: int, resamples: int, seed: int) -> np.ndarray:
    """Draw bootstrap samples: how often each query is in each of them.

    Parameters
    ----------
    queries : int
        q.
    resamples : int
        Number of samples, each of q queries with replacement.
    seed : int
        The same seed and q give the same samples.

    Returns
    -------
    ndarray of float64, shape (resamples, q)
    """
    generator = np.random.default_rng(seed)
    weights = np.empty((resamples, queries))
    for row in weights:
        row[:] = np.bincount(generator.integers(0, queries, queries), minlength=queries)
    return weights


def weighted_means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Take the mean of some queries' values in each bootstrap sample.

    The denominator is the number of those queries in the sample, itself random
    where they are a part of all queries.

    Parameters
    ----------
    weights : ndarray of float64, shape (b, q)
        Columns of :func:`bootstrap_weights`.
    values : ndarray of float64, shape (q,) or (q, m)
        One or several values of each query.

    Returns
    -------
    ndarray of float64, shape (b,) or (b, m)
        NaN where a sample has none of the queries.
    """
    sums, size = weights @ values, weights.sum(axis=1)
    size = size.reshape((-1,) + (1,) * (values.ndim - 1))
    return np.divide(sums, size, out=np.full(sums.shape, np.nan), where=size > 0)


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Give the percentile interval of bootstrap means.

    Parameters
    ----------
    samples : ndarray of float64, shape (b,) or (b, m)
        From :func:`weighted_means`; NaN are left out.
    level : float
        Share of the samples within.

    Returns
    -------
    low, high : ndarray of float64, shape () or (m,)
        NaN where there is no sample.

    References
    ----------
    Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapter 13.
    """
    there = ~np.isnan(samples).all(axis=0)
    filled = np.where(there, samples, 0.0)
    tail = (1 - level) / 2
    low, high = np.nanquantile(filled, [tail, 1 - tail], axis=0)
    return np.where(there, low, np.nan), np.where(there, high, np.nan)


def paired_randomisation(differences: np.ndarray, draws: int = 10_000, seed: int = 0) -> float:
    """Test whether two systems differ in their mean, two-sided.

    Under the null hypothesis each query's two values could as well be swapped.
    The p-value is the share of changes of sign that bring the mean at least as
    far from 0 as observed: of all changes where at most 16 queries differ, else
    of `draws` random ones and the observed one, (1 + count) / (1 + draws).

    Parameters
    ----------
    differences : ndarray of float64, shape (q,)
        One system's values less the other's, of the same queries.
    draws : int
        Random changes of sign.
    seed : int
        Of the generator.

    Returns
    -------
    float
        1 where no query differs.

    References
    ----------
    Smucker, Allan, Carterette: A comparison of statistical significance tests
    for information retrieval evaluation, CIKM 2007.
    """
    moved = differences[differences != 0]
    n = len(moved)
    if n == 0:
        return 1.0
    # What equals the observed sum but for rounding must count.
    observed = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()
    if n <= EXACT_UP_TO:
        signs = (np.arange(1 << n)[:, None] >> np.arange(n) & 1) * 2.0 - 1
        return float(np.mean(np.abs(signs @ moved) >= observed))
    generator = np.random.default_rng(seed)
    count, left, step = 0, draws, max(1, (1 << 22) // n)
    while left:
        rows = min(step, left)
        signs = generator.integers(0, 2, (rows, n), np.int8).astype(np.float64)
        count += int(np.sum(np.abs(signs @ (2 * moved) - moved.sum()) >= observed))
        left -= rows
    return (1 + count) / (1 + draws)


def effect_size(differences: np.ndarray) -> float:
    """Cohen's d of pairs: the mean difference over the standard deviation of differences.

    The deviation has the denominator q - 1. With thousands of queries nearly every
    difference is significant; this says whether it is large.

    Parameters
    ----------
    differences : ndarray of float64, shape (q,)
        As in :func:`paired_randomisation`.

    Returns
    -------
    float
        0 where no query differs, infinite where all differ by the same, NaN for
        a single query that differs.
    """
    if not differences.any():
        return 0.0
    if len(differences) < 2:
        return float("nan")
    deviation, mean = float(differences.std(ddof=1)), float(differences.mean())
    return mean / deviation if deviation > 0 else float(np.copysign(np.inf, mean))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values of several tests by Holm's method.

    Parameters
    ----------
    p_values : ndarray of float64, shape (m,)
        One for each test.

    Returns
    -------
    ndarray of float64, shape (m,)
        Compare these with the level that all tests together shall keep.

    References
    ----------
    Holm: A simple sequentially rejective multiple test procedure, 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted
