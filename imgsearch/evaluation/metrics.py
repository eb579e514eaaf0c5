"""Retrieval metrics on arrays, every denominator written down.

A ranking enters as the ranks of the relevant items that it found
(:class:`Ranks`), because no metric here needs more. Three counts of a query
come from the ground truth, never from the ranking, so that an item that was
not retrieved still counts as missed:

``relevant`` (R)
    How many relevant items the gallery holds for the query.
``candidates`` (N)
    How many items can be ranked: the gallery without the query, its copies and junk.
``at_least``
    How many items have a gain of at least each level, for the ideal ranking of nDCG.

Each metric is an array over queries, float64. A query with R = 0 has the value
0, as in trec_eval; whether such queries enter a mean is the caller's decision
(:mod:`imgsearch.evaluation` leaves them out and counts them). All values agree
with trec_eval where it has the metric.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Recall levels of the 11-point curve.
ELEVEN = tuple(i / 10 for i in range(11))


class Ranks(NamedTuple):
    """Ranks of the relevant items that a block of rankings found.

    Attributes
    ----------
    rank : ndarray of int32, shape (t,)
        Ranks from 1, query after query, ascending within each query. Junk does
        not take up a rank.
    hit : ndarray of int32, shape (t,)
        Number of relevant items at this rank and above it.
    gain : ndarray of uint8 or int64, shape (t,)
        Graded relevance, at least 1.
    offsets : ndarray of int64, shape (q + 1,)
        Query ``i`` has the entries ``offsets[i]`` to ``offsets[i + 1]``.
    """

    rank: np.ndarray
    hit: np.ndarray
    gain: np.ndarray
    offsets: np.ndarray


def ranks(gains: np.ndarray, junk: np.ndarray | None = None) -> Ranks:
    """Take the ranks of relevant items from rankings written as gains.

    Parameters
    ----------
    gains : ndarray of bool or int, shape (q, depth)
        Not negative: the gain of the item at each place, best
        place first. 0 is not relevant.
    junk : ndarray of bool, shape (q, depth), optional
        Places that are taken out of the ranking: neither right nor wrong, and
        what follows moves up. Also marks the padding of short rankings.

    Returns
    -------
    Ranks

    Raises
    ------
    ValueError
        The arrays are not two-dimensional and of one shape, or a junk item has a gain.
    """
    if gains.ndim != 2 or (junk is not None and junk.shape != gains.shape):
        raise ValueError(
            f"gains {gains.shape} and junk {None if junk is None else junk.shape}: "
            "both must be (queries, depth)"
        )
    relevant = gains != 0
    if junk is not None and (relevant & junk).any():
        raise ValueError("an item is both relevant and junk")
    queries, depth = gains.shape
    counts = np.count_nonzero(relevant, axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    flat = np.flatnonzero(relevant)
    if junk is None or not junk.any():
        rank = flat - np.repeat(np.arange(queries) * depth - 1, counts)
    else:
        rank = np.cumsum(~junk, axis=1, dtype=np.int32).ravel()[flat]
    hit = np.arange(1, len(flat) + 1) - np.repeat(offsets[:-1], counts)
    gain = gains.ravel()[flat]
    return Ranks(
        rank.astype(np.int32, copy=False),
        hit.astype(np.int32),
        gain.astype(np.uint8) if gain.dtype == bool else gain,
        offsets,
    )


def average_precision(found: Ranks, relevant: np.ndarray) -> np.ndarray:
    """Average precision: the sum of precision at each relevant item found, over R.

    The denominator is R, all relevant items of the gallery, found or not
    (trec_eval ``map``, ranx ``map``); some libraries divide by the relevant items
    *found*, which gives a ranking with one hit at rank 1 the value 1.

    Parameters
    ----------
    found : Ranks
        Of q queries.
    relevant : ndarray of int, shape (q,)
        R.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    return _ratio(_segments(found.hit / found.rank, found.offsets), relevant)


