"""Time the evaluation, and pytrec_eval on the same run.

    python benchmarks/evaluation.py [--voc …/VOC2012] [--queries 11540] [--dim 2048]

1. Leave-one-out, exact, full depth, all metrics, views, baselines and intervals.
2. The same run (scores of some queries against the whole gallery) judged by this
   package and by pytrec_eval: one view, the same metrics, values compared. What
   pytrec_eval takes is measured on a subset of queries and also scaled to all of
   them; turning the run and the labels into its dicts, and into our counts, is
   timed separately and counted in neither. This package uses every core,
   pytrec_eval can use one: `cpu` compares the work, `wall` what one waits for.

Vectors are random with a little of the labels mixed in: no figure here says
anything about an encoder. Labels are VOC2012's if `--voc` names its annotations,
else drawn with frequencies like VOC's. CPU seconds are those of all threads, and
say more than wall seconds on a machine that has other work to do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytrec_eval

from imgsearch.datasets.voc import CLASSES, GROUPS, Voc
from imgsearch.evaluation import metrics, ranking, relevance, scoring

KS = (1, 5, 10, 100)


def labels(queries: int, root: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    if root:
        voc = Voc(root)
        return voc.labels(voc.image_set("trainval")[:queries])
    generator = np.random.default_rng(1)
    share = np.full(len(CLASSES), 0.05)
    share[CLASSES.index("person")] = 0.35
    present = generator.random((queries, len(CLASSES))) < share
    empty = np.flatnonzero(~present.any(axis=1))
    present[empty, generator.integers(0, len(CLASSES), len(empty))] = True
    return present, ~present & (generator.random(present.shape) < 0.005)


def made_up(queries: int, dim: int, root: str | None = None) -> scoring.Task:
    """Random vectors with a little of the labels in them, each a query among the others."""
    present, difficult = labels(queries, root)
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((len(present), dim), np.float32)
    vectors += 0.1 * (present @ generator.standard_normal((len(CLASSES), dim)))
    ids = np.arange(len(present))
    return scoring.task(ids, vectors, present, difficult, classes=CLASSES, groups=GROUPS)


def timed(call: Callable) -> tuple[object, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    return value, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def best(call: Callable) -> tuple[object, dict[str, float]]:
    """Run three times; the least of each clock."""
    values, seconds = zip(*(timed(call) for _ in range(3)), strict=True)
    return values[0], {clock: min(s[clock] for s in seconds) for clock in seconds[0]}


def cores() -> int:
    return len(os.sched_getaffinity(0))


def whole(task: scoring.Task) -> dict:
    def run() -> scoring.Evaluation:
        evaluation = scoring.evaluate(task, ks=KS)
        evaluation.summary(), evaluation.per_class()
        return evaluation

    evaluation, seconds = timed(run)
    return {
        "seconds": seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "micro": {f.metric: round(f.value, 4) for f in evaluation.summary()[:4]},
    }


def against_pytrec_eval(task: scoring.Task, some: int) -> dict:
    """Judge the same scores both ways."""
    rows = np.linspace(0, len(task.queries) - 1, some).round().astype(int)
    gallery, queries = task.labels, task.labels[rows]
    unit = task.vectors / np.linalg.norm(task.vectors, axis=1, keepdims=True)
    scores = (unit[rows] @ unit.T).astype(np.float32)
    skip, mask = task.skip[rows], task.mask("all")

    counts, counting = timed(lambda: relevance.count(queries, gallery, skip, mask))
    judge = relevance.Judge(gallery)

    def judged(part: slice) -> dict[str, np.ndarray]:
        block = ranking.by_score(scores[part].astype(np.float64), skip[part])
        gains, junk, *_ = judge.verdicts(judge.places(block.order), queries[part], mask)
        found, own = metrics.ranks(gains, junk), metrics.Counts(*(x[part] for x in counts))
        values = {
            "map": metrics.average_precision(found, own),
            "recip_rank": metrics.reciprocal_rank(found, own),
            "Rprec": metrics.r_precision(found, own),
        }
        for k in KS:
            values[f"P_{k}"] = metrics.precision_at(found, own, k)
            values[f"recall_{k}"] = metrics.recall_at(found, own, k)
            values[f"ndcg_cut_{k}"] = metrics.ndcg_at(found, own, k)
        curve = metrics.interpolated_precision(found, own.relevant).T
        return values | {
            f"iprec_at_recall_{x:.2f}": y for x, y in zip(metrics.ELEVEN, curve, strict=True)
        }

    def ours() -> dict[str, np.ndarray]:
        parts = [slice(i, i + 50) for i in range(0, some, 50)]
        with ThreadPoolExecutor(cores()) as pool:
            blocks = list(pool.map(judged, parts))
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    mine, our_seconds = best(ours)

    # Names sort against image_id, since trec_eval breaks ties by name, descending.
    names = np.array([f"d{len(unit) - i:08d}" for i in range(len(unit))])
    out = np.zeros(scores.shape, bool)
    for row, (first, last) in enumerate(skip):
        out[row, first:last] = True
    shared = np.bitwise_count(gallery.present & queries.present[:, None])
    out |= (shared == 0) & ((gallery.shown & queries.shown[:, None]) != 0)

    def convert() -> tuple[dict, dict]:
        run, qrels = {}, {}
        for i in range(some):
            kept = np.flatnonzero(~out[i])
            documents = names[kept].tolist()
            run[f"q{i}"] = dict(zip(documents, scores[i, kept].tolist(), strict=True))
            hits = np.flatnonzero(shared[i, kept])
            qrels[f"q{i}"] = {documents[j]: int(shared[i, kept[j]]) for j in hits}
        return run, qrels

    (run, qrels), conversion = timed(convert)
    cuts = ",".join(map(str, KS))
    measures = {"map", "recip_rank", "Rprec", "iprec_at_recall"}
    measures |= {f"P.{cuts}", f"recall.{cuts}", f"ndcg_cut.{cuts}"}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, measures)
    theirs, their_seconds = best(lambda: evaluator.evaluate(run))
    worst = max(
        abs(mine[name][i] - value) for i in range(some) for name, value in theirs[f"q{i}"].items()
    )
    ratio = len(task.queries) / some
    return {
        "queries_timed": some,
        "gallery": len(unit),
        "imgsearch": our_seconds,
        "pytrec_eval": their_seconds,
        "counting_relevant": counting,
        "conversion_to_dicts": conversion,
        "scaled_to_all_queries": {
            "imgsearch": our_seconds["wall"] * ratio,
            "pytrec_eval": their_seconds["wall"] * ratio,
            "conversion_to_dicts": conversion["wall"] * ratio,
        },
        "times_as_fast": {c: their_seconds[c] / our_seconds[c] for c in ("wall", "cpu")},
        "largest_difference": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voc", help="root with VOC2012's annotations")
    parser.add_argument("--queries", type=int, default=11_540)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--pytrec-queries", type=int, default=400)
    arguments = parser.parse_args()
    task = made_up(arguments.queries, arguments.dim, arguments.voc)
    n = len(task.queries)
    report = {
        "cores": cores(),
        "load": os.getloadavg()[0],
        "labels": arguments.voc or "synthetic",
        "shape": [n, arguments.dim],
        "against_pytrec_eval": against_pytrec_eval(task, min(arguments.pytrec_queries, n)),
        "leave_one_out": whole(task),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
