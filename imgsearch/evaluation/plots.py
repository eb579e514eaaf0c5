"""Matplotlib figures of evaluations. Write them with :func:`imgsearch.io.write_figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgsearch import plots
from imgsearch.errors import ConfigError, ImageError, printable
from imgsearch.evaluation.scoring import ALL, LEVELS, Case, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from imgsearch.evaluation.index_sweep import IndexPoint

# Okabe and Ito's palette without yellow, told apart by all eyes; line styles differ as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLES = ("-", "--", "-.", ":")
GREY = "#777777"
RIGHT, WRONG = "#0072b2", "#d55e00"


def precision_recall(
    evaluations: Mapping[str, Evaluation], *, view: str = ALL, title: str = ""
) -> Figure:
    """Draw mean interpolated precision over recall, with the 11 points marked.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By the name that stands in the legend.
    view : str
        ``all``, ``without person`` or a class.
    title : str
        Stands above.

    Returns
    -------
    matplotlib.figure.Figure
        Belongs to no window. Grey: random rankings of the first evaluation (simulated).

    Raises
    ------
    ConfigError
        There is nothing to draw.
    """
    _some(evaluations)
    figure, axes = _figure(6.0, 4.2, title)
    for (name, evaluation), colour, style in zip(
        evaluations.items(), cycle(COLOURS), cycle(STYLES), strict=False
    ):
        found = _view(evaluation, view)
        label = f"{printable(name)}   mAP {found.values['mAP'].mean():.3f}"
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

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By the name that stands in the legend; at most seven.
    metric : str
        One of theirs.
    title : str
        Stands above.

    Returns
    -------
    matplotlib.figure.Figure
        Belongs to no window. Behind each class stands its number of queries in
        the first evaluation that has it.

    Raises
    ------
    ConfigError
        There is nothing to draw, or too much.
    """
    _some(evaluations)
    if len(evaluations) > len(COLOURS):
        raise ConfigError("evaluations", f"at most {len(COLOURS)} fit in one figure")
    found = {name: {f.average: f for f in e.per_class(metric)} for name, e in evaluations.items()}
    order = next(iter(evaluations.values())).task.classes
    classes = [c for c in order if any(c in some for some in found.values())]
    high = 0.8 / len(found)
    figure, axes = _figure(6.4, 1.3 + len(classes) * (0.16 + 0.14 * len(found)), title)
    for i, (name, some) in enumerate(found.items()):
        there = [(row, some[c]) for row, c in enumerate(classes) if c in some]
        if not there:
            continue
        y = np.array([row for row, _ in there]) - 0.4 + high * (i + 0.5)
        values = np.array([f.value for _, f in there])
        spread = np.abs(np.array([[f.low, f.high] for _, f in there]).T - values)
        axes.barh(
            y, values, high * 0.92, color=COLOURS[i], label=printable(name), xerr=spread,
            error_kw={"lw": 1, "capsize": 2, "ecolor": "#333333"},
        )  # fmt: skip
        axes.plot(
            [f.baseline for _, f in there], y, "|", color="black", ms=9 * high + 3,
            label="random order, expected" if i == 0 else None,
        )  # fmt: skip
    sizes = {c: next(s[c].queries for s in found.values() if c in s) for c in classes}
    axes.set_yticks(range(len(classes)), [f"{c}  ({sizes[c]})" for c in classes], fontsize=8)
    axes.set(xlabel=f"{metric}, 95 % interval over queries", xlim=(0, 1))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    _legend(axes)
    return figure


def confusion(evaluation: Evaluation, *, k: int = 1, title: str = "") -> Figure:
    """Draw which classes the nearest neighbours of each class show.

    Parameters
    ----------
    evaluation : Evaluation
    k : int
        Neighbours of each query.
    title : str
        Stands above.

    Returns
    -------
    matplotlib.figure.Figure
        Belongs to no window. Values as :meth:`imgsearch.evaluation.scoring.Evaluation.confusion`
        gives them, in per cent; rows without a query are left out.

    Raises
    ------
    ConfigError
        There is nothing to draw.
    """
    matrix = evaluation.confusion(k)
    rows = np.flatnonzero(~np.isnan(matrix).any(axis=1))
    if not len(rows):
        raise ConfigError("confusion", "no query shows a class")
    names = evaluation.task.classes
    figure, axes = _figure(2.2 + 0.36 * len(names), 2.0 + 0.3 * len(rows), title)
    image = axes.imshow(matrix[rows] * 100, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for y, row in enumerate(matrix[rows]):
        for x, value in enumerate(row):
            if value >= 0.005:
                axes.text(
                    x, y, f"{value * 100:.0f}", ha="center", va="center", fontsize=6,
                    color="black" if value > 0.55 else "white",
                )  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), [names[i] for i in rows], fontsize=8)
    nearest = "nearest neighbour" if k == 1 else f"{k} nearest neighbours"
    axes.set(xlabel=f"class that the {nearest} shows", ylabel="class of the query")
    figure.colorbar(image, label="% of pairs")
    return figure


