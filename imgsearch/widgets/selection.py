"""What can be done with the selected images of a search panel: tag, download and copy."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from typing import TYPE_CHECKING

import ipywidgets as ipw

from imgsearch import hits, plots
from imgsearch.errors import printable
from imgsearch.hits import Hit, Image
from imgsearch.widgets import image_grid, panel
from imgsearch.widgets.formatting import counted

if TYPE_CHECKING:
    from imgsearch.widgets.search import SearchPanel


class SelectionBar(ipw.HBox):
    """Tags, downloads and copies the selected images, or all that are shown."""

    def __init__(self, owner: SearchPanel):
        self._owner = owner
        self.toggle = ipw.ToggleButton(description="Export", tooltip="Tag, download or copy images")
        owner.watch(self.toggle, self.show)
        self.chosen = ipw.HTML()
        self.tag = panel.text_field("Tag", "a tag, or name = value")
        owner.on_enter(self.tag, self._add_tag)
        self.csv = owner.button("CSV", lambda: self._save("csv"), "Download as a table")
        self.parquet = owner.button("Parquet", lambda: self._save("parquet"), "Download")
        self.png = owner.button("PNG", self._save_grid, "Download the query and its results")
        self.folder = panel.text_field("Copy to", "/folder")
        owner.on_enter(self.folder, self._copy)
        for field in (self.tag, self.folder):
            field.style.description_width = "initial"
            field.layout.width = "220px"
        super().__init__([self.chosen, self.tag, self.csv, self.parquet, self.png, self.folder])
        self.add_class("imgsearch-row")

    def show(self) -> None:
        """Say what is selected; without a selection, the bar is folded unless it is wanted."""
        n, shown = len(self._owner.grid.selected), len(self._owner.shown)
        self.chosen.value = panel.facts(f"The {n:,} selected:" if n else f"All {shown:,} shown:")
        panel.set_visible(self, visible=bool(n) or self.toggle.value)
        query = self._owner.query
        self.png.disabled = self._owner.hits is None or query is None or query.picture is None

    def _chosen(self) -> list[Hit | Image]:
        selected = set(self._owner.grid.selected) or self._owner.shown
        return [image for key, image in self._owner.shown.items() if key in selected]

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
        self._owner.grid.download(f"images.{kind}", "application/octet-stream", data)
        self._owner.status.show(f"Downloaded images.{kind}: {counted(len(chosen), 'row')}.", "good")

    def _save_grid(self) -> None:
        query, found = self._owner.query, self._owner.hits

        def work() -> None:
            title = f"Similar to {query.name}, in {found.collection}"
            figure = plots.result_grid(query.file, found, box=query.box, title=title, columns=5)
            png = image_grid.png(figure, dpi=150)
            self._owner.grid.download("search.png", "image/png", png)
            self._owner.status.show("Downloaded search.png.", "good")

        self._owner.submit(work, "Drawing …", disable=[self.png])

    def _copy(self, folder: str) -> None:
        chosen = self._chosen()

        def work() -> None:
            copies = hits.copy_files(chosen, folder)
            self._owner.status.show(f"Copied {counted(len(copies), 'file')} to {folder}.", "good")

        self._owner.submit(work, f"Copying {counted(len(chosen), 'file')} …")

    def _add_tag(self, text: str) -> None:
        chosen, (name, equals, value) = self._chosen(), map(str.strip, text.partition("="))
        if not text:
            return
        if equals:
            changes = {image.image_id: {name: _value(value)} for image in chosen}
        else:
            changes = {image.image_id: {"tags": _with_tag(image, text)} for image in chosen}

        def work() -> None:
            n = self._owner.current_gallery().set_attributes(changes, key="image_id")
            self._owner.list_attributes()
            self._owner.show_again()
            self._owner.submit(
                lambda: self._owner.status.show(f"Tagged {counted(n, 'file')}.", "good")
            )

        self.tag.value = ""
        self._owner.submit(work, "Tagging …")


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
