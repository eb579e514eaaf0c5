"""What all panels are made of: words for errors, threads, open collections, folders."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import anywidget
import ipywidgets as ipw
from traitlets.log import get_logger

from imgsearch import config, images
from imgsearch.errors import ImageError, ImgSearchError, printable
from imgsearch.gallery import Gallery
from imgsearch.stores.metadata import CollectionRow, MetadataStore

WHAT_IS_READ = (
    f"JPEG and PNG files up to {images.MAX_BYTES >> 20} MiB and "
    f"{images.MAX_PIXELS >> 20} Mi pixels can be used; choose another, or save it anew."
)


class Stopped(Exception):
    """Somebody pressed Stop; raised at the next safe place."""


class Styles(anywidget.AnyWidget):
    """Brings the style sheet into the page, and shows nothing."""

    _esm = "export default { render() {} };"
    _css = Path(__file__).parent / "style.css"


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
        self.settings = config.load_settings()

    def fill(self, *children: ipw.Widget) -> None:
        """Put widgets into the panel.

        Parameters
        ----------
        *children : Widget
            From top to bottom.
        """
        styles = Styles()
        styles.add_class("imgsearch-hidden")
        self.children = [styles, *children]

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
            layout=ipw.Layout(width="auto"),
        )
        self.up = panel.button("Parent folder", self._up, "Go to the folder that holds this one")
        self.inside = ipw.Select(
            rows=6, description="Inside", layout=ipw.Layout(width="auto", height="120px")
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
