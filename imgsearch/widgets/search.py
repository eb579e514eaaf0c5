"""The search panel: search with a picture, and go on from any result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import ipywidgets as ipw
import numpy as np

from imgsearch import config, images
from imgsearch.encoders import registry
from imgsearch.errors import (
    CollectionNotFound,
    EncoderError,
    ImageError,
    ImgSearchError,
    printable,
)
from imgsearch.gallery import Gallery
from imgsearch.hits import Hit, Hits, Image
from imgsearch.sources import Source
from imgsearch.widgets import first_steps, image_grid, panel
from imgsearch.widgets.formatting import counted, format_seconds
from imgsearch.widgets.queries import Examples, Query, query_of, query_of_session
from imgsearch.widgets.selection import SelectionBar
from imgsearch.widgets.session_bar import SessionBar

PREVIEW = 800
"""Longest side of the query as it is shown, pixels."""

HISTORY = 20
"""Earlier queries that Back returns to."""

HISTORY_BYTES = 2 * images.MAX_BYTES
"""Bytes that their uploads may take together."""

MOST = 1_000
"""Results that can be shown."""

LEGEND = "Score: cosine similarity, 1 = same picture"


class SearchPanel(panel.Panel):
    """Search with a picture or a part of it, see the most similar images, click one to go on.

    Parameters
    ----------
    collection : str, optional
        Collection to open first; if left out, the one that was used or ingested last.
    top_k : int
        Number of results to start with, and to add with More.
    settings : Settings, optional
        Read from the environment if left out.

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
        top_k: int = 24,
        *,
        settings: config.Settings | None = None,
    ):
        super().__init__(settings)
        self.page = top_k
        self.hits: Hits | None = None
        self.query: Query | None = None
        self.shown: dict[str, Hit | Image] = {}  # by the keys of their tiles
        self._history: list[Query] = []
        self._turn = 0
        self._build()
        self.submit(lambda: self._open(collection), "Opening the collection …")

    def _build(self) -> None:
        self.collection = ipw.Dropdown(description="Collection")
        self.refresh = self.button("Refresh", self._refresh, "Look for new collections")
        self.picture = image_grid.QueryPicture(lambda *file: self.attempt(self._arrived, *file))
        self.picture.on("text", lambda text: self.attempt(self._typed, text))
        self.picture.on("key", lambda key: self.attempt(self._pick, key))
        self.picture.on("box", lambda box: self.attempt(self._box_drawn, box))
        self.back = self.button("Back", self._back, "Back to the previous search")
        self.browse = self.button("All images", self._browse, "Show the collection's images")
        self.itself = panel.checkbox("Show the query among its results")
        self.title, self.details = ipw.HTML(), ipw.HTML()
        self.filters = image_grid.FilterBar()
        self.grid = image_grid.Grid(picks=True, selecting="marks")
        self.grid.on("pick", lambda key: self.attempt(self._pick, key))
        self.grid.on("open", lambda key: self.attempt(self._show_original, key))
        self.grid.on("more", lambda: self.attempt(self._more))
        self.grid.on("judge", lambda key, value: self.attempt(self._judge, key, value > 0))
        self.grid.on("undo", lambda: self.attempt(self._undo))
        self.selection, self.session = SelectionBar(self), SessionBar(self)
        self.watch(self.collection, self._collection_changed)
        self.watch(self.itself, self._again)
        self.watch(self.filters, self._filter_changed, "where")
        self.watch(self.grid, self.selection.show, "selected")

        self.first_steps = first_steps.FirstSteps(self, self._open)
        toggles = self.selection.toggle, self.session.toggle
        self._tools = panel.row(self.collection, self.refresh, self.back, self.browse, *toggles)
        self._content = panel.columns(
            [self.picture],
            [
                panel.row(self.title, self.itself),
                self.session.examples,
                *(self.filters, self.selection, self.grid, self.details),
            ],
        )
        self.fill(self._tools, self.status, self.session, self.first_steps, self._content)
        panel.set_visible(self.first_steps, self._tools, self._content, visible=False)
        self.selection.show()
        self.back.disabled = True

    def __repr__(self) -> str:
        return f"Search panel of {self.collection.value or 'no collection'}; works in JupyterLab"

    # ------------------------------------------------------------ what a user does

    def search(self, query: Source | Query, first: Callable[[], None] | None = None) -> None:
        """Search with anything that is an image; :meth:`wait` waits for the results.

        If `first` is given, it runs in the background before, and must succeed.
        """

        def make() -> Query:
            return query if isinstance(query, Query) else query_of(self.current_gallery(), query)

        self._search(make, first=first)

    def resume(self, topic: str) -> None:
        """Search with the query, the filter and the judgments of a session."""

        def make() -> Query:
            home, names = self.metadata.topics.get(topic).collection, self.collection_names()
            if home in names and home != self.collection.value:
                self.set_options(self.collection, names, home)
                self._enter(self.current_gallery())
            query, where = query_of_session(self.current_gallery(), topic)
            self._set_filter(where)
            if home not in names:
                text = f"Collection {home!r} does not exist any more: these are results of another."
                self.submit(lambda: self.status.show(text) if self.query is query else None)
            return query

        self._search(make)

    def _arrived(self, name: str, data: bytes) -> None:
        name = printable(name)[-200:] or "upload"
        self._search(lambda: query_of(self.current_gallery(), data, name))

    def _typed(self, text: str) -> None:
        text = str(text).strip().strip("'\"")
        file = os.path.isfile(text)  # noqa: PTH113 - Path.is_file raises where a name is too long
        if not text or os.sep in text or file or images.is_candidate(text):
            self.search(text)
        else:
            self._search(lambda: self._words(text))

    def _words(self, text: str) -> Query:
        gallery = self.current_gallery()
        if not _takes_words(gallery.row.encoder):
            able = [row.name for row in self.metadata.collections() if _takes_words(row.encoder)]
            raise EncoderError(
                gallery.row.encoder,
                "cannot search with words: choose a collection that can "
                f"({', '.join(able) or 'there is none'}), or ingest the images with mini or a "
                "clip: encoder",
            )
        return Query(text=text)

    def _pick(self, key: str) -> None:
        if key in self.shown:
            path = self.shown[key].path
            self._search(lambda: query_of(gallery := self.current_gallery(), gallery.get(path)))

    def _show_original(self, key: str) -> None:
        if key in self.shown:
            path = self.shown[key].path
            self.submit(lambda: self.grid.show_original(key, path))

    def _back(self) -> None:
        if len(self._history) > 1:
            self._history.pop()
            self.search(self._history[-1])

    def _again(self) -> None:
        if self.query is not None and self.hits is not None:
            self.search(self.query)

    def _box_drawn(self, box: list | None) -> None:
        if self.query is not None:
            self.search(replace(self.query, box=tuple(map(int, box)) if box else None))

    def _judge(self, key: str, relevant: bool) -> None:
        query, hit = self.query, self.shown.get(key)
        if query is not None and isinstance(hit, Hit):
            self.search(query, partial(self.session.judge, query, hit, relevant))

    def _undo(self) -> None:
        if self.query is not None and self.query.topic.name:
            self.search(self.query, partial(self.session.undo, self.query))

    def _filter_changed(self) -> None:
        if self.hits is None:
            self._browse()
        else:
            self._again()

    def _collection_changed(self) -> None:
        self._set_filter({})
        if self.query is None or self.query.is_stored:
            self._history.clear()
            self.query = self.hits = None
        self.submit(self._show_collection)

    def _refresh(self) -> None:
        self.submit(lambda: self._open(self.collection.value), "Looking for collections …")

    def _browse(self) -> None:
        self.submit(partial(self._show_stored, self._next_turn(), self.page))

    def _more(self) -> None:
        self.show_again(len(self.shown) + self.page)

    def show_again(self, n: int = 0) -> None:
        """Show the same as before, up to `n` images of it; as many as before if left out."""
        query, n = self.query, n or len(self.shown)
        if self.hits is None or query is None:
            self.submit(partial(self._show_stored, self._next_turn(), n))
        else:
            self._search(lambda: query, n)

    # ------------------------------------------------------------ background jobs

    def current_gallery(self) -> Gallery:
        """The collection that is chosen; for jobs only."""
        return self.gallery(self.collection.value)

    def list_attributes(self) -> None:
        """Offer the attributes of the collection as filters; for jobs only."""
        gallery = self.current_gallery()
        found = gallery.metadata.attribute_values(gallery.name)
        self.filters.attributes = {name: list(map(list, pairs)) for name, pairs in found.items()}

    def _next_turn(self) -> int:
        """Number a request; the results of an earlier one are not shown any more."""
        self._turn += 1
        return self._turn

    def _open(self, wanted: str | None) -> None:
        names = self.collection_names()
        chosen = wanted if wanted in names else self.recent_collection(names)
        self.set_options(self.collection, names, chosen)
        panel.set_visible(self.first_steps, visible=not names)
        panel.set_visible(self._tools, self._content, visible=bool(names))
        self.status.show("")
        if wanted and wanted not in names:
            raise CollectionNotFound(wanted, names)
        if names:
            self._show_collection()

    def _show_collection(self) -> None:
        """Show a collection that was opened, or what it has for the query."""
        self._enter(self.current_gallery())
        if self.hits is None:
            self._show_stored(self._next_turn(), self.page)
        else:
            self._again()

    def _enter(self, gallery: Gallery) -> None:
        self.remember(gallery.name)
        self.list_attributes()
        words = ", or words" if _takes_words(gallery.row.encoder) else ""
        self.picture.text_label = f"Path of an image{words}"
        panel.start_thread(partial(_load_encoder, gallery), "imgsearch-encoder")

    def _set_filter(self, where: Mapping) -> None:
        with self.muted(self.filters):
            self.filters.where = dict(where)

    def _show_stored(self, turn: int, n: int) -> None:
        gallery, where = self.current_gallery(), self.filters.where or None
        counts = gallery.metadata.count(gallery.name, where=where)
        shown = {}
        for image in gallery.browse(limit=n, where=where):
            at = f"-{image.paths.index(image.path)}" if len(image.paths) > 1 else ""
            shown[f"{image.image_id}{at}"] = image
        steps = image_grid.steps((key, image, "Search with") for key, image in shown.items())
        items = next(steps)
        if turn != self._turn:
            return
        self.hits = None
        with self.grid.hold_sync():
            self.grid.label = "Images of the collection"
            self.grid.legend, self.grid.judging = "Click one to search with it", False
            summary = f"{counted(counts.images, 'image')}{' found' if where else ''}"
            self._show_tiles(shown, items, counts.paths - len(shown), summary)
        self.title.value = self.details.value = ""
        self.session.show(None, None, ())
        panel.set_visible(self.itself, visible=False)
        self.back.disabled = len(self._history) < 2
        self.status.show("")
        self._complete_tiles(steps, turn)

    def _show_tiles(self, shown: dict, items: list[dict], left: int, summary: str) -> None:
        self.shown = shown
        self.grid.items, self.grid.summary = items, summary
        self.grid.selected = [key for key in self.grid.selected if key in shown]
        self.grid.more = f"Show {min(left, self.page):,} more" if left > 0 else ""
        self.selection.show()

    def _complete_tiles(self, steps: Iterable[list[dict]], turn: int) -> None:
        """Show further thumbnails as they are made."""
        for items in steps:
            if turn != self._turn:
                return
            self.grid.items = items

    def _search(
        self,
        make: Callable[[], Query],
        top_k: int = 0,
        first: Callable[[], None] | None = None,
    ) -> None:
        turn = self._next_turn()

        def work() -> None:
            if first is not None:
                first()
            if turn != self._turn:  # a later search is waiting already
                return
            query, gallery = make(), self.current_gallery()
            session = self.session.session_of(query)
            judged = tuple(session.examples()) if session else ()
            itself = () if query.image_id is None else {query.image_id}
            where = self.filters.where or None
            hits = gallery.search(
                top_k=min(top_k or self.page, MOST),
                exclude=() if self.itself.value else itself,
                where=where,
                **query.arguments(judged),
            )
            steps = image_grid.steps(
                (hit.image_id, hit, f"Rank {hit.rank}, score {hit.score:.3f}. Search with")
                for hit in hits
            )
            items = next(steps)
            if turn != self._turn:
                return
            self._show(query, hits, items, judged)
            self.session.show(query, session, judged)
            if not top_k:
                self.grid.reveal()
            self._complete_tiles(steps, turn)

        self.submit(work, "Searching …")

    def _show(self, query: Query, hits: Hits, items: list[dict], judged: Examples) -> None:
        gallery, where = self.current_gallery(), self.filters.where or None
        examples = {image.image_id for image, _ in (*query.examples, *judged)}
        itself = set() if query.image_id is None else _held(gallery, {query.image_id}, where)
        left_out = _held(gallery, examples, where) | (set() if self.itself.value else itself)
        known = gallery.count().images if hits.matched is None else hits.matched
        known -= len(left_out)
        summary = f"{len(hits):,} of {counted(known, 'matching image' if where else 'image')}"
        same = self.query is not None and self.query.picture is query.picture
        self._remember_query(query, same)
        self.query, self.hits = query, hits
        shown = {str(hit.image_id): hit for hit in hits}
        with self.grid.hold_sync():
            self.grid.label, self.grid.legend = "Results, best first", LEGEND
            self.grid.judging = True
            self._show_tiles(shown, items, min(known, MOST) - len(hits), summary)
            self._show_query(query, same)
        what = "Similar to" if query.picture or not query.text else "Results for"
        part = " a part of" if query.box else ""
        self.title.value = panel.heading(f"{what}{part} {query.name}")
        self.details.value = panel.details(_facts(query, hits))
        panel.set_visible(self.itself, visible=bool(itself))
        nothing = "No other image fulfils the filter." if where else "There is no other image."
        self.status.show("" if hits else nothing)

    def _remember_query(self, query: Query, same: bool) -> None:
        """Keep a query for Back."""
        last = self._history[-1] if self._history else None
        if last and same and last.text == query.text and last.box and query.box:
            self._history[-1] = query  # a box that is being adjusted is one step
        elif last != query:
            self._history.append(query)
        while len(self._history) > HISTORY or (
            len(self._history) > 1 and sum(one.size for one in self._history) > HISTORY_BYTES
        ):
            self._history.pop(0)
        self.back.disabled = len(self._history) < 2

    def _show_query(self, query: Query, same: bool) -> None:
        with self.picture.hold_sync():
            self.picture.box = list(query.box or ())
            if same and query.picture is not None:
                return
            picture = None
            self.picture.name = self.picture.note = query.name
            if query.picture is not None:
                size = query.picture.width, query.picture.height
                self.picture.size = list(size)
                self.picture.note += f", {size[0]} × {size[1]} pixels"
                with suppress(ImageError):  # a stored image needs no file to be searched with
                    picture = images.jpeg(query.file, PREVIEW)
            self.picture.picture = picture
        self.grid.query, self.grid.query_name = picture, query.name


