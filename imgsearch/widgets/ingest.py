"""The ingest panel: choose a folder, follow the progress, see what failed, search the images."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import ipywidgets as ipw

from imgsearch import config, images
from imgsearch.encoders import Entry, weights
from imgsearch.encoders import list as list_encoders
from imgsearch.errors import ConfigError, printable
from imgsearch.ingestion import IngestReport, ingest
from imgsearch.io import absolute, csv_text
from imgsearch.stores.metadata import CollectionRow, ImageRow
from imgsearch.widgets import first_steps, image_grid, panel
from imgsearch.widgets.formatting import counted, format_seconds, table
from imgsearch.widgets.search import SearchPanel

ADDED = 36
"""Images that are shown after an ingest."""

COUNTED = 20_000
"""Files of a folder that are counted before the ingest."""


TABLE = "Has a column path, name or image_id; every other column becomes an attribute of the image."


class IngestPanel(panel.Panel):
    """Ingest a folder of images into a collection, and see what failed and why.

    Parameters
    ----------
    image_dir : str
        Folder to start with.
    collection : str, optional
        Collection to start with; named after the folder if left out.
    encoder : str, optional
        Encoder of a new collection; if left out, the one that the settings name, or ``mini``
        if that one would have to be downloaded.
    settings : Settings, optional
        Read from the environment if left out.

    Attributes
    ----------
    report : IngestReport or None
        What the last ingest did.
    """

    stopping = "Stopping after the current batch …"

    def __init__(
        self,
        image_dir: str = "",
        collection: str | None = None,
        encoder: str | None = None,
        *,
        settings: config.Settings | None = None,
    ):
        super().__init__(settings)
        self.report: IngestReport | None = None
        self._rows: list[ImageRow] = []
        self._collections: dict[str, CollectionRow] = {}
        self._folders: dict[str, str] = {}
        self._proposed = self._found = ""
        self._build(collection or "")
        self.submit(lambda: self._open(encoder or ""))
        self.folder.path.value = image_dir

    def _build(self, collection: str) -> None:
        self.folder = FolderChooser(self, self._folder_chosen)
        self.collection = ipw.Combobox(
            value=collection, description="Collection", placeholder="new or existing"
        )
        self.encoder = ipw.Dropdown(
            description="Encoder", options=_menu(), layout=ipw.Layout(width="420px")
        )
        self.other_encoder = panel.text_field(
            "Name or path", "timm:NAME, clip:NAME, or /folder/name.onnx"
        )
        self.about_encoder = ipw.HTML()
        self.labels = ipw.Dropdown(
            description="Labels",
            options=[("none", ""), ("names of the folders", "folders"), ("a CSV file", "table")],
        )
        self.table = panel.text_field("CSV file", "/folder/labels.csv")
        self.about_table = ipw.HTML(panel.facts(TABLE))
        self.recursive = panel.checkbox("Include subfolders", True)
        self.prune = panel.checkbox("Remove missing files")
        self.batch_size = ipw.BoundedIntText(32, min=1, max=1024, description="Batch size")
        self.batch_size.style.description_width = "auto"
        self.batch_size.layout.width = "150px"
        self.start = self.button("Start", self._start, "Start or resume", "primary")
        self.stop.tooltip = "Stop after the current batch"
        self.bar = ipw.FloatProgress(0, min=0, max=1, layout=ipw.Layout(width="auto"))
        self.bar.add_class("imgsearch-bar")
        self.progress, self.failures, self.sheet_title = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.save_failures = self.button("Save failures as CSV", self._save_failures)
        self.sheet = image_grid.Grid(size=110, label="Added images")
        self.sheet.on("open", lambda key: self.attempt(self._show_original, key))
        self.search = self.button("Search these", self._search, "Open a search panel", "primary")
        self.first_steps = first_steps.FirstSteps(self, self._sample_loaded)
        self.below = ipw.VBox()
        self.fill(
            self.first_steps,
            panel.columns(
                [self.folder],
                [
                    panel.row(self.collection, self.encoder, self.other_encoder),
                    self.about_encoder,
                    panel.row(self.labels, self.table),
                    self.about_table,
                    panel.row(self.batch_size, self.recursive, self.prune),
                    panel.row(self.start, self.stop),
                    *(self.status, self.bar, self.progress),
                    panel.row(self.search),
                    self.failures,
                    panel.row(self.save_failures),
                    *(self.sheet_title, self.sheet),
                ],
            ),
            self.below,
        )
        panel.set_visible(
            *(self.bar, self.save_failures, self.search, self.other_encoder),
            *(self.table, self.about_table),
            visible=False,
        )
        self.watch(self.collection, self._choice_changed)
        self.watch(self.encoder, self._choice_changed)
        self.watch(self.labels, self._labels_changed)
        self.watch(self.table, self._clear_error)
        self.watch(self.recursive, lambda: self._folder_chosen(self.folder.value))

    def close(self) -> None:
        """Close the panel, and the search panel below it."""
        for below in self.below.children:
            below.close()
        super().close()

    # ------------------------------------------------------------ choices

    def _open(self, encoder: str) -> None:
        wanted = encoder or self._default_encoder()
        if wanted in [name for _, name in self.encoder.options]:
            self.encoder.value = wanted
        else:
            self.encoder.value, self.other_encoder.value = "", wanted
        self._list()
        panel.set_visible(self.first_steps, visible=not self._collections)

    def _default_encoder(self) -> str:
        """The encoder of the settings, unless nobody asked for it and it has to be downloaded."""
        default = self.settings.imgsearch_encoder
        asked_for = "imgsearch_encoder" in self.settings.model_fields_set
        return default if asked_for or not needs_download(default, self.settings) else "mini"

    def _list(self) -> None:
        self._collections = {row.name: row for row in self.metadata.collections()}
        self._folders = {run.folder: run.collection for run in reversed(self.metadata.runs())}
        self.collection.options = list(self._collections)
        self._choice_changed()

    def _folder_chosen(self, folder: str) -> None:
        """Name the collection after the folder, and count the images in it."""
        self._clear_error()
        if self.collection.value in ("", self._proposed):
            known = self._folders.get(folder)
            known = known if known in self._collections else None
            self._proposed = known or config.as_collection_name(Path(folder).name) if folder else ""
            self.collection.value = self._proposed
        recursive = self.recursive.value
        if folder:
            self.submit(lambda: self._count(folder, recursive))

    def _count(self, folder: str, recursive: bool) -> None:
        if folder != self.folder.value:
            return  # another one was chosen meanwhile
        files = list(islice(images.find(folder, recursive=recursive), COUNTED + 1))
        n = sum(images.is_candidate(file.path) for file in files[:COUNTED])
        more = "more than " if len(files) > COUNTED else ""
        inside = " in it and its subfolders" if recursive else " in it"
        self.folder.note.value = panel.facts(f"{more}{counted(n, 'image')}{inside}")

    def _choice_changed(self) -> None:
        """Describe the encoder; that of a collection cannot be chosen again."""
        self._clear_error()
        # What was registered since then is offered too.
        self.set_options(self.encoder, _menu(), self.encoder.value)
        row = self._collections.get(self.collection.value.strip())
        panel.set_visible(self.encoder, visible=row is None)
        panel.set_visible(self.other_encoder, visible=row is None and not self.encoder.value)
        if row is not None:
            text = f"{row.name} exists; its encoder is {row.encoder}."
        else:
            text = next((_about(e) for e in list_encoders() if e.name == self.encoder.value), "")
        self.about_encoder.value = panel.facts(text)

    def _labels_changed(self) -> None:
        self._clear_error()
        from_table = self.labels.value == "table"
        panel.set_visible(self.table, self.about_table, visible=from_table)

    def _clear_error(self) -> None:
        if self.status.kind == "bad":
            self.status.show("")

    # ------------------------------------------------------------ ingest

    def _start(self) -> None:
        if self.start.disabled:
            return
        if not self.folder.value:
            raise ConfigError("Folder", "choose the folder that holds the images")
        name = config.as_collection_name(self.collection.value)
        self.collection.value = name
        encoder = self.encoder.value or self.other_encoder.value.strip()
        if name not in self._collections and not encoder:
            raise ConfigError("Name or path", "type the name of a timm model, or an ONNX file")
        table = self.table.value.strip() if self.labels.value == "table" else None
        if table == "":
            raise ConfigError("CSV file", "type the path of the file with the labels")
        folder, started = self.folder.value, datetime.now(UTC)
        options = {
            "encoder": None if name in self._collections else encoder,
            "recursive": self.recursive.value,
            "prune": self.prune.value,
            "batch_size": self.batch_size.value,
            "attributes": table,
            "from_folders": self.labels.value == "folders",
        }
        self.report = None
        self.failures.value = self.sheet_title.value = self.progress.value = ""
        self.sheet.items = []
        self.bar.value = 0
        panel.set_visible(self.bar, visible=True)
        panel.set_visible(self.save_failures, self.search, self.first_steps, visible=False)
        self.submit(
            lambda: self._ingest(folder, name, options, started),
            f"Listing the files of {folder} …",
            disable=[self.start],
            stoppable=True,
        )

    def _ingest(self, folder: str, name: str, options: dict, started: datetime) -> None:
        report = ingest(
            folder,
            name,
            progress=self._show_report,
            stop=self._stopping,
            settings=self.settings,
            **options,
        )
        self._show_report(report)
        self._list()
        self._show_added(name, started)
        if report.total == report.ignored:
            self.status.show(f"{report.folder} holds no images; choose another folder.", "bad")
            return
        self.status.show(_outcome(report), "good")
        if report.images:
            self._offer_search(name)

    def _show_report(self, report: IngestReport) -> None:
        self.report = report
        self.bar.max, self.bar.value = report.total or 1, report.done
        left = report.seconds_left
        parts = [
            f"{report.done - report.ignored:,} of "
            f"{counted(report.total - report.ignored, 'image')}",
            f"{report.rate:.1f} per second" if report.rate else "",
            f"{format_seconds(left)} left" if left else "",
            f"{report.linked:,} known under another path" if report.linked else "",
            f"{report.unchanged:,} unchanged" if report.unchanged else "",
            f"{report.failed:,} failed" if report.failed else "",
            f"{counted(report.ignored, 'other file')}" if report.ignored else "",
        ]
        self.progress.value = panel.facts(" · ".join(filter(None, parts)))
        if report.failures:
            self.failures.value = table(
                f"{counted(len(report.failures), 'image')} could not be read",
                [{"File": path, "Reason": reason} for path, reason in report.failures],
            )
            panel.set_visible(self.save_failures, visible=True)
        if report.state == "running" and not self._stopping.is_set():
            encoded = report.done > report.unchanged
            doing = "Adding images to" if encoded else "Loading the encoder of"
            self.status.show(f"{doing} {report.collection} …", "busy")

    def _show_added(self, name: str, since: datetime) -> None:
        self._rows = self.gallery(name).metadata.browse(name, limit=ADDED, since=since)
        self.sheet.items = image_grid.tiles(self._rows, "Open")
        if self._rows:
            first = f" (the first {ADDED})" if len(self._rows) == ADDED else ""
            self.sheet_title.value = panel.heading(f"Added{first}")

    def _show_original(self, key: str) -> None:
        path = self._rows[int(key)].path
        self.submit(lambda: self.sheet.show_original(key, path))

    def _save_failures(self) -> None:
        rows = [{"path": printable(path), "reason": why} for path, why in self.report.failures]
        name = f"failures-{Path(self.report.folder).name}.csv"
        self.sheet.download(name, "text/csv", csv_text(rows).encode())

    # ------------------------------------------------------------ what comes next

    def _offer_search(self, name: str) -> None:
        self._found = name
        panel.set_visible(self.search, visible=True)

    def _search(self) -> None:
        for below in self.below.children:
            below.close()
        self.below.children = [SearchPanel(self._found, settings=self.settings)]
        self.sheet.items, self.sheet_title.value = [], ""
        panel.set_visible(self.search, visible=False)

    def _sample_loaded(self, name: str) -> None:
        self._list()
        self.collection.value = name
        self._offer_search(name)
        self.status.show("The sample is loaded.", "good")


class FolderChooser(ipw.VBox):
    """A path, and a list of folders to choose from or to open; none is chosen at first.

    Choosing lists nothing anew, so that arrow keys go from one folder to the next.
    """

    def __init__(self, owner: panel.Panel, chosen: Callable[[str], None]):
        self.path = panel.text_field("Folder", "/folder/of/images", width="auto")
        self.up = owner.button("Parent folder", self._up)
        self.down = owner.button("Open folder", self._down, "List the folders in the chosen one")
        self.subfolders = ipw.Select(
            rows=6, description="Subfolders", layout=ipw.Layout(width="auto", height="120px")
        )
        self.note = ipw.HTML()
        super().__init__([self.path, self.subfolders, panel.row(self.up, self.down), self.note])
        self._owner, self._chosen = owner, chosen
        owner.watch(self.path, self._changed)
        owner.watch(self.subfolders, self._choose)
        self._list(Path.home())

    @property
    def value(self) -> str:
        """The folder that is chosen, absolute; empty if there is none."""
        text = self.path.value.strip()
        return str(absolute(text)) if text else ""

    def _up(self) -> None:
        self._open(self._listed.parent)

    def _down(self) -> None:
        if self.value:
            self._open(Path(self.value))

    def _open(self, folder: Path) -> None:
        self._list(folder)
        self.path.value = str(folder)

    def _choose(self) -> None:
        if self.subfolders.value:
            self.path.value = str(self._listed / self.subfolders.value)

    def _changed(self) -> None:
        if self.value != str(self._listed / (self.subfolders.value or "")):
            self._list(Path(self.value) if self.value else Path.home())
        self._chosen(self.value)

    def _list(self, folder: Path) -> None:
        self._listed = folder
        folders, text = [], "" if self.value else "Choose a folder, or type its path."
        try:
            with os.scandir(folder) as found:
                shown = [entry for entry in found if not entry.name.startswith(".")]
            folders = sorted(entry.name for entry in shown if entry.is_dir())
        except OSError as error:
            text = f"Cannot be read: {error.strerror}"
        options = [(printable(name), name) for name in folders]
        self._owner.set_options(self.subfolders, options, None)
        panel.set_visible(self.subfolders, visible=bool(options))
        if text:
            self.note.value = panel.facts(text)


def needs_download(encoder: str, settings: config.Settings) -> bool:
    """Whether the weights of a published network are neither given nor downloaded yet."""
    published = encoder in weights.PUBLISHED and settings.imgsearch_weights is None
    return published and not weights.cached(encoder, settings.imgsearch_home).is_file()


def _menu() -> list[tuple[str, str]]:
    """Labels and names of the encoders that a name says completely, and a way to the others."""
    named = [entry for entry in list_encoders() if entry.dim or callable(entry.model)]
    others = ("another: timm:NAME, clip:NAME, or an ONNX file", "")
    return [*((_label(entry), entry.name) for entry in named), others]


def _label(entry: Entry) -> str:
    return f"{entry.name} ({entry.download / 1e6:,.0f} MB)" if entry.download else entry.name


def _about(entry: Entry) -> str:
    parts = [
        f"{entry.purpose.rstrip('.')}.",
        f"Dimension of the vectors: {entry.dim}." if entry.dim else "",
        f"Licence of the weights: {entry.license}." if entry.license else "",
        f"Downloads {entry.download / 1e6:,.0f} MB once." if entry.download else "",
        f"Requires {entry.requires}" if entry.requires else "",
    ]
    return " ".join(filter(None, parts))


def _outcome(report: IngestReport) -> str:
    """What an ingest did, in one or two lines."""
    new = report.encoded + report.linked
    name, took = report.collection, format_seconds(report.seconds)
    parts = [f"Added {counted(new, 'image')} to {name} in {took}."]
    if not new and report.unchanged:
        parts = [f"Nothing to add: {counted(report.unchanged, 'image')} are in {name} already."]
    if report.failed:
        parts.append(f"{counted(report.failed, 'image')} could not be read.")
    if report.pruned:
        parts.append(f"Removed {counted(report.pruned, 'missing file')}.")
    if report.missing:
        gone = counted(len(report.missing), "file")
        parts.append(f"{gone} of this folder no longer exist and stay in the collection.")
    parts.append(f"The collection holds {counted(report.images, 'image')}.")
    if report.state == "stopped":
        return " ".join(["Stopped.", *parts]) + "\nPress Start to resume."
    return " ".join(parts)
