"""The search panel: search with a picture, and go on from any result."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import ipywidgets as ipw
import numpy as np

from imgsearch import config, encoders, hits, images, plots
from imgsearch.errors import (
    CollectionNotFound,
    ImageError,
    ImgSearchError,
    printable,
)
from imgsearch.gallery import Gallery
from imgsearch.hits import Hit, Hits, Image
from imgsearch.images import Box
from imgsearch.io import absolute
from imgsearch.widgets import first_steps, image_grid, panel
from imgsearch.widgets.formatting import counted, format_seconds

PREVIEW = 800
"""Longest side of the query as it is shown, pixels."""

HISTORY = 20
"""Earlier queries that Back returns to."""

HISTORY_BYTES = 2 * images.MAX_BYTES
"""Bytes that their uploads may take together."""

MOST = 1_000
"""Results that can be shown."""

LEGEND = "Score: cosine similarity, 1 = same picture"


@dataclass(frozen=True)
class Query:
    """A file's content, a stored image or words to search with, or the part in a box."""

    name: str
    image_id: int | None
    width: int
    height: int
    source: bytes | Image | str
    box: Box | None = None
    examples: tuple[tuple[bool, Hit], ...] = ()  # whether to be like each of them

    @property
    def picture(self) -> bytes | Path | None:
        """What the picture can be decoded from; None for words."""
        if isinstance(self.source, Image):
            return Path(self.source.path)
        return self.source if isinstance(self.source, bytes) else None


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
        self._history: list[Query] = []
        self._turn, self._takes_words = 0, False
        self._shown: dict[str, Hit | Image] = {}
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
        self.examples = ipw.TagsInput()
        self.watch(self.examples, self._examples_changed)
        self.watch(self.collection, self._collection_changed)
        self.watch(self.itself, self._again)
        self.watch(self.filters, self._filter_changed, "where")
        self.watch(self.grid, self._show_actions, "selected")

        self.export = ipw.ToggleButton(description="Export", tooltip="Tag, download or copy images")
        self.watch(self.export, self._show_actions)
        self.chosen = ipw.HTML()
        self.tag = panel.text_field("Tag", "a tag, or name = value")
        self.on_enter(self.tag, self._add_tag)
        self.save_csv = self.button("CSV", lambda: self._save("csv"), "Download as a table")
        self.save_parquet = self.button("Parquet", lambda: self._save("parquet"), "Download")
        self.save_grid = self.button("PNG", self._save_grid, "Download the query and its results")
        self.folder = panel.text_field("Copy to", "/folder")
        self.on_enter(self.folder, self._copy)
        for field in (self.tag, self.folder):
            field.style.description_width = "initial"
            field.layout.width = "220px"
        self._actions = panel.row(
            self.chosen, self.tag, self.save_csv, self.save_parquet, self.save_grid, self.folder
        )

        self.first_steps = first_steps.FirstSteps(self, self._open)
        self._tools = panel.row(self.collection, self.refresh, self.back, self.browse, self.export)
        self._content = panel.columns(
            [self.picture],
            [
                panel.row(self.title, self.itself),
                self.examples,
                *(self.filters, self._actions, self.grid, self.details),
            ],
        )
        self.fill(self._tools, self.status, self.first_steps, self._content)
        panel.set_visible(self.first_steps, self._tools, self._content, visible=False)
        self._show_actions()
        self._enable_buttons()

    def __repr__(self) -> str:
        return f"Search panel of {self.collection.value or 'no collection'}; works in JupyterLab"

    # ------------------------------------------------------------ what a user does

    def search(self, query: str | Path | Query) -> None:
        """Search with a file, or with an earlier query; :meth:`wait` waits for the results."""
        if isinstance(query, Query):
            self._search(lambda: query)
        else:
            self._search(lambda: _query_of(absolute(query)))

    def _arrived(self, name: str, data: bytes) -> None:
        self._search(lambda: _query_of(data, printable(name)[-200:] or "upload"))

    def _typed(self, text: str) -> None:
        text = str(text).strip().strip("'\"")
        if self._takes_words and not (os.sep in text or Path(text).is_file()):
            words = Query(f"“{printable(text)}”", None, 0, 0, text)
            self._search(lambda: words)
        else:
            self.search(text)

    def _pick(self, key: str) -> None:
        if key in self._shown:
            path = self._shown[key].path
            self._search(lambda: _query_of(self._gallery().get(path)))

    def _show_original(self, key: str) -> None:
        if key in self._shown:
            path = self._shown[key].path
            self.submit(lambda: self.grid.show_original(key, path))

    def _back(self) -> None:
        if len(self._history) > 1:
            self._history.pop()
            self.search(self._history.pop())

    def _again(self) -> None:
        if self.query is not None and self.hits is not None:
            self.search(self.query)

    def _box_drawn(self, box: list | None) -> None:
        if self.query is not None:
            self.search(replace(self.query, box=tuple(map(int, box)) if box else None))

    def _judge(self, key: str, liked: bool) -> None:
        if self.query is not None and isinstance(hit := self._shown.get(key), Hit):
            self._search_examples((*self.query.examples, (liked, hit)))

    def _undo(self) -> None:
        if self.query is not None and self.query.examples:
            self._search_examples(self.query.examples[:-1])

    def _examples_changed(self) -> None:
        kept, given = self.examples.value, self.query.examples if self.query else ()
        pairs = zip(_chips(given), given, strict=True)
        self._search_examples(tuple(one for chip, one in pairs if chip in kept))

    def _search_examples(self, examples: tuple) -> None:
        if self.query is not None:
            self.search(replace(self.query, examples=examples))

    def _filter_changed(self) -> None:
        if self.hits is None:
            self._browse()
        else:
            self._again()

    def _collection_changed(self) -> None:
        self._muted.add(self.filters)
        self.filters.where = {}
        self._muted.discard(self.filters)
        if self.query is None or isinstance(self.query.source, Image):
            self._history.clear()
            self.query = self.hits = None
        self.submit(self._show_collection)

    def _refresh(self) -> None:
        self.submit(lambda: self._open(self.collection.value), "Looking for collections …")

    def _browse(self) -> None:
        self.submit(partial(self._show_stored, self._next_turn(), self.page))

    def _more(self) -> None:
        self._show_again(len(self._shown) + self.page)

    def _show_again(self, n: int) -> None:
        """Show the same as before, up to `n` images of it."""
        query = self.query
        if self.hits is None or query is None:
            self.submit(partial(self._show_stored, self._next_turn(), n))
        else:
            self._search(lambda: query, n)

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

    def _chosen(self) -> list[Hit | Image]:
        """The selected images, or all that are shown."""
        selected = set(self.grid.selected) or self._shown
        return [image for key, image in self._shown.items() if key in selected]

    def _show_actions(self) -> None:
        n, shown = len(self.grid.selected), len(self._shown)
        text = f"The {n:,} selected:" if n else f"All {shown:,} shown:"
        self.chosen.value = panel.facts(text)
        panel.set_visible(self._actions, visible=bool(n) or self.export.value)

    def _save(self, kind: str) -> None:
        table = hits.table(chosen := self._chosen(), chosen[0]._fields if chosen else ["path"])
        table["path"] = table["path"].map(printable)
        if kind == "csv":
            data = table.to_csv(index=False).encode()
        else:
            for name, column in table.items():
                if column.dropna().map(type).nunique() > 1:  # a column of Parquet has one type
                    table[name] = column.map(json.dumps, na_action="ignore")
            table.to_parquet(buffer := io.BytesIO(), index=False)
            data = buffer.getvalue()
        self.grid.download(f"images.{kind}", "application/octet-stream", data)
        self.status.show(f"Downloaded images.{kind}: {counted(len(chosen), 'row')}.", "good")

    def _copy(self, folder: str) -> None:
        chosen = self._chosen()

        def work() -> None:
            copies = hits.copy_files(chosen, folder)
            self.status.show(f"Copied {counted(len(copies), 'file')} to {folder}.", "good")

        self.submit(work, f"Copying {counted(len(chosen), 'file')} …")

    def _add_tag(self, text: str) -> None:
        chosen, (name, equals, value) = self._chosen(), map(str.strip, text.partition("="))
        if not text:
            return
        if equals:
            changes = {image.image_id: {name: _value(value)} for image in chosen}
        else:
            changes = {image.image_id: {"tags": _with_tag(image, text)} for image in chosen}

        def work() -> None:
            n = self._gallery().set_attributes(changes, key="image_id")
            self._list_attributes(self._gallery())
            self._show_again(len(self._shown))
            self.submit(lambda: self.status.show(f"Tagged {counted(n, 'file')}.", "good"))

        self.tag.value = ""
        self.submit(work, "Tagging …")

    # ------------------------------------------------------------ background jobs

    def _gallery(self) -> Gallery:
        return self.gallery(self.collection.value)

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
        gallery = self._gallery()
        self.remember(gallery.name)
        self._list_attributes(gallery)
        self._takes_words = any(
            entry.text and entry.name == gallery.row.encoder for entry in encoders.list()
        )
        words = ", or words, such as “horse”" if self._takes_words else ""
        self.picture.text_label = f"Path of an image{words}"
        if self.hits is None:
            self._show_stored(self._next_turn(), self.page)
        else:
            self._again()
        panel.start_thread(partial(_load_encoder, gallery), "imgsearch-encoder")

    def _list_attributes(self, gallery: Gallery) -> None:
        found = gallery.metadata.attribute_values(gallery.name)
        self.filters.attributes = {name: list(map(list, pairs)) for name, pairs in found.items()}

    @property
    def _where(self) -> dict | None:
        return self.filters.where or None

    def _show_stored(self, turn: int, n: int) -> None:
        gallery, where = self._gallery(), self._where
        counts = gallery.metadata.count(gallery.name, where=where)
        shown = {}
        for image in gallery.browse(limit=n, where=where):
            at = f"-{image.paths.index(image.path)}" if len(image.paths) > 1 else ""
            shown[f"{image.image_id}{at}"] = image
        tiles = [self._tile(key, image, "Search with") for key, image in shown.items()]
        if turn != self._turn:
            return
        self.hits = None
        summary = f"{counted(counts.images, 'image')}{' found' if where else ''}"
        self._show_tiles(shown, tiles, counts.paths - len(shown), summary)
        self.grid.label, self.grid.legend = (
            "Images of the collection",
            "Click one to search with it",
        )
        self.title.value = self.details.value = ""
        self.grid.judging = False
        panel.set_visible(self.itself, self.examples, visible=False)
        self._enable_buttons()
        self.status.show("")

    def _show_tiles(self, shown: dict, tiles: list[dict], left: int, summary: str) -> None:
        self._shown = shown
        with self.grid.hold_sync():
            self.grid.items, self.grid.summary = tiles, summary
            self.grid.selected = [key for key in self.grid.selected if key in shown]
            self.grid.more = f"Show {min(left, self.page):,} more" if left > 0 else ""
        self._show_actions()

    def _tile(self, key: str, image: Hit | Image, action: str) -> dict:
        return image_grid.tile(key, image, action)

    def _search(self, make: Callable[[], Query], top_k: int = 0) -> None:
        turn = self._next_turn()

        def work() -> None:
            if turn != self._turn:  # a later search is waiting already
                return
            query, gallery, where = make(), self._gallery(), self._where
            words = query.source if isinstance(query.source, str) else None
            itself = () if query.image_id is None else {query.image_id}
            hits = gallery.search(
                query.source if words is None else None,
                min(top_k or self.page, MOST),
                text=words,
                like=[hit for liked, hit in query.examples if liked],
                unlike=[hit for liked, hit in query.examples if not liked],
                box=query.box,
                exclude=() if self.itself.value else itself,
                where=where,
            )
            tiles = [
                self._tile(
                    str(hit.image_id),
                    hit,
                    f"Rank {hit.rank}, score {hit.score:.3f}. Search with",
                )
                for hit in hits
            ]
            known = gallery.count().images if hits.matched is None else hits.matched
            held = words is None and _holds(gallery, query.image_id, where)
            if turn == self._turn:
                self._show(query, hits, tiles, known, held)
                if not top_k:
                    self.grid.reveal()

        self.submit(work, "Searching …")

    def _show(self, query: Query, hits: Hits, tiles: list[dict], known: int, held: bool) -> None:
        known -= (held and not self.itself.value) + len(query.examples)
        left = min(known, MOST) - len(hits)
        matching = "matching " if self._where else ""
        summary = f"{len(hits):,} of {counted(known, f'{matching}image')}"
        self._show_tiles({str(hit.image_id): hit for hit in hits}, tiles, left, summary)
        self.grid.label, self.grid.legend = "Results, best first", LEGEND
        self.grid.judging = True
        same = self.query is not None and self.query.source is query.source
        if self._history and same and self._history[-1].box is not None and query.box is not None:
            self._history[-1] = query  # a box that is being adjusted is one step
        elif not self._history or self._history[-1] != query:
            self._history.append(query)
        while len(self._history) > HISTORY or (
            len(self._history) > 1 and sum(map(_size, self._history)) > HISTORY_BYTES
        ):
            self._history.pop(0)
        self.query, self.hits = query, hits
        self._show_query(query, same)
        self._show_examples(query)
        what = "Similar to a part of" if query.box else "Similar to"
        what = "Results for" if isinstance(query.source, str) else what
        self.title.value = panel.heading(f"{what} {query.name}")
        self.details.value = panel.details(self._facts(query, hits))
        panel.set_visible(self.itself, visible=held)
        self._enable_buttons()
        self.status.show("" if hits else "There is no other image to compare with.")

    def _show_examples(self, query: Query | None) -> None:
        chips = _chips(query.examples if query else ())
        self._muted.add(self.examples)
        self.examples.allowed_tags, self.examples.value = chips, chips
        self._muted.discard(self.examples)
        panel.set_visible(self.examples, visible=bool(chips))

    def _show_query(self, query: Query, same: bool) -> None:
        with self.picture.hold_sync():
            self.picture.box = list(query.box or ())
            if same:
                return
            self.picture.name, self.picture.size = query.name, [query.width, query.height]
            self.picture.note, self.picture.picture = query.name, None
            if query.picture is not None:
                self.picture.note += f", {query.width} × {query.height} pixels"
            with suppress(ImageError):  # a stored image can be searched with without its file
                if query.picture is not None:
                    self.picture.picture = images.jpeg(query.picture, PREVIEW)
        self.grid.query, self.grid.query_name = self.picture.picture, query.name

    def _enable_buttons(self) -> None:
        self.back.disabled = len(self._history) < 2
        self.save_grid.disabled = self.hits is None or self.query.picture is None

    def _facts(self, query: Query, hits: Hits) -> str:
        encoder, seconds = hits.encoder, hits.seconds
        ran = [str(encoder[key]) for key in ("device", "precision", "backend") if key in encoder]
        encode = f"encode {format_seconds(seconds['encode'])} on {' '.join(ran)}"
        if isinstance(query.source, Image) and query.box is None:
            encode = "stored vector"
        return (
            f"Encoder {printable(encoder['name'])} ({encoder['dim']} dimensions, "
            f"fingerprint {encoder['fingerprint']}) · index {hits.index_spec} · "
            f"{encode} · "
            f"vector search {format_seconds(seconds['vectors'])}"
            f"{f' ({hits.way})' if hits.way else ''} · "
            f"metadata {format_seconds(seconds['metadata'])}"
        )


