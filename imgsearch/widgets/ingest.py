"""The ingest panel: a folder in, progress while it lasts, and what came of it."""

from __future__ import annotations

import csv
import io
import threading
from datetime import UTC, datetime
from pathlib import Path

import ipywidgets as ipw

from imgsearch import config
from imgsearch.encoders.base import RESNETS
from imgsearch.errors import ConfigError, printable
from imgsearch.ingest import IngestReport, ingest
from imgsearch.widgets import formatting, image_grid, panel

SHEET = 36
"""Pictures on the contact sheet."""


class IngestPanel(panel.Panel):
    """Choose a folder, bring it into a collection, see what failed and why.

    Parameters
    ----------
    image_dir : str
        Folder at first; the working folder if left out.
    collection : str, optional
        At first; ``DEFAULT_TABLE`` if left out.
    encoder : str, optional
        Of a new collection; the settings decide if left out.
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
        self._stop, self._ended = threading.Event(), True
        self._galleries, self._thumbnails = panel.Galleries(), image_grid.Thumbnails(160)
        self._build(image_dir, collection or "", encoder or "")
        if self.settings is not None:
            self.run(self._list)

    def _build(self, image_dir: str, collection: str, encoder: str) -> None:
        self.folder = panel.FolderChooser(self, image_dir or ".")
        if self.settings is not None:
            collection = collection or self.settings.default_table
        self.collection = ipw.Combobox(
            value=collection, description="Collection", placeholder="a new or an old one"
        )
        self.encoder = ipw.Combobox(
            value=encoder,
            description="Encoder",
            options=["mini", *RESNETS],
            placeholder="as set, or as the collection has it",
        )
        self.recursive = ipw.Checkbox(True, description="with folders inside", indent=False)
        self.prune = ipw.Checkbox(
            False, description="take out images whose files are gone", indent=False
        )
        self.batch_size = ipw.BoundedIntText(32, min=1, max=1024, description="Images at once")
        self.batch_size.style.description_width = "auto"
        self.batch_size.layout.width = "190px"
        self.start = self.button("Start", self._start, "Begin, or go on", "primary")
        self.stop = self.button("Stop", self._press_stop, "Stop after the images in hand")
        self.stop.disabled = True
        self.bar = ipw.FloatProgress(0, min=0, max=1, layout=ipw.Layout(width="auto"))
        self.bar.add_class("imgsearch-bar")
        self.progress, self.failures = ipw.HTML(), ipw.HTML()
        self.save_failures = self.button(
            "Save failures as CSV", self._save_failures, "All of them, with reasons"
        )
        self.sheet_title = ipw.HTML()
        self.sheet = image_grid.Grid(small=True, label="What came in")
        self.sheet.on("pick", lambda key: self.guarded(self._open, key))
        self._rows: list = []
        side = panel.column("imgsearch-side", self.folder)
        main = panel.column(
            "imgsearch-main",
            panel.row(self.collection, self.encoder),
            panel.row(self.batch_size, self.recursive, self.prune),
            panel.row(self.start, self.stop),
            self.status,
            self.bar,
            self.progress,
            self.failures,
            panel.row(self.save_failures),
            self.sheet_title,
            self.sheet,
        )
        columns = ipw.HBox([side, main])
        columns.add_class("imgsearch-columns")
        self.fill(columns)
        for widget in (self.bar, self.save_failures):
            panel.shown(widget, False)

    def _list(self) -> None:
        self.collection.options = [row.name for row in self._galleries.rows(self.settings)]

    def _start(self) -> None:
        if not self._ended:
            return
        if not self.folder.value:
            raise ConfigError("Folder", "is empty: choose the folder that holds the images")
        name = config.collection_name(self.collection.value.strip())
        self._stop, self._ended = threading.Event(), False
        self.report = None
        self.failures.value = self.sheet_title.value = self.progress.value = ""
        self.sheet.items = []
        self.bar.value = 0
        panel.shown(self.bar, True)
        panel.shown(self.save_failures, False)
        self.stop.disabled = False
        folder, begun = self.folder.value, datetime.now(UTC)
        options = {
            "encoder": self.encoder.value.strip() or None,
            "recursive": self.recursive.value,
            "prune": self.prune.value,
            "batch_size": self.batch_size.value,
        }
        self.run(
            lambda: self._ingest(folder, name, options, begun),
            f"Looking at {folder} …",
            disabling=[self.start],
            after=self._end,
        )

    def _press_stop(self) -> None:
        self._stop.set()
        self.stop.disabled = True
        self.status.say("Stopping after the images in hand …", "busy")

    def _end(self) -> None:
        self.stop.disabled, self._ended = True, True

    def _ingest(self, folder: str, name: str, options: dict, begun: datetime) -> None:
        report = ingest(
            folder, name, progress=self._tell, stop=self._stop, settings=self.settings, **options
        )
        self.report = report
        self._tell(report)
        self._list()
        self._show_sheet(name, begun)
        if report.state == "stopped":
            self.status.say(f"{report}\nStart again to go on where it stopped.", "good")
        elif not report.total:
            self.status.say(f"{report.folder} holds no files: choose another folder.", "bad")
        else:
            gone = len(report.missing)
            more = f"\n{gone} files of this folder are gone; they stay in the collection."
            self.status.say(f"{report}{more if gone else ''}", "good")

    def _tell(self, report: IngestReport) -> None:
        self.report = report
        self.bar.max = report.total or 1
        self.bar.value = report.done
        left = report.seconds_left
        shown = [
            f"{report.done:,} of {report.total:,} files",
            f"{report.rate:.1f} a second" if report.rate else "",
            f"{formatting.time_in_words(left)} left" if left else "",
            f"{report.encoded:,} encoded",
            f"{report.linked:,} known under another path" if report.linked else "",
            f"{report.unchanged:,} unchanged" if report.unchanged else "",
            f"{report.ignored:,} no images" if report.ignored else "",
            f"{report.failed:,} failed" if report.failed else "",
        ]
        self.progress.value = (
            f'<div class="imgsearch-facts">{" · ".join(filter(None, shown))}</div>'
        )
        if report.failures:
            self.failures.value = formatting.table(
                f"{len(report.failures):,} failed",
                [{"File": path, "Reason": reason} for path, reason in report.failures],
            )
            panel.shown(self.save_failures, True)
        if report.done and not self._stop.is_set() and report.state == "running":
            self.status.say(f"Ingesting {report.folder} into {report.collection} …", "busy")

    def _show_sheet(self, name: str, begun: datetime) -> None:
        gallery = self._galleries.get(name, self.settings)
        self._rows = gallery.metadata.browse(name, limit=SHEET, since=begun)
        self.sheet.items = image_grid.tiles(self._rows, self._thumbnails, "Open the original of")
        if self._rows:
            self.sheet_title.value = panel.heading(
                f"What came in (the first {SHEET})" if len(self._rows) == SHEET else "What came in"
            ).value

    def _open(self, key: str) -> None:
        path = self._rows[int(key)].path
        self.run(lambda: self.sheet.show_original(path))

    def _save_failures(self) -> None:
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["path", "reason"])
        table.writerows((printable(path), reason) for path, reason in self.report.failures)
        name = f"failures-{Path(self.report.folder).name}.csv"
        self.sheet.download(name, "text/csv", text.getvalue().encode())
