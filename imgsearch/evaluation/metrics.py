"""Retrieval metrics on arrays, with every denominator stated.

A ranking is given as the ranks of the relevant items that it found (:class:`Ranks`), which
is all that the metrics need. What the gallery contains for each query (:class:`Counts`) is
derived from the ground truth and never from the ranking, so that an item that was not
retrieved counts as missed:

``relevant`` (R)
    Number of relevant items in the gallery.
``candidates`` (N)
    Number of items that can be ranked: the gallery without the query, its copies and junk.
``at_least``
    Number of items whose gain is at least 1, 2, …, for the ideal ranking of nDCG.
``nonrelevant``
    Number of candidates that were judged not relevant: N - R if everything was judged.
``pooled``
    Number of candidates that were in the pool for judging, judged or not: N if everything
    was judged.

Each metric returns float64 of shape (q,). A query with R = 0 has the value 0, as in
trec_eval; the caller decides whether a mean includes such queries. All values agree with
trec_eval if it has the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from imgsearch.evaluation.statistics import ratio

#: Recall levels of the 11-point curve.
ELEVEN = tuple(i / 10 for i in range(11))

_SMOOTHING = 1e-5  # of infAP, as in trec_eval


class Ranks(NamedTuple):
    """Ranks of the t relevant items that the rankings of q queries found.

    `rank`, int32 (t,), counts from 1, query after query, ascending within each; junk has no
    rank. `hit`, int32 (t,), is the number of relevant items up to and including this rank.
    `gain`, (t,), is the graded relevance, at least 1. `nonrelevant` and `pooled`, int32 (t,),
    are the numbers of items above this rank that were judged not relevant and that were pooled
    for judging. The entries of query ``i`` are ``offsets[i]`` to ``offsets[i + 1]``.
    """

    rank: np.ndarray
    hit: np.ndarray
    gain: np.ndarray
    nonrelevant: np.ndarray
    pooled: np.ndarray
    offsets: np.ndarray


class Counts(NamedTuple):
    """What the gallery contains for each of q queries; `at_least` has the shape (q, gains)."""

    relevant: np.ndarray
    candidates: np.ndarray
    at_least: np.ndarray
    nonrelevant: np.ndarray
    pooled: np.ndarray

    def of(self, rows: np.ndarray | slice) -> Counts:
        """Return the counts of some queries."""
        return Counts(*(part[rows] for part in self))


def ranks(
    gains: np.ndarray,
    junk: np.ndarray | None = None,
    unjudged: np.ndarray | None = None,
    unpooled: np.ndarray | None = None,
) -> Ranks:
    """Compute ranks of the relevant items from rankings of gains; all have shape (q, depth).

    A gain of 0 is not relevant. Items marked in `junk` are removed from the ranking, and the
    following ones move up; it also marks the padding of short rankings. Items marked in
    `unjudged` were not judged, those in `unpooled` were not even in the pool.
    """
    if junk is None:
        junk = np.zeros(gains.shape, bool)
    if gains.ndim != 2 or junk.shape != gains.shape:
        raise ValueError(f"gains {gains.shape} and junk {junk.shape} must be (queries, depth)")
    relevant = gains != 0
    if (relevant & junk).any():
        raise ValueError("an item is both relevant and junk")
    counts = np.count_nonzero(relevant, axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    flat = np.flatnonzero(relevant)
    rank = np.cumsum(~junk, axis=1, dtype=np.int32).ravel()[flat]
    hit = (np.arange(1, len(flat) + 1) - np.repeat(offsets[:-1], counts)).astype(np.int32)

    def above(those: np.ndarray | None) -> np.ndarray | int:
        if those is None:
            return 0
        return np.cumsum(those & ~junk, axis=1, dtype=np.int32).ravel()[flat]

    nonrelevant, pooled = rank - hit - above(unjudged), rank - 1 - above(unpooled)
    return Ranks(rank, hit, gains.ravel()[flat], nonrelevant, pooled, offsets)


def average_precision(found: Ranks, counts: Counts) -> np.ndarray:
    """Average precision: the sum of precision at each relevant item found, over R.

    The denominator is R, all relevant items of the gallery, found or not (trec_eval
    ``map``). Some libraries divide by the relevant items *found*, which gives a ranking
    with one hit at rank 1 the value 1.
    """
    return ratio(_segments(found.hit / found.rank, found.offsets), counts.relevant)


def average_precision_at_r(found: Ranks, counts: Counts) -> np.ndarray:
    """Average precision at R: the sum of precision at each relevant item within rank R, over R.

    The denominator is R (trec_eval ``map_cut_R``). See Musgrave, Belongie, Lim: A Metric
    Learning Reality Check, ECCV 2020, section 3.2.
    """
    within = found.rank <= np.repeat(counts.relevant, np.diff(found.offsets))
    precision = np.where(within, found.hit / found.rank, 0.0)
    return ratio(_segments(precision, found.offsets), counts.relevant)


def reciprocal_rank(found: Ranks, counts: Counts) -> np.ndarray:
    """1 over the rank of the first relevant item, 0 if none is found (trec_eval ``recip_rank``)."""
    some = found.offsets[:-1] < found.offsets[1:]
    values = np.zeros(len(counts.relevant))
    values[some] = 1.0 / found.rank[found.offsets[:-1][some]]
    return values


def r_precision(found: Ranks, counts: Counts) -> np.ndarray:
    """R-precision: relevant items within rank R, over R (trec_eval ``Rprec``)."""
    within = found.rank <= np.repeat(counts.relevant, np.diff(found.offsets))
    return ratio(_segments(within, found.offsets, np.int64), counts.relevant)


def precision_at(found: Ranks, counts: Counts, k: int) -> np.ndarray:
    """P@k: relevant items within rank k, over k, even if fewer were ranked (trec_eval ``P_k``)."""
    return _within(found, k) / k


def recall_at(found: Ranks, counts: Counts, k: int) -> np.ndarray:
    """R@k: relevant items within rank k, over R (trec_eval ``recall_k``).

    R@k cannot reach 1 if R > k. It is not the share of queries with a hit within rank k,
    which some papers call recall@k.
    """
    return ratio(_within(found, k), counts.relevant)


def ndcg_at(found: Ranks, counts: Counts, k: int) -> np.ndarray:
    """nDCG@k with linear gain: DCG within rank k, over the DCG of an ideal ranking.

    DCG is the sum of gain / log2(rank + 1). The denominator is the DCG within rank k of all
    relevant items of the gallery in descending order of gain, found or not (trec_eval
    ``ndcg_cut_k``). See Järvelin, Kekäläinen: Cumulated gain-based evaluation of IR
    techniques, TOIS 2002.
    """
    top = np.flatnonzero(found.rank <= k)
    rows = np.searchsorted(found.offsets, top, side="right") - 1
    dcg = np.bincount(
        rows,
        weights=found.gain[top] / np.log2(found.rank[top] + 1.0),
        minlength=len(found.offsets) - 1,
    )
    return ratio(dcg, _ideal_dcg(counts, k))


def bpref(found: Ranks, counts: Counts) -> np.ndarray:
    """Binary preference: how rarely items judged not relevant rank above relevant ones.

    Each relevant item found has the value 1 - min(n, R) / min(N', R), where n is the number
    of items above it that were judged not relevant, and N' is their number in the gallery; the
    sum is divided by R. Items that were not judged have no effect. Agrees with trec_eval
    ``bpref``. See Buckley, Voorhees: Retrieval evaluation with incomplete information,
    SIGIR 2004.
    """
    r, n = (np.repeat(x, np.diff(found.offsets)) for x in (counts.relevant, counts.nonrelevant))
    lost = ratio(np.minimum(found.nonrelevant, r), np.minimum(n, r))
    return ratio(_segments(1 - lost, found.offsets), counts.relevant)


def inferred_average_precision(found: Ranks, counts: Counts) -> np.ndarray:
    """Inferred average precision: an estimate of AP if only a sample of the pool was judged.

    At each relevant item found, the precision above it is estimated as the share of pooled
    items above it, times the share of relevant items among the judged ones of these, smoothed
    by 1e-5; the sum is divided by R. Equals AP (up to the smoothing) if the whole pool was
    judged. Agrees with trec_eval ``infAP``. See Yilmaz, Aslam: Estimating
    average precision with incomplete and imperfect judgments, CIKM 2006.
    """
    above = found.hit - 1.0
    share = (above + _SMOOTHING) / (above + found.nonrelevant + 2 * _SMOOTHING)
    return ratio(_segments((1 + found.pooled * share) / found.rank, found.offsets), counts.relevant)


def interpolated_precision(
    found: Ranks, relevant: np.ndarray, levels: tuple[float, ...] = ELEVEN
) -> np.ndarray:
    """Return the interpolated precision at `levels` of recall, shape (q, levels).

    The value at a level is the highest precision at any rank at which at least
    ``int(level * R + 0.9)`` relevant items have been found, and 0 if the ranking never
    reaches it. The denominator of precision is the rank, that of recall is R. The 0.9 is
    trec_eval's way of rounding up (``iprec_at_recall``).
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
    # Each segment ends where the next level starts; the last of a query where the next query does.
    highest = np.maximum.accumulate(highest[:, ::-1], axis=1)[:, ::-1]
    values[some] = np.where(reached, highest, 0.0)
    return values


def expected_average_precision(counts: Counts, depth: np.ndarray | None = None) -> np.ndarray:
    r"""Return the exact expectation of average precision if the N candidates are in random order.

    The item at rank i is relevant with probability R/N, and then each of the i - 1 items
    above it with probability (R-1)/(N-1), so that

    .. math:: E = \frac{1}{N}\left(H_d + \frac{R-1}{N-1}(d - H_d)\right)

    for a ranking that is cut at `depth` d (N if not given), with the harmonic number H.
    See Bestgen: Exact expected average precision of the random baseline for system
    evaluation, Prague Bulletin of Mathematical Linguistics 103, 2015.
    """
    r, n = counts.relevant, counts.candidates
    depth = n if depth is None else np.minimum(depth, n)
    top = int(depth.max(initial=0))
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, top + 1))])[depth]
    others = np.where(n > 1, (r - 1) / np.maximum(n - 1, 1), 0.0)
    return np.where(r > 0, (harmonic + others * (depth - harmonic)) / np.maximum(n, 1), 0.0)


