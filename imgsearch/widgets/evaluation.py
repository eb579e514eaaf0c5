"""The evaluation panel: measure retrieval, see where it fails, compare collections."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw

from imgsearch import config
from imgsearch.datasets import Voc
from imgsearch.errors import ConfigError
from imgsearch.evaluation import index_sweep, plots, report
from imgsearch.evaluation.comparison import Comparison
from imgsearch.evaluation.index_sweep import IndexPoint
from imgsearch.evaluation.scoring import ALL, KS, Case, Evaluation, Neighbour
from imgsearch.stores.metadata import ImageRow
from imgsearch.widgets import first_steps, image_grid, panel
from imgsearch.widgets.formatting import counted, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES = 6
"""Queries that are shown as the best, and as the worst."""

HEADS = {
    "average": "Mean",
    "metric": "Metric",
    "baseline": "In random order",
    "queries": "Queries",
    "meaning": "Meaning",
}
"""Names of columns for people."""

PROTOCOL = (
    "The queries are the images of the second set, and they are searched for in the first. "
    "With leave-one-out, every image of a set is searched for in the others."
)


class EvaluationPanel(panel.Panel):
    """Evaluate collections on a VOC dataset, and compare the others with the first.

    `voc_root` and `collections`, names separated by commas, are what it starts with. After an
    evaluation, `evaluations` and `comparisons` hold the results by collection, and `points`
    the measured indexes of the displayed one.
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
        self._rows: list[ImageRow] = []
        self.comparisons: dict[str, Comparison] = {}
        self._build(voc_root)
        wanted = [part.strip() for part in collections.split(",")]
        self.submit(lambda: self._list(wanted))

    def _build(self, voc_root: str) -> None:
        self.voc_root = panel.text_field("VOC folder", "…/VOCdevkit/VOC2012", voc_root, "auto")
        self.collections = ipw.SelectMultiple(description="Collections", rows=3)
        self.refresh = self.button("Refresh", self._refresh, "Look for new collections")
        self.allow_missing = panel.checkbox("Leave out images that are not ingested")
        self.protocol = ipw.Combobox(
            value="train -> val",
            options=["train -> val", "trainval -> test", "leave-one-out trainval"],
            description="Protocol",
        )
        self.year = panel.text_field("Year", "if there are several")
        self.ks = panel.text_field("Cut-offs k", value=", ".join(map(str, KS)))
        self.seed = ipw.IntText(0, description="Random seed")
        self.seed.style.description_width = "initial"
        self.distractors = panel.checkbox("Also search images outside the image sets")
        self.options = ipw.ToggleButton(description="Options", tooltip="Protocol and cut-offs")
        self._options = panel.column(
            "imgsearch-main",
            panel.row(self.protocol, self.year, self.ks, self.seed),
            ipw.HTML(panel.facts(PROTOCOL)),
            panel.row(self.distractors),
        )
        self.start = self.button("Evaluate", self._start, "Rank and score", "primary")
        self.first_steps = first_steps.FirstSteps(self, lambda name: self._list([name]))
        self.output = panel.text_field("Save to", width="420px")
        self.save = self.button("Save", self._save, "Tables, figures and a report")
        self.view = ipw.Dropdown(options=[ALL], description="Queries")
        self.metric = ipw.Dropdown(options=["mAP"], description="Metric")
        self.shown = ipw.Dropdown(description="Collection")
        self._choice = panel.row(self.shown)
        self.measure = self.button("Measure indexes", self._measure, "In temporary copies")
        self.indexes = ipw.HTML()
        self.summary, self.curves, self.classes, self.confusion = (ipw.HTML() for _ in range(4))
        self.cases = image_grid.Grid(
            size=110,
            label="Worst and best queries, each with its nearest neighbours",
            legend="Solid frame: relevant. Dashed frame: not relevant.",
        )
        self.cases.on("open", lambda key: self.attempt(self._show_original, key))
        self._draw = {
            "Curves": self._draw_curves,
            "Classes": self._draw_classes,
            "Confusion": self._draw_confusion,
            "Best and worst": self._draw_cases,
        }
        self._outdated: set[str] = set()
        self.tabs = panel.tabs(
            {
                "Summary": (self.summary,),
                "Curves": (panel.row(self.view), self.curves),
                "Classes": (panel.row(self.metric), self.classes),
                "Confusion": (self._choice, self.confusion),
                "Best and worst": (self._choice, self.cases),
                "Indexes": (panel.row(self._choice, self.measure), self.indexes),
            }
        )
        self._results = panel.column("imgsearch-main", self.tabs, panel.row(self.output, self.save))
        panel.set_visible(self._results, self._options, visible=False)
        self.watch(self.tabs, self._draw_open_tab, "selected_index")
        self.watch(self.view, lambda: self._redraw("Curves"))
        self.watch(self.metric, lambda: self._redraw("Classes"))
        self.watch(self.shown, lambda: self._redraw("Confusion", "Best and worst"))
        self.watch(self.collections, self._collections_changed)
        self.watch(
            self.options, lambda: panel.set_visible(self._options, visible=self.options.value)
        )
        for field in (self.voc_root, self.protocol, self.allow_missing):
            self.watch(field, self._clear_error)
        self.fill(
            self.first_steps,
            self.voc_root,
            panel.row(self.collections, self.refresh),
            panel.row(self.start, self.stop, self.options, self.allow_missing),
            self._options,
            self.status,
            self._results,
        )

    def _clear_error(self) -> None:
        if self.status.kind == "bad":
            self.status.show("")

    def _collections_changed(self) -> None:
        """Clear an error, and fill in the dataset of the sample."""
        self._clear_error()
        if first_steps.COLLECTION in self.collections.value and first_steps.SAMPLE.is_dir():
            self.voc_root.value = self.voc_root.value or str(first_steps.SAMPLE)

    def _list(self, wanted: list[str]) -> None:
        names = self.collection_names()
        recent = [self.recent_collection(names)] if names else []
        chosen = [name for name in wanted if name in names] or recent
        self.set_options(self.collections, names, chosen)
        panel.set_visible(self.first_steps, visible=not names)
        self.output.value = self.output.value or str(first_steps.output_folder(self.settings))
        self._collections_changed()

    def _refresh(self) -> None:
        self.submit(lambda: self._list(list(self.collections.value)))

    def _start(self) -> None:
        if not self.voc_root.value.strip():
            raise ConfigError("VOC folder", "type the folder that holds ImageSets and Annotations")
        if not self.collections.value:
            raise ConfigError("Collections", "select one or more")
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
        if len(evaluations) > 1:
            self._report("comparing")
        comparisons = report.compare_with_first(evaluations)
        self.evaluations, self.comparisons, self.points = evaluations, comparisons, []
        self.indexes.value = ""
        first = next(iter(evaluations.values()))
        for chooser, choices in (
            (self.view, first.views),
            (self.metric, first.metrics),
            (self.shown, evaluations),
        ):
            self.set_options(chooser, list(choices), next(iter(choices)))
        panel.set_visible(self._choice, visible=len(evaluations) > 1)
        self.summary.value = _summary(evaluations, comparisons)
        panel.set_visible(self._results, visible=True)
        self._redraw(*self._draw)
        queries = counted(len(first.task.queries), "query", "queries")
        missing = first.about["missing_images"]
        left_out = f"; {counted(missing, 'image')} left out" if missing else ""
        self.status.show(
            f"{queries} against {counted(len(first.task.gallery), 'image')}, "
            f"protocol {first.about['protocol']}{left_out}",
            "good",
        )

    def _redraw(self, *tabs: str) -> None:
        self._outdated.update(tabs)
        self._draw_open_tab()

    def _draw_open_tab(self) -> None:
        """Draw the figure of the tab that is open, unless it is drawn already."""
        tab = self.tabs.titles[self.tabs.selected_index or 0]
        if tab in self._outdated and self.evaluations:
            self._outdated.discard(tab)
            self.submit(self._draw[tab])

    def _draw_curves(self) -> None:
        view = self.view.value
        drawn = {n: e for n, e in self.evaluations.items() if len(e.views[view].rows)}
        about = f"Precision and recall, queries: {view}"
        _show(self.curves, about, plots.precision_recall, drawn, view=view)

    def _draw_classes(self) -> None:
        metric = self.metric.value
        about = f"{metric} of each class"
        _show(self.classes, about, plots.per_class, self.evaluations, metric=metric)

    def _draw_confusion(self) -> None:
        name = self.shown.value
        title = f"What the nearest neighbour of a query shows, {name}"
        _show(self.confusion, title, plots.confusion, self.evaluations[name], title=title)

    def _draw_cases(self) -> None:
        name = self.shown.value
        pictures = list(_case_pictures(self.evaluations[name]))
        ids = {picture.image_id for picture, *_ in pictures}
        rows = self.metadata.by_id(name, ids)
        if ids - rows.keys():
            raise ConfigError(name, "has lost images since then: evaluate it again")
        self._rows = [rows[picture.image_id][0] for picture, *_ in pictures]
        *_, tiles = image_grid.steps(
            (i, self._rows[i], action) for i, (_, action, _) in enumerate(pictures)
        )
        self.cases.items = [t | shown for t, (*_, shown) in zip(tiles, pictures, strict=True)]

    def _show_original(self, key: str) -> None:
        path = self._rows[int(key)].path
        self.submit(lambda: self.cases.show_original(key, path))

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
            about = f"Recall and latency of indexes over {name}"
            _show(self.indexes, about, plots.index_sweep, points)
            self.indexes.value += table(f"Indexes over {name}, compared with exact search", rows)
            self.status.show(
                f"Measured {counted(len(rows), 'index', 'indexes')} over {name}.", "good"
            )

        self.submit(work, "Measuring …", disable=[self.measure, self.start], stoppable=True)

    def _save(self) -> None:
        folder = self.output.value.strip()
        if not folder:
            raise ConfigError("Save to", "type the folder to save in")

        def work() -> None:
            content = report.write_evaluations(self.evaluations, folder, points=self.points)
            n = len(content["files"]) + 1
            self.status.show(f"Wrote {counted(n, 'file')} to {folder}.", "good")

        self.submit(work, "Writing …", disable=[self.save])


