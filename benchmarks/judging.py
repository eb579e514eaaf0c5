"""Evaluation: all of it at the size of VOC2012, and judging a run against pytrec_eval."""

from __future__ import annotations

from benchmarks import evaluation
from benchmarks.common import Options, Result

TITLE = "Evaluation"


def run(options: Options, result: Result) -> None:
    queries, dim, some = (1_500, 256, 100) if options.quick else (11_540, 2048, 400)
    task = evaluation.made_up(queries, dim)
    goal = {} if options.quick else {"least": 20}
    found = evaluation.against_pytrec_eval(task, some)
    result.note(f"Labels and vectors are made up; {some} queries are judged by pytrec_eval too.")
    times = found["times_as_fast"]
    result.add("pytrec_eval's seconds to ours, the same metrics", times["wall"], "×", **goal)
    result.add("pytrec_eval's processor seconds to ours", times["cpu"], "×")
    result.add("largest difference from pytrec_eval", found["largest_difference"], most=1e-6)
    whole = evaluation.whole(task)
    goals = [{}, {}] if options.quick else [{"most": 60}, {"most": 4}]
    result.add(
        f"leave-one-out of {queries:,}, {dim}-d, all metrics, views, intervals",
        whole["seconds"]["wall"], "s", **goals[0],
    )  # fmt: skip
    result.add("memory of that process at most", whole["peak_gb"], "GB", **goals[1])
