"""Files of trec_eval: what is written means the same to pytrec_eval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgsearch.errors import ConfigError
from imgsearch.evaluation import scoring, trec
from imgsearch.evaluation.ranking import Block
from tests.evaluation.test_scoring import random_task

pytrec_eval = pytest.importorskip("pytrec_eval")

NAMES = {"map": "AP", "recip_rank": "RR", "Rprec": "Rprec"}
NAMES |= {f"P_{k}": f"P@{k}" for k in scoring.KS} | {f"recall_{k}": f"R@{k}" for k in scoring.KS}
NAMES |= {f"ndcg_cut_{k}": f"nDCG@{k}" for k in scoring.KS}
CUTS = ",".join(map(str, scoring.KS))
MEASURES = {"map", "recip_rank", "Rprec"}
MEASURES |= {f"P.{CUTS}", f"recall.{CUTS}", f"ndcg_cut.{CUTS}"}


def judged_by_pytrec_eval(qrels, run):
    values = pytrec_eval.RelevanceEvaluator(qrels, MEASURES).evaluate(run)
    return {q: {NAMES[m]: v for m, v in found.items()} for q, found in values.items()}


@pytest.mark.parametrize("view", ["all", "without person", "dog"])
def test_an_exported_run_gives_pytrec_eval_our_own_values(tmp_path, view):
    task = random_task(n=60)
    # Half of the images share their vectors with others, so that scores tie.
    task = scoring.Task(**(vars(task) | {"vectors": np.round(task.vectors[np.arange(60) // 2])}))
    with trec.write_qrels(tmp_path / "new" / "a.qrels", task, view=view).open() as file:
        qrels = pytrec_eval.parse_qrel(file)
    with trec.write_run(tmp_path / "a.run", task, view=view).open() as file:
        run = pytrec_eval.parse_run(file)
    ours = scoring.evaluate(task).views[view]
    names = [task.names[i] for i in task.queries[ours.rows]]
    theirs = judged_by_pytrec_eval(qrels, run)
    for metric in NAMES.values():
        found = [theirs[name][metric] for name in names]
        assert found == pytest.approx(list(ours.values[metric]), abs=1e-6), metric


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


# Not near 0: a library may have switched off subnormal numbers in this process.
SCORES = st.floats(-1, 1, width=32).filter(lambda score: abs(score) > 1e-30)


@given(st.lists(SCORES, min_size=1, max_size=30))
def test_scores_are_lowered_no_further_than_needed(scores):
    scores = np.sort(np.array(scores, np.float32))[::-1]
    lowered = trec.decreasing(scores)
    assert (np.diff(lowered) < 0).all()
    assert (lowered <= scores).all()
    free = np.flatnonzero(np.append(True, scores[1:] < lowered[:-1]))
    assert (lowered[free] == scores[free]).all()


def test_a_failed_export_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.run"
    path.write_text("old")
    task = random_task(n=10)

    def failing():
        yield Block(0, np.zeros((1, 1), np.int32), np.zeros((1, 1), np.uint64))
        raise RuntimeError("the store is gone")

    with pytest.raises(RuntimeError):
        trec.write_run(path, task, failing())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_invalid_exports_are_refused(tmp_path):
    task = random_task(n=10, names=[f"a {i}" for i in range(10)])
    for call in (trec.write_qrels, trec.write_run):
        with pytest.raises(ConfigError, match="cannot be written to TREC files"):
            call(tmp_path / "a", task)
        with pytest.raises(ConfigError, match="unicorn"):
            call(tmp_path / "a", task, view="unicorn")
    for wrong in ({"tag": "a b"}, {"depth": 0}):
        with pytest.raises(ConfigError, match="cannot be used"):
            trec.write_run(tmp_path / "a", random_task(n=10), **wrong)
    assert list(tmp_path.iterdir()) == []