def cases(found: Sequence[Case], *, metric: str = "AP", title: str = "") -> Figure:
    """Draw queries and their nearest neighbours, a row for each query.

    Parameters
    ----------
    found : sequence of Case
        From :meth:`imgsearch.evaluation.scoring.Evaluation.cases`.
    metric : str
        Name of what they were chosen by.
    title : str
        Stands above.

    Returns
    -------
    matplotlib.figure.Figure
        Belongs to no window. The query is the first of its row. Frames and words
        say which neighbours are relevant. A picture that cannot be read is a tile
        that says why.

    Raises
    ------
    ConfigError
        There is no case.
    """
    from matplotlib.figure import Figure

    if not found:
        raise ConfigError("cases", "there is none to draw")
    columns = 1 + max(len(case.neighbours) for case in found)
    figure = Figure(
        figsize=(columns * plots.TILE, len(found) * plots.TILE * 1.2 + 0.4 * bool(title)),
        layout="constrained",
    )
    if title:
        figure.suptitle(printable(title), fontsize=10)
    grid = figure.subplots(len(found), columns, squeeze=False)
    for row, case in zip(grid, found, strict=True):
        for tile in row:
            tile.set_xticks([])
            tile.set_yticks([])
            _frame(tile, None, "-")
        _show(row[0], case.path)
        _caption(row[0], f"{metric} {case.value:.3f}, R = {case.relevant}", case.classes)
        for tile, near in zip(row[1:], case.neighbours, strict=False):
            _show(tile, near.path)
            _frame(tile, *((RIGHT, "-") if near.relevant else (WRONG, "--")))
            verdict = "relevant" if near.relevant else "not relevant"
            _caption(tile, f"{near.rank}   {near.score:.3f}   {verdict}", near.classes)
    return figure


def index_sweep(points: Sequence[IndexPoint], *, title: str = "") -> Figure:
    """Draw recall of indexes over their latency.

    Parameters
    ----------
    points : sequence of IndexPoint
        From :func:`imgsearch.evaluation.index_sweep.sweep`.
    title : str
        Stands above.

    Returns
    -------
    matplotlib.figure.Figure
        Belongs to no window. Points of one kind of index and one build are joined, in
        the order given.

    Raises
    ------
    ConfigError
        There is no point.
    """
    from matplotlib.ticker import LogLocator

    if not points:
        raise ConfigError("points", "there is none to draw")
    figure, axes = _figure(6.4, 4.2, title)
    lines: dict[str, list[IndexPoint]] = {}
    for point in points:
        # The search parameter comes last; what is before it was built once.
        build = point.index.rpartition(",")[0] or point.index.partition(":")[0]
        lines.setdefault(build, []).append(point)
    for (name, some), colour, marker in zip(
        lines.items(), cycle(COLOURS), cycle("os^Dv"), strict=False
    ):
        x, y = [p.median_ms for p in some], np.array([p.recall for p in some])
        spread = np.abs(np.array([[p.low, p.high] for p in some]).T - y)
        axes.errorbar(
            x, y, yerr=spread, color=colour, marker=marker, ms=5, lw=1.2, capsize=2, label=name
        )
        for point in some:
            last = point.index.rpartition(",")[2].rpartition(":")[2]
            if "=" in last:
                axes.annotate(
                    last, (point.median_ms, point.recall), fontsize=6, xytext=(3, -8),
                    textcoords="offset points",
                )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    k, size = points[0].k, points[0].vectors
    axes.set(
        xlabel=f"median latency of one search among {size:,} vectors, ms",
        ylabel=f"recall@{k} against exact search",
        ylim=(min(0.9, *(p.low - 0.05 for p in points)), 1.03),
    )
    axes.grid(alpha=0.3, which="both")
    _legend(figure, loc="outside lower center", ncols=2)  # wherever inside, it would hide points
    return figure


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    if title:
        axes.set_title(printable(title), fontsize=10, parse_math=False)
    return figure, axes


def _legend(owner: Axes | Figure, **how: Any) -> None:
    for text in owner.legend(fontsize=8, framealpha=0.9, **how).get_texts():
        text.set_parse_math(False)


def _some(evaluations: Mapping[str, Evaluation]) -> None:
    if not evaluations:
        raise ConfigError("evaluations", "there is none to draw")


def _view(evaluation: Evaluation, view: str):
    if view not in evaluation.views or not len(evaluation.views[view].rows):
        raise ConfigError("view", f"{view!r} has no query with anything relevant")
    return evaluation.views[view]


def _show(tile: Axes, path: str) -> None:
    try:
        if not path:
            raise ImageError("", "no file")
        tile.imshow(plots.thumbnail(Path(path)))
    except ImageError as error:
        tile.set_facecolor("#eeeeee")
        tile.text(
            0.5, 0.5, error.reason, ha="center", va="center", wrap=True, fontsize=7,
            transform=tile.transAxes, parse_math=False,
        )  # fmt: skip


def _frame(tile: Axes, colour: str | None, style: str) -> None:
    for spine in tile.spines.values():
        spine.set_visible(colour is not None)
        spine.set(color=colour or GREY, linewidth=2.5, linestyle=style)


def _caption(tile: Axes, head: str, classes: Sequence[str]) -> None:
    text = ", ".join(classes) or "(no class)"
    tile.set_xlabel(f"{head}\n{text}", fontsize=7, labelpad=3, parse_math=False)
