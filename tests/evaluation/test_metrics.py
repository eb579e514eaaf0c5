"""Every metric against pytrec_eval, against hand-made values, and against simulation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgsearch.evaluation import metrics

pytrec_eval = pytest.importorskip("pytrec_eval")

KS = (1, 2, 5, 10, 50)


@st.composite
def judged_runs(draw):
    """One query: qrels with grades, and a run with ties, unjudged and missing documents."""
    names = [f"d{i:02d}" for i in range(draw(st.integers(1, 30)))]
    grades = draw(st.lists(st.integers(0, 4), min_size=len(names), max_size=len(names)))
    judged = draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    scores = draw(
        st.lists(
            st.none() | st.integers(-3, 3) | st.floats(-1, 1, width=32),
            min_size=len(names),
            max_size=len(names),
        )
    )
    qrels = {n: g for n, g, j in zip(names, grades, judged, strict=True) if j}
    run = {n: float(s) for n, s in zip(names, scores, strict=True) if s is not None}
    return qrels or {"elsewhere": draw(st.integers(0, 2))}, run or {"unjudged": 0.5}


def as_arrays(cases):
    """Gains in ranked order, padded as junk, with R and the counts for the ideal."""
    depth = max(len(run) for _, run in cases)
    gains = np.zeros((len(cases), depth), int)
    padding = np.ones((len(cases), depth), bool)
    for i, (qrels, run) in enumerate(cases):
        ranked = sorted(run, key=lambda name: (run[name], name), reverse=True)
        gains[i, : len(run)] = [qrels.get(name, 0) for name in ranked]
        padding[i, : len(run)] = False
    at_least = np.array([[sum(g >= x for g in q.values()) for x in (1, 2, 3, 4)] for q, _ in cases])
    return metrics.ranks(gains, padding), at_least[:, 0], at_least


@settings(max_examples=150, deadline=None)
@given(st.lists(judged_runs(), min_size=1, max_size=4))
def test_every_shared_metric_agrees_with_pytrec_eval(cases):
    found, relevant, at_least = as_arrays(cases)
    ours = {
        "map": metrics.average_precision(found, relevant),
        "Rprec": metrics.r_precision(found, relevant),
        "recip_rank": metrics.reciprocal_rank(found),
    }
    for k in KS:
        ours[f"P_{k}"] = metrics.precision_at(found, k)
        ours[f"recall_{k}"] = metrics.recall_at(found, relevant, k)
        ours[f"ndcg_cut_{k}"] = metrics.ndcg_at(found, at_least, k)
    for level, column in zip(
        metrics.ELEVEN, metrics.interpolated_precision(found, relevant).T, strict=True
    ):
        ours[f"iprec_at_recall_{level:.2f}"] = column
    cuts = ",".join(map(str, KS))
    evaluator = pytrec_eval.RelevanceEvaluator(
        {f"q{i}": qrels for i, (qrels, _) in enumerate(cases)},
        {"map", "Rprec", "recip_rank", f"P.{cuts}", f"recall.{cuts}", f"ndcg_cut.{cuts}"}
        | {"iprec_at_recall"},
    )
    theirs = evaluator.evaluate({f"q{i}": run for i, (_, run) in enumerate(cases)})
    for i in range(len(cases)):
        assert {m: ours[m][i] for m in ours} == pytest.approx(theirs[f"q{i}"], abs=1e-6)
    at_r = metrics.average_precision_at_r(found, relevant)
    for i, (qrels, run) in enumerate(cases):
        if relevant[i]:
            cut = f"map_cut_{relevant[i]}"
            alone = pytrec_eval.RelevanceEvaluator({"q": qrels}, {cut.replace("cut_", "cut.")})
            assert at_r[i] == pytest.approx(alone.evaluate({"q": run})["q"][cut], abs=1e-6)


def test_denominators_by_hand():
    # Found at ranks 1 and 3 of five places, three relevant items in the gallery.
    found, relevant = metrics.ranks(np.array([[1, 0, 2, 0, 0]])), np.array([3])
    assert metrics.average_precision(found, relevant) == pytest.approx([(1 + 2 / 3) / 3])
    assert metrics.average_precision_at_r(found, relevant) == pytest.approx([(1 + 2 / 3) / 3])
    assert metrics.precision_at(found, 10) == pytest.approx([2 / 10])
    assert metrics.recall_at(found, relevant, 2) == pytest.approx([1 / 3])
    assert metrics.r_precision(found, relevant) == pytest.approx([2 / 3])
    ideal = 2 + 1 / np.log2(3) + 1 / 2
    gained = 1 + 2 / 2
    assert metrics.ndcg_at(found, np.array([[3, 1]]), 5) == pytest.approx([gained / ideal])


def test_one_hit_at_rank_one_of_many_relevant_is_not_a_perfect_score():
    found = metrics.ranks(np.array([[1, 0, 0, 0]]))
    assert metrics.average_precision(found, np.array([4])) == pytest.approx([0.25])


def test_junk_takes_up_no_rank():
    gains = np.array([[0, 0, 1, 0, 1], [1, 0, 0, 0, 1]])
    junk = np.array([[1, 0, 0, 1, 0], [0, 1, 1, 1, 0]], bool)
    found = metrics.ranks(gains, junk)
    assert found.rank.tolist() == [2, 3, 1, 2]
    assert found.hit.tolist() == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="both relevant and junk"):
        metrics.ranks(gains, gains != 0)
    with pytest.raises(ValueError, match="must be"):
        metrics.ranks(gains, junk[:1])


def test_queries_without_relevant_or_without_any_hit_are_zero_not_nan():
    found = metrics.ranks(np.array([[0, 0], [0, 0], [1, 0]]))
    relevant = np.array([0, 3, 1])
    for values in (
        metrics.average_precision(found, relevant),
        metrics.average_precision_at_r(found, relevant),
        metrics.recall_at(found, relevant, 1),
        metrics.r_precision(found, relevant),
        metrics.reciprocal_rank(found),
        metrics.ndcg_at(found, relevant[:, None], 2),
        metrics.interpolated_precision(found, relevant)[:, 0],
    ):
        assert values.tolist() == [0, 0, 1]


def test_interpolation_sees_the_last_item_found_when_the_next_level_is_never_reached():
    # Precision 1/4, 2/5, 3/6: the best is the last one, at 3 of 8 relevant.
    found = metrics.ranks(np.array([[0, 0, 0, 1, 1, 1]]))
    curve = metrics.interpolated_precision(found, np.array([8]))[0]
    assert curve.tolist() == [0.5] * 4 + [0] * 7


def test_k_below_one_is_refused():
    found = metrics.ranks(np.array([[1]]))
    for call in (
        lambda: metrics.precision_at(found, 0),
        lambda: metrics.ndcg_at(found, np.array([[1]]), 0),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            call()


@pytest.mark.parametrize("gains", [[2, 1, 0, 0, 0], [1, 1, 1, 0], [1], [3, 2, 2, 1, 1], [0, 0, 0]])
def test_expectations_are_the_means_over_all_orders(gains):
    orders = np.array(list(permutations(gains)))
    found = metrics.ranks(orders)
    n = len(gains)
    at_least = np.array([[sum(g >= x for g in gains) for x in (1, 2, 3)]])
    r, many = at_least[:, 0], np.full(len(orders), at_least[0, 0])
    one = np.array([n])

    def holds(expected, values):
        assert expected == pytest.approx([values.mean()], abs=1e-12)

    holds(metrics.expected_average_precision(r, one), metrics.average_precision(found, many))
    holds(
        metrics.expected_average_precision(r, one, r), metrics.average_precision_at_r(found, many)
    )
    holds(metrics.expected_reciprocal_rank(r, one), metrics.reciprocal_rank(found))
    holds(metrics.expected_r_precision(r, one), metrics.r_precision(found, many))
    for k in (1, 2, 7):
        holds(metrics.expected_precision_at(r, one, k), metrics.precision_at(found, k))
        holds(metrics.expected_recall_at(r, one, k), metrics.recall_at(found, many, k))
        holds(
            metrics.expected_ndcg_at(at_least, one, k),
            metrics.ndcg_at(found, np.repeat(at_least, len(orders), 0), k),
        )


def test_simulated_interpolated_precision_is_near_the_mean_over_all_orders():
    orders = np.array(list(permutations([1, 1, 0, 0, 0, 0])))
    exact = metrics.interpolated_precision(metrics.ranks(orders), np.full(len(orders), 2)).mean(0)
    drawn = metrics.simulated_interpolated_precision(
        np.array([2]), np.array([6]), draws=4000, seed=1
    )
    assert drawn == pytest.approx(exact, abs=0.02)
    again = metrics.simulated_interpolated_precision(
        np.array([2]), np.array([6]), draws=4000, seed=1
    )
    assert (drawn == again).all()
