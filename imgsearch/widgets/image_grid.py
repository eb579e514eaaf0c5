"""Pictures in the browser: thumbnails as buttons, originals, downloads, and uploads."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import anywidget
import traitlets

from imgsearch import images, plots
from imgsearch.errors import ImageError, printable
from imgsearch.stores.metadata import ImageRow
from imgsearch.widgets.formatting import bytes_in_words

ASSETS = Path(__file__).parent
MIME = {"JPEG": "image/jpeg", "PNG": "image/png"}

THUMBNAILS = 2_000
"""Thumbnails that a panel remembers, some 20 kB each."""


class Thumbnails:
    """JPEG thumbnails of stored images, the latest of them remembered.

    Parameters
    ----------
    side : int
        Longest side, pixels.
    """

    def __init__(self, side: int = 280):
        self.side = side
        self._known: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def of(self, path: str, image_id: int) -> tuple[bytes | None, str]:
        """Thumbnail of a file.

        Parameters
        ----------
        path : str
            The file.
        image_id : int
            Its content when it was stored.

        Returns
        -------
        tuple of bytes and str
            The JPEG; or None, and why there is none.
        """
        key = (path, image_id)
        if key in self._known and Path(path).exists():
            self._known.move_to_end(key)
            return self._known[key], ""
        try:
            made = jpeg(Path(path), self.side)
        except ImageError as error:
            return None, error.reason
        self._known[key] = made
        while len(self._known) > THUMBNAILS:
            self._known.popitem(last=False)
        return made, ""


def jpeg(source: images.Source, side: int) -> bytes:
    """Make a small JPEG of a picture.

    Parameters
    ----------
    source : path, bytes, PIL.Image.Image or numpy.ndarray
        The picture.
    side : int
        Longest side, pixels.

    Returns
    -------
    bytes

    Raises
    ------
    ImageError
        It cannot be read.
    """
    buffer = io.BytesIO()
    plots.thumbnail(source, side).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


class Grid(anywidget.AnyWidget):
    """Thumbnails as buttons, a viewer for originals, and downloads.

    Attributes
    ----------
    items : list of dict
        From :func:`tile`.
    selected : list of str
        Keys of the items that are chosen.
    choosing : bool
        Whether a click chooses an item.
    opening : bool
        Whether originals can be opened.
    small : bool
        Smaller tiles.
    label : str
        What a screen reader calls the whole.
    """

    _esm = ASSETS / "gallery.js"

    items = traitlets.List().tag(sync=True)
    selected = traitlets.List().tag(sync=True)
    choosing = traitlets.Bool(False).tag(sync=True)
    opening = traitlets.Bool(True).tag(sync=True)
    small = traitlets.Bool(False).tag(sync=True)
    label = traitlets.Unicode("Images").tag(sync=True)

    def on(self, kind: str, called: Callable[[str], None]) -> None:
        """Have something called when an item is clicked.

        Parameters
        ----------
        kind : {"pick", "open"}
            The picture itself, or the button that opens the original.
        called : callable
            Is handed the item's key.
        """

        def heard(_: object, content: object, __: object) -> None:
            if isinstance(content, dict) and content.get("type") == kind:
                called(str(content.get("key")))

        self.on_msg(heard)

    def show_original(self, path: str | Path) -> None:
        """Show a file in the viewer.

        Parameters
        ----------
        path : path
            The file; anything but an image is refused.

        Raises
        ------
        ImageError
            It cannot be read, or is no image.
        """
        data = images.read(path)
        facts = images.probe(data)
        name = printable(Path(path).name)
        note = f"{facts.width} × {facts.height} pixels, {bytes_in_words(len(data))}"
        about = {"type": "show", "name": name, "mime": MIME[facts.format], "note": note}
        self.send(about, [data])

    def download(self, name: str, mime: str, data: bytes) -> None:
        """Hand a file to the browser.

        Parameters
        ----------
        name : str
            What it is called.
        mime : str
            Its type.
        data : bytes
            Its content.
        """
        self.send({"type": "download", "name": name, "mime": mime}, [data])


def tile(
    key: object,
    path: str,
    thumb: tuple[bytes | None, str],
    *,
    image_id: int,
    action: str,
    head: Sequence[str] = (),
    where: bool = True,
) -> dict:
    """Describe one item of a :class:`Grid`.

    Parameters
    ----------
    key : object
        Names it within the grid.
    path : str
        Its file.
    thumb : tuple of bytes and str
        From :meth:`Thumbnails.of`.
    image_id : int
        Goes to JavaScript as a string.
    action : str
        What a click does, for a screen reader; the file's name is put behind it.
    head : sequence of str
        Stands above the name: rank and score.
    where : bool
        Whether the folder may be shown too.

    Returns
    -------
    dict
    """
    name = printable(Path(path).name)
    return {
        "key": str(key),
        "id": str(image_id),
        "name": name,
        "title": printable(path) if where else name,
        "alt": name,
        "action": f"{action}: {name}" + (f" ({thumb[1]})" if thumb[0] is None else ""),
        "head": list(head),
        "thumb": thumb[0],
        "reason": thumb[1],
    }


def tiles(rows: Iterable[ImageRow], thumbnails: Thumbnails, action: str, **more: bool) -> list:
    """Describe stored images for a :class:`Grid`; the keys are their places in `rows`.

    Parameters
    ----------
    rows : iterable of ImageRow
        The images.
    thumbnails : Thumbnails
        Makes the pictures.
    action : str
        What a click does.
    **more : bool
        As for :func:`tile`.

    Returns
    -------
    list of dict
    """
    return [
        tile(
            i,
            row.path,
            thumbnails.of(row.path, row.image_id),
            image_id=row.image_id,
            action=action,
            **more,
        )
        for i, row in enumerate(rows)
    ]


class Uploader(anywidget.AnyWidget):
    """A place to drop files on. They come in pieces, so their size is no matter to the server.

    Parameters
    ----------
    arrived : callable
        Is handed the name and the content of each file.
    """

    _esm = ASSETS / "upload.js"

    def __init__(self, arrived: Callable[[str, bytes], None]):
        super().__init__()
        self._arrived = arrived
        self._key, self._name, self._size = "", "", 0
        self._data = bytearray()
        self.on_msg(lambda _, content, buffers: self.receive(content, buffers))

    def receive(self, content: dict, buffers: Sequence[bytes | memoryview] = ()) -> None:
        """Take a message from the browser.

        Parameters
        ----------
        content : dict
            ``begin`` with a name and a size in bytes, then ``piece`` after ``piece``.
        buffers : sequence of bytes
            The piece.
        """
        kind, key = content.get("type"), str(content.get("key"))
        if kind == "begin":
            self._key, self._data = key, bytearray()
            self._name, self._size = Path(str(content["name"])).name, int(content["size"])
            if self._size > images.MAX_BYTES:
                self._refuse(
                    f"too large: {bytes_in_words(self._size)} "
                    f"(limit {bytes_in_words(images.MAX_BYTES)}). Make it smaller and try again"
                )
                return
        elif kind == "piece" and key == self._key and content.get("offset") == len(self._data):
            self._data += buffers[0]
        else:
            return  # a second view of the panel, or an upload that was given up
        nothing = kind == "piece" and not len(buffers[0])
        if nothing or len(self._data) > self._size:
            self._refuse("changed while it was read. Try again")
        elif len(self._data) < self._size:
            self.send({"type": "next", "key": key, "offset": len(self._data)})
        else:
            data, self._key, self._data = bytes(self._data), "", bytearray()
            self.send({"type": "done", "key": key})
            self._arrived(self._name, data)

    def _refuse(self, reason: str) -> None:
        self.send({"type": "refused", "key": self._key, "reason": reason})
        self._key, self._data = "", bytearray()
