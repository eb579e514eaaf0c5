"""What all panels are made of: words for errors, threads, tables, a gallery, uploads, folders."""

from __future__ import annotations

import io
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import anywidget
import ipywidgets as ipw
import traitlets
from traitlets.log import get_logger

from imgsearch import config, images, plots
from imgsearch.errors import ImageError, ImgSearchError, printable
from imgsearch.gallery import Gallery
from imgsearch.metadata import CollectionRow, ImageRow, MetadataStore

ASSETS = Path(__file__).parent
MIME = {"JPEG": "image/jpeg", "PNG": "image/png"}
WHAT_IS_READ = (
    f"JPEG and PNG files up to {images.MAX_BYTES >> 20} MiB and "
    f"{images.MAX_PIXELS >> 20} Mi pixels can be used; choose another, or save it anew."
)
LONG = 30
"""Characters from which on a cell of a table may be broken into lines."""

THUMBNAILS = 2_000
"""Thumbnails that a panel remembers, some 20 kB each."""


class Stopped(Exception):
    """Somebody pressed Stop; raised at the next safe place."""


class Status(ipw.HTML):
    """The line of a panel that says what is going on, or what went wrong."""

    text = ""
    kind = ""

    def say(self, text: str, kind: str = "") -> None:
        """Show a text.

        Parameters
        ----------
        text : str
            Plain text.
        kind : {"", "busy", "good", "bad"}
            Decides the colour, and whether a screen reader speaks up.
        """
        self.text, self.kind = text, kind
        role = "alert" if kind == "bad" else "status"
        shown = "<br>".join(escape(printable(line)) for line in text.split("\n"))
        self.value = (
            f'<div class="imgsearch-status imgsearch-{kind}" role="{role}">{shown}</div>'
            if text
            else ""
        )


class Panel(ipw.VBox):
    """A panel with a status line, whose work runs in threads, one piece after the other.

    Attributes
    ----------
    status : Status
        Says what is going on.
    settings : Settings or None
        None where the environment says something that cannot be used.
    """

    def __init__(self, settings: config.Settings | None = None):
        super().__init__()
        self.add_class("imgsearch")
        self.status = Status()
        self.settings = settings
        self._turns = threading.Lock()
        self._idle = threading.Condition()
        self._under_way = 0
        if settings is None:
            self.guarded(self._read_settings)

    def _read_settings(self) -> None:
        self.settings = config.settings()

    def guarded(self, function: Callable, *args: object) -> None:
        """Call a function, and show in words what goes wrong.

        Parameters
        ----------
        function : callable
            Its result is not used.
        *args
            For `function`.
        """
        try:
            function(*args)
        except Stopped:
            self.status.say("Stopped.")
        except ImageError as error:
            self.status.say(f"{error}\n{WHAT_IS_READ}", "bad")
        except ImgSearchError as error:
            self.status.say(str(error), "bad")
        except OSError as error:
            self.status.say(f"{error.filename or 'system'}: {error.strerror or error}", "bad")
        except Exception as error:
            self.status.say(
                f"unexpected: {type(error).__name__}: {error}\n(details are in the kernel's log)",
                "bad",
            )
            # Not the cell's output, where a traceback would scare and help nobody.
            get_logger().error("imgsearch panel", exc_info=error)

    def run(
        self,
        work: Callable[[], None],
        busy: str = "",
        disabling: Sequence[ipw.Widget] = (),
        after: Callable[[], None] | None = None,
    ) -> None:
        """Do something in a thread, after what is under way already.

        Parameters
        ----------
        work : callable
            Errors are shown in words.
        busy : str
            Shown meanwhile.
        disabling : sequence of Widget
            Cannot be pressed meanwhile.
        after : callable, optional
            Is called at the end, whatever happened.
        """
        if busy:
            self.status.say(busy, "busy")
        for widget in disabling:
            widget.disabled = True
        self._begin_or_end(1)

        def turn() -> None:
            try:
                with self._turns:
                    self.guarded(work)
            finally:
                for widget in disabling:
                    widget.disabled = False
                if after is not None:
                    self.guarded(after)
                self._begin_or_end(-1)

        threading.Thread(target=turn, daemon=True, name="imgsearch-panel").start()

    def wait(self, timeout: float = 120.0) -> None:
        """Wait until nothing is under way; for scripts and tests.

        Parameters
        ----------
        timeout : float
            Seconds.

        Raises
        ------
        TimeoutError
            Something still is.
        """
        with self._idle:
            if not self._idle.wait_for(lambda: self._under_way == 0, timeout):
                raise TimeoutError(f"still busy after {timeout:g} s: {self.status.text}")

    def debounced(self, seconds: float, called: Callable[[], None]) -> Callable[[], None]:
        """Call something once things have been quiet for a while.

        Parameters
        ----------
        seconds : float
            How long.
        called : callable
            What to call; errors are shown.

        Returns
        -------
        callable
            To be called whenever something happens.
        """
        latest = [0]

        def happened() -> None:
            latest[0] += 1
            mine = latest[0]

            def later() -> None:
                time.sleep(seconds)
                if latest[0] == mine:
                    self.guarded(called)
                self._begin_or_end(-1)

            self._begin_or_end(1)
            threading.Thread(target=later, daemon=True, name="imgsearch-debounce").start()

        return happened

    def _begin_or_end(self, step: int) -> None:
        with self._idle:
            self._under_way += step
            self._idle.notify_all()

    def button(
        self, label: str, pressed: Callable[[], None], tooltip: str = "", style: str = ""
    ) -> ipw.Button:
        """Make a button whose errors are shown.

        Parameters
        ----------
        label : str
            What stands on it.
        pressed : callable
            What it does.
        tooltip : str
            More words.
        style : str
            ``primary``, ``danger``, … as ipywidgets has them.

        Returns
        -------
        ipywidgets.Button
        """
        made = ipw.Button(description=label, tooltip=tooltip or label, button_style=style)
        made.on_click(lambda _: self.guarded(pressed))
        return made

    def watch(self, widget: ipw.Widget, changed: Callable[[], None], name: str = "value") -> None:
        """Call something when a widget changes; errors are shown.

        Parameters
        ----------
        widget : Widget
            Which.
        changed : callable
            What to do.
        name : str
            Which of its traits.
        """
        widget.observe(lambda _: self.guarded(changed), name)


