"""Text queries: how many of the first ten photographs show what a word of `mini` names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import ROOT, Options, Result, photographs
from imgsearch.datasets.voc import Voc
from imgsearch.encoders import load_encoder
from imgsearch.evaluation import metrics, statistics
from training import wordnet, words

TITLE = "Words"
GOAL = ("cat", "dog", "horse", "cow", "sheep", "sofa", "car", "pottedplant")
LEAST = 10  # photographs of a class, so that P@10 can reach 1
TEACHER = ROOT.parent / "shared" / "weights"


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
    relevant, junk = present[:, columns].T, (difficult & ~present)[:, columns].T
    scores = encoder.encode_text(classes) @ vectors.T
    eight = [classes.index(name) for name in GOAL if name in classes]
    ten, average = judged(scores, relevant, junk, 10)
    result.note(
        f"One query for each class, its name as VOC writes it; {len(paths)} annotated photographs, "
        f"relevant are those with an object of the class that is not difficult."
    )
    for name, p, ap, shown in zip(classes, ten, average, relevant.sum(axis=1), strict=True):
        goal = {"least": 0.9} if name == "dog" else {}
        result.add(f"`{name}`: P@10", float(p), note=f"AP {ap:.3f}, {shown} relevant", **goal)
    mean(result, f"mean P@10 of {', '.join(GOAL)}", ten[eight], least=0.9)
    mean(result, f"mean P@10 of all {len(classes)} classes", ten)
    result.note(
        "The fewer photographs there are, the fewer show a car, and the deeper are the first ten. "
        "The first five of either half of the photographs are as deep as the first ten of all; the "
        "first six of 400 are as deep as the first ten of 655."
    )
    halves = [slice(0, None, 2), slice(1, None, 2)]
    fives = [judged(scores[:, h], relevant[:, h], junk[:, h], 5)[0][eight] for h in halves]
    mean(result, "mean P@5 of these eight, in either half", np.concatenate(fives))
    fives = []
    for shown, labelled in (halves, reversed(halves)):
        better = corrected(encoder.encode_text(classes), vectors[labelled], relevant[:, labelled])
        scored = better @ vectors[shown].T
        fives.append(judged(scored, relevant[:, shown], junk[:, shown], 5)[0][eight])
    what = "the same, each direction corrected with the labels of the other half"
    mean(result, what, np.concatenate(fives))
    mean(result, "mean P@6 of these eight", judged(scores, relevant, junk, 6)[0][eight])
    if not (TEACHER / "mobilenet_v2.onnx").is_file():
        result.note("The teacher was not measured: ../shared/weights is missing.")
        return
    for what, scored in teachers(paths, classes).items():
        for k in (10, 6):
            right = judged(scored, relevant, junk, k)[0][eight]
            mean(result, f"the teacher, {what}: mean P@{k} of these eight", right)


def judged(
    scores: np.ndarray, relevant: np.ndarray, junk: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """P@k and AP of rankings by scores (queries, images)."""
    order = np.argsort(-scores, axis=1, kind="stable")
    gains = np.take_along_axis(relevant.astype(np.uint8), order, axis=1)
    junk = np.take_along_axis(junk, order, axis=1)
    found, shown, ranked = metrics.ranks(gains, junk), gains.sum(axis=1), (~junk).sum(axis=1)
    counts = metrics.Counts(shown, ranked, shown[:, None], ranked - shown, ranked)
    return metrics.precision_at(found, counts, k), metrics.average_precision(found, counts)


def corrected(directions: np.ndarray, vectors: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Directions (n, dim) plus a ridge regression of what they leave of the labels (n, images)."""
    x = vectors - vectors.mean(axis=0)
    y = relevant - relevant.mean(axis=1, keepdims=True)
    scores = directions @ x.T
    directions = directions * ((scores * y).sum(1) / (scores**2).sum(1))[:, None]
    gram = x.T @ x + 5 * np.eye(x.shape[1])
    return directions + np.linalg.solve(gram, x.T @ (y - directions @ x.T).T).T


def mean(result: Result, what: str, values: np.ndarray, **goal: float) -> None:
    low, high = statistics.mean_interval(values, 1000, 0)
    result.add(what, float(values.mean()), note=f"95 % {low:.2f} to {high:.2f}", **goal)


def teachers(paths: list[Path], classes: list[str]) -> dict[str, np.ndarray]:
    """Scores of the teacher itself for the ImageNet classes that each word names."""
    with np.load(TEACHER / "mobilenet_v2_classifier.npz") as classifier:
        labels, weight = classifier["labels"].tolist()[1:], classifier["weight"][1:]
        bias = classifier["bias"][1:]
    nouns = wordnet.read(wordnet.download(ROOT / "build" / "words" / "wordnet"))
    names, members = words.vocabulary(labels, nouns, coverage=0.01)
    known = words.mini_words.Words(names, np.eye(len(members), dtype=np.float32), {})
    named = [list(members[row]) for row in known.encode(classes).argmax(axis=1)]
    teacher = load_encoder(str(TEACHER / "mobilenet_v2.onnx"), device="cpu", precision="fp32")
    features = np.concatenate(
        [
            teacher.features([teacher.preprocess(Image.open(p).convert("RGB")) for p in part])
            for part in (paths[i : i + 64] for i in range(0, len(paths), 64))
        ]
    )
    logits = (features @ weight.T + bias) / 2
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    centred = features - features.mean(axis=0)
    cosines = unit(centred) @ unit(weight.astype(np.float32)).T
    return {
        "probability at temperature 2": np.stack(
            [(odds[:, some].sum(axis=1) / odds.sum(axis=1)) for some in named]
        ),
        "cosine of class vectors and centred features": np.stack(
            [cosines[:, some].mean(axis=1) for some in named]
        ),
    }


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
