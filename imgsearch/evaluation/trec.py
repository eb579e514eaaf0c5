"""Files of trec_eval: qrels and runs, read strictly and written so that ties cannot differ.

trec_eval ignores the rank in a run, reads scores as float32 and breaks ties by
document name, descending. Runs are therefore written with strictly decreasing
float32 scores (a score that is not below the one before it is lowered by the
smallest step there is), and read in trec_eval's order.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from imgsearch.errors import ConfigError, DatasetError, printable
from imgsearch.evaluation import metrics, relevance
from imgsearch.evaluation.ranking import Block
from imgsearch.evaluation.scoring import ALL, KS, Task, view_mask
from imgsearch.io import atomic

MAX_LINE = 4096  # bytes
MAX_LINES = 20_000_000

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


def read_qrels(path: str | Path, *, max_lines: int = MAX_LINES) -> Qrels:
    """Read relevance judgements: lines of ``query iteration document relevance``.

    Parameters
    ----------
    path : path
    max_lines : int
        Longer files are refused, before they fill the memory.

    Returns
    -------
    dict of str to dict of str to int
        Query to document to relevance. 0 and below is not relevant.

    Raises
    ------
    DatasetError
        The file has another form; with the line.
    """
    found: Qrels = {}
    for number, (query, _, document, text) in _lines(path, 4, max_lines):
        if not re.fullmatch(r"[+-]?[0-9]{1,4}", text):
            raise DatasetError(path, f"line {number}: {text[:40]!r} is no relevance")
        if document in found.setdefault(query, {}):
            raise DatasetError(path, f"line {number}: {query} has {document} twice")
        found[query][document] = int(text)
    return found


def read_run(path: str | Path, *, max_lines: int = MAX_LINES) -> Run:
    """Read rankings: lines of ``query Q0 document rank score tag``.

    Parameters
    ----------
    path : path
    max_lines : int
        As in :func:`read_qrels`.

    Returns
    -------
    dict of str to dict of str to float
        Query to document to score (float32); documents in trec_eval's order, best
        first: by score, then by name, both descending. The rank is not read.

    Raises
    ------
    DatasetError
        The file has another form, or a score is not finite; with the line.
    """
    found: Run = {}
    for number, (query, _, document, _, text, _) in _lines(path, 6, max_lines):
        try:
            score = float(text) if re.fullmatch(r"[0-9eE.+-]{1,40}", text) else math.nan
        except ValueError:
            score = math.nan
        if not abs(score) <= float(np.finfo(np.float32).max):
            raise DatasetError(path, f"line {number}: {text[:40]!r} is no score")
        if document in found.setdefault(query, {}):
            raise DatasetError(path, f"line {number}: {query} has {document} twice")
        found[query][document] = float(np.float32(score))
    return {query: _ordered(scores) for query, scores in found.items()}


def write_qrels(path: str | Path, task: Task, *, view: str = ALL) -> Path:
    """Write the ground truth of a task.

    Parameters
    ----------
    path : path
    task : Task
    view : str
        Whose classes count, see :mod:`imgsearch.evaluation.scoring`.

    Returns
    -------
    pathlib.Path
        The absolute path. One line for each relevant pair, with the number of
        shared classes; neither the query itself nor junk, which trec_eval could
        not tell from what is not relevant: :func:`write_run` leaves it out.

    Raises
    ------
    ConfigError
        The view is unknown, or a name has a blank in it.
    OSError
        The file cannot be written; an old one stays.
    """
    mask, names = view_mask(task.classes, view), _checked(task)
    queries, gallery = task.labels[task.queries], task.labels[task.gallery]
    with atomic(path, "w") as file:
        for row in relevance.members(queries, mask):
            shared = gallery.present & queries.present[row] & np.uint32(mask)
            shared[slice(*task.skip[row])] = 0
            query = names[task.queries[row]]
            gains = np.bitwise_count(shared)
            file.writelines(
                f"{query} 0 {names[task.gallery[i]]} {gains[i]}\n" for i in np.flatnonzero(gains)
            )
    return Path(path).expanduser().absolute()


def write_run(
    path: str | Path,
    task: Task,
    blocks: Iterable[Block] | None = None,
    *,
    depth: int = 1000,
    tag: str = "imgsearch",
    view: str = ALL,
) -> Path:
    """Write the rankings of a task.

    Parameters
    ----------
    path : path
    task : Task
    blocks : iterable of Block, optional
        The exact rankings if left out.
    depth : int
        Documents of each query at most. Average precision of the file is that of
        the rankings only if this is the whole gallery (the file then has
        queries × gallery lines of some 50 bytes).
    tag : str
        Name of the run, without blanks.
    view : str
        As in :func:`write_qrels`; decides what is junk and left out.

    Returns
    -------
    pathlib.Path
        The absolute path. Scores are strictly decreasing float32: cosine
        similarity, lowered by the smallest possible step where it would tie with
        the one before it.

    Raises
    ------
    ConfigError
        As :func:`write_qrels`; or the tag has a blank, or the depth is below 1.
    OSError
        The file cannot be written; an old one stays.
    """
    mask, names = view_mask(task.classes, view), _checked(task)
    if not re.fullmatch(r"\S{1,100}", tag) or depth < 1:
        raise ConfigError("trec run", f"tag {tag[:40]!r} or depth {depth} cannot be used")
    queries = task.labels[task.queries]
    judge = relevance.Judge(task.labels[task.gallery])
    with atomic(path, "w") as file:
        for block in (make() for make in task.ranked()) if blocks is None else blocks:
            rows = np.arange(block.start, block.start + len(block.order))
            _, junk = judge.gains(judge.places(block.order), queries[rows], mask)
            for row, (order, out) in enumerate(zip(block.order, junk, strict=True)):
                query = names[task.queries[block.start + row]]
                kept = np.flatnonzero(~out)[:depth]
                scores = decreasing(block.scores(row, kept)).tolist()
                for rank, (i, score) in enumerate(
                    zip(order[kept].tolist(), scores, strict=True), 1
                ):
                    file.write(f"{query} Q0 {names[task.gallery[i]]} {rank} {score:.9g} {tag}\n")
    return Path(path).expanduser().absolute()


def decreasing(scores: np.ndarray) -> np.ndarray:
    """Make scores strictly decreasing in float32, changing them as little as possible.

    Parameters
    ----------
    scores : ndarray of float, shape (n,)
        Best first, finite.

    Returns
    -------
    ndarray of float32, shape (n,)
    """
    bits = np.asarray(scores, np.float32).view(np.int32).astype(np.int64)
    # The order of these numbers is the order of the floats; neighbours differ by 1, and
    # both zeros are 0.
    steps = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    places = np.arange(len(steps))
    steps = np.minimum.accumulate(steps + places) - places
    sign = np.where(steps < 0, np.float32(-1), np.float32(1))
    return np.abs(steps).astype(np.int32).view(np.float32) * sign


def evaluate(qrels: Qrels, run: Run, ks: Sequence[int] = KS) -> dict[str, dict[str, float]]:
    """Judge a run as trec_eval does.

    Parameters
    ----------
    qrels : dict
        As from :func:`read_qrels`.
    run : dict
        As from :func:`read_run`; any order within a query, ties as trec_eval breaks them.
    ks : sequence of int
        Depths of P@k, R@k and nDCG@k.

    Returns
    -------
    dict of str to dict of str to float
        Query to metric to value, named as in :mod:`imgsearch.evaluation.scoring`, and
        ``iprec@0.0`` to ``iprec@1.0``. Every query of the qrels: one that the run
        lacks has zeros, as with ``trec_eval -c``. A query of the run alone is left out.
    """
    results = {}
    for query, judged in qrels.items():
        grades = {document: max(0, grade) for document, grade in judged.items()}
        levels = np.array(sorted(set(grades.values()) - {0}), np.int64)
        gains = np.array(
            [[grades.get(document, 0) for document in _ordered(run.get(query, {}))]], np.int64
        )
        found = metrics.ranks(gains)
        values = np.array(list(grades.values()))
        at_least = np.array([[np.count_nonzero(values >= level) for level in levels]], np.int64)
        r = at_least[:, 0] if len(levels) else np.zeros(1, np.int64)
        results[query] = {
            "mAP": metrics.average_precision(found, r).item(),
            "mAP@R": metrics.average_precision_at_r(found, r).item(),
            "MRR": metrics.reciprocal_rank(found).item(),
            "Rprec": metrics.r_precision(found, r).item(),
        }
        for k in ks:
            results[query][f"P@{k}"] = metrics.precision_at(found, k).item()
            results[query][f"R@{k}"] = metrics.recall_at(found, r, k).item()
            results[query][f"nDCG@{k}"] = metrics.ndcg_at(found, at_least, k, levels).item()
        curve = metrics.interpolated_precision(found, r)[0].tolist()
        results[query] |= {f"iprec@{x}": y for x, y in zip(metrics.ELEVEN, curve, strict=True)}
    return results


def _ordered(scores: dict[str, float]) -> dict[str, float]:
    key = {name: (float(np.float32(score)), name.encode()) for name, score in scores.items()}
    return {name: scores[name] for name in sorted(scores, key=key.__getitem__, reverse=True)}


def _lines(path: str | Path, columns: int, limit: int) -> Iterator[tuple[int, list[str]]]:
    try:
        handle = os.open(Path(path), os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise DatasetError(path, "is no regular file")
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if number > limit:
                    raise DatasetError(path, f"has more than {limit} lines: split it")
                if len(line) > MAX_LINE:
                    raise DatasetError(path, f"line {number}: longer than {MAX_LINE} bytes")
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError:
                    raise DatasetError(path, f"line {number}: is no UTF-8") from None
                words = re.findall(r"[^ \t\r\n\f\v]+", text)
                if not words:
                    continue
                if len(words) != columns or not all(word.isprintable() for word in words):
                    raise DatasetError(
                        path,
                        f"line {number}: expected {columns} printable words, not "
                        f"{printable(text.strip()[:80])!r}",
                    )
                yield number, words
    except OSError as error:
        raise DatasetError(path, f"cannot be read: {error.strerror}") from None
    if number == 0:
        raise DatasetError(path, "is empty")


def _checked(task: Task) -> tuple[str, ...]:
    for name in task.names:
        if not name.isprintable() or re.search(r"\s", name):
            raise ConfigError("names", f"{printable(name[:80])!r} has a blank: no name for TREC")
    return task.names
