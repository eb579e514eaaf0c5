"""The search panel: search with a picture, and go on from any result."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ipywidgets as ipw
import numpy as np
from IPython import get_ipython
from jupyter_bbox_widget import BBoxWidget
from traitlets.log import get_logger

from imgsearch import config, images, plots
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    ImageError,
    ImageNotFound,
    printable,
)
from imgsearch.gallery import Gallery
from imgsearch.hits import Hit, Hits, Image
from imgsearch.images import Box
from imgsearch.io import absolute, csv_text
from imgsearch.widgets import image_grid, panel
from imgsearch.widgets.formatting import counted, format_seconds

PREVIEW = 640
"""Longest side of the query as it is shown, pixels."""

QUIET = 0.5
"""Seconds without a change after which a box that is being drawn is searched with."""

SMALLEST = 8
"""Pixels that a box must have each way; a smaller one is a slip of the hand."""

PAGE = 24
"""Stored images on a page."""

UPLOADS = 12
"""Uploaded files that are kept at hand."""

UPLOADED_BYTES = 2 * images.MAX_BYTES
"""Bytes that they may take together."""

HINT = (
    "Draw a box to search with a part of the picture, or type its edges in pixels. "
    "Press Esc to move the focus out of the picture."
)


def confined_by_default() -> bool:
    """Whether visitors may reach this kernel: Voilà or something unknown started it."""
    if any(name.startswith("VOILA_") for name in os.environ):
        return True
    started_by_user = {"JPY_SESSION_NAME", "VSCODE_PID"} & os.environ.keys()
    return hasattr(get_ipython(), "kernel") and not started_by_user


@dataclass(frozen=True)
class Query:
    """A file's content or a stored image to search with, or the part of it in a box."""

    name: str
    width: int
    height: int
    source: bytes | Image
    box: Box | None = None

    @property
    def picture(self) -> bytes | Path:
        """What the picture can be decoded from."""
        return self.source if isinstance(self.source, bytes) else Path(self.source.path)


class _Cropper(BBoxWidget):
    def _handle_image_change(self, change: dict) -> None:
        """Do nothing: the original reads any file whose name the browser sends."""


