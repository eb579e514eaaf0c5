"""The base of all panels: a status line, background jobs, open collections, a folder chooser."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from html import escape
from pathlib import Path
from weakref import WeakSet

import anywidget
import ipywidgets as ipw
from IPython import get_ipython
from traitlets.log import get_logger

from imgsearch import config
from imgsearch.errors import ConfigError, ImgSearchError, printable
from imgsearch.gallery import Gallery
from imgsearch.io import atomic
from imgsearch.stores import locks
from imgsearch.stores.metadata import ImageRow, MetadataStore

NO_COLLECTION = "There is no collection yet: ingest a folder of images first, then press Refresh."

_panels: dict[str, tuple[str, WeakSet[Panel]]] = {}
"""For each notebook cell, the request that ran it last and the panels that it created."""


class Stopped(Exception):
    """Stop was pressed. Raised at the next safe place."""


class Styles(anywidget.AnyWidget):
    """Brings the style sheet into the page, and leaves a panel its keys in JupyterLab."""

    _esm = """
    // JupyterLab takes arrow keys and letters from whatever has the focus, unless this is set.
    window.addEventListener("keydown", ({ target, ctrlKey, metaKey }) => {
      if (!target.closest?.(".imgsearch")) return;
      target.toggleAttribute("data-lm-suppress-shortcuts", !ctrlKey && !metaKey);
    }, true);
    export default { render() {} };
    """
    _css = Path(__file__).parents[1] / "static" / "style.css"


class Status(ipw.HTML):
    """The line of a panel that says what it is doing, or what went wrong."""

    text = ""
    kind = ""

    def show(self, text: str, kind: str = "") -> None:
        """Show plain text; `kind` is ``busy``, ``good``, ``bad`` or empty, and sets the colour."""
        self.text, self.kind = text, kind
        role = "alert" if kind == "bad" else "status"
        lines = "<br>".join(escape(printable(line)) for line in text.split("\n"))
        self.value = text and (
            f'<div class="imgsearch-status imgsearch-{kind}" role="{role}">{lines}</div>'
        )


class Panel(ipw.VBox):
    """A panel whose work runs in one background thread, one job at a time.

    When a notebook cell is run again, the panels that its last run created are closed.
    """

    stopping = "Stopping …"

    def __init__(self, settings: config.Settings | None = None):
        super().__init__()
        self.add_class("imgsearch")
        self.status = Status()
        if settings is not None:
            self.settings = settings
        self.stop = self.button("Stop", self._press_stop, "Stop at the next safe place")
        self.stop.disabled = True
        self._stopping, self._closed = threading.Event(), threading.Event()
        self._jobs: deque[Callable[[], None]] = deque()
        self._idle = threading.Condition()
        self._working = False
        self._muted: set[ipw.Widget] = set()
        self._galleries: dict[str, Gallery] = {}
        self._metadata: MetadataStore | None = None
        _close_earlier(self)

    @cached_property
    def settings(self) -> config.Settings:
        """The settings, read from the environment if none were given."""
        return config.load_settings()

    def __repr__(self) -> str:
        return f"{type(self).__name__}: works in JupyterLab"

    def fill(self, *children: ipw.Widget) -> None:
        """Put widgets into the panel, from top to bottom."""
        styles = Styles()
        styles.add_class("imgsearch-hidden")
        self.children = [styles, *children]

    def close(self) -> None:
        """Stop the job under way at the next safe place, then close collections and widgets."""
        # A process that ends collects its panels, and starts no more threads.
        if self._closed.is_set() or sys.is_finalizing():
            return
        with self._idle:
            self._closed.set()
            self._stopping.set()
            self._jobs.clear()
            self._idle.notify_all()
        self._enqueue(self._close_stores)
        for widget in [part for part in vars(self).values() if isinstance(part, ipw.Widget)]:
            _close_tree(widget)
        _close_tree(self)

    def _close_stores(self) -> None:
        for gallery in self._galleries.values():
            gallery.close()
        if self._metadata is not None:
            self._metadata.close()

    # ------------------------------------------------------------ errors and jobs

    def attempt(self, function: Callable, *args: object) -> None:
        """Call a function and show what goes wrong in the status line."""
        try:
            function(*args)
        except Stopped:
            self.status.show("Stopped.")
        except Exception as error:
            self.status.show(self.error_text(error), "bad")
            if not isinstance(error, ImgSearchError | OSError):
                # A traceback in the cell's output would help nobody.
                get_logger().error("imgsearch panel", exc_info=error)

    def error_text(self, error: Exception) -> str:
        """Describe an error for the status line."""
        if isinstance(error, ImgSearchError):
            return str(error)
        if isinstance(error, OSError):
            return f"{error.filename or 'system'}: {error.strerror or error}"
        return (
            f"Unexpected error: {type(error).__name__}: {error}\n"
            "The kernel's log holds the details."
        )

    def submit(
        self,
        work: Callable[[], None],
        busy: str = "",
        *,
        disable: Sequence[ipw.Widget] = (),
        stoppable: bool = False,
    ) -> None:
        """Run `work` in the background, with the Stop button enabled if it is `stoppable`."""

        def job() -> None:
            self.attempt(work)
            with self._idle:
                for widget in disable:
                    widget.disabled = False
                if stoppable:
                    self.stop.disabled = True
                    self._stopping.clear()

        # Else the end of the job before could fall between these steps, and undo some of them.
        with self._idle:
            if self._closed.is_set():
                return
            if busy:
                self.status.show(busy, "busy")
            if stoppable:
                self.stop.disabled = False
            for widget in disable:
                widget.disabled = True
            self._enqueue(job)

    def report_progress(self, text: str) -> None:
        """Show how far a job is, or end it if Stop was pressed."""
        if self._stopping.is_set():
            raise Stopped
        self.status.show(text, "busy")

    def count_progress(self, text: str) -> Callable[[int, int], None]:
        """Return a callback that reports `text` with how many of how many are done."""
        return lambda n, of: self.report_progress(f"{text}: {n:,} of {of:,} …")

    def _show_wait(self, text: str, _: int) -> None:
        """Show whom a job waits for, below what it does."""
        doing = self.status.text.partition("\n")[0]
        how = "" if self.stop.disabled else "\nPress Stop to stop waiting."
        self.report_progress(f"{doing}\n{text}{how}" if text else doing)

    def _press_stop(self) -> None:
        with self._idle:
            if self.stop.disabled:
                return  # the job has ended since the click
            self._stopping.set()
            self.stop.disabled = True
            if self.status.kind == "busy":
                self.status.show(self.stopping, "busy")

    def _enqueue(self, job: Callable[[], None]) -> None:
        with self._idle:
            self._jobs.append(job)
            if not self._working:
                self._working = True
                start_thread(self._work, "imgsearch-panel")

    def _work(self) -> None:
        locks.on_wait.set(self._show_wait)
        while True:
            with self._idle:
                if not self._jobs:
                    if self.status.kind == "busy":
                        self.status.show("")
                    self._working = False
                    self._idle.notify_all()
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception as error:  # of the widgets themselves, such as a closed connection
                get_logger().error("imgsearch panel", exc_info=error)

    def wait(self, timeout: float = 120.0) -> None:
        """Wait until no job is left, `timeout` seconds at most; for scripts and tests."""
        with self._idle:
            if not self._idle.wait_for(lambda: not self._working, timeout):
                raise TimeoutError(f"still busy after {timeout:g} s: {self.status.text}")

    # ------------------------------------------------------------ events

    def button(
        self, label: str, pressed: Callable[[], None], tooltip: str = "", style: str = ""
    ) -> ipw.Button:
        """Create a button; what goes wrong in `pressed` is shown."""
        button = ipw.Button(description=label, tooltip=tooltip or label, button_style=style)
        button.on_click(lambda _: self.attempt(pressed))
        return button

    def on_enter(self, field: ipw.Text, entered: Callable[[str], None]) -> None:
        """Call a function with the text of a field when Enter is pressed in it."""
        field.continuous_update = True  # else the text would arrive after the key

        def receive(_: object, content: object, __: object) -> None:
            if isinstance(content, dict) and content.get("event") == "submit":
                self.attempt(entered, field.value.strip())

        field.on_msg(receive)

    def watch(self, widget: ipw.Widget, changed: Callable[[], None], trait: str = "value") -> None:
        """Call a function whenever a widget changes, but not while it is :meth:`muted`."""

        def notice(_: object) -> None:
            if widget not in self._muted:
                self.attempt(changed)

        widget.observe(notice, trait)

    def set_options(self, chooser: ipw.Widget, options: Sequence, value: object) -> None:
        """Replace the options and the choice of a dropdown or list."""
        # In one message: else the browser would show the first option, and let it be chosen.
        with self.muted(chooser), chooser.hold_sync():
            chooser.options, chooser.value = options, value

    @contextmanager
    def muted(self, widget: ipw.Widget) -> Iterator[None]:
        """Change a widget without the function that watches it."""
        self._muted.add(widget)
        try:
            yield
        finally:
            self._muted.discard(widget)

    # ------------------------------------------------------------ collections

    @property
    def metadata(self) -> MetadataStore:
        """The metadata store, opened on first use; for jobs only."""
        if self._metadata is None:
            self._metadata = MetadataStore.open(self.settings)
        return self._metadata

    def collection_names(self) -> list[str]:
        """List the collections; for jobs only."""
        return [row.name for row in self.metadata.collections()]

    def recent_collection(self, names: Sequence[str]) -> str | None:
        """Choose the default collection if it is set, else the one used or ingested last."""
        note, runs = self._last_used, self.metadata.runs(limit=1)
        last = note.read_text() if note.is_file() else ""
        if runs and (not last or runs[0].started_at.timestamp() > note.stat().st_mtime):
            last = runs[0].collection
        if "default_table" in self.settings.model_fields_set:
            last = self.settings.default_table
        return last if last in names else next(iter(names), None)

    def remember(self, name: str) -> None:
        """Note the collection that is used, for :meth:`recent_collection`."""
        with atomic(self._last_used, "w") as file:
            file.write(name)

    @property
    def _last_used(self) -> Path:
        return self.settings.imgsearch_home / "last-collection"

    def gallery(self, name: str | None) -> Gallery:
        """Open a collection, or return the one that is open already; for jobs only."""
        if not name:
            raise ConfigError("Collection", NO_COLLECTION)
        rows = {row.name: row for row in self.metadata.collections()}
        for held in [n for n, gallery in self._galleries.items() if rows.get(n) != gallery.row]:
            self._galleries.pop(held).close()  # deleted, or deleted and created again
        if name not in self._galleries:
            self._galleries[name] = Gallery.open(name, settings=self.settings)
        return self._galleries[name]


def _close_earlier(panel: Panel) -> None:
    """Close the panels that an earlier run of the same notebook cell created."""
    request = getattr(get_ipython(), "get_parent", dict)()
    # Frontends without cell ids are served by the cell's text.
    cell = request.get("metadata", {}).get("cellId") or request.get("content", {}).get("code")
    if not cell:
        return
    run = request["header"]["msg_id"]
    last, panels = _panels.get(cell, (run, WeakSet()))
    if last != run:
        for earlier in list(panels):
            earlier.close()
        panels = WeakSet()
    panels.add(panel)
    _panels[cell] = (run, panels)


def start_thread(function: Callable[[], None], name: str) -> None:
    """Start a thread that does not outlive the kernel."""
    threading.Thread(target=function, daemon=True, name=name).start()


def _close_tree(widget: ipw.Widget) -> None:
    """Close a widget and the widgets it holds, their layouts and styles included."""
    for trait in widget.keys:
        value = getattr(widget, trait)
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ipw.Widget):
                _close_tree(part)
    ipw.Widget.close(widget)


class Pager(ipw.HBox):
    """Buttons that page through the images of a collection, whose paths a field may filter."""

    def __init__(
        self, panel: Panel, size: int, turned: Callable[[], None], find: ipw.Text | None = None
    ):
        self.previous = panel.button("Previous", lambda: self._turn(-1))
        self.next = panel.button("Next", lambda: self._turn(1))
        self.position = ipw.HTML()
        super().__init__([self.previous, self.position, self.next])
        self.add_class("imgsearch-row")
        self._size, self._turned, self._find = size, turned, find
        self._page = 0
        if find is not None:
            panel.watch(find, self.restart)

    def restart(self) -> None:
        """Return to the first page."""
        self._page = 0
        self._turned()

    def _turn(self, step: int) -> None:
        self._page = max(0, self._page + step)
        self._turned()

    def read(self, metadata: MetadataStore, collection: str) -> list[ImageRow]:
        """Read the rows of the page; for jobs only."""
        like = self._find.value.strip() if self._find is not None else ""
        start = self._page * self._size
        found = metadata.browse(collection, offset=start, limit=self._size + 1, like=like or None)
        rows = found[: self._size]
        total = "" if like else f" of {metadata.count(collection).paths:,}"
        here = f"{start + 1:,} to {start + len(rows):,}{total}"
        self.position.value = here if rows else "No matches"
        self.previous.disabled, self.next.disabled = start == 0, len(found) <= self._size
        return rows


def text_field(label: str, placeholder: str = "", value: str = "", width: str = "") -> ipw.Text:
    """Create a text field, whose value arrives on Enter or when the focus leaves it."""
    field = ipw.Text(value, description=label, placeholder=placeholder, continuous_update=False)
    field.layout.width = width or None
    return field


def checkbox(label: str, value: bool = False) -> ipw.Checkbox:
    """Create a checkbox."""
    return ipw.Checkbox(value, description=label, indent=False)


def row(*children: ipw.Widget) -> ipw.HBox:
    """Put widgets side by side, wrapping where there is no room."""
    box = ipw.HBox(children)
    box.add_class("imgsearch-row")
    return box


def column(css_class: str, *children: ipw.Widget) -> ipw.VBox:
    """Put widgets below each other."""
    box = ipw.VBox(children)
    box.add_class(css_class)
    return box


def columns(side: Sequence[ipw.Widget], main: Sequence[ipw.Widget]) -> ipw.HBox:
    """Lay out a narrow column beside a wide one."""
    box = ipw.HBox([column("imgsearch-side", *side), column("imgsearch-main", *main)])
    box.add_class("imgsearch-columns")
    return box


def tabs(contents: Mapping[str, Sequence[ipw.Widget]]) -> ipw.Tab:
    """Lay out groups of widgets as tabs with titles."""
    tab = ipw.Tab([column("imgsearch-main", *widgets) for widgets in contents.values()])
    tab.titles = list(contents)
    return tab


def heading(text: str) -> str:
    """Return a small heading as HTML."""
    return f"<h2>{escape(text)}</h2>"


def facts(text: str) -> str:
    """Return a paragraph of secondary text as HTML."""
    return f'<div class="imgsearch-facts">{escape(text)}</div>'


def details(text: str) -> str:
    """Return secondary text as HTML that is folded until it is asked for."""
    return f"<details><summary>Details</summary>{facts(text)}</details>"


def notebook_link(name: str, label: str) -> str:
    """Return a link to another notebook, in the folder of the one that is shown."""
    return f'<a href="{name}.ipynb" target="_blank">{escape(label)}</a>'


def set_visible(*widgets: ipw.Widget, visible: bool) -> None:
    """Show or hide widgets."""
    for widget in widgets:
        (widget.remove_class if visible else widget.add_class)("imgsearch-hidden")
