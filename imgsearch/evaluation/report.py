"""Evaluations of whole collections, and their reports as JSON, CSV and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgsearch import config
from imgsearch.datasets.base import Dataset
from imgsearch.errors import ConfigError
from imgsearch.evaluation import plots, scoring
from imgsearch.evaluation.comparison import Comparison, compare
from imgsearch.evaluation.index_sweep import IndexPoint
from imgsearch.evaluation.protocols import Protocol, prepare
from imgsearch.evaluation.scoring import ALL, KS, LEVELS, Evaluation
from imgsearch.evaluation.topics import JudgedTopics
from imgsearch.gallery import Gallery
from imgsearch.io import absolute, atomic, csv_text, versions, write_figure, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY = ("about", "counts", "headline", "summary")
"""What ``evaluation.json`` repeats from the report of each collection."""


def evaluate_collections(
    dataset: Dataset | JudgedTopics,
    collections: str | Sequence[str] = (),
    *,
    settings: config.Settings | None = None,
    **options: Any,
) -> dict[str, Evaluation]:
    """Evaluate the exact rankings of some collections on one dataset.

    Parameters
    ----------
    dataset : Dataset or JudgedTopics
        The ground truth.
    collections : str or sequence of str
        One name or several; ``DEFAULT_TABLE`` if empty.
    settings : Settings, optional
        Read from the environment if left out.
    **options
        Further parameters of :func:`imgsearch.evaluate`, which also raises the errors.

    Returns
    -------
    dict of str to Evaluation
        By collection.

    Raises
    ------
    CollectionNotFound
        A collection does not exist.
    """
    settings = settings or config.load_settings()
    names = [collections] if isinstance(collections, str) else collections
    found = {}
    for name in dict.fromkeys(filter(None, names)) or [settings.default_table]:
        with Gallery.open(name, settings=settings) as gallery:
            found[name] = evaluate_gallery(gallery, dataset, **options)
    return found


def evaluate_gallery(
    gallery: Gallery,
    dataset: Dataset | JudgedTopics,
    protocol: str = "train -> val",
    *,
    ks: Sequence[int] = KS,
    seed: int = 0,
    distractors: bool = False,
    allow_missing: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate the exact rankings of a gallery on a dataset.

    Parameters
    ----------
    gallery : Gallery
        It contains the images of the dataset, from whatever path they were added.
    dataset : Dataset or JudgedTopics
        The ground truth.
    protocol : str
        ``train -> val`` (gallery, then queries) or ``leave-one-out trainval``; judged topics
        have none.
    ks, seed
        As for :func:`imgsearch.evaluation.evaluate`.
    distractors, allow_missing : bool
        As for :class:`Protocol` and :func:`prepare`.
    progress : callable, optional
        Called with a line of text now and then. An exception from it ends the work.

    Returns
    -------
    Evaluation

    Raises
    ------
    ConfigError
        A parameter has a value that cannot be used.
    DatasetError
        The dataset is damaged, or the gallery does not contain all its images.
    StoreError
        A store failed.
    """
    if not ks or min(ks) < 1:
        raise ConfigError("ks", f"is {list(ks)}; whole numbers from 1 are needed")
    parsed, name = Protocol.parse(protocol, distractors=distractors), gallery.name
    report = progress or (lambda _: None)
    report(f"reading {name} and the annotations")
    if isinstance(dataset, JudgedTopics):
        task = dataset.task(gallery, allow_missing=allow_missing)
    else:
        task = prepare(gallery, dataset, parsed, allow_missing=allow_missing, progress=progress)
    report(f"ranking {len(task.gallery):,} images for {len(task.queries):,} queries in {name}")
    return scoring.evaluate(task, ks=ks, seed=seed)


def compare_with_first(evaluations: Mapping[str, Evaluation]) -> dict[str, Comparison]:
    """Compare each further evaluation with the first, whose seed is used; the keys are names."""
    first, *others = evaluations
    seed = evaluations[first].about["seed"]
    return {name: compare(evaluations[first], evaluations[name], seed=seed) for name in others}


