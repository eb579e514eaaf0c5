"""The evaluation panel: measure retrieval, see where it fails, compare collections."""

from __future__ import annotations

import base64
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
from imgsearch.widgets import image_grid, panel
from imgsearch.widgets.formatting import counted, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES = 6
"""Queries that are shown as the best, and as the worst."""


class EvaluationPanel(panel.Panel):
    """Evaluate collections on a VOC dataset, and compare them.

    Parameters
    ----------
    voc_root : str
        Folder of the dataset to start with.
    collections : str
        Names of the collections to start with, separated by commas.
    settings : Settings, optional
        Read from the environment if left out.

    Attributes
    ----------
    evaluations : dict of str to Evaluation
        By collection.
    comparisons : dict of str to Comparison
        Comparison of each further collection with the first.
    points : list of IndexPoint
        Measured indexes of the displayed collection.
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
        self._build(voc_root)
        wanted = [part.strip() for part in collections.split(",")]
        self.submit(lambda: self._list(wanted))

    def _build(self, voc_root: str) -> None:
        self.voc_root = panel.text_field("VOC folder", "…/VOCdevkit/VOC2012", voc_root, "auto")
        self.year = panel.text_field("Year", "if there are several")
        self.protocol = ipw.Combobox(
            value="train -> val",
            options=["train -> val", "trainval -> test", "leave-one-out trainval"],
            description="Protocol",
        )
        self.collections = ipw.SelectMultiple(description="Collections", rows=4)
        self.refresh = self.button("Refresh", self._refresh, "Look for new collections")
        self.ks = panel.text_field("Cut-offs k", value=", ".join(map(str, KS)))
        self.seed = ipw.IntText(0, description="Seed")
        self.distractors = panel.checkbox("Also search images outside the image sets")
        self.allow_missing = panel.checkbox("Leave out images that are not ingested")
        self.start = self.button("Evaluate", self._start, "Rank and score", "primary")
        self.output = panel.text_field("Folder", value="output")
        self.save = self.button("Save", self._save, "Tables, figures and a report")
        self.view = ipw.Dropdown(options=[ALL], description="Queries")
        self.metric = ipw.Dropdown(options=["mAP"], description="Metric")
        self.shown = ipw.Dropdown(description="Collection")
        self.measure = self.button("Measure indexes", self._measure, "In temporary copies")
        self.indexes = ipw.HTML()
        self.summary, self.compared, self.curves, self.classes, self.confusion, self.cases = (
            ipw.HTML() for _ in range(6)
        )
        self.tabs = panel.tabs(
            {
                "Summary": (self.summary, self.compared),
                "Curves": (panel.row(self.view), self.curves),
                "Classes": (panel.row(self.metric), self.classes),
                "Confusion": (self.confusion,),
                "Best and worst": (self.cases,),
                "Indexes": (self.measure, self.indexes),
            }
        )
        self._results = panel.column(
            "imgsearch-main", panel.row(self.shown, self.output, self.save), self.tabs
        )
        panel.set_visible(self._results, visible=False)
        self.watch(self.view, self._draw_curves)
        self.watch(self.metric, self._draw_classes)
        self.watch(self.shown, self._draw_collection)
        self.fill(
            self.voc_root,
            panel.row(self.collections, self.refresh),
            panel.row(self.protocol, self.year, self.ks, self.seed),
            panel.row(self.distractors, self.allow_missing),
            panel.row(self.start, self.stop),
            self.status,
            self._results,
        )

    def _list(self, wanted: list[str]) -> None:
        names = self.collection_names()
        default = [name for name in (self.settings.default_table, *names[:1]) if name in names][:1]
        chosen = [name for name in wanted if name in names] or default
        self.set_options(self.collections, names, chosen)
        if not names:
            self.status.show(panel.NO_COLLECTION)

    def _refresh(self) -> None:
        self.submit(lambda: self._list(list(self.collections.value)))

    def _start(self) -> None:
        if not self.voc_root.value.strip():
            raise ConfigError("VOC folder", "is empty; type the folder of the dataset")
        if not self.collections.value:
            raise ConfigError("Collections", "none is selected")
        try:
            ks = [int(part) for part in self.ks.value.replace(",", " ").split()]
            year = int(self.year.value) if self.year.value.strip() else None
        except ValueError:
            raise ConfigError("Cut-offs k and Year", "take whole numbers") from None
        options = {
            "protocol": self.protocol.value,
            "ks": ks,
            "seed": self.seed.value,
            "distractors": self.distractors.value,
            "allow_missing": self.allow_missing.value,
        }
        root, names = self.voc_root.value.strip(), self.collections.value
        self.submit(
            lambda: self._evaluate(Voc(root, year), names, options),
            "Reading the dataset …",
            disable=[self.start],
            stoppable=True,
        )

    def _report(self, text: str) -> None:
        self.report_progress(f"{text[:1].upper()}{text[1:]} …")

    def _evaluate(self, dataset: Voc, names: tuple[str, ...], options: dict) -> None:
        evaluations = report.evaluate_collections(
            dataset, names, settings=self.settings, progress=self._report, **options
        )
        self._report("comparing" if len(evaluations) > 1 else "drawing")
        comparisons = report.compare_with_first(evaluations, seed=options["seed"])
        self.evaluations, self.comparisons, self.points = evaluations, comparisons, []
        self.indexes.value = ""
        name, first = next(iter(evaluations.items()))
        for chooser, choices in (
            (self.view, first.views),
            (self.metric, first.metrics),
            (self.shown, evaluations),
        ):
            self.set_options(chooser, list(choices), next(iter(choices)))
        self.summary.value = _summary(evaluations)
        self.compared.value = _comparison_tables(name, comparisons)
        self._draw_curves()
        self._draw_classes()
        self._draw_collection()
        panel.set_visible(self._results, visible=True)
        queries = counted(len(first.task.queries), "query", "queries")
        self.status.show(
            f"{queries} on {len(first.task.gallery):,} images, {first.about['protocol']}: "
            + ", ".join(f"{name} mAP {_map(one):.3f}" for name, one in evaluations.items()),
            "good",
        )

    def _draw_curves(self) -> None:
        view = self.view.value
        drawn = {n: e for n, e in self.evaluations.items() if len(e.views[view].rows)}
        self.curves.value = _image(
            lambda: plots.precision_recall(drawn, view=view), f"Curves, {view}"
        )

    def _draw_classes(self) -> None:
        metric = self.metric.value
        self.classes.value = _image(
            lambda: plots.per_class(self.evaluations, metric=metric), f"{metric} by class"
        )

    def _draw_collection(self) -> None:
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
        name, seed = self.shown.value, self.seed.value

        def work() -> None:
            points = index_sweep.sweep(self.gallery(name), seed=seed, progress=self._report)
            self.points = points
            rows = [
                {
                    "Index": point.index,
                    f"Recall@{point.k}": f"{point.recall:.3f}",
                    "Median, ms": f"{point.median_ms:.1f}",
                    "95th percentile, ms": f"{point.p95_ms:.1f}",
                }
                for point in points
            ]
            self.indexes.value = _image(
                lambda: plots.index_sweep(points), f"Recall and latency of indexes, {name}"
            ) + table(f"Indexes over {name}, compared with exact search", rows)
            self.status.show(
                f"Measured {counted(len(rows), 'index', 'indexes')} over {name}.", "good"
            )

        self.submit(work, "Measuring …", disable=[self.measure, self.start], stoppable=True)

    def _save(self) -> None:
        folder = self.output.value.strip()
        if not folder:
            raise ConfigError("Folder", "is empty; type the folder to save in")

        def work() -> None:
            content = report.write_evaluations(
                self.evaluations, folder, seed=self.seed.value, points=self.points
            )
            n = len(content["files"]) + 1
            self.status.show(f"Wrote {counted(n, 'file')} to {folder}.", "good")

        self.submit(work, "Writing …", disable=[self.save])


def _map(one: Evaluation) -> float:
    return next(score.value for score in one.summary() if score.metric == "mAP")


def _summary(evaluations: dict[str, Evaluation]) -> str:
    rows = []
    scores = {
        name: {(score.average, score.metric): score for score in one.summary()}
        for name, one in evaluations.items()
    }
    for key in next(iter(scores.values())):
        row: dict[str, object] = {"Mean": key[0], "Metric": key[1]}
        for name, by_key in scores.items():
            score = by_key.get(key)
            row[name] = f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})" if score else ""
        score = next(by_key[key] for by_key in scores.values() if key in by_key)
        rows.append(row | {"Random order": f"{score.baseline:.3f}", "Queries": score.queries})
    return table("Scores, with 95 % confidence intervals over queries", rows)


def _comparison_tables(first: str, comparisons: dict[str, Comparison]) -> str:
    tables = []
    for name, one in comparisons.items():
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
        caption = f"{name} minus {first}, {one.overall.metric}, paired randomisation test"
        tables.append(table(f"{caption} (classes adjusted by Holm's method)", rows))
    return "".join(tables)


def _image(draw: Callable[[], Figure], alt: str) -> str:
    try:
        data = base64.b64encode(image_grid.png(draw(), dpi=110)).decode()
    except ConfigError as error:
        return panel.facts(str(error))
    return f'<img class="imgsearch-figure" alt="{escape(alt)}" src="data:image/png;base64,{data}">'
