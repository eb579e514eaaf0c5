"""Files of trec_eval: qrels and runs, in which no ties can change the order of a ranking.

trec_eval ignores the rank in a run, reads scores as float32 and breaks ties by document
name, descending. Runs are therefore written with strictly decreasing float32 scores: a score
that is not below the previous one is lowered by the smallest possible step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from imgsearch.errors import ConfigError, printable
from imgsearch.evaluation import relevance
from imgsearch.evaluation.ranking import Block
from imgsearch.evaluation.relevance import Judge
from imgsearch.evaluation.scoring import ALL, Task
from imgsearch.io import absolute, atomic


def write_qrels(path: str | Path, task: Task, *, view: str = ALL) -> Path:
    """Write the ground truth of a task: one line with the gain for each relevant pair.

    `view` determines the classes. The file contains neither the query itself nor junk, which
    trec_eval cannot distinguish from items that are not relevant.
    """
    mask, names = task.mask(view), _checked_names(task)
    queries, gallery = task.labels[task.queries].among(mask), task.labels[task.gallery]
    with atomic(path, "w") as file:
        for row in relevance.members(queries, mask):
            shared = gallery.present & queries.present[row]
            shared[slice(*task.skip[row])] = 0
            query = names[task.queries[row]]
            gains = np.bitwise_count(shared)
            file.writelines(
                f"{query} 0 {names[task.gallery[i]]} {gains[i]}\n" for i in np.flatnonzero(gains)
            )
    return absolute(path)


def write_judgments(path: str | Path, judged: Mapping[str, Mapping[int, int]]) -> Path:
    """Write judgments by topic and image id: 1 relevant, 0 not relevant, -1 pooled only."""
    with atomic(path, "w") as file:
        for topic, values in judged.items():
            name = topic_name(topic)
            file.writelines(f"{name} 0 {image} {value}\n" for image, value in values.items())
    return absolute(path)


def topic_name(topic: str) -> str:
    """Return the name of a topic without spaces, which separate the columns of these files."""
    return re.sub(r"\s+", "-", topic)


def write_run(
    path: str | Path,
    task: Task,
    blocks: Iterable[Block] | None = None,
    *,
    depth: int = 1000,
    tag: str = "imgsearch",
    view: str = ALL,
) -> Path:
    """Write rankings of a task without junk; without `blocks`, the exact ones.

    The average precision of the file equals that of the rankings only if `depth` is the size
    of the gallery; the file then has queries × gallery lines of about 50 bytes.
    """
    mask, names = task.mask(view), _checked_names(task)
    if not re.fullmatch(r"\S{1,100}", tag) or depth < 1:
        raise ConfigError("trec run", f"tag {tag[:40]!r} or depth {depth} cannot be used")
    queries = task.labels[task.queries]
    judge = Judge(task.labels[task.gallery])
    with atomic(path, "w") as file:
        for block in (make() for make in task.ranked()) if blocks is None else blocks:
            rows = np.arange(block.start, block.start + len(block.order))
            junk = judge.verdicts(judge.places(block.order), queries[rows], mask).junk
            for row, (order, out) in enumerate(zip(block.order, junk, strict=True)):
                query = names[task.queries[block.start + row]]
                kept = np.flatnonzero(~out)[:depth]
                scores = decreasing(block.scores(row, kept)).tolist()
                for rank, (i, score) in enumerate(
                    zip(order[kept].tolist(), scores, strict=True), 1
                ):
                    file.write(f"{query} Q0 {names[task.gallery[i]]} {rank} {score:.9g} {tag}\n")
    return absolute(path)


def decreasing(scores: np.ndarray) -> np.ndarray:
    """Make scores strictly decreasing in float32, changing them as little as possible."""
    bits = np.asarray(scores, np.float32).view(np.int32).astype(np.int64)
    # These integers have the order of the floats; adjacent floats differ by 1, and both zeros
    # are 0.
    steps = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    places = np.arange(len(steps))
    steps = np.minimum.accumulate(steps + places) - places
    sign = np.where(steps < 0, np.float32(-1), np.float32(1))
    return np.abs(steps).astype(np.int32).view(np.float32) * sign


def _checked_names(task: Task) -> tuple[str, ...]:
    for name in task.names:
        if not name.isprintable() or re.search(r"\s", name):
            raise ConfigError("names", f"{printable(name[:80])!r} cannot be written to TREC files")
    return task.names
