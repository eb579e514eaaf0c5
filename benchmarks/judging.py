"""Evaluation: judging a run, here and by pytrec_eval."""

from __future__ import annotations

import numpy as np

from benchmarks.common import Options, Result

TITLE = "Evaluation"


def run(options: Options, result: Result) -> None:
    from benchmarks import evaluation
    from imgsearch.evaluation import scoring
    from imgsearch.voc import CLASSES

    queries, some = (1_500, 60) if options.quick else (3_000, 100)
    arguments = evaluation.argparse.Namespace(voc=None, queries=queries, dim=256)
    present, difficult = evaluation.labels(arguments)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((len(present), 256), np.float32)
    vectors += 0.1 * (present @ random.standard_normal((len(CLASSES), 256)))
    task = scoring.task(np.arange(len(present)), vectors, present, difficult)
    found = evaluation.against_pytrec_eval(task, some)
    result.note(f"{some} queries against {len(present):,}, synthetic labels and vectors.")
    for clock, what in (("wall", "seconds"), ("cpu", "processor seconds")):
        times = found["times_as_fast"][clock]
        result.add(f"pytrec_eval's {what} to ours, the same metrics", times, "×")
    result.add("largest difference from pytrec_eval", found["largest_difference"])
    seconds = evaluation.whole(task)["seconds"]["wall"]
    result.add(f"leave-one-out of {len(present):,}, all metrics, views, intervals", seconds, "s")