def write_evaluations(
    evaluations: Mapping[str, Evaluation],
    output_dir: str | Path,
    *,
    points: Sequence[IndexPoint] = (),
) -> dict:
    """Write tables, figures and a report.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By the name of the collection; the others are compared with the first, with its seed.
    output_dir : path
        Created if it does not exist.
    points : sequence of IndexPoint
        From :func:`sweep`.

    Returns
    -------
    dict
        The content of ``evaluation.json``, which is written last.

    Raises
    ------
    ConfigError
        The evaluations cannot be compared.
    OSError
        A file cannot be written.
    """
    folder = absolute(output_dir)
    comparisons = compare_with_first(evaluations)
    files, summaries = [], {}

    def draw(stem: str, figure: Figure, kinds: Sequence[str] = ("png", "svg")) -> None:
        files.extend(write_figure(folder / f"{stem}.{kind}", figure) for kind in kinds)

    title = "Precision and recall, mean over all queries"
    draw("evaluation-curves", plots.precision_recall(evaluations, title=title))
    title = "Mean average precision of each class"
    draw("evaluation-classes", plots.per_class(evaluations, title=title))
    for name, one in evaluations.items():
        content = to_dict(one)
        summaries[name] = {key: content[key] for key in SUMMARY}
        files += write(one, folder, f"evaluation-{name}")
        title = f"What the nearest neighbour of a query shows, collection {name}"
        draw(f"evaluation-{name}-confusion", plots.confusion(one, title=title))
        for end in ("worst", "best"):
            title = f"The {end} queries of {name}, by average precision"
            shown = plots.cases(one.cases(6, worst=end == "worst"), title=title)
            draw(f"evaluation-{name}-{end}", shown, ["png"])  # photographs
    if points:
        draw("evaluation-indexes", plots.index_sweep(points, title="Recall and latency of indexes"))
        rows = [point._asdict() for point in points]
        files.append(write_csv(folder / "evaluation-indexes.csv", rows))
    content = {
        "evaluations": summaries,
        "indexes": [point._asdict() for point in points],
        "comparisons": {name: comparison_to_dict(c) for name, c in comparisons.items()},
        "files": [path.name for path in files],
    }
    write_json(folder / "evaluation.json", content)
    return content


def headline_text(report: dict) -> str:
    """Format the headlines of a report from :func:`write_evaluations` for printing."""
    lines = []
    for name, one in report["evaluations"].items():
        about, counts = one["about"], one["counts"]
        lines += [
            f"{name}: {counts['queries']:,} queries in {counts['gallery']:,} images of "
            f"{about['dataset']}, {about['protocol']}, encoder {about['encoder']} "
            f"(licence: {about.get('license', 'not stated')})",
            *scoring.headline_lines(one["headline"]),
        ]
    return "\n".join(lines)


def to_dict(evaluation: Evaluation) -> dict:
    """An evaluation as plain values for JSON, with None for NaN."""
    task = evaluation.task
    return _plain(
        {
            "about": evaluation.about,
            "counts": {
                "images": len(task.ids),
                "queries": len(task.queries),
                "gallery": len(task.gallery),
                "queries_without_class": evaluation.unlabelled,
            },
            "headline": evaluation.headline(),
            "summary": [score._asdict() for score in evaluation.summary()],
            "classes": [
                score._asdict()
                for metric in evaluation.metrics
                for score in evaluation.per_class(metric)
            ],
            "curves": {
                name: {
                    "recall": LEVELS,
                    "precision": view.curve.tolist(),
                    "random_order_simulated": view.curve_baseline.tolist(),
                    "eleven_points": view.curve[::10].tolist(),
                }
                for name, view in evaluation.views.items()
                if len(view.rows)
            },
            "confusion": {
                "classes": task.classes,
                "nearest_neighbour": evaluation.confusion(1).tolist(),
            },
        }
    )


def comparison_to_dict(comparison: Comparison) -> dict:
    """A comparison as plain values for JSON, with None for NaN."""
    return _plain(
        {
            "first": comparison.first.about,
            "second": comparison.second.about,
            "overall": comparison.overall._asdict(),
            "classes": [difference._asdict() for difference in comparison.classes],
        }
    )


def write(evaluation: Evaluation, output_dir: str | Path, stem: str = "evaluation") -> list[Path]:
    """Write one evaluation: three tables and, last, JSON with what is needed to repeat it."""
    folder, content = absolute(output_dir), to_dict(evaluation)
    about = {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in (content["about"] | {"versions": versions()}).items()
    }
    written = [
        write_csv(folder / f"{stem}-{part}.csv", [row | about for row in content[part]])
        for part in ("summary", "classes")
    ]
    written.append(write_csv(folder / f"{stem}-queries.csv", _per_query(evaluation)))
    written.append(write_json(folder / f"{stem}.json", content))
    return written


def write_csv(path: str | Path, rows: Sequence[dict]) -> Path:
    """Write a table with the keys of the first row as its header."""
    with atomic(path, "w") as file:
        file.write(csv_text(rows))
    return absolute(path)


def _per_query(evaluation: Evaluation) -> list[dict]:
    """One row for each query of the view ``all``, with every metric."""
    view, task = evaluation.views[ALL], evaluation.task
    queries = task.queries[view.rows]
    columns = {
        "query": [task.names[query] for query in queries],
        "image_id": task.ids[queries].tolist(),
        "relevant": view.counts.relevant.tolist(),
        "candidates": view.counts.candidates.tolist(),
    }
    columns |= {name: values.tolist() for name, values in view.values.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: object) -> object:
    """Replace what JSON cannot express."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