def _query_of(source: bytes | Path | Image, name: str = "") -> Query:
    if isinstance(source, Image):
        name = printable(Path(source.path).name)
        return Query(name, source.image_id, source.width, source.height, source)
    data = source if isinstance(source, bytes) else images.read(source)
    name = name or printable(Path(str(source)).name)
    info = images.probe(data, path=name)
    return Query(name, info.image_id, info.width, info.height, data)


def _chips(examples: tuple[tuple[bool, Hit], ...]) -> list[str]:
    """Different labels of examples and counter-examples."""
    chips: list[str] = []
    for liked, hit in examples:
        chip = f"{'+' if liked else '−'} {printable(Path(hit.path).name)}"
        while chip in chips:
            chip += "′"
        chips.append(chip)
    return chips


def _holds(gallery: Gallery, image_id: int, where: dict | None) -> bool:
    """Whether an image is among those that fulfil a filter."""
    rows = gallery.metadata.by_id(gallery.name, [image_id]).get(image_id, ())
    if not rows or where is None:
        return bool(rows)
    both = {"and": [where, {"path": [row.path for row in rows]}]}
    return gallery.metadata.count(gallery.name, where=both).images > 0


def _value(text: str) -> str | int | float | bool | None:
    """What is meant by the value of an attribute; nothing removes it."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text or None


def _with_tag(image: Hit | Image, tag: str) -> list:
    tags = image.attributes.get("tags", [])
    tags = tags if isinstance(tags, list) else [tags]
    return tags if tag in tags else [*tags, tag]


def _size(query: Query) -> int:
    return len(query.source) if isinstance(query.source, bytes) else 0


def _load_encoder(gallery: Gallery) -> None:
    """Load the encoder while the user still chooses a picture."""
    with suppress(ImgSearchError):  # the first search says what is wrong
        gallery.pipeline([np.zeros((64, 64, 3), np.uint8)])