def average_precision_at_r(found: Ranks, relevant: np.ndarray) -> np.ndarray:
    """MAP@R: the sum of precision at each relevant item within rank R, over R.

    The denominator is R, even though fewer relevant items can lie within rank R
    (trec_eval ``map_cut_R``).

    Parameters
    ----------
    found : Ranks
        Of q queries.
    relevant : ndarray of int, shape (q,)
        R.

    Returns
    -------
    ndarray of float64, shape (q,)

    References
    ----------
    Musgrave, Belongie, Lim: A Metric Learning Reality Check, ECCV 2020, section 3.2.
    """
    within = found.rank <= np.repeat(relevant, np.diff(found.offsets))
    return _ratio(_segments(np.where(within, found.hit / found.rank, 0.0), found.offsets), relevant)


def precision_at(found: Ranks, k: int) -> np.ndarray:
    """P@k: relevant items within rank k, over k.

    The denominator is k, also where fewer than k items were ranked (trec_eval ``P_k``).

    Parameters
    ----------
    found : Ranks
        Of q queries.
    k : int
        At least 1.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    return _within(found, k) / k


def recall_at(found: Ranks, relevant: np.ndarray, k: int) -> np.ndarray:
    """R@k: relevant items within rank k, over R.

    The denominator is R, so R@k cannot reach 1 where R > k (trec_eval ``recall_k``).
    It is not the share of queries with a hit within k, which some papers call recall@k.

    Parameters
    ----------
    found : Ranks
        Of q queries.
    relevant : ndarray of int, shape (q,)
        R.
    k : int
        At least 1.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    return _ratio(_within(found, k), relevant)


def r_precision(found: Ranks, relevant: np.ndarray) -> np.ndarray:
    """R-precision: relevant items within rank R, over R (trec_eval ``Rprec``).

    Parameters
    ----------
    found : Ranks
        Of q queries.
    relevant : ndarray of int, shape (q,)
        R, both the depth and the denominator.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    within = found.rank <= np.repeat(relevant, np.diff(found.offsets))
    return _ratio(_segments(within, found.offsets, np.int64), relevant)


def reciprocal_rank(found: Ranks) -> np.ndarray:
    """Reciprocal rank: 1 over the rank of the first relevant item (trec_eval ``recip_rank``).

    0 where none was found. Its mean over queries is MRR.

    Parameters
    ----------
    found : Ranks
        Of q queries.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    some = found.offsets[:-1] < found.offsets[1:]
    values = np.zeros(len(some))
    values[some] = 1.0 / found.rank[found.offsets[:-1][some]]
    return values


def ndcg_at(
    found: Ranks, at_least: np.ndarray, k: int, levels: np.ndarray | None = None
) -> np.ndarray:
    """nDCG@k with linear gain: DCG within rank k, over the DCG of an ideal ranking.

    DCG is the sum of gain / log2(rank + 1). The denominator is the DCG within
    rank k of all relevant items of the gallery in descending order of gain, found
    or not (trec_eval ``ndcg_cut_k``).

    Parameters
    ----------
    found : Ranks
        Of q queries.
    at_least : ndarray of int, shape (q, l)
        Number of items in the gallery whose gain is at least ``levels[j]``.
    k : int
        At least 1.
    levels : ndarray of int, shape (l,), optional
        Ascending positive gains; every gain that occurs is one of them. 1, 2, …, l
        where not given.

    Returns
    -------
    ndarray of float64, shape (q,)

    References
    ----------
    Järvelin, Kekäläinen: Cumulated gain-based evaluation of IR techniques, TOIS 2002.
    """
    top = np.flatnonzero(found.rank <= k)
    rows = np.searchsorted(found.offsets, top, side="right") - 1
    dcg = np.bincount(
        rows,
        weights=found.gain[top] / np.log2(found.rank[top] + 1.0),
        minlength=len(found.offsets) - 1,
    )
    return _ratio(dcg, ideal_dcg(at_least, k, levels))


