"""Evaluations on disk."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from imgsearch.evaluation import comparison, report, scoring
from tests.evaluation.test_scoring import random_task


@pytest.fixture(scope="module")
def evaluation():
    return scoring.evaluate(random_task(about={"collection": "c", "identity": {"dim": 16}}))


def test_files_hold_every_figure_and_what_is_needed_to_repeat_it(evaluation, tmp_path):
    written = report.write(evaluation, tmp_path / "new" / "folder", "run")
    assert [p.name for p in written] == [
        "run-summary.csv",
        "run-classes.csv",
        "run-queries.csv",
        "run.json",
    ]
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == {p.name for p in written}
    content = json.loads(written[-1].read_text())
    assert content["about"] == {
        "collection": "c",
        "identity": {"dim": 16},
        "truth": evaluation.task.fingerprint,
        "ks": [1, 5, 10, 100],
        "seed": 0,
        "resamples": 1000,
        "ranking": "exact, full depth",
    }
    assert content["versions"]["numpy"] == np.__version__
    assert content["counts"]["queries"] == 120
    assert content["curves"]["all"]["eleven_points"] == content["curves"]["all"]["precision"][::10]
    with written[0].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(evaluation.summary()) == len(content["summary"])
    for row, figure in zip(rows, evaluation.summary(), strict=True):
        assert float(row["value"]) == figure.value
        assert row["truth"] == evaluation.task.fingerprint
        assert json.loads(row["identity"]) == {"dim": 16}
        assert "numpy" in json.loads(row["versions"])
    with written[2].open() as file:
        queries = list(csv.DictReader(file))
    view = evaluation.views["all"]
    assert list(queries[0])[:6] == ["query", "image_id", "relevant", "candidates", "AP", "AP@R"]
    assert [float(row["AP"]) for row in queries] == view.values["AP"].tolist()
    assert [int(row["candidates"]) for row in queries] == view.counts.candidates.tolist()


def test_the_same_evaluation_gives_the_same_bytes(evaluation, tmp_path):
    again = scoring.evaluate(evaluation.task)
    for a, b in zip(
        report.write(evaluation, tmp_path / "a"),
        report.write(again, tmp_path / "b"),
        strict=True,
    ):
        assert a.read_bytes() == b.read_bytes()


def test_undefined_figures_are_null_in_json(tmp_path):
    present = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], bool)
    task = scoring.task(np.arange(3), np.eye(3), present, classes=("cat", "dog", "person"))
    path = report.write(scoring.evaluate(task), tmp_path)[-1]
    assert json.loads(path.read_text())["confusion"]["nearest_neighbour"][2] == [None] * 3


def test_a_comparison_as_plain_values(evaluation):
    content = report.comparison_to_dict(comparison.compare(evaluation, evaluation))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["overall"]["p"] == 1
    assert content["first"]["collection"] == "c"


def test_comparisons_have_the_seed_of_the_first_evaluation():
    """The panel saved those with the seed that its field showed by then."""
    pair = {str(x): scoring.evaluate(random_task(signal=x), seed=3, resamples=5) for x in (1, 2)}
    found = report.compare_with_first(pair)["2"].overall
    assert found == comparison.compare(*pair.values(), seed=3).overall
    assert found != comparison.compare(*pair.values(), seed=0).overall


def test_an_empty_table_and_odd_text_are_written(tmp_path):
    assert report.write_csv(tmp_path / "a.csv", []).read_text() == "\n"
    path = report.write_csv(tmp_path / "b.csv", [{"x": 'a"b,\nc', "y": "\udcff"}])
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"x": 'a"b,\nc', "y": "\\udcff"}]
