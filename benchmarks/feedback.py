"""Relevance feedback: what the judgments of a simulated user gain."""

from __future__ import annotations

import numpy as np

from benchmarks.common import Options, Result, photographs
from imgsearch.datasets.voc import Voc
from imgsearch.encoders import load_encoder
from imgsearch.evaluation import statistics
from imgsearch.queries import combine

TITLE = "Relevance feedback"
ROUNDS, JUDGMENTS, DEPTH = 3, 5, 20


def run(options: Options, result: Result) -> None:
    voc = Voc(options.photos.parent)
    annotated = voc.annotated()
    paths = [path for path in photographs(options.photos) if path.stem in annotated]
    names = [path.stem for path in paths]
    present, difficult = voc.labels(names)
    encoder = load_encoder("mini", device="cpu", precision="fp32", backend="eager")
    steps = range(0, len(paths), 64)
    vectors = np.concatenate([encoder.encode(paths[i : i + 64]) for i in steps])
    enough = [c for i, c in enumerate(voc.classes) if present[:, i].sum() > DEPTH + 15]
    queries = np.flatnonzero(np.isin(names, voc.single_label(names, enough)))
    values = []
    for query in queries:
        topic = int(np.flatnonzero(present[query])[0])
        ranked = ~(difficult[:, topic] & ~present[:, topic])  # the others are junk
        ranked[query] = False
        values.append(simulated(vectors, query, present[:, topic], ranked))
    columns = np.array(values).T
    result.note(
        f"{len(queries)} queries: every photograph that shows one class of {', '.join(enough)}; "
        f"the others of {len(paths)} are searched. In each of {ROUNDS} rounds a simulated user "
        f"judges the first {JUDGMENTS} images that were not judged yet, by the labels."
    )
    result.note(
        "Among unjudged images: all that were judged are taken out of both rankings, so that no "
        "gain comes from finding them again."
    )
    for what, before, after, goal in [
        ("all images", *columns[:2], {"least": 0.1}), ("unjudged images", *columns[2:], {}),
    ]:  # fmt: skip
        low, high = statistics.mean_interval(after - before, 1000, 0)
        note = f"95 % {low:.3f} to {high:.3f}; {before.mean():.3f} to {after.mean():.3f}"
        name = f"P@{DEPTH} among {what}: gain over the first query"
        result.add(name, float((after - before).mean()), note=note, **goal)


def simulated(
    vectors: np.ndarray, query: int, relevant: np.ndarray, ranked: np.ndarray
) -> tuple[float, float, float, float]:
    """P@20 before and after the rounds, among all images and among those not judged."""
    judged = np.zeros(len(vectors), bool)

    def order(vector: np.ndarray) -> np.ndarray:
        found = np.argsort(-(vectors @ vector), kind="stable")
        return found[ranked[found]]

    first = last = order(vectors[query])
    for _ in range(ROUNDS):
        judged[last[~judged[last]][:JUDGMENTS]] = True
        like, unlike = vectors[judged & relevant], vectors[judged & ~relevant]
        last = order(combine({"query": vectors[[query]], "like": like, "unlike": unlike}))
    rest = [found[~judged[found]] for found in (first, last)]
    return tuple(float(relevant[found[:DEPTH]].mean()) for found in (first, last, *rest))
