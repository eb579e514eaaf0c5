"""Images in the browser: a grid of thumbnails, originals, downloads, and uploads."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import anywidget
import traitlets

from imgsearch import images
from imgsearch.errors import ImageError, printable
from imgsearch.plots import jpeg
from imgsearch.stores.metadata import ImageRow
from imgsearch.widgets.formatting import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ASSETS = Path(__file__).parent

SHOWN_BY_BROWSERS = {"JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF"}
"""Formats whose files are sent as they are; originals of other formats are sent as JPEG."""

LARGEST_JPEG = 65_500
"""Longest side that JPEG allows, pixels."""

THUMBNAIL, SMALL_THUMBNAIL = 280, 160
"""Longest side of a thumbnail, pixels."""


def thumbnail(path: str, image_id: int, side: int = THUMBNAIL) -> tuple[bytes | None, str]:
    """Return the thumbnail of a stored image, or None and the reason why there is none."""
    try:
        if not Path(path).exists():
            return None, "no such file"
        return _stored_jpeg(path, image_id, side), ""
    except ImageError as error:
        return None, error.reason


@lru_cache(maxsize=2_000)  # some 20 kB each
def _stored_jpeg(path: str, image_id: int, side: int) -> bytes:
    return jpeg(Path(path), side)


def png(figure: Figure, dpi: int) -> bytes:
    """Return a figure as a PNG on a white ground."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


class Grid(anywidget.AnyWidget):
    """Thumbnails as buttons, a viewer for originals, and downloads; items are from :func:`tile`."""

    _esm = ASSETS / "gallery.js"

    items = traitlets.List().tag(sync=True)
    selected = traitlets.List().tag(sync=True)
    choosing = traitlets.Bool(False, help="a click selects an item").tag(sync=True)
    opening = traitlets.Bool(True, help="originals can be opened").tag(sync=True)
    small = traitlets.Bool(False).tag(sync=True)
    label = traitlets.Unicode("Images", help="name for screen readers").tag(sync=True)

    def on(self, kind: str, function: Callable[[str], None]) -> None:
        """Call `function` with an item's key on ``pick`` (the picture) or ``open`` (its corner)."""

        def receive(_: object, content: object, __: object) -> None:
            if isinstance(content, dict) and content.get("type") == kind:
                function(str(content.get("key")))

        self.on_msg(receive)

    def show_original(self, path: str | Path) -> None:
        """Show an image file in the viewer; any other file is an ImageError."""
        data = images.read(path)
        info = images.probe(data)
        name = printable(Path(path).name)
        note = f"{info.width} × {info.height} pixels, {format_bytes(len(data))}"
        kind = info.format
        if kind not in SHOWN_BY_BROWSERS:
            kind, data = "JPEG", jpeg(data, LARGEST_JPEG)
        about = {"type": "show", "name": name, "mime": f"image/{kind.lower()}", "note": note}
        self.send(about, [data])

    def download(self, name: str, mime: str, data: bytes) -> None:
        """Have the browser save a file."""
        self.send({"type": "download", "name": name, "mime": mime}, [data])


def tile(
    key: object,
    path: str,
    thumbnail: tuple[bytes | None, str],
    image_id: int,
    action: str,
    head: Sequence[str] = (),
) -> dict:
    """Describe an item of a :class:`Grid`; `action` is read aloud, `head` stands above the name."""
    name = printable(Path(path).name)
    return {
        "key": str(key),
        "id": str(image_id),
        "name": name,
        "title": printable(path),
        "action": f"{action}: {name}" + (f" ({thumbnail[1]})" if thumbnail[0] is None else ""),
        "head": list(head),
        "thumb": thumbnail[0],
        "reason": thumbnail[1],
    }


def small_tiles(rows: Iterable[ImageRow], action: str) -> list[dict]:
    """Describe stored images for a :class:`Grid`; their keys are their places in `rows`."""
    return [
        tile(i, row.path, thumbnail(row.path, row.image_id, SMALL_THUMBNAIL), row.image_id, action)
        for i, row in enumerate(rows)
    ]


class Uploader(anywidget.AnyWidget):
    """A place to drop files on, which arrive in pieces smaller than any server's message limit."""

    _esm = ASSETS / "upload.js"

    hint = traitlets.Unicode(
        f"{', '.join(images.FORMATS)}; up to {format_bytes(images.MAX_BYTES)} "
        f"and {images.MAX_PIXELS / 1e6:.0f} megapixels"
    ).tag(sync=True)

    def __init__(self, arrived: Callable[[str, bytes], None]):
        super().__init__()
        self._arrived = arrived
        self._key, self._name, self._size = "", "", 0
        self._data = bytearray()
        self.on_msg(lambda _, content, buffers: self.receive(content, buffers))

    def receive(self, content: dict, buffers: Sequence[bytes | memoryview] = ()) -> None:
        """Take ``begin`` with a name and a size in bytes, or ``piece`` after ``piece``."""
        kind, key = content.get("type"), str(content.get("key"))
        if kind == "begin":
            self._key, self._data = key, bytearray()
            self._name, self._size = Path(str(content["name"])).name, int(content["size"])
            if self._size > images.MAX_BYTES:
                self._refuse(
                    f"too large: {format_bytes(self._size)} "
                    f"(limit {format_bytes(images.MAX_BYTES)})"
                )
                return
        elif kind == "piece" and key == self._key and content.get("offset") == len(self._data):
            self._data += buffers[0]
        else:
            return  # a second view of the panel, or an upload that was given up
        nothing = kind == "piece" and not len(buffers[0])
        if nothing or len(self._data) > self._size:
            self._refuse("changed while it was being read; try again")
        elif len(self._data) < self._size:
            self.send({"type": "next", "key": key, "offset": len(self._data)})
        else:
            data, self._key, self._data = bytes(self._data), "", bytearray()
            self.send({"type": "done", "key": key})
            self._arrived(self._name, data)

    def _refuse(self, reason: str) -> None:
        self.send({"type": "refused", "key": self._key, "reason": reason})
        self._key, self._data = "", bytearray()