def _summary(evaluations: dict[str, Evaluation], comparisons: dict[str, Comparison]) -> str:
    headlines = {name: one.headline() for name, one in evaluations.items()}
    every = {
        name: [score._asdict() for score in one.summary()] for name, one in evaluations.items()
    }
    return (
        _side_by_side(
            "Means over queries, with 95 % confidence intervals",
            headlines,
            ("metric",),
            ("baseline", "meaning"),
        )
        + _comparison_tables(next(iter(evaluations)), comparisons)
        + "<details><summary>All metrics and means</summary>"
        + _side_by_side(
            "Micro: mean over queries. Macro: mean over classes",
            every,
            ("average", "metric"),
            ("baseline", "queries"),
        )
        + "</details>"
    )


def _side_by_side(
    caption: str, scores: dict[str, list[dict]], keys: Sequence[str], others: Sequence[str]
) -> str:
    """Return a table with a row for each mean, and a column for its value in each collection."""
    rows: dict[tuple, dict] = {}
    for name, some in scores.items():
        for score in some:
            row = {HEADS[key]: score[key] for key in keys} | dict.fromkeys(scores, "")
            row |= {HEADS[key]: score[key] for key in others}
            row = rows.setdefault(tuple(score[key] for key in keys), row)
            row[name] = f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
    return table(caption, list(rows.values()))


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


