"""Text queries: how many of the first ten photographs show what a word of `mini` names."""

from __future__ import annotations

import numpy as np

from benchmarks.common import Options, Result, photographs
from imgsearch.datasets.voc import Voc
from imgsearch.encoders import load_encoder
from imgsearch.evaluation import metrics, statistics

TITLE = "Words"
GOAL = ("cat", "dog", "horse", "cow", "sheep", "sofa", "car", "pottedplant")
LEAST = 10  # photographs of a class, so that P@10 can reach 1


def run(options: Options, result: Result) -> None:
    voc = Voc(options.photos.parent)
    annotated = voc.annotated()
    paths = [path for path in photographs(options.photos) if path.stem in annotated]
    present, difficult = voc.labels([path.stem for path in paths])
    encoder = load_encoder("mini", device="cpu", precision="fp32", backend="eager")
    steps = range(0, len(paths), 64)
    vectors = np.concatenate([encoder.encode(paths[i : i + 64]) for i in steps])
    classes = [name for i, name in enumerate(voc.classes) if present[:, i].sum() >= LEAST]
    classes.remove("person")  # the bundled words do not have it
    columns = [voc.classes.index(name) for name in classes]
    scores = encoder.encode_text(classes) @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")
    gains = np.take_along_axis(present[:, columns].T.astype(np.uint8), order, axis=1)
    junk = np.take_along_axis((difficult & ~present)[:, columns].T, order, axis=1)
    found, relevant, ranked = metrics.ranks(gains, junk), gains.sum(axis=1), (~junk).sum(axis=1)
    counts = metrics.Counts(relevant, ranked, relevant[:, None], ranked - relevant, ranked)
    ten = metrics.precision_at(found, counts, 10)
    average = metrics.average_precision(found, counts)
    result.note(
        f"One query for each class, its name as VOC writes it; {len(paths)} annotated photographs, "
        f"relevant are those with an object of the class that is not difficult."
    )
    for name, p, ap, r in zip(classes, ten, average, relevant, strict=True):
        goal = {"least": 0.9} if name == "dog" else {}
        result.add(f"`{name}`: P@10", float(p), note=f"AP {ap:.3f}, {r} relevant", **goal)
    eight = ten[[classes.index(name) for name in GOAL if name in classes]]
    low, high = statistics.mean_interval(eight, 1000, 0)
    note = f"95 % {low:.2f} to {high:.2f} over these {len(eight)} classes"
    result.add(f"mean P@10 of {', '.join(GOAL)}", float(eight.mean()), note=note, least=0.9)
    low, high = statistics.mean_interval(ten, 1000, 0)
    note = f"95 % {low:.2f} to {high:.2f}"
    result.add(f"mean P@10 of all {len(classes)} classes", float(ten.mean()), note=note)
