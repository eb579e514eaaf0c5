"""Tasks, views, micro and macro scores, controls."""

from __future__ import annotations

import numpy as np
import pytest

from imgsearch.errors import ConfigError
from imgsearch.evaluation import ranking, scoring

CLASSES = ("cat", "dog", "person")
GROUPS = {"without person": ("cat", "dog")}


def random_task(seed=0, n=120, classes=CLASSES, signal=1.0, **more):
    """Images with one to three classes, some objects difficult, vectors that know about them."""
    generator = np.random.default_rng(seed)
    present = generator.random((n, len(classes))) < 0.35
    present[np.arange(n), generator.integers(0, len(classes), n)] = True
    difficult = ~present & (generator.random(present.shape) < 0.15)
    vectors = generator.standard_normal((n, 16))
    vectors += signal * present @ generator.standard_normal((len(classes), 16))
    ids = generator.permutation(n * 3)[:n]
    more = {"groups": GROUPS} | more
    return scoring.task(ids, vectors, present, difficult, classes=classes, **more)


def summary_of(evaluation):
    return {(f.average, f.metric): f for f in evaluation.summary()}


def by_definition(task, view):
    """Average precision of each query of a view, item by item."""
    mask = task.mask(view)
    unit = task.vectors / np.linalg.norm(task.vectors, axis=1, keepdims=True)
    found = {}
    for q in task.queries:
        own, shown = int(task.labels.present[q]) & mask, int(task.labels.shown[q]) & mask
        if not own:
            continue
        ranked = sorted(
            (g for g in task.gallery if task.ids[g] != task.ids[q]),
            key=lambda g: (-round(float(unit[q] @ unit[g]), 9), task.ids[g]),
        )
        hits, rank, total = 0, 0, 0.0
        for g in ranked:
            if int(task.labels.present[g]) & own:
                hits, rank = hits + 1, rank + 1
                total += hits / rank
            elif not int(task.labels.shown[g]) & shown:
                rank += 1
        if hits:
            found[int(q)] = total / hits
    return found


@pytest.mark.parametrize("protocol", ["leave-one-out", "gallery and queries"])
def test_every_view_follows_the_definition(protocol):
    more = {}
    if protocol != "leave-one-out":
        half = np.arange(120) % 2 == 0
        more = {"queries": half, "gallery": ~half}
    task = random_task(**more)
    evaluation = scoring.evaluate(task)
    assert list(evaluation.views) == ["all", "without person", *CLASSES]
    for name, view in evaluation.views.items():
        expected = by_definition(task, name)
        assert task.queries[view.rows].tolist() == list(expected)
        assert view.values["AP"] == pytest.approx(list(expected.values()), abs=1e-12)
    found = summary_of(evaluation)
    means = [np.mean(list(by_definition(task, name).values())) for name in CLASSES]
    assert found["macro", "mAP"].value == pytest.approx(np.mean(means))
    assert found["macro without person", "mAP"].value == pytest.approx(np.mean(means[:2]))
    assert found["micro", "mAP"].value == pytest.approx(
        np.mean(list(by_definition(task, "all").values()))
    )
    assert [f.value for f in evaluation.per_class()] == pytest.approx(means)
    for score in evaluation.summary() + evaluation.per_class():
        assert score.low <= score.value <= score.high


def test_groups_of_classes_are_reported_beside_the_whole():
    """Review 2: `person` was the only group, and built in."""
    task = random_task(groups={"pets": ("cat", "dog"), "everything": CLASSES})
    evaluation = scoring.evaluate(task, resamples=2)
    found = summary_of(evaluation)
    averages = ["micro", "micro pets", "micro everything", "macro", "macro pets"]
    assert list(dict.fromkeys(average for average, _ in found)) == averages
    assert found["micro everything", "mAP"].value == found["micro", "mAP"].value
    plain = scoring.evaluate(random_task(groups={}), resamples=2)
    assert list(plain.views) == ["all", *CLASSES]
    assert plain.task.fingerprint == task.fingerprint


