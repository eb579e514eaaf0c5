"""Matplotlib figures of evaluations. Write them with :func:`imgsearch.io.write_figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from imgsearch.errors import ConfigError, printable
from imgsearch.evaluation.scoring import ALL, LEVELS, Case, Evaluation, View
from imgsearch.plots import caption, frame, shorten, show_image, tile_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from imgsearch.evaluation.index_sweep import IndexPoint

# The palette of Okabe and Ito without yellow is safe for the colour-blind; styles differ as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLES = ("-", "--", "-.", ":")
HATCHES = ("", "//", "..")  # of bars, once all colours are used
GREY = "#777777"
RELEVANT, NOT_RELEVANT = ("#0072b2", "-"), ("#d55e00", "--")


def precision_recall(
    evaluations: Mapping[str, Evaluation], *, view: str = ALL, title: str = ""
) -> Figure:
    """Draw mean interpolated precision over recall, with the 11 points marked.

    The grey line is that of random rankings of the first evaluation (simulated).
    """
    _require(evaluations, "evaluations")
    figure, axes = _figure(5.4, 3.8, title)
    for (name, evaluation), colour, style in zip(
        evaluations.items(), cycle(COLOURS), cycle(STYLES), strict=False
    ):
        found = _view(evaluation, view)
        label = f"{printable(name)}   mAP {found.values['AP'].mean():.3f}"
        axes.plot(
            LEVELS, found.curve, style, color=colour, label=label, lw=1.8, marker="o", ms=4,
            markevery=10,
        )  # fmt: skip
    first = _view(next(iter(evaluations.values())), view)
    axes.plot(LEVELS, first.curve_baseline, color=GREY, lw=1, label="random order")
    axes.set(xlabel="recall", ylabel="interpolated precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    _legend(axes)
    return figure


def per_class(
    evaluations: Mapping[str, Evaluation], *, metric: str = "mAP", title: str = ""
) -> Figure:
    """Draw one metric of each class as bars, with 95 % intervals and the random baseline.

    Classes, and the numbers of queries behind their names, are those of the first evaluation.
    """
    _require(evaluations, "evaluations")
    scores = {name: {s.average: s for s in e.per_class(metric)} for name, e in evaluations.items()}
    classes = next(iter(scores.values()))
    high = 0.8 / len(scores)
    figure, axes = _figure(5.4, 1.5 + len(classes) * (0.14 + 0.14 * len(scores)), title)
    for i, (name, some) in enumerate(scores.items()):
        shown = [(row, some[c]) for row, c in enumerate(classes) if c in some]
        if not shown:
            continue
        y = np.array([row for row, _ in shown]) - 0.4 + high * (i + 0.5)
        values = np.array([s.value for _, s in shown])
        spread = np.abs(np.array([[s.low, s.high] for _, s in shown]).T - values)
        axes.barh(
            y, values, high * 0.92, color=COLOURS[i % len(COLOURS)], label=printable(name),
            hatch=HATCHES[i // len(COLOURS) % len(HATCHES)], edgecolor="white", lw=0, xerr=spread,
            error_kw={"lw": 1, "capsize": 2, "ecolor": "#333333"},
        )  # fmt: skip
        axes.plot(
            [s.baseline for _, s in shown], y, "|", color="black", ms=9 * high + 3,
            label="random order, expected" if i == 0 else None,
        )  # fmt: skip
    labels = [f"{name}  ({score.queries})" for name, score in classes.items()]
    axes.set_yticks(range(len(classes)), labels, fontsize=9)
    axes.set(xlabel=f"{metric}, 95 % interval over queries", xlim=(0, 1))
    axes.set_ylim(len(classes) - 0.4, -0.6)  # the first class on top
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    _legend(figure, loc="outside lower center", ncols=3)  # inside, it would cover bars
    return figure


def confusion(evaluation: Evaluation, *, title: str = "") -> Figure:
    """Draw :meth:`Evaluation.confusion` in per cent, without the rows that have no query."""
    matrix = evaluation.confusion()
    rows = np.flatnonzero(~np.isnan(matrix).any(axis=1))
    _require(rows, "queries with a class")
    names = evaluation.task.classes
    figure, axes = _figure(1.6 + 0.26 * len(names), 1.6 + 0.22 * len(rows), title)
    percent = matrix[rows] * 100
    # On white, so that a dark theme can turn its lightness round.
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for y, x in np.argwhere(percent >= 0.5):
        colour = "white" if percent[y, x] > 55 else "black"
        text = f"{percent[y, x]:.0f}"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), [names[i] for i in rows], fontsize=8)
    axes.set(
        xlabel="class of the nearest neighbour\n(% of the queries of a class; images show\n"
        "several classes, so rows need not add up to 100)",
        ylabel="class of the query",
    )
    return figure


def cases(found: Sequence[Case], *, title: str = "") -> Figure:
    """Draw queries and their nearest neighbours, a row for each query, which comes first.

    Frames and words say which neighbours are relevant. A picture that cannot be read is a
    tile with the reason.
    """
    _require(found, "cases")
    columns = 1 + max(len(case.neighbours) for case in found)
    figure, grid = tile_grid(len(found), columns, title, height=1.5)
    for row, case in zip(grid, found, strict=True):
        show_image(row[0], case.path)
        classes = shorten(_class_list(case.classes))
        caption(row[0], "query", f"AP {case.value:.2f}, R = {case.relevant}", classes)
        for tile, near in zip(row[1:], case.neighbours, strict=False):
            show_image(tile, near.path)
            frame(tile, *(RELEVANT if near.relevant else NOT_RELEVANT))
            verdict = "relevant" if near.relevant else "not relevant"
            head = f"{near.rank} · {near.score:.3f}"
            caption(tile, head, verdict, shorten(_class_list(near.classes)))
    return figure


def index_sweep(points: Sequence[IndexPoint], *, title: str = "") -> Figure:
    """Draw the recall of indexes over their latency.

    Points of one build are joined in the order given, and their markers grow in it.
    """
    from matplotlib.ticker import LogLocator

    _require(points, "points")
    figure, axes = _figure(5.4, 4.2, title)
    lines: dict[str, list[IndexPoint]] = {}
    for point in points:
        # The search parameter comes last; what is before it was built once.
        build = point.index.rpartition(",")[0] or point.index.partition(":")[0]
        lines.setdefault(build, []).append(point)
    for (build, some), colour, marker in zip(
        lines.items(), cycle(COLOURS), cycle("os^Dv"), strict=False
    ):
        # Values beside the points would cover each other: they are in the legend.
        settings = [p.index.removeprefix(build).lstrip(",:").partition("=") for p in some]
        label = f"{build}, {settings[0][0]} = {', '.join(value for *_, value in settings)}"
        x, y = [p.median_ms for p in some], np.array([p.recall for p in some])
        spread = np.abs(np.array([[p.low, p.high] for p in some]).T - y)
        axes.errorbar(x, y, yerr=spread, color=colour, lw=1.2, capsize=2)
        sizes = 25 * (1 + np.arange(len(some)))
        axes.scatter(
            x, y, sizes, color=colour, marker=marker, alpha=0.7, zorder=3,
            label=label if settings[0][0] else build,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    vectors = f"{points[0].vectors:,} vectors of {printable(points[0].collection)}"
    axes.set(
        xlabel=f"median latency of one search among {vectors}, ms",
        ylabel=f"recall@{points[0].k} against exact search",
        ylim=(min(0.9, *(p.low - 0.05 for p in points)), 1.03),
    )
    axes.grid(alpha=0.3, which="both")
    # Inside, the legend would hide points.
    _legend(figure, loc="outside lower center", title="markers grow with the search parameter")
    return figure


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    if title:
        axes.set_title(printable(title), fontsize=10, parse_math=False)
    return figure, axes


def _legend(owner: Axes | Figure, **options: Any) -> None:
    legend = owner.legend(fontsize=8, title_fontsize=8, framealpha=0.9, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _require(found: Mapping | Sequence | np.ndarray, what: str) -> None:
    if not len(found):
        raise ConfigError(what, "there are none to draw")


def _class_list(classes: Sequence[str]) -> str:
    return ", ".join(classes) or "(no class)"


def _view(evaluation: Evaluation, view: str) -> View:
    if view not in evaluation.views or not len(evaluation.views[view].rows):
        raise ConfigError("view", f"{view!r} has no query with anything relevant")
    return evaluation.views[view]