class Galleries:
    """Collections that a panel has open, each once."""

    def __init__(self) -> None:
        self._open: dict[str, Gallery] = {}
        self._metadata: MetadataStore | None = None

    def rows(self, settings: config.Settings) -> list[CollectionRow]:
        """List the collections.

        Parameters
        ----------
        settings : Settings
            Where they are.

        Returns
        -------
        list of CollectionRow

        Raises
        ------
        StoreError
            The metadata store cannot be reached.
        """
        return self.metadata(settings).collections()

    def metadata(self, settings: config.Settings) -> MetadataStore:
        """Metadata store, opened once.

        Parameters
        ----------
        settings : Settings
            Where it is.

        Returns
        -------
        MetadataStore
        """
        if self._metadata is None:
            self._metadata = MetadataStore.open(settings)
        return self._metadata

    def get(self, name: str, settings: config.Settings) -> Gallery:
        """Open a collection, anew if it was dropped and made again.

        Parameters
        ----------
        name : str
            Which.
        settings : Settings
            Where it is.

        Returns
        -------
        Gallery

        Raises
        ------
        CollectionNotFound
            It is not there.
        """
        row = self.metadata(settings).collection(name)
        if name in self._open and self._open[name].row != row:
            self._open.pop(name).close()
        if name not in self._open:
            self._open[name] = Gallery.open(name, settings=settings)
        return self._open[name]


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
    _css = ASSETS / "style.css"

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
        facts = images.facts(data)
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