def expected_average_precision_at_r(counts: Counts) -> np.ndarray:
    """Return the exact expectation of average precision at R in random order."""
    return expected_average_precision(counts, counts.relevant)


def expected_reciprocal_rank(counts: Counts) -> np.ndarray:
    """Return the exact expectation of the reciprocal rank in random order.

    The first relevant item is at rank i with probability
    P(i) = R/(N-i+1) · prod_{j<i-1} (N-R-j)/(N-j), and E = sum P(i)/i for i ≤ N - R + 1.
    """

    def expected(r: int, n: int) -> float:
        above = np.arange(n - r + 1)  # items above the first relevant one
        none_yet = np.cumprod(np.concatenate([[1.0], (n - r - above[:-1]) / (n - above[:-1])]))
        return np.sum(none_yet * r / (n - above) / (above + 1))

    return _for_each_kind(expected, counts.relevant, counts.candidates)


def expected_r_precision(counts: Counts) -> np.ndarray:
    """Return the exact expectation of R-precision in random order: R/N."""
    return ratio(counts.relevant, counts.candidates)


def expected_precision_at(counts: Counts, k: int) -> np.ndarray:
    """Return the exact expectation of P@k in random order: min(k, N) · R/N, over k."""
    return ratio(np.minimum(k, counts.candidates) * counts.relevant, counts.candidates) / k