def test_the_block_size_changes_nothing_at_all():
    task = random_task()
    whole = scoring.evaluate(task)
    blocks = [make() for make in task.ranked(block_bytes=8 * 120 * 7)]
    assert len(blocks) == 18
    parts = scoring.evaluate(task, blocks)
    for name, view in whole.views.items():
        for metric, values in view.values.items():
            assert (values == parts.views[name].values[metric]).all(), (name, metric)
        assert (view.curve == parts.views[name].curve).all()
    assert (whole.neighbours == parts.neighbours).all()
    assert (whole.neighbour_scores == parts.neighbour_scores).all()


def test_the_order_of_the_input_changes_nothing():
    generator = np.random.default_rng(8)
    ids, present = np.arange(40), np.eye(3, dtype=bool)[generator.integers(0, 3, 40)]
    vectors = generator.integers(-1, 2, (40, 6)) + 0.1  # many ties
    shuffled = generator.permutation(40)
    one = scoring.evaluate(scoring.task(ids, vectors, present, classes=CLASSES))
    two = scoring.evaluate(
        scoring.task(ids[shuffled], vectors[shuffled], present[shuffled], classes=CLASSES)
    )
    assert one.summary() == two.summary()
    assert one.task.fingerprint == two.task.fingerprint


def test_permuted_labels_fall_to_the_random_baseline():
    task = random_task(n=200, signal=3.0)
    real = summary_of(scoring.evaluate(task))
    controls = [summary_of(scoring.evaluate(task.permuted(seed))) for seed in range(5)]
    for metric in ("mAP", "mAP@R", "Rprec", "P@10", "nDCG@10", "MRR", "R@10"):
        baseline = real["micro", metric].baseline
        control = np.mean([c["micro", metric].value for c in controls])
        assert control == pytest.approx(baseline, rel=0.06), metric
        assert controls[0]["micro", metric].baseline == pytest.approx(baseline, rel=0.02)
    assert real["micro", "mAP"].value > 0.15 + real["micro", "mAP"].baseline


def test_random_vectors_have_the_expected_scores_exactly_on_average():
    task = random_task(seed=7)
    values = []
    for seed in range(10):
        scores = np.random.default_rng(seed).random((len(task.queries), len(task.gallery)))
        block = ranking.by_score(scores, task.skip)
        found = summary_of(scoring.evaluate(task, [block], ks=(1, 10, 100), resamples=1))
        values.append([f.value for f in found.values()])
    baseline = [f.baseline for f in found.values()]
    assert np.mean(values, axis=0) == pytest.approx(baseline, rel=0.08)


def test_copies_of_the_query_are_not_in_its_ranking():
    present = np.array([[True], [True], [True], [True]])
    vectors = np.array([[1.0, 0], [1.0, 0], [0.5, 1], [0, 1]])
    task = scoring.task(
        np.array([7, 7, 1, 2]), vectors, present, classes=("cat",), names=["a", "b", "c", "d"]
    )
    view = scoring.evaluate(task).views["all"]
    assert dict(zip(task.names, view.counts.relevant.tolist(), strict=True)) == {
        "a": 2,
        "b": 2,
        "c": 3,
        "d": 3,
    }


def test_queries_without_relevant_items_are_counted_and_in_no_mean():
    present = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], bool)
    task = scoring.task(np.arange(4), np.eye(4) + 0.1, present, classes=CLASSES)
    evaluation = scoring.evaluate(task)
    assert evaluation.unlabelled == 1
    assert evaluation.views["all"].without_relevant == 1
    assert evaluation.classes == ("cat",)
    micro = summary_of(evaluation)["micro", "mAP"]
    assert (micro.queries, micro.without_relevant, micro.value) == (2, 1, 1.0)
    # Nothing relevant anywhere is no reason to fail.
    alone = scoring.evaluate(scoring.task(np.arange(3), np.eye(3), np.eye(3, dtype=bool),
                                          classes=CLASSES))  # fmt: skip
    assert alone.summary() == []
    assert alone.per_class() == []
    assert "3 queries in 3 images" in alone._repr_html_()


def test_a_notebook_shows_the_scores_and_no_arrays():
    evaluation = scoring.evaluate(random_task(n=200))
    micro = summary_of(evaluation)["micro", "mAP"]
    for shown in (repr(evaluation), evaluation._repr_html_()):
        assert "200 queries in 200 images" in shown
        assert f"{micro.value:.3f}" in shown
        assert f"{micro.low:.3f} to {micro.high:.3f}" in shown
        assert "array" not in shown