class SearchPanel(panel.Panel):
    """Upload, choose or crop a picture, see the images most similar to it, click to go on.

    Parameters
    ----------
    collection : str, optional
        Collection to open first; ``DEFAULT_TABLE`` if left out.
    top_k : int
        Number of results to start with.
    settings : Settings, optional
        Read from the environment if left out.
    confined : bool, optional
        Whether to show no folder and to reach no file outside the collections;
        ``IMGSEARCH_CONFINED`` if left out.

    Attributes
    ----------
    hits : Hits or None
        Results of the last search.
    query : Query or None
        What was searched with.
    """

    def __init__(
        self,
        collection: str | None = None,
        top_k: int = 10,
        *,
        settings: config.Settings | None = None,
        confined: bool | None = None,
    ):
        super().__init__(settings)
        try:
            explicit = self.settings.imgsearch_confined
        except ConfigError:
            explicit = None  # the first job shows what is wrong
        choices = (confined, explicit, confined_by_default())
        self.confined: bool = next(choice for choice in choices if choice is not None)
        self.limit = 100 if self.confined else 1000
        self.hits: Hits | None = None
        self.query: Query | None = None
        self._history: list[Query] = []
        self._turn, self._keys = 0, itertools.count()
        self._shown: dict[str, Hit | Image] = {}
        self._uploads: dict[str, Query] = {}
        self._build(top_k)
        self.submit(lambda: self._open(collection), "Opening the collection …")
        if explicit:  # a server of the app: load everything before a visitor waits for it
            self.submit(lambda: self._gallery().search(np.zeros((64, 64, 3), np.uint8), 1))

    def _build(self, top_k: int) -> None:
        self.collection = ipw.Dropdown(description="Collection")
        self.top_k = ipw.BoundedIntText(top_k, min=1, max=self.limit, description="Results")
        self.top_k.layout.width = "170px"
        self.refresh = self.button("Refresh", self._refresh, "Look for new collections")
        self.uploader = image_grid.Uploader(lambda *file: self.attempt(self._arrived, *file))
        self.uploads = image_grid.Grid(small=True, opening=False, label="Uploaded images")
        self._strip = panel.column("imgsearch-strip", self.uploads)
        self.uploads.on("pick", lambda key: self.attempt(self._pick_upload, key))
        self.path = panel.text_field("Path", "/folder/photo.jpg", width="auto")
        self.search_path = self.button("Search", self._search_path, "", "primary")
        self.cropper = _Cropper(classes=["part"], colors=[plots.QUERY_COLOUR], hide_buttons=True)
        # Hidden by a box around it: this widget ignores changes of its classes.
        self._crop = panel.column("imgsearch-query", self.cropper)
        self.about_query = ipw.HTML()
        self.hint = ipw.HTML(panel.facts(HINT))
        self.box = panel.text_field("Part", "left, upper, right, lower", width="auto")
        self.whole = self.button("Whole picture", self._whole, "Search with the whole picture")
        self.back = self.button("Back", self._back, "Back to the previous search")
        self.browse = self.button(
            "Stored images", lambda: self.pager.restart(), "Show the collection's images"
        )
        self.find = panel.text_field("Find", "part of a path")
        # A visitor could learn names of folders from what a filter finds.
        filters = [] if self.confined else [self.find]
        self.pager = panel.Pager(self, PAGE, self._browse, *filters)
        self._paging = panel.row(*filters, self.pager)
        self.save_grid = self.button("Save as PNG", self._save_grid, "The query and its results")
        self.save_hits = self.button("Save as CSV", self._save_hits, "The results as a table")
        self.title, self.facts = ipw.HTML(), ipw.HTML()
        self.grid = image_grid.Grid()
        self.grid.on("pick", lambda key: self.attempt(self._pick, key))
        self.grid.on("open", lambda key: self.attempt(self._show_original, key))

        self.watch(self.collection, self._collection_changed)
        self.watch(self.top_k, self._again)
        self.watch(self.box, self._box_typed)
        self.watch(self.cropper, self.debounced(QUIET, self._box_drawn), "bboxes")

        by_path = [] if self.confined else [self.path, panel.row(self.search_path)]
        query = (self.about_query, self._crop, self.hint, self.box, self.whole)
        self.fill(
            panel.row(self.collection, self.top_k, self.refresh),
            self.status,
            panel.columns(
                [self.uploader, self._strip, *by_path, *query[:-1], panel.row(self.whole)],
                [
                    panel.row(self.back, self.browse, self.save_grid, self.save_hits),
                    *(self.title, self._paging, self.grid, self.facts),
                ],
            ),
        )
        self._query_tools = query
        panel.set_visible(*query, self._strip, self._paging, visible=False)
        self._enable_buttons()

    def error_text(self, error: Exception) -> str:
        """Describe an error; a visitor of a confined panel sees no path of the server."""
        if not self.confined:
            return super().error_text(error)
        if isinstance(error, ImageError):
            text = f"{Path(error.path).name}: {error.reason}"
        elif isinstance(error, ConfigError | CollectionNotFound | ImageNotFound):
            text = str(error)
        else:
            text = os.sep
        if os.sep in text:
            get_logger().error("imgsearch panel", exc_info=error)
            return "The server could not do this. Its log holds the details."
        return text

    # ------------------------------------------------------------ what a user does

    def search(self, query: str | Path | Query) -> None:
        """Search with a file, or with an earlier query; :meth:`wait` waits for the results."""
        if isinstance(query, Query):
            self._search(lambda: query)
        else:
            self._search(lambda: _query_of(absolute(query)))

    def _arrived(self, name: str, data: bytes) -> None:
        name = printable(name)[-200:] or "upload"

        def make() -> Query:
            query = _query_of(data, name)
            uploads = self._uploads
            uploads[str(next(self._keys))] = query
            while len(uploads) > UPLOADS or (
                len(uploads) > 1 and sum(len(q.source) for q in uploads.values()) > UPLOADED_BYTES
            ):
                uploads.pop(next(iter(uploads)))
            self.uploads.items = [
                image_grid.tile(key, q.name, (image_grid.jpeg(q.source, 140), ""), 0, "Search with")
                for key, q in uploads.items()
            ]
            panel.set_visible(self._strip, visible=len(uploads) > 1)
            return query

        self._search(make)

    def _pick_upload(self, key: str) -> None:
        if key in self._uploads:
            self.search(self._uploads[key])

    def _search_path(self) -> None:
        if self.confined:  # the field is not shown, but a browser can send its value
            raise ConfigError("Path", "cannot be used here; upload the image")
        text = self.path.value.strip().strip("'\"")
        if not text:
            raise ConfigError("Path", "is empty; type the path of an image, or upload one")
        self.search(text)

    def _pick(self, key: str) -> None:
        if key in self._shown:
            path = self._shown[key].path
            self._search(lambda: _query_of(self._gallery().get(path)))

    def _show_original(self, key: str) -> None:
        if key in self._shown:
            path = self._shown[key].path
            self.submit(lambda: self.grid.show_original(path))

    def _back(self) -> None:
        if len(self._history) > 1:
            self._history.pop()
            self.search(self._history.pop())

    def _again(self) -> None:
        if self.query is not None and self.hits is not None:
            self.search(self.query)

    def _whole(self) -> None:
        if self.query is not None and self.query.box is not None:
            self.search(replace(self.query, box=None))

    def _box_typed(self) -> None:
        if self.query is None or self.box.value == _box_text(self.query.box):
            return
        try:
            numbers = [int(part) for part in self.box.value.replace(",", " ").split()]
        except ValueError:
            numbers = [0]
        if len(numbers) not in (0, 4):
            raise ConfigError("Part", "takes four numbers in pixels: left, upper, right, lower")
        self.search(replace(self.query, box=tuple(numbers) or None))

    def _box_drawn(self) -> None:
        query = self.query
        if query is None or not self.cropper.bboxes:
            return
        drawn = self.cropper.bboxes[-1]
        box = _from_preview(drawn, query)
        if box is None or box == query.box:
            return
        if len(self.cropper.bboxes) > 1:
            self.cropper.bboxes = [drawn]
        self.search(replace(query, box=box))

    def _collection_changed(self) -> None:
        if not self.collection.value:
            return
        if self.query is not None and isinstance(self.query.source, bytes):
            self._again()
        else:
            self._history.clear()
            self.pager.restart()

    def _refresh(self) -> None:
        self.submit(lambda: self._open(self.collection.value), "Looking for collections …")

    def _browse(self) -> None:
        self._turn += 1
        turn = self._turn
        self.submit(lambda: self._show_stored(turn))

    def _save_grid(self) -> None:
        query, hits = self.query, self.hits
        if query is None or hits is None:
            return
        title = f"Similar to {query.name}, in {hits.collection}"

        def work() -> None:
            figure = plots.result_grid(query.picture, hits, box=query.box, title=title, columns=5)
            self.grid.download("search.png", "image/png", image_grid.png(figure, dpi=150))
            self.status.show("Downloaded search.png.", "good")

        self.submit(work, "Drawing …", disable=[self.save_grid])

    def _save_hits(self) -> None:
        if self.hits is not None:
            rows = []
            for hit in self.hits:
                path = printable(Path(hit.path).name if self.confined else hit.path)
                row = hit._asdict() | {"score": f"{hit.score:.6f}", "path": path}
                del row["paths"]
                rows.append(row)
            self.grid.download("search.csv", "text/csv", csv_text(rows).encode())
            self.status.show("Downloaded search.csv.", "good")

    # ------------------------------------------------------------ background jobs

    def _gallery(self) -> Gallery:
        return self.gallery(self.collection.value)

    def _open(self, wanted: str | None) -> None:
        names = self.collection_names()
        default = wanted or self.settings.default_table
        chosen = default if default in names else next(iter(names), None)
        self.set_options(self.collection, names, chosen)
        if not names:
            self.status.show(panel.NO_COLLECTION)
            return
        if wanted and wanted not in names:
            self.status.show(f"There is no collection {wanted!r}.", "bad")
        if self.hits is None:
            self._show_stored(self._turn)

    def _show_stored(self, turn: int) -> None:
        gallery = self._gallery()
        rows = self.pager.read(gallery.metadata, gallery.name)
        if turn != self._turn:
            return
        self._shown = {str(next(self._keys)): row for row in rows}
        self.grid.items = [
            self._tile(key, row.path, row.image_id, "Search with")
            for key, row in self._shown.items()
        ]
        self.grid.label = "Stored images"
        self.hits = None
        self.title.value = panel.heading("Stored images: click one to search with it")
        self.facts.value = ""
        panel.set_visible(self._paging, visible=True)
        self._enable_buttons()

    def _tile(
        self, key: str, path: str, image_id: int, action: str, head: Sequence[str] = ()
    ) -> dict:
        thumbnail, reason = image_grid.thumbnail(path, image_id)
        if self.confined:
            path = Path(path).name
            reason = "cannot be read" if os.sep in reason else reason
        return image_grid.tile(key, path, (thumbnail, reason), image_id, action, head)

    def _search(self, make: Callable[[], Query]) -> None:
        self._turn += 1
        turn = self._turn

        def work() -> None:
            if turn == self._turn:  # else a later search is waiting already
                query = make()
                # A browser can set the field's own maximum.
                hits = self._gallery().search(
                    query.source, min(self.top_k.value, self.limit), box=query.box
                )
                if turn == self._turn:
                    self._show(query, hits)

        self.submit(work, "Searching …")

    def _show(self, query: Query, hits: Hits) -> None:
        self._shown = {str(next(self._keys)): hit for hit in hits}
        self.grid.items = [
            self._tile(
                *(key, hit.path, hit.image_id),
                action=f"Rank {hit.rank}, score {hit.score:.3f}. Search with",
                head=[f"{hit.rank}", f"{hit.score:.3f}"],
            )
            for key, hit in self._shown.items()
        ]
        self.grid.label = "Results, best first"
        same = self.query is not None and self.query.source is query.source
        if self._history and same and self._history[-1].box is not None and query.box is not None:
            self._history[-1] = query  # a box that is being adjusted is one step
        elif not self._history or self._history[-1] != query:
            self._history.append(query)
        self.query, self.hits = query, hits
        self._show_query(query, same)
        part = " (the part in the box)" if query.box else ""
        self.title.value = panel.heading(f"Similar to {query.name}{part}")
        self.facts.value = panel.facts(self._facts(hits))
        panel.set_visible(self._paging, visible=False)
        self._enable_buttons()
        seconds = format_seconds(hits.seconds["total"])
        self.status.show(f"{counted(len(hits), 'result')} in {seconds}.", "good")

    def _show_query(self, query: Query, same: bool) -> None:
        panel.set_visible(*self._query_tools, visible=True)
        size = f"{query.width} × {query.height} pixels"
        self.about_query.value = panel.heading(f"Query: {query.name}, {size}")
        self.box.value = _box_text(query.box)
        if not same:
            try:
                self.cropper.bboxes = []
                self.cropper.image_bytes = image_grid.jpeg(query.picture, PREVIEW)
            except ImageError as error:  # a stored image can be searched with without its file
                self.cropper.image_bytes = b""
                panel.set_visible(self._crop, visible=False)
                self.about_query.value += panel.facts(self.error_text(error))
        drawn = _from_preview(self.cropper.bboxes[-1], query) if self.cropper.bboxes else None
        if drawn != query.box:
            self.cropper.bboxes = [_to_preview(query)] if query.box else []

    def _enable_buttons(self) -> None:
        self.back.disabled = len(self._history) < 2
        self.save_grid.disabled = self.save_hits.disabled = self.hits is None
        self.whole.disabled = self.query is None or self.query.box is None

    def _facts(self, hits: Hits) -> str:
        encoder, seconds = hits.encoder, hits.seconds
        name = Path(encoder["name"]).name if self.confined else encoder["name"]
        ran = [str(encoder[key]) for key in ("device", "precision", "backend") if key in encoder]
        encode = f"encode {format_seconds(seconds['encode'])} on {' '.join(ran)}"
        return (
            f"Encoder {printable(name)} ({encoder['dim']} dimensions, "
            f"fingerprint {encoder['fingerprint']}) · index {hits.index_spec} · "
            f"{encode if ran else 'stored vector'} · "
            f"vector search {format_seconds(seconds['vectors'])} · "
            f"metadata {format_seconds(seconds['metadata'])}"
        )