def _takes_words(encoder: str) -> bool:
    """Whether an encoder has a text tower; False if it is not registered here."""
    with suppress(EncoderError):
        return registry.resolve(encoder)[0].text
    return False


def _held(gallery: Gallery, ids: set[int], where: dict | None) -> set[int]:
    """Which images the collection holds and the filter lets through."""
    if where is None or not ids:
        return set(gallery.metadata.by_id(gallery.name, ids))
    return ids & set(np.intersect1d(list(ids), gallery.metadata.matching(gallery.name, where)))


def _facts(query: Query, hits: Hits) -> str:
    encoder, seconds = hits.encoder, hits.seconds
    ran = [str(encoder[key]) for key in ("device", "precision", "backend") if key in encoder]
    encode = f"encode {format_seconds(seconds['encode'])} on {' '.join(ran)}"
    if query.is_stored and query.box is None:
        encode = "stored vector"
    return (
        f"Encoder {printable(encoder['name'])} ({encoder['dim']} dimensions, "
        f"fingerprint {encoder['fingerprint']}) · index {hits.index_spec} · "
        f"{encode} · "
        f"vector search {format_seconds(seconds['vectors'])}"
        f"{f' ({hits.way})' if hits.way else ''} · "
        f"metadata {format_seconds(seconds['metadata'])}"
    )


def _load_encoder(gallery: Gallery) -> None:
    """Load the encoder while the user still chooses a picture."""
    with suppress(ImgSearchError):  # the first search says what is wrong
        gallery.pipeline([np.zeros((64, 64, 3), np.uint8)])
