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
    # trec_eval takes -1 for what was pooled but not judged.
    grades = draw(st.lists(st.integers(-1, 4), min_size=len(names), max_size=len(names)))
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
    unjudged, unpooled = np.zeros_like(padding), np.zeros_like(padding)
    for i, (qrels, run) in enumerate(cases):
        ranked = sorted(run, key=lambda name: (run[name], name), reverse=True)
        gains[i, : len(run)] = [max(0, qrels.get(name, 0)) for name in ranked]
        padding[i, : len(run)] = False
        unjudged[i, : len(run)] = [qrels.get(name, -1) < 0 for name in ranked]
        unpooled[i, : len(run)] = [name not in qrels for name in ranked]
    at_least = np.array([[sum(g >= x for g in q.values()) for x in (1, 2, 3, 4)] for q, _ in cases])
    judged = np.array([sum(g >= 0 for g in q.values()) for q, _ in cases])
    pooled, relevant = np.array([len(q) for q, _ in cases]), at_least[:, 0]
    found = metrics.ranks(gains, padding, unjudged, unpooled)
    return found, metrics.Counts(relevant, relevant, at_least, judged - relevant, pooled)


@settings(max_examples=150)
@given(st.lists(judged_runs(), min_size=1, max_size=4))
def test_every_shared_metric_agrees_with_pytrec_eval(cases):
    found, counts = as_arrays(cases)
    relevant = counts.relevant
    ours = {
        "map": metrics.average_precision(found, counts),
        "Rprec": metrics.r_precision(found, counts),
        "recip_rank": metrics.reciprocal_rank(found, counts),
        "bpref": metrics.bpref(found, counts),
        "infAP": metrics.inferred_average_precision(found, counts),
    }
    for k in KS:
        ours[f"P_{k}"] = metrics.precision_at(found, counts, k)
        ours[f"recall_{k}"] = metrics.recall_at(found, counts, k)
        ours[f"ndcg_cut_{k}"] = metrics.ndcg_at(found, counts, k)
    for level, column in zip(
        metrics.ELEVEN, metrics.interpolated_precision(found, relevant).T, strict=True
    ):
        ours[f"iprec_at_recall_{level:.2f}"] = column
    cuts = ",".join(map(str, KS))
    evaluator = pytrec_eval.RelevanceEvaluator(
        {f"q{i}": qrels for i, (qrels, _) in enumerate(cases)},
        {
            "map",
            "Rprec",
            "recip_rank",
            "bpref",
            "infAP",
            f"P.{cuts}",
            f"recall.{cuts}",
            f"ndcg_cut.{cuts}",
        }
        | {"iprec_at_recall"},
    )
    theirs = evaluator.evaluate({f"q{i}": run for i, (_, run) in enumerate(cases)})
    for i in range(len(cases)):
        assert {m: ours[m][i] for m in ours} == pytest.approx(theirs[f"q{i}"], abs=1e-6)
    at_r = metrics.average_precision_at_r(found, counts)
    for i, (qrels, run) in enumerate(cases):
        if relevant[i]:
            cut = f"map_cut_{relevant[i]}"
            alone = pytrec_eval.RelevanceEvaluator({"q": qrels}, {cut.replace("cut_", "cut.")})
            assert at_r[i] == pytest.approx(alone.evaluate({"q": run})["q"][cut], abs=1e-6)


def counts(relevant, candidates=None, at_least=None) -> metrics.Counts:
    relevant = np.asarray(relevant)
    candidates = relevant if candidates is None else np.asarray(candidates)
    return metrics.Counts(
        relevant,
        candidates,
        relevant[:, None] if at_least is None else np.asarray(at_least),
        candidates - relevant,
        candidates,
    )


def test_denominators_by_hand():
    # Found at ranks 1 and 3 of five places, three relevant items in the gallery.
    found, three = metrics.ranks(np.array([[1, 0, 2, 0, 0]])), counts([3], at_least=[[3, 1]])
    assert metrics.average_precision(found, three) == pytest.approx([(1 + 2 / 3) / 3])
    assert metrics.average_precision_at_r(found, three) == pytest.approx([(1 + 2 / 3) / 3])
    assert metrics.precision_at(found, three, 10) == pytest.approx([2 / 10])
    assert metrics.recall_at(found, three, 2) == pytest.approx([1 / 3])
    assert metrics.r_precision(found, three) == pytest.approx([2 / 3])
    ideal = 2 + 1 / np.log2(3) + 1 / 2
    gained = 1 + 2 / 2
    assert metrics.ndcg_at(found, three, 5) == pytest.approx([gained / ideal])