class FolderChooser(ipw.VBox):
    """A path, and a list of the folders below it to walk through.

    Parameters
    ----------
    panel : Panel
        Shows what goes wrong.
    start : path
        Where to begin.
    """

    def __init__(self, panel: Panel, start: str | Path = "."):
        self.path = ipw.Text(
            str(Path(start).expanduser().absolute()),
            description="Folder",
            continuous_update=False,
            layout=ipw.Layout(width="100%"),
        )
        self.up = panel.button("Parent folder", self._up, "Go to the folder that holds this one")
        self.inside = ipw.Select(
            rows=6, description="Inside", layout=ipw.Layout(width="100%", height="120px")
        )
        self.note = ipw.HTML()
        row = ipw.HBox([self.up, self.note])
        row.add_class("imgsearch-row")
        super().__init__([self.path, self.inside, row])
        self._listing = False
        panel.watch(self.path, self._list)
        panel.watch(self.inside, self._down)
        self._list()

    @property
    def value(self) -> str:
        """The folder that is chosen."""
        return self.path.value.strip()

    def _up(self) -> None:
        self.path.value = str(Path(self.value).expanduser().absolute().parent)

    def _down(self) -> None:
        if not self._listing and self.inside.value:
            self.path.value = str(Path(self.value).expanduser().absolute() / self.inside.value)

    def _list(self) -> None:
        folders, files = [], 0
        try:
            with os.scandir(Path(self.value).expanduser()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    else:
                        files += 1
            text = f"{len(folders)} folders and {files} files in it"
        except (OSError, ValueError) as error:
            text = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        self._listing = True
        try:
            self.inside.options = [(printable(name), name) for name in sorted(folders)]
            self.inside.value = None
        finally:
            self._listing = False
        self.note.value = f'<span class="imgsearch-facts">{escape(text)}</span>'


def row(*children: ipw.Widget) -> ipw.HBox:
    """Put widgets side by side, wrapping where there is no room.

    Parameters
    ----------
    *children : Widget
        The widgets.

    Returns
    -------
    ipywidgets.HBox
    """
    box = ipw.HBox(children)
    box.add_class("imgsearch-row")
    return box


def column(css_class: str, *children: ipw.Widget) -> ipw.VBox:
    """Put widgets below each other.

    Parameters
    ----------
    css_class : str
        Class in the style sheet.
    *children : Widget
        The widgets.

    Returns
    -------
    ipywidgets.VBox
    """
    box = ipw.VBox(children)
    box.add_class(css_class)
    return box


def heading(text: str) -> ipw.HTML:
    """Write a small heading.

    Parameters
    ----------
    text : str
        Plain text.

    Returns
    -------
    ipywidgets.HTML
    """
    return ipw.HTML(f"<h4>{escape(text)}</h4>")


def shown(widget: ipw.Widget, visible: bool) -> None:
    """Show or hide a widget.

    Parameters
    ----------
    widget : Widget
        Which.
    visible : bool
        Whether it is to be seen.
    """
    (widget.remove_class if visible else widget.add_class)("imgsearch-hidden")


def table(caption: str, rows: Sequence[Mapping[str, object]], most: int = 200) -> str:
    """Write a table as HTML.

    Parameters
    ----------
    caption : str
        Stands above it.
    rows : sequence of mapping
        Column to value; numbers are set to the right, empty columns left out.
    most : int
        How many rows at most; the caption says how many there are.

    Returns
    -------
    str
        Everything in it is escaped.
    """
    if not rows:
        return ""
    used = [name for name in rows[0] if any(row[name] != "" for row in rows)]
    rows = [{name: row[name] for name in used} for row in rows]
    if len(rows) > most:
        caption = f"{caption} (the first {most} of {len(rows):,})"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0])
    body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows[:most])
    return (
        f'<div class="imgsearch-scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="imgsearch-table"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
        return f'<td class="imgsearch-number">{text}</td>'
    text = printable(value)
    return f"<td{' class=imgsearch-long' if len(text) > LONG else ''}>{escape(text)}</td>"


def bytes_in_words(n: int) -> str:
    """Size for people.

    Parameters
    ----------
    n : int
        Bytes.

    Returns
    -------
    str

    Examples
    --------
    >>> bytes_in_words(41_943_040)
    '40.0 MiB'
    """
    size = float(n)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{n} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def time_in_words(seconds: float) -> str:
    """Duration for people.

    Parameters
    ----------
    seconds : float
        Duration, seconds.

    Returns
    -------
    str

    Examples
    --------
    >>> time_in_words(0.0123), time_in_words(75)
    ('12 ms', '1 min 15 s')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
