"""The evaluation panel: how good the retrieval is, where it fails, and which is better."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

import ipywidgets as ipw

from imgsearch import config
from imgsearch.datasets import Voc
from imgsearch.errors import ConfigError
from imgsearch.evaluation import index_sweep, plots, report
from imgsearch.evaluation.comparison import Comparison
from imgsearch.evaluation.index_sweep import IndexPoint
from imgsearch.evaluation.scoring import ALL, KS, Evaluation
from imgsearch.gallery import Gallery
from imgsearch.widgets import formatting, panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES = 6
"""Queries in a gallery of failures or successes."""


class EvaluationPanel(panel.Panel):
    """Measure collections on a VOC dataset.

    Parameters
    ----------
    voc_root : str
        Folder of the dataset at first.
    collections : str
        Chosen at first, with commas between.
    settings : Settings, optional
        Read from the environment if left out.

    Attributes
    ----------
    evaluations : dict of str to Evaluation
        By collection.
    comparisons : dict of str to Comparison
        Of each other collection with the first.
    points : list of IndexPoint
        Indexes of the shown collection, where they were measured.
    """

    def __init__(
        self,
        voc_root: str = "",
        collections: str = "",
        *,
        settings: config.Settings | None = None,
    ):
        super().__init__(settings)
        self.evaluations: dict[str, Evaluation] = {}
        self.points: list[IndexPoint] = []
        self.comparisons: dict[str, Comparison] = {}
        self._stop, self._galleries = threading.Event(), panel.Galleries()
        self._build(voc_root)
        if self.settings is not None:
            wanted = [part.strip() for part in collections.split(",")]
            self.run(lambda: self._list(wanted))

    def _build(self, voc_root: str) -> None:
        wide = ipw.Layout(width="auto")
        self.voc_root = ipw.Text(
            voc_root, description="VOC folder", placeholder="…/VOCdevkit/VOC2012", layout=wide
        )
        self.year = ipw.Text(description="Year", placeholder="if there are several")
        self.protocol = ipw.Combobox(
            value="train -> val",
            options=["train -> val", "trainval -> test", "leave-one-out trainval"],
            description="Protocol",
        )
        self.collections = ipw.SelectMultiple(description="Collections", rows=4)
        self.refresh = self.button("Refresh", self._refresh, "Look for new collections")
        self.ks = ipw.Text(", ".join(map(str, KS)), description="Depths k")
        self.seed = ipw.IntText(0, description="Seed")
        self.distractors = ipw.Checkbox(
            False, description="search images outside the sets too", indent=False
        )
        self.allow_missing = ipw.Checkbox(
            False, description="go on without images that are not stored", indent=False
        )
        self.start = self.button("Evaluate", self._start, "Rank and judge", "primary")
        self.stop = self.button("Stop", self._press_stop, "Stop at the next safe place")
        self.stop.disabled = True
        self.output = ipw.Text("output", description="Save in")
        self.save = self.button("Save", self._save, "Tables, figures and a report")
        self.view = ipw.Dropdown(options=[ALL], description="Queries")
        self.metric = ipw.Dropdown(options=["mAP"], description="Metric")
        self.shown = ipw.Dropdown(description="Collection")
        self.measure = self.button(
            "Measure indexes", self._measure, "Recall and latency of indexes, in temporary copies"
        )
        self.indexes = ipw.HTML()
        self.summary, self.compared, self.curves, self.classes, self.confusion, self.cases = (
            ipw.HTML() for _ in range(6)
        )
        titles = ["Summary", "Curves", "Classes", "Confusion", "Best and worst", "Indexes"]
        pages = (
            (self.summary, self.compared),
            (panel.row(self.view), self.curves),
            (panel.row(self.metric), self.classes),
            (self.confusion,),
            (self.cases,),
            (self.measure, self.indexes),
        )
        self.tabs = ipw.Tab([panel.column("imgsearch-main", *page) for page in pages])
        self.tabs.titles = titles
        self._found = panel.column(
            "imgsearch-main",
            panel.row(self.shown, self.output, self.save),
            self.tabs,
        )
        panel.shown(self._found, False)
        self.watch(self.view, self._draw_curves)
        self.watch(self.metric, self._draw_classes)
        self.watch(self.shown, self._draw_one)
        self.fill(
            self.voc_root,
            panel.row(self.collections, self.refresh),
            panel.row(self.protocol, self.year, self.ks, self.seed),
            panel.row(self.distractors, self.allow_missing),
            panel.row(self.start, self.stop),
            self.status,
            self._found,
        )

    def _list(self, wanted: list[str]) -> None:
        names = [row.name for row in self._galleries.rows(self.settings)]
        self.collections.options = names
        wanted = [name for name in wanted if name in names] or [
            name for name in (self.settings.default_table, *names[:1]) if name in names
        ][:1]
        self.collections.value = wanted
        if not names:
            self.status.say("There is no collection yet: ingest JPEGImages first.", "bad")

    def _refresh(self) -> None:
        self.run(lambda: self._list(list(self.collections.value)))

    def _press_stop(self) -> None:
        self._stop.set()
        self.stop.disabled = True

    def _go_on(self, text: str) -> None:
        if self._stop.is_set():
            raise panel.Stopped
        self.status.say(f"{text[:1].upper()}{text[1:]} …", "busy")

    def _start(self) -> None:
        if not self.voc_root.value.strip():
            raise ConfigError("VOC folder", "is empty: say where the dataset is")
        if not self.collections.value:
            raise ConfigError("Collections", "none is chosen")
        try:
            ks = [int(part) for part in self.ks.value.replace(",", " ").split()]
            year = int(self.year.value) if self.year.value.strip() else None
        except ValueError:
            raise ConfigError(
                "Depths k and Year", "take whole numbers, with commas between"
            ) from None
        self._stop = threading.Event()
        self.stop.disabled = False
        options = {
            "protocol": self.protocol.value,
            "ks": ks,
            "seed": self.seed.value,
            "distractors": self.distractors.value,
            "allow_missing": self.allow_missing.value,
        }
        root, names = self.voc_root.value.strip(), self.collections.value
        self.run(
            lambda: self._evaluate(Voc(root, year), names, options),
            "Looking at the dataset …",
            disabling=[self.start],
            after=self._end,
        )

    def _end(self) -> None:
        self.stop.disabled = True

    def _evaluate(self, dataset: Voc, names: tuple[str, ...], options: dict) -> None:
        found = report.evaluate_collections(
            dataset, names, settings=self.settings, progress=self._go_on, **options
        )
        if len(found) > 1:
            self._go_on("comparing")
        compared = report.compare_with_first(found, seed=options["seed"])
        self._go_on("drawing")
        self.evaluations, self.comparisons, self.points = found, compared, []
        self.indexes.value = ""
        first = next(iter(found.values()))
        for chooser, names in (
            (self.view, first.views),
            (self.metric, first.metrics),
            (self.shown, found),
        ):
            chooser.options = list(names)
            chooser.value = chooser.options[0]
        self.summary.value = _summary(found)
        self.compared.value = _compared(next(iter(found)), compared)
        self._draw_curves()
        self._draw_classes()
        self._draw_one()
        panel.shown(self._found, True)
        queries, searched = len(first.task.queries), len(first.task.gallery)
        self.status.say(
            f"{queries:,} queries on {searched:,} images, {first.about['protocol']}: "
            + ", ".join(f"{name} mAP {_map(one):.3f}" for name, one in found.items()),
            "good",
        )

    def _draw_curves(self) -> None:
        if self.evaluations:
            view = self.view.value
            there = {n: e for n, e in self.evaluations.items() if len(e.views[view].rows)}
            self.curves.value = _image(
                lambda: plots.precision_recall(there, view=view), f"Curves, {view}"
            )

    def _draw_classes(self) -> None:
        if self.evaluations:
            metric = self.metric.value
            self.classes.value = _image(
                lambda: plots.per_class(self.evaluations, metric=metric), f"{metric} by class"
            )

    def _draw_one(self) -> None:
        if self.shown.value not in self.evaluations:
            return
        name = self.shown.value
        one = self.evaluations[name]
        self.confusion.value = _image(
            lambda: plots.confusion(one, title=name), f"Classes of nearest neighbours, {name}"
        )
        self.cases.value = "".join(
            _image(
                lambda worst=worst, title=title: plots.cases(
                    one.cases(CASES, worst=worst), title=title
                ),
                title,
            )
            for worst, title in ((True, f"Worst queries of {name}"), (False, f"Best of {name}"))
        )

    def _measure(self) -> None:
        self._stop = threading.Event()
        self.stop.disabled = False
        name, seed = self.shown.value, self.seed.value

        def work() -> None:
            with Gallery.open(name, settings=self.settings) as gallery:
                self.points = index_sweep.sweep(gallery, seed=seed, progress=self._go_on)
            rows = [
                {
                    "Index": point.index,
                    f"Recall@{point.k}": f"{point.recall:.3f}",
                    "Median ms": f"{point.median_ms:.1f}",
                    "95 % within ms": f"{point.p95_ms:.1f}",
                }
                for point in self.points
            ]
            self.indexes.value = _image(
                lambda: plots.index_sweep(self.points), f"Recall and latency of indexes, {name}"
            ) + formatting.table(f"Indexes over {name}, against exact search", rows)
            self.status.say(f"{len(rows)} indexes were measured over {name}.", "good")

        self.run(work, "Measuring …", disabling=[self.measure, self.start], after=self._end)

    def _save(self) -> None:
        folder = self.output.value.strip()
        if not folder:
            raise ConfigError("Save in", "is empty: name a folder")
        if not self.evaluations:
            raise ConfigError("Save", "there is nothing yet: evaluate first")

        def work() -> None:
            written = report.write_evaluations(
                self.evaluations, folder, seed=self.seed.value, points=self.points
            )
            self.status.say(
                f"{len(written['files']) + 1} files were written into {folder}.", "good"
            )

        self.run(work, "Writing …", disabling=[self.save])


def _map(one: Evaluation) -> float:
    return next(f.value for f in one.summary() if f.metric == "mAP")


def _summary(found: dict[str, Evaluation]) -> str:
    rows = []
    tables = {
        name: {(f.average, f.metric): f for f in one.summary()} for name, one in found.items()
    }
    for key in next(iter(tables.values())):
        row: dict[str, object] = {"Mean": key[0], "Metric": key[1]}
        for name, table in tables.items():
            f = table.get(key)
            row[name] = ""
            if f is not None:
                row[name] = f"{f.value:.3f} ({f.low:.3f} to {f.high:.3f})"
        f = next(table[key] for table in tables.values() if key in table)
        rows.append(row | {"Random": f"{f.baseline:.3f}", "Queries": f.queries})
    return formatting.table("Figures, with 95 % intervals over queries", rows)


def _compared(first: str, compared: dict[str, Comparison]) -> str:
    tables = []
    for name, one in compared.items():
        rows = [
            {
                "Queries": d.view,
                first: d.first,
                name: d.second,
                "Difference": f"{d.difference:+.3f} ({d.low:+.3f} to {d.high:+.3f})",
                "p": f"{d.p:.4f}",
                "Better, worse, equal": f"{d.wins:,}, {d.losses:,}, {d.ties:,}",
            }
            for d in (one.overall, *one.classes)
        ]
        caption = f"{name} less {first}, {one.overall.metric}, paired randomisation test"
        tables.append(formatting.table(caption + " (classes adjusted by Holm)", rows))
    return "".join(tables)


def _image(draw: Callable[[], Figure], alt: str) -> str:
    try:
        figure = draw()
    except ConfigError as error:
        return f'<div class="imgsearch-facts">{escape(str(error))}</div>'
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="imgsearch-figure" alt="{escape(alt)}" src="data:image/png;base64,{data}">'