def expected_recall_at(counts: Counts, k: int) -> np.ndarray:
    """Return the exact expectation of R@k in random order: min(k, N) / N, and 0 if R = 0."""
    share = ratio(np.minimum(k, counts.candidates), counts.candidates)
    return np.where(counts.relevant > 0, share, 0.0)


def expected_ndcg_at(counts: Counts, k: int) -> np.ndarray:
    """Return the exact expectation of nDCG@k in random order.

    The expected gain at each of the first min(k, N) ranks is the mean gain of the N
    candidates; the denominator is the ideal DCG, which is constant for a query.
    """
    mean_gain = ratio(counts.at_least.sum(axis=1), counts.candidates)
    dcg = mean_gain * _discounts(k)[np.minimum(counts.candidates, k)]
    return ratio(dcg, _ideal_dcg(counts, k))


def expected_bpref(counts: Counts) -> np.ndarray:
    """Return the exact expectation of bpref in random order.

    The number of items judged not relevant above a relevant one is then uniformly distributed
    from 0 to N', so that E = (R + 1) / (2 (N' + 1)) if N' ≥ R, else 1/2, and 1 if N' = 0.
    """
    r, n = counts.relevant, counts.nonrelevant
    value = np.where(n >= r, (r + 1) / (2 * (n + 1)), np.where(n > 0, 0.5, 1.0))
    return np.where(r > 0, value, 0.0)


def expected_inferred_average_precision(counts: Counts) -> np.ndarray:
    """Return the expectation of infAP in random order, exact except for the smoothing.

    Above a relevant item at rank i, (i - 1)(P - 1)/(N - 1) of the P pooled items are expected.
    A share of (R - 1)/(J - 1) of them counts as relevant if any of them was judged, where J is
    the number of judged items, and one half otherwise.
    """

    def expected(r: int, n: int, nonrelevant: int, pooled: int) -> float:
        judged, above = r + nonrelevant, np.arange(n)  # items above each rank
        share = (r - 1) / max(judged - 1, 1)
        none = np.cumprod(np.append(1.0, (n - judged - above[:-1]) / (n - 1 - above[:-1])))
        unseen = none * above * (pooled - judged) / max(n - judged, 1)
        gained = share * above * (pooled - 1) / max(n - 1, 1) + (0.5 - share) * unseen
        return np.mean((1 + gained) / (above + 1))

    return _for_each_kind(
        expected, counts.relevant, counts.candidates, counts.nonrelevant, counts.pooled
    )


