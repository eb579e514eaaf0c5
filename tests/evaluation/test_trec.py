"""Files of trec_eval: what is written means the same to pytrec_eval, what is hostile is refused."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgsearch.errors import ConfigError, DatasetError
from imgsearch.evaluation import scoring, trec
from imgsearch.evaluation.ranking import Block
from tests.evaluation.test_metrics import judged_runs
from tests.evaluation.test_scoring import random_task

pytrec_eval = pytest.importorskip("pytrec_eval")

NAMES = {"map": "mAP", "recip_rank": "MRR", "Rprec": "Rprec"}
NAMES |= {f"P_{k}": f"P@{k}" for k in scoring.KS} | {f"recall_{k}": f"R@{k}" for k in scoring.KS}
NAMES |= {f"ndcg_cut_{k}": f"nDCG@{k}" for k in scoring.KS}
NAMES |= {f"iprec_at_recall_{i / 10:.2f}": f"iprec@{i / 10}" for i in range(11)}
CUTS = ",".join(map(str, scoring.KS))
MEASURES = {"map", "recip_rank", "Rprec", "iprec_at_recall"}
MEASURES |= {f"P.{CUTS}", f"recall.{CUTS}", f"ndcg_cut.{CUTS}"}


def judged_by_pytrec_eval(qrels, run):
    values = pytrec_eval.RelevanceEvaluator(qrels, MEASURES).evaluate(run)
    return {q: {NAMES[m]: v for m, v in found.items()} for q, found in values.items()}


@settings(max_examples=100, deadline=None)
@given(judged_runs(), st.randoms(use_true_random=False))
def test_judging_a_run_agrees_with_pytrec_eval(case, random):
    qrels, run = {"q": case[0]}, {"q": case[1]}
    shuffled = list(run["q"].items())
    random.shuffle(shuffled)
    theirs = judged_by_pytrec_eval(qrels, run)["q"]
    ours = trec.evaluate(qrels, {"q": dict(shuffled)})["q"]
    assert {m: ours[m] for m in theirs} == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("view", ["all", "without person", "dog"])
def test_an_exported_run_gives_pytrec_eval_our_own_figures(tmp_path, view):
    task = random_task(n=60)
    # Half of the images share their vectors with others, so that scores tie.
    task = scoring.Task(**(vars(task) | {"vectors": np.round(task.vectors[np.arange(60) // 2])}))
    qrels = trec.read_qrels(trec.write_qrels(tmp_path / "new" / "a.qrels", task, view=view))
    run = trec.read_run(trec.write_run(tmp_path / "a.run", task, view=view))
    figures = scoring.evaluate(task).views[view]
    names = [task.names[i] for i in task.queries[figures.rows]]
    for values in (judged_by_pytrec_eval(qrels, run), trec.evaluate(qrels, run)):
        for metric in figures.values:
            if metric != "mAP@R" or metric in values[names[0]]:
                found = [values[name][metric] for name in names]
                assert found == pytest.approx(list(figures.values[metric]), abs=1e-6), metric


def test_exported_scores_decrease_strictly_though_vectors_are_equal(tmp_path):
    present = np.ones((5, 1), bool)
    task = scoring.task(np.arange(5), np.ones((5, 2)), present, classes=("cat",))
    path = trec.write_run(tmp_path / "a.run", task, depth=3, tag="mine")
    lines = [line.split() for line in path.read_text().splitlines()]
    assert [line[2] for line in lines if line[0] == "2"] == ["0", "1", "3"]
    assert {line[1] for line in lines} == {"Q0"}
    assert {line[5] for line in lines} == {"mine"}
    scores = [np.float32(line[4]) for line in lines if line[0] == "2"]
    assert scores[0] > scores[1] > scores[2] > 0.999999


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30))
def test_scores_are_lowered_no_further_than_needed(scores):
    scores = np.sort(np.array(scores, np.float32))[::-1]
    lowered = trec.decreasing(scores)
    assert (np.diff(lowered) < 0).all()
    assert (lowered <= scores).all()
    free = np.flatnonzero(np.append(True, scores[1:] < lowered[:-1]))
    assert (lowered[free] == scores[free]).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"q Q0 d 1 0.5\n", "line 1: expected 6"),
        (b"q Q0 d 1 0.5 t\nq Q0 e 2 0.4 t u\n", "line 2: expected 6"),
        (b"q Q0 d 1 0.5 t\n\nq Q0 d 2 0.4 t\n", "line 3: q has d twice"),
        (b"q Q0 d 1 nan t\n", "line 1: 'nan' is no score"),
        (b"q Q0 d 1 inf t\n", "line 1: 'inf' is no score"),
        (b"q Q0 d 1 1e99 t\n", "line 1: '1e99' is no score"),
        (b"q Q0 d 1 0x1p3 t\n", "is no score"),
        (b"q Q0 d 1 1_0 t\n", "is no score"),
        (b"q Q0 d 1 --1 t\n", "is no score"),
        (b"q Q0 d\xff 1 0.5 t\n", "line 1: is no UTF-8"),
        (b"q Q0 d\0 1 0.5 t\n", "line 1: expected 6 printable"),
        ("q Q0 d\u202e 1 0.5 t\n".encode(), "line 1: expected 6 printable"),
        (b"q" * 10_000, "line 1: longer than 4096"),
    ],
)
def test_runs_that_cannot_be_used(tmp_path, content, reason):
    path = tmp_path / "a.run"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=reason) as caught:
        trec.read_run(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("q 0 d 1 t\n", "line 1: expected 4"),
        ("q 0 d 1\nq 0 d 0\n", "line 2: q has d twice"),
        ("q 0 d 1.5\n", "line 1: '1.5' is no relevance"),
        ("q 0 d 99999999999999\n", "is no relevance"),
        ("q 0 d 1\n" * 3, "more than 2 lines"),
    ],
)
def test_qrels_that_cannot_be_used(tmp_path, content, reason):
    path = tmp_path / "a.qrels"
    path.write_text(content if "more" not in reason else "".join(f"q 0 d{i} 1\n" for i in range(3)))
    with pytest.raises(DatasetError, match=reason):
        trec.read_qrels(path, max_lines=2)


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in [("pipe", "no regular file"), ("none", "No such file"), (".", "read")]:
        with pytest.raises(DatasetError, match=reason):
            trec.read_run(tmp_path / name)


def test_a_run_is_read_in_the_order_of_trec_eval(tmp_path):
    path = tmp_path / "a.run"
    path.write_text("q Q0 a 1 0.5 t\r\nq Q0 b 2 0.5 t\nq Q0 c 3 0.50000000001 t\nq Q0 d 9 0.7 t\n")
    assert list(trec.read_run(path)["q"]) == ["d", "c", "b", "a"]


def test_a_failed_export_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.run"
    path.write_text("old")
    task = random_task(n=10)

    def failing():
        yield Block(0, np.zeros((1, 1), np.int32), np.zeros((1, 1)))
        raise RuntimeError("the store is gone")

    with pytest.raises(RuntimeError):
        trec.write_run(path, task, failing())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_exported_is_refused(tmp_path):
    task = random_task(n=10, names=[f"a {i}" for i in range(10)])
    for call in (trec.write_qrels, trec.write_run):
        with pytest.raises(ConfigError, match="has a blank"):
            call(tmp_path / "a", task)
        with pytest.raises(ConfigError, match="unicorn"):
            call(tmp_path / "a", task, view="unicorn")
    for wrong in ({"tag": "a b"}, {"depth": 0}):
        with pytest.raises(ConfigError, match="cannot be used"):
            trec.write_run(tmp_path / "a", random_task(n=10), **wrong)
    assert list(tmp_path.iterdir()) == []
