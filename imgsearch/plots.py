"""Matplotlib figures for notebooks, batch runs and papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgsearch import images
from imgsearch.errors import ImageError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

TILE = 1.9
"""Width of a picture in a grid, inches; at 150 dots per inch some 280 pixels."""

THUMBNAIL = 320
"""Longest side of a picture in a grid, pixels."""

QUERY_COLOUR = "#d55e00"  # from the palette of Okabe and Ito, told apart by all eyes


def result_grid(
    query: images.Source,
    results: Sequence,
    *,
    box: images.Box | None = None,
    title: str = "",
    columns: int = 6,
) -> Figure:
    """Draw a query and its hits, best first.

    Parameters
    ----------
    query : path, bytes, PIL.Image.Image or numpy.ndarray
        The picture that was searched with.
    results : sequence of Hit
        As :meth:`imgsearch.gallery.Gallery.search` returns them.
    box : tuple of int, optional
        Left, upper, right, lower in pixels of the upright query: drawn on it.
    title : str
        Stands above the grid: collection, encoder, index.
    columns : int
        Pictures in a row.

    Returns
    -------
    matplotlib.figure.Figure
        Belongs to no window; close nothing.

    Raises
    ------
    ImageError
        The query cannot be read. A hit that cannot be read is drawn as a tile
        that says why.
    """
    from matplotlib.patches import Rectangle

    figure, tiles = _tiles(1 + len(results), columns, title)
    picture = images.decode(query)
    if box is not None:
        left, upper, right, lower = box
        tiles[0].add_patch(
            Rectangle((left, upper), right - left, lower - upper, fill=False, lw=2, ec=QUERY_COLOUR)
        )
    tiles[0].imshow(picture)
    _caption(tiles[0], "query", query.name if isinstance(query, Path) else "")
    _frame(tiles[0], QUERY_COLOUR)
    for tile, hit in zip(tiles[1:], results, strict=False):
        _show(tile, hit.path)
        _caption(tile, f"{hit.rank}   {hit.score:.3f}", Path(hit.path).name)
    return figure


def contact_sheet(
    paths: Sequence[str | Path], captions: Sequence[str] = (), *, title: str = "", columns: int = 8
) -> Figure:
    """Draw pictures side by side.

    Parameters
    ----------
    paths : sequence of path
        Image files; one that cannot be read becomes a tile that says why.
    captions : sequence of str
        One for each; file names if left out.
    title : str
        Stands above the grid.
    columns : int
        Pictures in a row.

    Returns
    -------
    matplotlib.figure.Figure
        Belongs to no window; close nothing.
    """
    figure, tiles = _tiles(len(paths), columns, title)
    for tile, path, caption in zip(
        tiles, paths, captions or [Path(p).name for p in paths], strict=False
    ):
        _show(tile, path)
        _caption(tile, "", caption)
    return figure


def thumbnail(source: images.Source, side: int = THUMBNAIL) -> Image.Image:
    """Decode a picture at no more than the size it is shown at.

    Parameters
    ----------
    source : path, bytes, PIL.Image.Image or numpy.ndarray
        The picture.
    side : int
        Longest side of the result, pixels.

    Returns
    -------
    PIL.Image.Image
        RGB and upright.

    Raises
    ------
    ImageError
        It cannot be read.
    """
    picture = images.decode(source, draft=side)
    picture.thumbnail((side, side))
    return picture


def _tiles(n: int, columns: int, title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = max(1, min(n, columns))
    rows = max(1, math.ceil(n / columns))
    head = 0.45 if title else 0.0
    figure = Figure(figsize=(columns * TILE, rows * TILE * 1.12 + head), layout="constrained")
    if title:
        figure.suptitle(printable(title), fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for tile in axes:
        tile.set_xticks([])
        tile.set_yticks([])
        _frame(tile, None)
    return figure, axes


def _frame(tile: Axes, colour: str | None) -> None:
    for spine in tile.spines.values():
        spine.set_visible(colour is not None)
        if colour is not None:
            spine.set_color(colour)
            spine.set_linewidth(2.5)


def _show(tile: Axes, path: str | Path) -> None:
    try:
        tile.imshow(thumbnail(Path(path)))
    except ImageError as error:
        tile.set_facecolor("#eeeeee")
        tile.text(
            0.5, 0.5, error.reason, ha="center", va="center", wrap=True, fontsize=7,
            transform=tile.transAxes, parse_math=False,
        )  # fmt: skip


def _caption(tile: Axes, head: str, name: str) -> None:
    # File names may hold dollar signs, which would start a formula.
    name = printable(name)
    short = name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"
    text = "\n".join(filter(None, (head, short)))
    tile.set_xlabel(text, fontsize=8, labelpad=3, parse_math=False)