def simulated_interpolated_precision(
    counts: Counts, levels: tuple[float, ...] = ELEVEN, *, draws: int = 200, seed: int = 0
) -> np.ndarray:
    """Estimate the mean interpolated precision of random rankings by simulation.

    Interpolated precision takes a maximum along the ranking, so that its expectation in random
    order has no closed form. The `draws` rankings are spread evenly over the queries.
    """
    if not len(counts.relevant):
        return np.zeros(len(levels))
    generator = np.random.default_rng(seed)
    total = np.zeros(len(levels))
    for i in np.linspace(0, len(counts.relevant) - 1, draws).round().astype(int):
        r, n = int(counts.relevant[i]), int(counts.candidates[i])
        rank = np.sort(generator.choice(n, r, replace=False, shuffle=False)) + 1
        hit, offsets = np.arange(1, r + 1), np.array([0, r])
        drawn = Ranks(rank, hit, np.ones(r, np.uint8), rank - hit, rank - 1, offsets)
        total += interpolated_precision(drawn, np.array([r]), levels)[0]
    return total / draws


class Metric(NamedTuple):
    """One metric of a ranking.

    `mean` is the name of its mean over queries. ``value(found, counts)`` returns the metric of
    each query, and ``baseline(counts)`` its exact expectation in random order.
    """

    mean: str
    value: Callable[..., np.ndarray]
    baseline: Callable[..., np.ndarray]


METRICS = {
    "AP": Metric("mAP", average_precision, expected_average_precision),
    "AP@R": Metric("mAP@R", average_precision_at_r, expected_average_precision_at_r),
    "RR": Metric("MRR", reciprocal_rank, expected_reciprocal_rank),
    "Rprec": Metric("Rprec", r_precision, expected_r_precision),
    "bpref": Metric("bpref", bpref, expected_bpref),
    "infAP": Metric("infAP", inferred_average_precision, expected_inferred_average_precision),
    "P@k": Metric("P@k", precision_at, expected_precision_at),
    "R@k": Metric("R@k", recall_at, expected_recall_at),
    "nDCG@k": Metric("nDCG@k", ndcg_at, expected_ndcg_at),
}
"""All metrics, by the name of their value for one query.

The functions of metrics whose names end in ``@k`` also take the depth `k`.
"""


def at_depths(ks: Sequence[int]) -> dict[str, Metric]:
    """Return :data:`METRICS` with one entry per depth for each metric that has a `k`."""
    found = {}
    for name, metric in METRICS.items():
        if not name.endswith("@k"):
            found[name] = metric
            continue
        for k in ks:
            at_k = name.replace("@k", f"@{k}")
            found[at_k] = Metric(at_k, partial(metric.value, k=k), partial(metric.baseline, k=k))
    return found


def _for_each_kind(expected: Callable[..., float], *counts: np.ndarray) -> np.ndarray:
    """Call a function once for all queries with equal counts, the first of them R > 0."""
    kinds, which = np.unique(np.stack(counts, axis=1), axis=0, return_inverse=True)
    values = [expected(*kind) if kind[0] > 0 else 0.0 for kind in kinds.tolist()]
    return np.array(values)[which.ravel()]


def _within(found: Ranks, k: int) -> np.ndarray:
    """Count the relevant items within rank k, int64 (q,)."""
    return _segments(found.rank <= k, found.offsets, np.int64)


def _segments(values: np.ndarray, offsets: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """Sum the values of each query, with 0 for no values, where ``reduceat`` is wrong."""
    some = offsets[:-1] < offsets[1:]
    sums = np.zeros(len(some), dtype)
    if some.any():
        sums[some] = np.add.reduceat(values, offsets[:-1][some], dtype=dtype)
    return sums


def _ideal_dcg(counts: Counts, k: int) -> np.ndarray:
    """Return the DCG within rank k of the ideal ranking."""
    return _discounts(k)[np.minimum(counts.at_least, k)].sum(axis=1)


def _discounts(k: int) -> np.ndarray:
    """Return the DCG of 0, 1, …, k items of gain 1 at the top, float64 (k + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
