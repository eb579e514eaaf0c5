"""Matplotlib figures of pictures, for notebooks, batch runs and papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgsearch import images
from imgsearch.errors import ImageError, printable

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec
    from PIL import Image

TILE = 1.35
"""Width of a picture in a grid, in inches: captions stay legible with seven columns."""

THUMBNAIL = 320
"""Longest side of a picture in a grid, in pixels."""

CAPTION = 19
"""Characters that fit below a picture."""

QUERY_COLOUR = "#d55e00"  # from the colour-blind-safe palette of Okabe and Ito
GROUND = "#f4f4f4"


def result_grid(
    query: images.Source | None,
    results: Sequence,
    *,
    box: images.Box | None = None,
    title: str = "",
    columns: int = 5,
) -> Figure:
    """Draw a query, if it is a picture, and its hits beside it, best first.

    A query that cannot be read raises :class:`ImageError`; a hit that cannot be read becomes
    a tile with the reason. `box` is drawn on the query.
    """
    rows = max(1, math.ceil(len(results) / columns))
    across = max(1, math.ceil(len(results) / rows))  # rows of nearly the same length
    large = 0 if query is None else min(rows, 2)
    figure = _figure(rows, across + large, title)
    grid = figure.add_gridspec(rows, across + large)
    if query is not None:
        _draw_query(figure, grid[:large, :large], query, box, large)
    for i, hit in enumerate(results):
        tile = _tile(figure, grid[i // across, large + i % across])
        show_image(tile, hit.path)
        caption(tile, f"{hit.rank} · {hit.score:.3f}", shorten(Path(hit.path).name))
    return figure


def _draw_query(
    figure: Figure, place: SubplotSpec, query: images.Source, box: images.Box | None, large: int
) -> None:
    from matplotlib.patches import Rectangle

    first = _tile(figure, place)
    first.set_anchor("N")
    first.imshow(images.decode(query))
    first.set(adjustable="datalim", facecolor=GROUND)
    if box is not None:
        left, upper, right, lower = box
        first.add_patch(
            Rectangle((left, upper), right - left, lower - upper, fill=False, lw=2, ec=QUERY_COLOUR)
        )
    caption(first, "query", shorten(query.name, large * CAPTION) if isinstance(query, Path) else "")
    frame(first, QUERY_COLOUR)


def thumbnail(source: images.Source, side: int = THUMBNAIL) -> Image.Image:
    """Decode a picture to upright RGB of at most `side` by `side` pixels."""
    picture = images.decode(source, draft=side)
    picture.thumbnail((side, side))
    return picture


def tile_grid(
    rows: int, columns: int, title: str = "", *, height: float = 1.3
) -> tuple[Figure, np.ndarray]:
    """Create a figure of captioned tiles; `height` is that of a tile relative to its width."""
    import numpy as np

    figure = _figure(rows, columns, title, height)
    grid = figure.add_gridspec(rows, columns)
    tiles = [[_tile(figure, grid[i, j]) for j in range(columns)] for i in range(rows)]
    return figure, np.array(tiles)


def _figure(rows: int, columns: int, title: str, height: float = 1.3) -> Figure:
    from matplotlib.figure import Figure

    head = 0.35 if title else 0.0
    figure = Figure(figsize=(columns * TILE, rows * TILE * height + head), layout="constrained")
    if title:
        figure.suptitle(printable(title), fontsize=11, parse_math=False)
    return figure


def _tile(figure: Figure, place: SubplotSpec) -> Axes:
    """Add a square for one picture, with room for its caption."""
    tile = figure.add_subplot(place, xticks=[], yticks=[], box_aspect=1)
    frame(tile, None)
    return tile


def frame(tile: Axes, colour: str | None, style: str = "-") -> None:
    """Draw a frame around a tile, or remove it."""
    for spine in tile.spines.values():
        spine.set_visible(colour is not None)
        if colour is not None:
            spine.set(color=colour, linewidth=2.5, linestyle=style)


def show_image(tile: Axes, path: str | Path) -> None:
    """Show an image file, or the reason why it cannot be read."""
    try:
        if not path:
            raise ImageError("", "no file")
        tile.imshow(thumbnail(Path(path)))
        tile.set(adjustable="datalim", facecolor=GROUND)
    except ImageError as error:
        tile.set_facecolor(GROUND)
        tile.text(
            0.5, 0.5, error.reason, ha="center", va="center", wrap=True, fontsize=7,
            transform=tile.transAxes, parse_math=False,
        )  # fmt: skip


def caption(tile: Axes, *lines: str) -> None:
    """Write lines below a tile; dollar signs in file names do not start a formula."""
    text = "\n".join(printable(line) for line in lines if line)
    tile.set_xlabel(text, fontsize=8, labelpad=3, parse_math=False)


def shorten(text: str, length: int = CAPTION) -> str:
    """Replace the middle of a text that is too long by an ellipsis."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
