"""Matplotlib figures of pictures, for notebooks, batch runs and papers."""

from __future__ import annotations

import io
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
    from PIL import Image

TILE = 1.9
"""Width of a picture in a grid, inches; at 150 dots per inch about 280 pixels."""

THUMBNAIL = 320
"""Longest side of a picture in a grid, pixels."""

QUERY_COLOUR = "#d55e00"  # from the colour-blind-safe palette of Okabe and Ito


def result_grid(
    query: images.Source,
    results: Sequence,
    *,
    box: images.Box | None = None,
    title: str = "",
    columns: int = 6,
) -> Figure:
    """Draw a query and its hits, best first.

    A query that cannot be read is an :class:`ImageError`; a hit that cannot be read becomes
    a tile with the reason. `box` is drawn on the query.
    """
    from matplotlib.patches import Rectangle

    columns = max(1, min(1 + len(results), columns))
    figure, axes = tile_grid(math.ceil((1 + len(results)) / columns), columns, title)
    tiles = axes.ravel()
    picture = images.decode(query)
    if box is not None:
        left, upper, right, lower = box
        tiles[0].add_patch(
            Rectangle((left, upper), right - left, lower - upper, fill=False, lw=2, ec=QUERY_COLOUR)
        )
    tiles[0].imshow(picture)
    caption(tiles[0], "query", _shorten(query.name if isinstance(query, Path) else ""))
    frame(tiles[0], QUERY_COLOUR)
    for tile, hit in zip(tiles[1:], results, strict=False):
        show_image(tile, hit.path)
        caption(tile, f"{hit.rank}   {hit.score:.3f}", _shorten(Path(hit.path).name))
    return figure


def thumbnail(source: images.Source, side: int = THUMBNAIL) -> Image.Image:
    """Decode a picture, RGB and upright, at no more than `side` pixels."""
    picture = images.decode(source, draft=side)
    picture.thumbnail((side, side))
    return picture


def jpeg(source: images.Source, side: int) -> bytes:
    """Return a picture as a JPEG whose longest side is `side` pixels at most."""
    buffer = io.BytesIO()
    thumbnail(source, side).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def tile_grid(
    rows: int, columns: int, title: str = "", *, height: float = 1.12
) -> tuple[Figure, np.ndarray]:
    """Make a figure of square tiles with captions; `height` is that of a tile in widths."""
    from matplotlib.figure import Figure

    head = 0.45 if title else 0.0
    figure = Figure(figsize=(columns * TILE, rows * TILE * height + head), layout="constrained")
    if title:
        figure.suptitle(printable(title), fontsize=10, parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False)
    for tile in axes.flat:
        tile.set(xticks=[], yticks=[])
        frame(tile, None)
    return figure, axes


def frame(tile: Axes, colour: str | None, style: str = "-") -> None:
    """Draw a frame around a tile, or remove it."""
    for spine in tile.spines.values():
        spine.set_visible(colour is not None)
        if colour is not None:
            spine.set(color=colour, linewidth=2.5, linestyle=style)


def show_image(tile: Axes, path: str | Path) -> None:
    """Show an image file, or why it cannot be read."""
    try:
        if not path:
            raise ImageError("", "no file")
        tile.imshow(thumbnail(Path(path)))
    except ImageError as error:
        tile.set_facecolor("#eeeeee")
        tile.text(
            0.5, 0.5, error.reason, ha="center", va="center", wrap=True, fontsize=7,
            transform=tile.transAxes, parse_math=False,
        )  # fmt: skip


def caption(tile: Axes, *lines: str) -> None:
    """Write lines below a tile; dollar signs in file names start no formula."""
    text = "\n".join(printable(line) for line in lines if line)
    tile.set_xlabel(text, fontsize=8, labelpad=3, parse_math=False)


def _shorten(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"