def _case_pictures(evaluation: Evaluation) -> Iterator[tuple[Case | Neighbour, str, dict]]:
    """The worst and best queries and their neighbours: what a tile of each does and shows."""
    for worst, kind in ((True, "Worst"), (False, "Best")):
        for n, case in enumerate(evaluation.cases(CASES, worst=worst), 1):
            head = (
                f"{kind} query {n}: average precision {case.value:.3f}, "
                f"{counted(case.relevant, 'relevant image')}"
            )
            yield case, f"{head}. Open", {"heading": head} | _described("query", case)
            for near in case.neighbours:
                rank = f"{near.rank}, {'relevant' if near.relevant else 'not relevant'}"
                score = f"{near.score:.3f}"
                framed = {"score": score, "relevant": near.relevant}
                yield near, f"Rank {rank}, score {score}. Open", framed | _described(rank, near)


def _described(rank: str, one: Case | Neighbour) -> dict:
    classes = ", ".join(one.classes) or "none"
    return {"caption": f"{rank}\n{classes}", "facts": [["Rank", rank], ["Classes", classes]]}


def _show(place: ipw.HTML, alt: str, draw: Callable[..., Figure], *data: Any, **how: Any) -> None:
    """Draw a figure into a place, where a word stands until it is drawn."""
    place.value = panel.facts("Drawing …")
    try:
        data = base64.b64encode(image_grid.png(draw(*data, **how), dpi=110)).decode()
    except ConfigError as error:
        place.value = panel.facts(str(error))
    else:
        source = f"data:image/png;base64,{data}"
        place.value = (
            f'<div class="imgsearch-scroll" tabindex="0" role="region" aria-label="{escape(alt)}">'
            f'<img class="imgsearch-figure" alt="{escape(alt)}" src="{source}"></div>'
        )