def ideal_dcg(at_least: np.ndarray, k: int, levels: np.ndarray | None = None) -> np.ndarray:
    """DCG within rank k of the best possible ranking, the denominator of nDCG@k.

    Parameters
    ----------
    at_least : ndarray of int, shape (q, l)
        As in :func:`ndcg_at`.
    k : int
        At least 1.
    levels : ndarray of int, shape (l,), optional
        As in :func:`ndcg_at`.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    if levels is None:
        levels = np.arange(1, at_least.shape[1] + 1)
    steps = np.diff(levels, prepend=0)
    return _discounts(k)[np.minimum(at_least, k)] @ steps


def interpolated_precision(
    found: Ranks, relevant: np.ndarray, levels: tuple[float, ...] = ELEVEN
) -> np.ndarray:
    """Interpolated precision at levels of recall.

    The value at a level is the highest precision at any rank at which at least
    ``int(level * R + 0.9)`` relevant items have been found, and 0 where the
    ranking never gets there. The denominator of precision is the rank, that of
    recall is R. The 0.9 is trec_eval's way of rounding up
    (``iprec_at_recall``), kept so that values agree.

    Parameters
    ----------
    found : Ranks
        Of q queries.
    relevant : ndarray of int, shape (q,)
        R.
    levels : tuple of float
        Ascending, in [0, 1].

    Returns
    -------
    ndarray of float64, shape (q, l)
        One column for each level.
    """
    queries, count = len(relevant), np.diff(found.offsets)
    values = np.zeros((queries, len(levels)))
    some = np.flatnonzero(count)
    if not len(some):
        return values
    needed = (np.outer(relevant[some], levels) + 0.9).astype(np.int64)
    reached = needed <= count[some, None]
    last = count[some, None] - 1
    starts = found.offsets[some, None] + np.clip(needed - 1, 0, last)
    highest = np.maximum.reduceat(found.hit / found.rank, starts.ravel()).reshape(starts.shape)
    # A stretch runs to the next level's start; the last one of a query to the next query's.
    highest = np.maximum.accumulate(highest[:, ::-1], axis=1)[:, ::-1]
    values[some] = np.where(reached, highest, 0.0)
    return values


def expected_average_precision(
    relevant: np.ndarray, candidates: np.ndarray, depth: np.ndarray | None = None
) -> np.ndarray:
    r"""Give the expectation of average precision when the N candidates are in random order.

    Exact: the item at rank i is relevant with probability R/N, and then each of
    the i - 1 items above it with probability (R-1)/(N-1), so that

    .. math:: E = \frac{1}{N}\left(H_d + \frac{R-1}{N-1}(d - H_d)\right)

    for a ranking that is cut at depth d, with the harmonic number H. The
    denominator of average precision is R, as in :func:`average_precision`; with
    ``depth=relevant`` this is the expectation of :func:`average_precision_at_r`.

    Parameters
    ----------
    relevant, candidates : ndarray of int, shape (q,)
        R and N.
    depth : ndarray of int, shape (q,), optional
        N where not given.

    Returns
    -------
    ndarray of float64, shape (q,)

    References
    ----------
    Bestgen: Exact expected average precision of the random baseline for system
    evaluation, Prague Bulletin of Mathematical Linguistics 103, 2015.
    """
    depth = candidates if depth is None else np.minimum(depth, candidates)
    top = int(depth.max(initial=0))
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, top + 1))])[depth]
    others = np.where(candidates > 1, (relevant - 1) / np.maximum(candidates - 1, 1), 0.0)
    return np.where(
        relevant > 0, (harmonic + others * (depth - harmonic)) / np.maximum(candidates, 1), 0.0
    )


def expected_precision_at(relevant: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """Give the expectation of P@k in random order, exact: min(k, N) · R/N, over k.

    Parameters
    ----------
    relevant, candidates : ndarray of int, shape (q,)
        R and N.
    k : int
        At least 1.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    return _ratio(np.minimum(k, candidates) * relevant, candidates) / k