def test_a_shallow_ranking_misses_what_it_does_not_reach():
    task = random_task()
    (full,) = [make() for make in task.ranked()]
    cut = ranking.Block(0, full.order[:, :10], full.keys[:, :10])
    whole, part = scoring.evaluate(task), scoring.evaluate(task, [cut])
    assert whole.about["ranking"] == "exact, full depth"
    assert part.about["ranking"] == "given as blocks"
    a, b = whole.views["all"], part.views["all"]
    assert (a.counts.relevant == b.counts.relevant).all()
    assert (b.values["AP"] < a.values["AP"]).all()
    assert (b.values["P@5"] == a.values["P@5"]).all() or (task.labels.shown != 0).any()
    assert (b.values["R@100"] <= 10 / b.counts.relevant).all()


def test_confusion_counts_the_classes_of_neighbours():
    present = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]], bool)
    vectors = np.array([[1.0, 0], [1.0, 0.1], [0.9, 0.5], [0, 1]])
    matrix = scoring.evaluate(
        scoring.task(np.arange(4), vectors, present, classes=CLASSES)
    ).confusion()
    # cat: images 0 (nearest 1: cat, dog) and 1 (nearest 0: cat); dog: 1 (0: cat), 2 (1: cat, dog)
    assert matrix.tolist() == [[1.0, 0.5, 0.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.0]]


def test_cases_are_the_best_and_worst_queries_without_junk():
    task = random_task(paths=[f"/x/{i}.jpg" for i in range(120)])
    evaluation = scoring.evaluate(task)
    values = evaluation.views["all"].values["AP"]
    best, worst = evaluation.cases(3), evaluation.cases(3, worst=True)
    assert [c.value for c in best] == sorted(values, reverse=True)[:3]
    assert [c.value for c in worst] == sorted(values)[:3]
    for case in best + worst:
        assert len(case.neighbours) == 5
        assert case.path.endswith(".jpg")
        for n in case.neighbours:
            assert n.relevant == bool(set(n.classes) & set(case.classes))
            assert n.name != case.name
        assert [n.score for n in case.neighbours] == sorted(
            (n.score for n in case.neighbours), reverse=True
        )


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda e: e.cases(view="unicorn"), "'unicorn' is unknown"),
        (lambda e: e.cases(metric="mAP"), "'mAP' is unknown; use one of AP, "),
        (lambda e: e.per_class("AP"), "'AP' is unknown; use one of mAP, "),
        (lambda e: e.task.mask("unicorn"), "'unicorn' is unknown; use one of all, "),
        (lambda e: e.confusion(0), "from 1 to 20"),
        (lambda e: scoring.evaluate(e.task, ks=[0]), "at least 1"),
        (lambda e: scoring.evaluate(e.task, ks=[]), "at least 1"),
        (lambda e: scoring.evaluate(e.task, resamples=0), "at least 1"),
        (lambda e: scoring.evaluate(e.task, []), "cover only 0 of 120"),
        (lambda e: scoring.evaluate(e.task,
                                  [m() for m in e.task.ranked()] * 2), "are 120 queries|next"),
        (lambda e: scoring.task(e.task.ids, e.task.vectors[1:], np.ones((120, 3), bool),
                                classes=CLASSES), "there are 119, but 120"),
        (lambda e: scoring.task(e.task.ids, e.task.vectors, np.ones((120, 3), bool),
                                classes=("cat",)), "are 1 classes"),
        (lambda e: random_task(groups={"pets": ("cat", "unicorn")}), "'pets' must differ"),
        (lambda e: random_task(groups={"dog": ("cat",)}), "'dog' must differ"),
        (lambda e: random_task(groups={"none": ()}), "'none' must differ"),
        (lambda e: scoring.task(e.task.ids * 0, e.task.vectors, np.ones((120, 3), bool),
                                classes=CLASSES), "must be unique"),
        (lambda e: scoring.task(e.task.ids, e.task.vectors, np.ones((120, 3), bool),
                                classes=CLASSES, queries=np.zeros(120, bool)), "is empty"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(call, reason):
    evaluation = scoring.evaluate(random_task(), resamples=2)
    with pytest.raises(ConfigError, match=reason):
        call(evaluation)