def _query_of(source: bytes | Path | Image, name: str = "") -> Query:
    if isinstance(source, Image):
        return Query(printable(Path(source.path).name), source.width, source.height, source)
    data = source if isinstance(source, bytes) else images.read(source)
    name = name or printable(Path(str(source)).name)
    info = images.probe(data, path=name)
    return Query(name, info.width, info.height, data)


def _scale(query: Query) -> float:
    """Pixels of the picture for each pixel of the preview, which is never enlarged."""
    return max(1.0, max(query.width, query.height) / PREVIEW)


def _from_preview(drawn: dict, query: Query) -> Box | None:
    scale = _scale(query)
    x, y = float(drawn.get("x", 0)), float(drawn.get("y", 0))
    left, upper = max(0, round(x * scale)), max(0, round(y * scale))
    right = min(query.width, round((x + float(drawn.get("width", 0))) * scale))
    lower = min(query.height, round((y + float(drawn.get("height", 0))) * scale))
    if right - left < SMALLEST or lower - upper < SMALLEST:
        return None
    return left, upper, right, lower


def _to_preview(query: Query) -> dict:
    left, upper, right, lower = (edge / _scale(query) for edge in query.box)
    return {"x": left, "y": upper, "width": right - left, "height": lower - upper, "label": "part"}


def _box_text(box: Sequence[int] | None) -> str:
    return ", ".join(map(str, box)) if box else ""
