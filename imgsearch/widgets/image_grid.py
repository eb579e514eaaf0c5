"""Images in the browser: the query, a grid of thumbnails with a viewer, uploads and downloads."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import anywidget
import traitlets

from imgsearch import images
from imgsearch.errors import ImageError, printable
from imgsearch.hits import Hit
from imgsearch.sources import Stored
from imgsearch.stores.metadata import ImageRow
from imgsearch.widgets.formatting import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATIC = Path(__file__).parents[1] / "static"
"""The components, which the web page uses too."""

THUMBNAIL = 320
"""Longest side of a thumbnail, pixels."""

THREADS = 4
"""Thumbnails that are made at a time."""

AT_ONCE, LATER = 0.06, 0.5
"""Seconds that tiles wait for their thumbnails at first, and between later looks."""


def module(adapter: str, *components: str) -> str:
    """Join components and the adapter that makes a widget of them into one ES module."""
    files = [STATIC / f"{name}.js" for name in ("dom", *components)]
    files.append(Path(__file__).with_name(f"{adapter}.js"))
    return re.sub(r"(?m)^import .*\n", "", "\n".join(file.read_text() for file in files))


@lru_cache(maxsize=2_000)  # some 20 kB each
def _stored_jpeg(path: str, image_id: int) -> bytes:
    return images.jpeg(Path(path), THUMBNAIL)


def png(figure: Figure, dpi: int) -> bytes:
    """Return a figure as a PNG on a white ground."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


class Widget(anywidget.AnyWidget):
    """A component in a notebook."""

    def on(self, kind: str, function: Callable[..., None]) -> None:
        """Call `function` with the value of each message of some kind from the browser."""

        def receive(_: object, content: object, __: object) -> None:
            if isinstance(content, dict) and content.get("type") == kind:
                function(*(value for name, value in content.items() if name != "type"))

        self.on_msg(receive)

    def download(self, name: str, mime: str, data: bytes) -> None:
        """Have the browser save a file."""
        self.send({"type": "download", "name": name, "mime": mime}, [data])


class Grid(Widget):
    """Thumbnails, and a viewer for originals. It sends the key of an item.

    Messages are ``pick`` (the tile was clicked, if `picks`), ``open`` (the viewer needs the
    original: :meth:`show_original`), ``more``, ``judge`` (with 1 or -1) and ``undo``. Items are
    from :func:`steps`.
    """

    _esm = module("images", "grid", "viewer")

    items = traitlets.List().tag(sync=True)
    selected = traitlets.List(help="keys").tag(sync=True)
    selecting = traitlets.Unicode(help="empty, `marks` on the tiles, or the `tiles`").tag(sync=True)
    picks = traitlets.Bool(help="a click is sent, else it opens the viewer").tag(sync=True)
    judging = traitlets.Bool(help="tiles have + and −, if `picks`").tag(sync=True)
    size = traitlets.Int(150, help="of the tiles, pixels").tag(sync=True)
    label = traitlets.Unicode("Images", help="name for screen readers").tag(sync=True)
    summary = traitlets.Unicode().tag(sync=True)
    legend = traitlets.Unicode().tag(sync=True)
    more = traitlets.Unicode(help="label of the button for more, or empty").tag(sync=True)
    query = traitlets.Bytes(None, allow_none=True, help="JPEG to compare with").tag(sync=True)
    query_name = traitlets.Unicode().tag(sync=True)

    def show_original(self, key: str, path: str | Path) -> None:
        """Send an image file to the viewer, or the reason why it cannot be shown."""
        answer = {"type": "original", "key": key}
        try:
            data = images.read(path)
            info = images.probe(data)
            kind = info.format
            note = f"{info.width} × {info.height} pixels, {kind}, {format_bytes(len(data))}"
            if kind not in images.SHOWN_BY_BROWSERS:
                kind, data = "JPEG", images.jpeg(data)
        except ImageError as error:
            self.send(answer | {"error": f"The original cannot be shown: {error.reason}"})
        else:
            self.send(answer | {"mime": f"image/{kind.lower()}", "note": note}, [data])

    def reveal(self) -> None:
        """Scroll to the first tile if it is out of view."""
        self.send({"type": "reveal"})


def steps(images: Iterable[tuple[object, Stored, str]]) -> Iterator[list[dict]]:
    """Describe stored images for a :class:`Grid`, and again until all thumbnails are made.

    Each image comes with the key of its tile and with the action that is read aloud.
    """
    images = list(images)
    pool = ThreadPoolExecutor(THREADS, "imgsearch-thumbnails")
    try:
        made = [pool.submit(_thumbnail, image) for _, image, _ in images]
        for patience in chain([AT_ONCE], repeat(LATER)):
            left = wait(made, patience).not_done
            yield [
                _tile(*image, *(future.result() if future.done() else (None, "")))
                for image, future in zip(images, made, strict=True)
            ]
            if not left:
                return
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def tiles(rows: Iterable[ImageRow], action: str) -> list[dict]:
    """Describe stored images for a :class:`Grid`; their keys are their places in `rows`."""
    *_, complete = steps((i, row, action) for i, row in enumerate(rows))
    return complete


def _thumbnail(image: Stored) -> tuple[bytes | None, str]:
    """JPEG of a stored image, or the reason why there is none."""
    try:
        if Path(image.path).exists():
            return _stored_jpeg(image.path, image.image_id), ""
    except ImageError as error:
        return None, error.reason
    return None, "no such file"


def _tile(key: object, image: Stored, action: str, thumb: bytes | None, reason: str) -> dict:
    name = printable(Path(image.path).name)
    return {
        "key": str(key),
        "name": name,
        "title": printable(image.path),
        "path": printable(image.path),
        "alt": f"{name}, {image.width} by {image.height} pixels",
        "action": f"{action}: {name}{reason and f' ({reason})'}",
        "score": f"{image.score:.3f}" if isinstance(image, Hit) else "",
        "width": image.width,
        "height": image.height,
        "thumb": thumb,
        "note": reason,
        "facts": [[name, _shown(value)] for name, value in image.attributes.items()],
    }


def _shown(value: object) -> str:
    return printable(", ".join(map(str, value)) if isinstance(value, list) else value)


class FilterBar(Widget):
    """Filters by a part of the path and by the values of attributes."""

    _esm = module("filter_bar", "filters")

    attributes = traitlets.Dict(help="[value, count] pairs by name").tag(sync=True)
    where = traitlets.Dict(help="in the language of imgsearch.filters").tag(sync=True)


class QueryPicture(Widget):
    """The picture to search with, and where it comes from.

    Messages are ``text`` (typed into the field), ``key`` (of a tile that was dragged here) and
    ``box`` (the part to search with, or None). Files arrive in pieces smaller than any server's
    message limit and are handed to `arrived`.
    """

    _esm = module("query", "drop", "crop")

    picture = traitlets.Bytes(None, allow_none=True, help="JPEG").tag(sync=True)
    name = traitlets.Unicode(help="empty without a query").tag(sync=True)
    size = traitlets.List([1, 1], help="width and height of the original, pixels").tag(sync=True)
    box = traitlets.List(help="left, upper, right, lower, pixels; or nothing").tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)
    text_label = traitlets.Unicode(help="label of the text field, or empty").tag(sync=True)
    hint = traitlets.Unicode(
        f"{', '.join(images.FORMATS)}; up to {images.MAX_BYTES >> 20} MiB "
        f"and {images.MAX_PIXELS // 10**6} megapixels"
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
