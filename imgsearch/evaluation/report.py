"""Evaluations as JSON and CSV, with everything that is needed to repeat them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from imgsearch.evaluation.comparison import Comparison
from imgsearch.evaluation.scoring import LEVELS, Evaluation
from imgsearch.io import absolute, atomic, versions, write_json

_ELEVENTH = slice(None, None, 10)


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
        table = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
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
