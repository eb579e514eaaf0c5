"""The ingest panel: choose a folder, follow the progress, see what failed and why."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import ipywidgets as ipw

from imgsearch import config
from imgsearch.encoders import entries
from imgsearch.errors import ConfigError, printable
from imgsearch.ingestion import IngestReport, ingest
from imgsearch.io import csv_text
from imgsearch.stores.metadata import ImageRow
from imgsearch.widgets import image_grid, panel
from imgsearch.widgets.formatting import counted, format_seconds, table

ADDED = 36
"""Images that are shown after an ingest."""


class IngestPanel(panel.Panel):
    """Ingest a folder of images into a collection, and see what failed and why.

    Parameters
    ----------
    image_dir : str
        Folder to start with; the working folder if left out.
    collection : str, optional
        Collection to start with; ``DEFAULT_TABLE`` if left out.
    encoder : str, optional
        Encoder of a new collection; the settings decide if left out.
    settings : Settings, optional
        Read from the environment if left out.

    Attributes
    ----------
    report : IngestReport or None
        What the last ingest did.
    """

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
        self._build(image_dir, collection or "", encoder or "")
        self.submit(self._list)

    def _build(self, image_dir: str, collection: str, encoder: str) -> None:
        self.folder = panel.FolderChooser(self, image_dir or ".")
        self.collection = ipw.Combobox(
            value=collection, description="Collection", placeholder="new or existing"
        )
        self.encoder = ipw.Combobox(
            value=encoder,
            description="Encoder",
            options=[entry.name for entry in entries() if entry.dim],
            placeholder="the collection's or default",
        )
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
        self.fill(
            panel.columns(
                [self.folder],
                [
                    panel.row(self.collection, self.encoder),
                    panel.row(self.batch_size, self.recursive, self.prune),
                    panel.row(self.start, self.stop),
                    *(self.status, self.bar, self.progress, self.failures),
                    panel.row(self.save_failures),
                    *(self.sheet_title, self.sheet),
                ],
            )
        )
        panel.set_visible(self.bar, self.save_failures, visible=False)

    def _list(self) -> None:
        self.collection.value = self.collection.value or self.settings.default_table
        self.collection.options = self.collection_names()

    def _start(self) -> None:
        if self.start.disabled:
            return
        if not self.folder.value:
            raise ConfigError("Folder", "is empty; choose the folder that holds the images")
        name = config.collection_name(self.collection.value.strip())
        folder, started = self.folder.value, datetime.now(UTC)
        options = {
            "encoder": self.encoder.value.strip() or None,
            "recursive": self.recursive.value,
            "prune": self.prune.value,
            "batch_size": self.batch_size.value,
        }
        self.report = None
        self.failures.value = self.sheet_title.value = self.progress.value = ""
        self.sheet.items = []
        self.bar.value = 0
        panel.set_visible(self.bar, visible=True)
        panel.set_visible(self.save_failures, visible=False)
        self.submit(
            lambda: self._ingest(folder, name, options, started),
            f"Listing the files of {folder} …",
            disable=[self.start],
            stoppable=True,
        )

    def _press_stop(self) -> None:
        super()._press_stop()
        self.status.show("Stopping after the current batch …", "busy")

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
        if report.state == "stopped":
            self.status.show(f"{report}\nPress Start to resume.", "good")
        elif not report.total:
            self.status.show(f"{report.folder} holds no files; choose another folder.", "bad")
        else:
            missing = len(report.missing)
            kept = f"\nMissing files: {missing:,}; they stay in the collection." if missing else ""
            self.status.show(f"{report}{kept}", "good")

    def _show_report(self, report: IngestReport) -> None:
        self.report = report
        self.bar.max, self.bar.value = report.total or 1, report.done
        left = report.seconds_left
        parts = [
            f"{report.done:,} of {counted(report.total, 'file')}",
            f"{report.rate:.1f} per second" if report.rate else "",
            f"{format_seconds(left)} left" if left else "",
            f"{report.encoded:,} encoded",
            f"{report.linked:,} known under another path" if report.linked else "",
            f"{report.unchanged:,} unchanged" if report.unchanged else "",
            f"{report.ignored:,} not images" if report.ignored else "",
            f"{report.failed:,} failed" if report.failed else "",
        ]
        self.progress.value = panel.facts(" · ".join(filter(None, parts)))
        if report.failures:
            self.failures.value = table(
                f"{len(report.failures):,} failed",
                [{"File": path, "Reason": reason} for path, reason in report.failures],
            )
            panel.set_visible(self.save_failures, visible=True)
        if report.done and not self._stopping.is_set() and report.state == "running":
            self.status.show(f"Ingesting {report.folder} into {report.collection} …", "busy")

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