def test_one_hit_at_rank_one_of_many_relevant_is_not_a_perfect_score():
    found = metrics.ranks(np.array([[1, 0, 0, 0]]))
    assert metrics.average_precision(found, counts([4])) == pytest.approx([0.25])


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
    some = counts([0, 3, 1])
    for name, metric in metrics.at_depths([1]).items():
        assert metric.value(found, some).tolist() == [0, 0, 1], name
    assert metrics.interpolated_precision(found, some.relevant)[:, 0].tolist() == [0, 0, 1]


def test_interpolation_sees_the_last_item_found_when_the_next_level_is_never_reached():
    # Precision 1/4, 2/5, 3/6: the best is the last one, at 3 of 8 relevant.
    found = metrics.ranks(np.array([[0, 0, 0, 1, 1, 1]]))
    curve = metrics.interpolated_precision(found, np.array([8]))[0]
    assert curve.tolist() == [0.5] * 4 + [0] * 7


@pytest.mark.parametrize("gains", [[2, 1, 0, 0, 0], [1, 1, 1, 0], [1], [3, 2, 2, 1, 1], [0, 0, 0]])
def test_every_baseline_is_the_mean_over_all_orders(gains):
    orders = np.array(list(permutations(gains)))
    at_least = [[sum(g >= x for g in gains) for x in (1, 2, 3)]]
    one = counts(np.array(at_least)[:, 0], [len(gains)], at_least)
    many = metrics.Counts(*(np.repeat(part, len(orders), 0) for part in one))
    for name, metric in metrics.at_depths([1, 2, 7]).items():
        mean = metric.value(metrics.ranks(orders), many).mean()
        smoothed = 1e-4 if name == "infAP" else 1e-12
        assert metric.baseline(one) == pytest.approx([mean], abs=smoothed), name


@pytest.mark.parametrize("states", ["rrn-u-", "rnnuu", "r-uu", "rr--", "rn", "nnu", "rrrnn-u"])
def test_baselines_with_incomplete_judgments_are_the_mean_over_all_orders(states):
    # r relevant, n judged not relevant, u pooled and not judged, - not pooled.
    orders = np.array(list(permutations(states)))
    found = metrics.ranks(
        (orders == "r").astype(int), None, np.isin(orders, ["u", "-"]), orders == "-"
    )
    r, n, pooled = states.count("r"), states.count("n"), len(states) - states.count("-")
    one = metrics.Counts(*map(np.array, ([r], [len(states)], [[r]], [n], [pooled])))
    many = metrics.Counts(*(np.repeat(part, len(orders), 0) for part in one))
    for name in ("bpref", "infAP"):
        metric = metrics.METRICS[name]
        mean = metric.value(found, many).mean()
        assert metric.baseline(one) == pytest.approx([mean], abs=1e-4), name


def test_bpref_sees_only_what_was_judged():
    gains = np.array([[0, 0, 1, 0, 1, 0]])
    unjudged = np.array([[True, False, False, True, False, False]])
    own = metrics.Counts(*map(np.array, ([2], [6], [[2]], [2], [6])))
    found = metrics.ranks(gains, None, unjudged, unjudged & False)
    assert metrics.bpref(found, own) == pytest.approx([(1 - 1 / 2 + 1 - 1 / 2) / 2])


def test_metrics_have_names_for_one_query_and_for_the_mean():
    found = metrics.at_depths([1, 5])
    assert {name: metric.mean for name, metric in found.items() if name != metric.mean} == {
        "AP": "mAP",
        "AP@R": "mAP@R",
        "RR": "MRR",
    }
    assert list(found)[6:] == ["P@1", "P@5", "R@1", "R@5", "nDCG@1", "nDCG@5"]


def test_simulated_interpolated_precision_is_near_the_mean_over_all_orders():
    orders = np.array(list(permutations([1, 1, 0, 0, 0, 0])))
    exact = metrics.interpolated_precision(metrics.ranks(orders), np.full(len(orders), 2)).mean(0)
    one = counts([2], [6])
    drawn = metrics.simulated_interpolated_precision(one, draws=4000, seed=1)
    assert drawn == pytest.approx(exact, abs=0.02)
    again = metrics.simulated_interpolated_precision(one, draws=4000, seed=1)
    assert (drawn == again).all()
