"""The search panel: a picture in, the most similar ones out, and on from there."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import ipywidgets as ipw
import numpy as np
from jupyter_bbox_widget import BBoxWidget

from imgsearch import batch, config, images, plots
from imgsearch.errors import ConfigError, ImageError, printable
from imgsearch.gallery import Hits
from imgsearch.images import Box
from imgsearch.io import hits_csv
from imgsearch.stores.metadata import ImageRow
from imgsearch.widgets import formatting, image_grid, panel

PREVIEW = 640
"""Longest side of the query as it is shown, pixels."""

QUIET = 0.5
"""Seconds without a change after which a box that is being drawn is searched with."""

SMALLEST = 8
"""Pixels of the picture that a box must have each way; less is a slip of the hand."""

PAGE = 24
"""Stored images on a page."""

UPLOADS = 12
"""Uploaded files that are kept at hand."""

UPLOADED_BYTES = 2 * images.MAX_BYTES
"""Bytes that they may take together."""


@dataclass(frozen=True)
class Query:
    """What is searched with.

    Attributes
    ----------
    name : str
        For people.
    width, height : int
        Of the upright picture, pixels.
    source : bytes or ImageRow
        A file's content, or a stored image.
    box : tuple of int, optional
        Left, upper, right, lower in pixels: this part of it only.
    """

    name: str
    width: int
    height: int
    source: bytes | ImageRow
    box: Box | None = None

    @property
    def picture(self) -> bytes | Path:
        """What the picture can be decoded from."""
        return self.source if isinstance(self.source, bytes) else Path(self.source.path)


class _Cropper(BBoxWidget):
    def _handle_image_change(self, change: dict) -> None:
        """Do nothing: the original reads any file whose name the browser sends."""


class SearchPanel(panel.Panel):
    """Upload, choose or crop a picture, see what is most like it, click to go on.

    Parameters
    ----------
    collection : str, optional
        Chosen at first; ``DEFAULT_TABLE`` if left out.
    top_k : int
        How many hits at first.
    settings : Settings, optional
        Read from the environment if left out.
    confined : bool, optional
        Whether to offer nothing that reaches files outside the collections. Left
        out, it does so under Voilà, whose visitors need not be trusted.

    Attributes
    ----------
    hits : Hits or None
        What was found last.
    query : Query or None
        What it was found with.
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
        self.confined = "VOILA_PREHEAT" in os.environ if confined is None else confined
        self.hits: Hits | None = None
        self.query: Query | None = None
        self._history: list[Query] = []
        self._turn, self._keys, self._page, self._listing = 0, itertools.count(), 0, False
        self._shown: dict[str, int | ImageRow] = {}
        self._uploads: dict[str, tuple[str, bytes]] = {}
        self._galleries, self._thumbnails = panel.Galleries(), image_grid.Thumbnails()
        self._build(collection, top_k)
        if self.settings is not None:
            wanted = collection or self.settings.default_table
            self.run(lambda: self._first_look(wanted), "Looking for collections …")

    def _build(self, collection: str | None, top_k: int) -> None:
        self.collection = ipw.Dropdown(
            options=[collection] if collection else [], description="Collection"
        )
        self.top_k = ipw.BoundedIntText(
            top_k, min=1, max=100 if self.confined else 1000, description="How many"
        )
        self.top_k.layout.width = "170px"
        self.refresh = self.button("Refresh", self._refresh, "Look for new collections")
        self.uploader = image_grid.Uploader(lambda *file: self.guarded(self._arrived, *file))
        self.uploads = image_grid.Grid(small=True, opening=False, label="Uploaded images")
        self._strip = panel.column("imgsearch-strip", self.uploads)
        self.uploads.on("pick", lambda key: self.guarded(self._pick_upload, key))
        self.path = ipw.Text(
            placeholder="/folder/photo.jpg", description="Path", layout=ipw.Layout(width="auto")
        )
        self.search_path = self.button(
            "Search", self._search_path, "Search with the file at this path", "primary"
        )
        self.cropper = _Cropper(classes=["part"], colors=[plots.QUERY_COLOUR], hide_buttons=True)
        # Hidden by a box around them: these widgets do not follow changes of their classes.
        self._crop = panel.column("imgsearch-query", self.cropper)
        self.about_query = ipw.HTML()
        self.hint = ipw.HTML(
            '<div class="imgsearch-facts">Draw a box to search with a part, or type its edges in '
            "pixels. Esc leaves the picture.</div>"
        )
        self.box = ipw.Text(
            placeholder="left, upper, right, lower",
            description="Part",
            continuous_update=False,
            layout=ipw.Layout(width="auto"),
        )
        self.whole = self.button(
            "Whole picture", self._whole, "Search with all of the picture again"
        )
        self.back = self.button("Back", self._back, "Back to the search before")
        self.browse = self.button("Stored images", self._browse, "Show what the collection holds")
        self.find = ipw.Text(placeholder="part of a path", continuous_update=False)
        self.previous = self.button("Previous", lambda: self._turn_page(-1))
        self.next = self.button("Next", lambda: self._turn_page(1))
        self.save_grid = self.button("Save as PNG", self._save_grid, "The query and its results")
        self.save_hits = self.button("Save as CSV", self._save_hits, "The results as a table")
        self.title, self.facts = ipw.HTML(), ipw.HTML()
        self.grid = image_grid.Grid()
        self.grid.on("pick", lambda key: self.guarded(self._pick, key))
        self.grid.on("open", lambda key: self.guarded(self._open, key))

        self.watch(self.collection, self._collection_changed)
        self.watch(self.top_k, self._again)
        self.watch(self.find, self._browse)
        self.watch(self.box, self._box_typed)
        self.watch(self.cropper, self.debounced(QUIET, self._box_drawn), "bboxes")

        by_path = [] if self.confined else [self.path, panel.row(self.search_path)]
        side = panel.column(
            "imgsearch-side",
            self.uploader,
            self._strip,
            *by_path,
            self.about_query,
            self._crop,
            self.hint,
            self.box,
            panel.row(self.whole),
        )
        self._paging = panel.row(*([] if self.confined else [self.find]), self.previous, self.next)
        main = panel.column(
            "imgsearch-main",
            panel.row(self.back, self.browse, self.save_grid, self.save_hits),
            self.title,
            self._paging,
            self.grid,
            self.facts,
        )
        columns = ipw.HBox([side, main])
        columns.add_class("imgsearch-columns")
        self.fill(
            panel.row(self.collection, self.top_k, self.refresh),
            self.status,
            columns,
        )
        self._query_tools = (self.about_query, self._crop, self.hint, self.box, self.whole)
        for widget in (*self._query_tools, self._strip, self._paging):
            panel.shown(widget, False)
        self._offer()

    # ------------------------------------------------------------ what a user does

    def search(self, query: str | Path | Query) -> None:
        """Search with a file, or with what was searched with before.

        Parameters
        ----------
        query : path or Query
            The results appear in the panel; see :meth:`wait`.
        """
        if isinstance(query, Query):
            self._search(lambda: query)
        else:
            self._search(lambda: _query_of(Path(query).expanduser().absolute()))

    def _arrived(self, name: str, data: bytes) -> None:
        name = printable(name)[-200:] or "upload"

        def look() -> Query:
            query = _query_of(data, name)
            self._uploads[str(next(self._keys))] = (name, data)
            while len(self._uploads) > 1 and (
                len(self._uploads) > UPLOADS
                or sum(len(data) for _, data in self._uploads.values()) > UPLOADED_BYTES
            ):
                self._uploads.pop(next(iter(self._uploads)))
            self._show_uploads()
            return query

        self._search(look)

    def _show_uploads(self) -> None:
        self.uploads.items = [
            image_grid.tile(
                key,
                name,
                (image_grid.jpeg(data, 140), ""),
                image_id=0,
                action="Search with",
            )
            for key, (name, data) in self._uploads.items()
        ]
        panel.shown(self._strip, len(self._uploads) > 1)

    def _pick_upload(self, key: str) -> None:
        if key in self._uploads:
            name, data = self._uploads[key]
            self._search(lambda: _query_of(data, name))

    def _search_path(self) -> None:
        if self.confined:  # not shown, but a browser can press what it does not see
            raise ConfigError("Path", "cannot be used here: upload the image")
        text = self.path.value.strip().strip("'\"")
        if not text:
            raise ConfigError("Path", "is empty: paste the path of an image, or upload one")
        self.search(text)

    def _pick(self, key: str) -> None:
        if key in self._shown:
            found = self._shown[key]
            self._search(lambda: _query_of(self._row(found)))

    def _open(self, key: str) -> None:
        if key in self._shown:
            found = self._shown[key]
            self.run(lambda: self.grid.show_original(self._row(found).path))

    def _row(self, found: int | ImageRow) -> ImageRow:
        return found if isinstance(found, ImageRow) else self._gallery().get(found)

    def _back(self) -> None:
        if len(self._history) > 1:
            self._history.pop()
            query = self._history.pop()
            self._search(lambda: query)

    def _again(self) -> None:
        if self.query is not None and self.hits is not None:
            self.search(self.query)

    def _whole(self) -> None:
        if self.query is not None and self.query.box is not None:
            self.search(replace(self.query, box=None))

    def _box_typed(self) -> None:
        if self.query is None or self.box.value == _in_words(self.query.box):
            return
        try:
            numbers = [int(part) for part in self.box.value.replace(",", " ").split()]
        except ValueError:
            numbers = [0]
        if len(numbers) not in (0, 4):
            raise ConfigError(
                "Part", "give four numbers in pixels: left, upper, right, lower; or none"
            )
        self.search(replace(self.query, box=tuple(numbers) or None))

    def _box_drawn(self) -> None:
        query = self.query
        if query is None or not self.cropper.bboxes:
            return
        drawn = self.cropper.bboxes[-1]
        box = _full_size(drawn, query)
        if box is None or box == query.box:
            return
        if len(self.cropper.bboxes) > 1:
            self.cropper.bboxes = [drawn]
        self.search(replace(query, box=box))

    def _collection_changed(self) -> None:
        if self._listing or not self.collection.value:
            return
        if self.query is not None and isinstance(self.query.source, bytes):
            self._again()
        else:
            self._history.clear()
            self._browse()

    def _refresh(self) -> None:
        self.run(lambda: self._first_look(self.collection.value), "Looking for collections …")

    def _browse(self) -> None:
        self._page = 0
        self._turn_page(0)

    def _turn_page(self, step: int) -> None:
        self._page = max(0, self._page + step)
        self._turn += 1
        turn = self._turn
        self.run(lambda: self._show_stored(turn))

    def _save_grid(self) -> None:
        query, hits = self.query, self.hits
        if query is not None and hits is not None:
            self.run(
                lambda: self._download_grid(query, hits), "Drawing …", disabling=[self.save_grid]
            )

    def _save_hits(self) -> None:
        if self.hits is not None:
            data = hits_csv(self.hits, names_only=self.confined)
            self.grid.download("search.csv", "text/csv", data)
            self.status.say("search.csv was handed to the browser.", "good")

    # ------------------------------------------------------------ what threads do

    def _gallery(self):
        if not self.collection.value:
            raise ConfigError("collection", "there is none yet: ingest a folder of images first")
        return self._galleries.get(self.collection.value, self.settings)

    def _first_look(self, wanted: str | None) -> None:
        names = [row.name for row in self._galleries.rows(self.settings)]
        self._listing = True
        try:
            self.collection.options = names
            if names:
                self.collection.value = wanted if wanted in names else names[0]
        finally:
            self._listing = False
        if not names:
            self.status.say(
                "There is no collection yet: ingest a folder of images first, then refresh.", "bad"
            )
            return
        self.status.say(
            "" if wanted in names or not wanted else f"There is no collection {wanted!r}.",
            "bad",
        )
        if self.hits is None:
            self._show_stored(self._turn)
        if self.confined:
            # Everything is loaded now, so that no visitor waits for it.
            self._gallery().search(np.zeros((64, 64, 3), np.uint8), 1)

    def _show_stored(self, turn: int) -> None:
        gallery = self._gallery()
        like = None if self.confined else self.find.value.strip() or None
        rows = gallery.metadata.browse(
            gallery.name, offset=self._page * PAGE, limit=PAGE + 1, like=like
        )
        if turn != self._turn:
            return
        keyed = {str(next(self._keys)): row for row in rows[:PAGE]}
        items = image_grid.tiles(
            keyed.values(), self._thumbnails, "Search with", where=not self.confined
        )
        self._shown = dict(keyed)
        self.grid.items = [item | {"key": key} for key, item in zip(keyed, items, strict=True)]
        self.grid.label = "Stored images"
        self.hits = None
        first = self._page * PAGE + 1
        self.title.value = panel.heading(
            f"Stored images {first} to {first + len(keyed) - 1}: click one to search with it"
            if keyed
            else "No stored image fits"
        ).value
        self.facts.value = ""
        self.previous.disabled, self.next.disabled = self._page == 0, len(rows) <= PAGE
        panel.shown(self._paging, True)
        self._offer()
        if self.status.kind == "busy":
            self.status.say("")

    def _search(self, make) -> None:
        self._turn += 1
        turn = self._turn

        def work() -> None:
            if turn == self._turn:  # else a later search waits already
                query = make()
                found = self._gallery().search(query.source, self.top_k.value, box=query.box)
                if turn == self._turn:
                    self._show(query, found)

        self.run(work, "Searching …")

    def _show(self, query: Query, hits: Hits) -> None:
        keyed = {str(next(self._keys)): hit for hit in hits}
        self._shown = {key: hit.image_id for key, hit in keyed.items()}
        self.grid.items = [
            image_grid.tile(
                key,
                hit.path,
                self._thumbnails.of(hit.path, hit.image_id),
                image_id=hit.image_id,
                action=f"Rank {hit.rank}, score {hit.score:.3f}. Search with",
                head=[f"{hit.rank}", f"{hit.score:.3f}"],
                where=not self.confined,
            )
            for key, hit in keyed.items()
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
        self.title.value = panel.heading(f"Most like {query.name}{part}").value
        self.facts.value = f'<div class="imgsearch-facts">{_facts(hits)}</div>'
        panel.shown(self._paging, False)
        self._offer()
        self.status.say(
            f"{len(hits)} results in {formatting.time_in_words(hits.seconds['total'])}.", "good"
        )

    def _show_query(self, query: Query, same: bool) -> None:
        for widget in self._query_tools:
            panel.shown(widget, True)
        size = f"{query.width} × {query.height} pixels"
        self.about_query.value = panel.heading(f"Query: {query.name}, {size}").value
        self.box.value = _in_words(query.box)
        if not same:
            try:
                self.cropper.bboxes = []
                self.cropper.image_bytes = image_grid.jpeg(query.picture, PREVIEW)
            except ImageError as error:  # a stored image can be searched with without its file
                self.cropper.image_bytes = b""
                panel.shown(self._crop, False)
                self.about_query.value += f'<div class="imgsearch-facts">{error.reason}</div>'
        drawn = _full_size(self.cropper.bboxes[-1], query) if self.cropper.bboxes else None
        if drawn != query.box:
            self.cropper.bboxes = [_preview_size(query)] if query.box else []

    def _offer(self) -> None:
        """Let only that be pressed which makes sense now."""
        self.back.disabled = len(self._history) < 2
        self.save_grid.disabled = self.save_hits.disabled = self.hits is None
        self.whole.disabled = self.query is None or self.query.box is None

    def _download_grid(self, query: Query, hits: Hits) -> None:
        figure = plots.result_grid(
            query.picture, hits, box=query.box, title=batch.heading(hits), columns=5
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
        self.grid.download("search.png", "image/png", buffer.getvalue())
        self.status.say("search.png was handed to the browser.", "good")


def _query_of(source: bytes | Path | ImageRow, name: str = "") -> Query:
    if isinstance(source, ImageRow):
        return Query(printable(Path(source.path).name), source.width, source.height, source)
    data = source if isinstance(source, bytes) else images.read(source)
    name = name or printable(Path(str(source)).name)
    try:
        facts = images.probe(data)
    except ImageError as error:
        raise ImageError(name, error.reason) from None
    return Query(name, facts.width, facts.height, data)


def _scale(query: Query) -> float:
    """Pixels of the picture for one of the preview, which is never enlarged."""
    return max(1.0, max(query.width, query.height) / PREVIEW)


def _full_size(drawn: dict, query: Query) -> Box | None:
    scale = _scale(query)
    x, y = float(drawn.get("x", 0)), float(drawn.get("y", 0))
    left, upper = max(0, round(x * scale)), max(0, round(y * scale))
    right = min(query.width, round((x + float(drawn.get("width", 0))) * scale))
    lower = min(query.height, round((y + float(drawn.get("height", 0))) * scale))
    if right - left < SMALLEST or lower - upper < SMALLEST:
        return None
    return left, upper, right, lower


def _preview_size(query: Query) -> dict:
    left, upper, right, lower = (edge / _scale(query) for edge in query.box)
    return {"x": left, "y": upper, "width": right - left, "height": lower - upper, "label": "part"}


def _in_words(box: Sequence[int] | None) -> str:
    return ", ".join(map(str, box)) if box else ""


def _facts(hits: Hits) -> str:
    encoder, seconds = hits.encoder, hits.seconds
    ran = [str(encoder[key]) for key in ("device", "precision", "backend") if key in encoder]
    encode = (
        f"encode {formatting.time_in_words(seconds['encode'])} on {' '.join(ran)}"
        if ran
        else f"stored vector {formatting.time_in_words(seconds['encode'])}"
    )
    return escape(
        f"Encoder {printable(encoder['name'])} ({encoder['dim']} dimensions, "
        f"fingerprint {encoder['fingerprint']}) · index {hits.index_spec} · {encode} · "
        f"vector search {formatting.time_in_words(seconds['vectors'])} · "
        f"metadata {formatting.time_in_words(seconds['metadata'])}"
    )
