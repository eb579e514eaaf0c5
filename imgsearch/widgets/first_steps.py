"""What panels offer where there is no collection yet, and where they save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ipywidgets as ipw

import imgsearch
from imgsearch import config
from imgsearch.ingestion import ingest
from imgsearch.widgets import panel

CHECKOUT = Path(imgsearch.__file__).parents[1]
"""The project's folder; where only the package is installed, it holds no sample."""

SAMPLE = CHECKOUT / "data" / "VOCsample"
COLLECTION = "sample"


def output_folder(settings: config.Settings) -> Path:
    """Where panels save: ``output`` in the project's folder, which git ignores, or in the home."""
    return (CHECKOUT if SAMPLE.is_dir() else settings.imgsearch_home) / "output"


class FirstSteps(ipw.VBox):
    """A button that ingests the sample, and a link to ingest."""

    def __init__(self, owner: panel.Panel, loaded: Callable[[str], None]):
        self.load = owner.button("Load the sample", self._load, "Takes ten seconds", "primary")
        super().__init__(
            [
                ipw.HTML(panel.heading("No images yet")),
                ipw.HTML(panel.facts("Load 200 drawings to try it, or ingest a folder.")),
                panel.row(self.load, ipw.HTML(panel.notebook_link("ingest", "Ingest a folder"))),
            ]
        )
        self._owner, self._loaded = owner, loaded
        panel.set_visible(self.load, visible=SAMPLE.is_dir())
        panel.set_visible(self, visible=False)

    def _load(self) -> None:
        def work() -> None:
            ingest(
                SAMPLE / "JPEGImages",
                COLLECTION,
                encoder="mini",
                settings=self._owner.settings,
                progress=lambda report: self._owner.report_progress(
                    f"Loading the sample: {report.done:,} of {report.total:,} images …"
                ),
            )
            panel.set_visible(self, visible=False)
            self._loaded(COLLECTION)

        self._owner.submit(work, "Loading the encoder …", disable=[self.load])
