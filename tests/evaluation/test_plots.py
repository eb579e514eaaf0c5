"""Figures of evaluations: drawn under no window, in PNG and SVG, with what they must say."""

from __future__ import annotations

import sys

import pytest

from imgsearch import io
from imgsearch.errors import ConfigError
from imgsearch.evaluation import plots, scoring
from imgsearch.evaluation.index_sweep import IndexPoint
from tests.evaluation.test_scoring import CLASSES, random_task
from tests.helpers import paint

NAME = "a $dollar_ name"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [str(paint(folder / f"{i}.png", i)) for i in range(39)] + [str(folder / "lost.png")]
    return scoring.evaluate(random_task(n=40, paths=paths), resamples=50)


def texts(figure) -> str:
    from matplotlib.text import Text

    return "\n".join(t.get_text() for t in figure.findobj(Text))


def drawn(figure, tmp_path) -> str:
    for ending, head in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        path = io.write_figure(tmp_path / f"figure{ending}", figure)
        assert path.read_bytes().startswith(head)
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )
    return texts(figure)


def test_precision_recall(evaluation, tmp_path):
    figure = plots.precision_recall({NAME: evaluation, "other": evaluation}, title=NAME)
    text = drawn(figure, tmp_path)
    value = evaluation.views["all"].values["AP"].mean()
    assert f"{NAME}   mAP {value:.3f}" in text
    assert "random order" in text
    line = figure.axes[0].get_lines()[0]
    assert list(line.get_ydata()) == list(evaluation.views["all"].curve)
    plots.precision_recall({"dog": evaluation}, view="dog")


def test_per_class(evaluation, tmp_path):
    figure = plots.per_class({NAME: evaluation, "other": evaluation}, metric="P@5")
    text = drawn(figure, tmp_path)
    for name, score in zip(CLASSES, evaluation.per_class("P@5"), strict=True):
        assert f"{name}  ({score.queries})" in text
    widths = [bar.get_width() for bar in figure.axes[0].containers[1]]
    assert widths == pytest.approx([f.value for f in evaluation.per_class("P@5")])


def test_more_evaluations_than_colours_are_told_apart(evaluation):
    """More than seven could not be drawn, and a batch run of eight wrote no report."""
    figure = plots.per_class(dict.fromkeys("abcdefgh", evaluation))
    bars = figure.axes[0].patches[:: len(CLASSES)]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == len(bars) == 8


def test_confusion(evaluation, tmp_path):
    figure = plots.confusion(evaluation)
    text = drawn(figure, tmp_path)
    assert set(CLASSES) <= set(text.split("\n"))
    assert f"{evaluation.confusion()[0, 0] * 100:.0f}" in text


def test_cases_show_pictures_and_say_why_one_cannot_be_read(evaluation, tmp_path):
    found = evaluation.cases(40, worst=True, k=3)
    figure = plots.cases(found[:2] + [c for c in found if "lost" in c.path], title="worst")
    text = drawn(figure, tmp_path)
    assert f"AP {found[0].value:.2f}, R = {found[0].relevant}" in text
    assert "relevant" in text
    assert "no such file" in text
    without = scoring.evaluate(random_task(n=10), resamples=2).cases(1)
    assert "no file" in drawn(plots.cases(without), tmp_path)


def test_index_sweep(tmp_path):
    hnsw = "HNSW:M=16,efConstruction=200"
    points = [
        IndexPoint("mine", "FLAT", 10, 1.0, 1.0, 1.0, 100, 9.0, 12.0, 1.0, 5000),
        IndexPoint("mine", f"{hnsw},ef=16", 10, 0.8, 0.75, 0.85, 100, 1.0, 2.0, 3.0, 5000),
        IndexPoint("mine", f"{hnsw},ef=64", 10, 0.97, 0.96, 0.98, 100, 2.0, 3.0, 0.0, 5000),
    ]
    figure = plots.index_sweep(points)
    text = drawn(figure, tmp_path)
    for part in (f"{hnsw}, ef = 16, 64", "FLAT", "5,000 vectors of mine", "recall@10"):
        assert part in text


def test_nothing_to_draw_is_said(evaluation):
    for call in (
        lambda: plots.precision_recall({}),
        lambda: plots.per_class({}),
        lambda: plots.precision_recall({"a": evaluation}, view="unicorn"),
        lambda: plots.cases([]),
        lambda: plots.index_sweep([]),
    ):
        with pytest.raises(ConfigError):
            call()
