"""Evaluations as JSON and CSV, with everything that is needed to repeat them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from imgsearch import config
from imgsearch.datasets.voc import Voc
from imgsearch.errors import ConfigError
from imgsearch.evaluation import plots, protocols
from imgsearch.evaluation.comparison import Comparison, compare
from imgsearch.evaluation.index_sweep import IndexPoint
from imgsearch.evaluation.scoring import KS, LEVELS, Evaluation
from imgsearch.gallery import Gallery
from imgsearch.io import absolute, atomic, csv_text, versions, write_figure, write_json

_ELEVENTH = slice(None, None, 10)


def evaluate_collections(
    voc_root: str | Path,
    collections: Sequence[str] = (),
    *,
    year: int | None = None,
    protocol: str = "train -> val",
    ks: Sequence[int] = KS,
    seed: int = 0,
    distractors: bool = False,
    allow_missing: bool = False,
    settings: config.Settings | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Evaluation]:
    """Evaluate the exact rankings of some collections on one VOC dataset.

    Parameters
    ----------
    voc_root, year, protocol, ks, seed, distractors, allow_missing
        As for :func:`imgsearch.batch.evaluate_voc`.
    collections : sequence of str
        ``DEFAULT_TABLE`` if empty.
    settings : Settings, optional
        Read from the environment if left out.
    progress : callable, optional
        Is handed a few words now and then. What it raises ends the work.

    Returns
    -------
    dict of str to Evaluation
        By collection.

    Raises
    ------
    ConfigError
        A parameter has a value that cannot be used.
    ImgSearchError
        As :func:`imgsearch.evaluation.prepare`.
    """
    settings = settings or config.load_settings()
    tell = progress or (lambda _: None)
    if not ks or min(ks) < 1:
        raise ConfigError("ks", f"is {list(ks)}; whole numbers from 1 are needed")
    dataset = Voc(voc_root, year, cache=settings.imgsearch_home / "annotations")
    how = protocols.Protocol.parse(protocol, distractors=distractors)
    found = {}
    for name in dict.fromkeys(collections or [settings.default_table]):
        tell(f"reading {name} and the annotations")
        with Gallery.open(name, settings=settings) as gallery:
            task = protocols.prepare(gallery, dataset, how, allow_missing=allow_missing)
        tell(f"ranking {len(task.gallery):,} images for {len(task.queries):,} queries in {name}")
        found[name] = protocols.exact(task, ks=sorted(set(ks)), seed=seed)
    return found


def compare_with_first(found: Mapping[str, Evaluation], *, seed: int = 0) -> dict[str, Comparison]:
    """Compare each evaluation with the first.

    Parameters
    ----------
    found : mapping of str to Evaluation
        From :func:`evaluate_collections`.
    seed : int
        Of the test.

    Returns
    -------
    dict of str to Comparison
        By the name of the second.

    Raises
    ------
    ConfigError
        They are not about the same images.
    """
    first, *others = found
    return {name: compare(found[first], found[name], seed=seed) for name in others}


def write_evaluations(
    found: Mapping[str, Evaluation],
    output_dir: str | Path,
    *,
    seed: int = 0,
    points: Sequence[IndexPoint] = (),
) -> dict:
    """Write tables, figures and a report.

    Parameters
    ----------
    found : mapping of str to Evaluation
        From :func:`evaluate_collections`.
    output_dir : path
        Made if need be.
    seed : int
        Of the comparisons.
    points : sequence of IndexPoint
        From :func:`imgsearch.evaluation.index_sweep.sweep`.

    Returns
    -------
    dict
        As in ``evaluation.json``, which is written last.

    Raises
    ------
    ConfigError
        Evaluations that cannot be compared.
    OSError
        A file cannot be written.
    """
    folder = Path(output_dir)
    compared = compare_with_first(found, seed=seed)
    files, photographs = [], {}
    drawn = {
        "evaluation-curves": plots.precision_recall(found),
        "evaluation-classes": plots.per_class(found),
    }
    for name, one in found.items():
        files += write(one, folder, f"evaluation-{name}")
        drawn[f"evaluation-{name}-confusion"] = plots.confusion(one, title=name)
        photographs[f"evaluation-{name}-worst"] = plots.cases(
            one.cases(6, worst=True), title=f"{name}, worst queries"
        )
        photographs[f"evaluation-{name}-best"] = plots.cases(
            one.cases(6), title=f"{name}, best queries"
        )
    if points:
        drawn["evaluation-indexes"] = plots.index_sweep(points)
        rows = [point._asdict() for point in points]
        files.append(write_rows(folder / "evaluation-indexes.csv", rows))
    for stem, figure in (drawn | photographs).items():
        for kind in ("png", "svg") if stem in drawn else ("png",):
            files.append(write_figure(folder / f"{stem}.{kind}", figure))
    content = {
        "evaluations": {
            name: {key: to_dict(one)[key] for key in ("about", "counts", "summary")}
            for name, one in found.items()
        },
        "indexes": [point._asdict() for point in points],
        "comparisons": {name: comparison_to_dict(c) for name, c in compared.items()},
        "files": [path.name for path in files],
    }
    write_json(folder / "evaluation.json", content)
    return content


def summary_table(report: dict) -> str:
    """Figures of an evaluation's report, to print.

    Parameters
    ----------
    report : dict
        From :func:`write_evaluations`.

    Returns
    -------
    str
        A line for each metric of each collection, with its 95 % interval and the
        expectation in random order.
    """
    lines = []
    for name, one in report["evaluations"].items():
        about, counts = one["about"], one["counts"]
        lines.append(
            f"{name}: encoder {about['encoder']}, {about['dataset']}, {about['protocol']}, "
            f"{counts['queries']} queries, {about['ranking']}"
        )
        lines.append(f"  {'':30}{'figure':>7}  {'95 % interval':<15}  random")
        lines += [
            f"  {row['average'] + ' ' + row['metric']:30}{row['value']:7.3f}  "
            f"{row['low']:.3f} – {row['high']:.3f}    {row['baseline']:.3f}"
            for row in one["summary"]
            if row["value"] is not None
        ]
    return "\n".join(lines)


def to_dict(evaluation: Evaluation) -> dict:
    """Put an evaluation into plain values.

    Parameters
    ----------
    evaluation : Evaluation

    Returns
    -------
    dict
        ``about`` (what is needed to repeat it), ``counts``, ``summary``,
        ``classes``, ``curves`` and ``confusion``. NaN is None.
    """
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
            "summary": [figure._asdict() for figure in evaluation.summary()],
            "classes": [
                figure._asdict()
                for metric in evaluation.metrics
                for figure in evaluation.per_class(metric)
            ],
            "curves": {
                name: {
                    "recall": LEVELS,
                    "precision": view.curve.tolist(),
                    "random_order_simulated": view.curve_baseline.tolist(),
                    "eleven_points": view.curve[_ELEVENTH].tolist(),
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
    """Put a comparison into plain values.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    dict
        ``first`` and ``second`` (what is needed to repeat each), ``overall``, ``classes``.
    """
    return _plain(
        {
            "first": comparison.first.about,
            "second": comparison.second.about,
            "overall": comparison.overall._asdict(),
            "classes": [difference._asdict() for difference in comparison.classes],
        }
    )


def write(evaluation: Evaluation, output_dir: str | Path, stem: str = "evaluation") -> list[Path]:
    """Write an evaluation, each file whole or not at all.

    Parameters
    ----------
    evaluation : Evaluation
    output_dir : path
        Made if need be.
    stem : str
        How the files' names begin.

    Returns
    -------
    list of pathlib.Path
        ``stem-summary.csv`` and ``stem-classes.csv`` (one line a figure),
        ``stem-queries.csv`` (one line a query of the view ``all``, every metric),
        and last ``stem.json``. What is needed to repeat it is in the JSON, and on
        every line of the first two.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    folder = Path(output_dir)
    content = to_dict(evaluation)
    about = {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in (content["about"] | {"versions": versions()}).items()
    }
    written = [
        write_rows(folder / f"{stem}-{part}.csv", [row | about for row in content[part]])
        for part in ("summary", "classes")
    ]
    written.append(write_rows(folder / f"{stem}-queries.csv", _per_query(evaluation)))
    written.append(write_json(folder / f"{stem}.json", content))
    return written


def write_rows(path: str | Path, rows: Sequence[dict]) -> Path:
    """Write a table as CSV, with the keys of the first row as its header."""
    with atomic(path, "w") as file:
        file.write(csv_text(rows))
    return absolute(path)


def _per_query(evaluation: Evaluation) -> list[dict]:
    view, task = evaluation.views["all"], evaluation.task
    columns = {metric: values.tolist() for metric, values in view.values.items()}
    return [
        {
            "query": task.names[query],
            "image_id": int(task.ids[query]),
            "relevant": relevant,
            "candidates": candidates,
        }
        | {metric: values[i] for metric, values in columns.items()}
        for i, (query, relevant, candidates) in enumerate(
            zip(
                task.queries[view.rows].tolist(),
                view.relevant.tolist(),
                view.candidates.tolist(),
                strict=True,
            )
        )
    ]


def _plain(value: object) -> object:
    """Replace what JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