def expected_recall_at(relevant: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """Give the expectation of R@k in random order, exact: min(k, N) / N, and 0 where R = 0.

    Parameters
    ----------
    relevant, candidates : ndarray of int, shape (q,)
        R and N.
    k : int
        At least 1.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    return np.where(relevant > 0, _ratio(np.minimum(k, candidates), candidates), 0.0)


def expected_r_precision(relevant: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Give the expectation of R-precision in random order, exact: R/N.

    Parameters
    ----------
    relevant, candidates : ndarray of int, shape (q,)
        R and N.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    return _ratio(relevant, candidates)


def expected_reciprocal_rank(relevant: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Give the expectation of the reciprocal rank in random order, exact.

    A finite sum rather than a formula: the first relevant item is at rank i with
    probability P(i) = R/(N-i+1) · prod_{j<i-1} (N-R-j)/(N-j), and E = sum P(i)/i
    for i from 1 to N - R + 1.

    Parameters
    ----------
    relevant, candidates : ndarray of int, shape (q,)
        R and N.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    pairs, which = np.unique(np.stack([relevant, candidates], axis=1), axis=0, return_inverse=True)
    values = np.zeros(len(pairs))
    for i, (r, n) in enumerate(pairs.tolist()):
        if r > 0:
            above = np.arange(n - r + 1)  # items above the first relevant one
            none_yet = np.cumprod(np.concatenate([[1.0], (n - r - above[:-1]) / (n - above[:-1])]))
            values[i] = np.sum(none_yet * r / (n - above) / (above + 1))
    return values[which.ravel()]


def expected_ndcg_at(at_least: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """Give the expectation of nDCG@k in random order, exact.

    Each of the first min(k, N) ranks has the mean gain of the N candidates as its
    expectation; the denominator is the ideal DCG, a constant of the query.

    Parameters
    ----------
    at_least : ndarray of int, shape (q, l)
        Number of items with a gain of at least 1, 2, …, l.
    candidates : ndarray of int, shape (q,)
        N.
    k : int
        At least 1.

    Returns
    -------
    ndarray of float64, shape (q,)
    """
    mean_gain = _ratio(at_least.sum(axis=1), candidates)
    return _ratio(mean_gain * _discounts(k)[np.minimum(candidates, k)], ideal_dcg(at_least, k))


def simulated_interpolated_precision(
    relevant: np.ndarray,
    candidates: np.ndarray,
    levels: tuple[float, ...] = ELEVEN,
    *,
    draws: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Draw random rankings for their mean interpolated precision.

    Interpolated precision takes a maximum along the ranking, and its expectation
    in random order has no closed form; so here, and only here, rankings are drawn.

    Parameters
    ----------
    relevant, candidates : ndarray of int, shape (q,)
        R and N. The draws are spread evenly over the queries.
    levels : tuple of float
        As in :func:`interpolated_precision`.
    draws : int
        Number of random rankings in all.
    seed : int
        Of the generator; the same seed gives the same values.

    Returns
    -------
    ndarray of float64, shape (l,)
        Zeros where there is no query.
    """
    if not len(relevant):
        return np.zeros(len(levels))
    generator = np.random.default_rng(seed)
    total = np.zeros(len(levels))
    for i in np.linspace(0, len(relevant) - 1, draws).round().astype(int):
        r, n = int(relevant[i]), int(candidates[i])
        rank = np.sort(generator.choice(n, r, replace=False, shuffle=False)) + 1
        drawn = Ranks(rank, np.arange(1, r + 1), np.ones(r, np.uint8), np.array([0, r]))
        total += interpolated_precision(drawn, np.array([r]), levels)[0]
    return total / draws


def _within(found: Ranks, k: int) -> np.ndarray:
    """Count the relevant items within rank k, int64 (q,)."""
    if k < 1:
        raise ValueError(f"k is {k}, and must be at least 1")
    return _segments(found.rank <= k, found.offsets, np.int64)


def _segments(values: np.ndarray, offsets: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """Sum each query's stretch; 0 for an empty one, which ``reduceat`` alone gets wrong."""
    some = offsets[:-1] < offsets[1:]
    sums = np.zeros(len(some), dtype)
    if some.any():
        sums[some] = np.add.reduceat(values, offsets[:-1][some], dtype=dtype)
    return sums


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(
        numerator, denominator, out=np.zeros(denominator.shape), where=denominator != 0
    )


def _discounts(k: int) -> np.ndarray:
    """DCG of 0, 1, …, k items of gain 1 at the top, float64 (k + 1,)."""
    if k < 1:
        raise ValueError(f"k is {k}, and must be at least 1")
    return np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
