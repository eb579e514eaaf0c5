"""Figures of the model card: ``python -m training.measure``.

Quality on labelled photographs that no choice was made on, and speed beside ResNet-50.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
ANIMALS = ("cat", "cow", "dog", "horse", "sheep")


def animals(voc: Path) -> tuple[list[Path], np.ndarray]:
    """Find the photographs in which every object is of one and the same animal class.

    Parameters
    ----------
    voc : Path
        A ``VOC2012`` folder.

    Returns
    -------
    (list of Path, numpy.ndarray)
        Photographs sorted by name, and for each the index into `ANIMALS`.
    """
    files, labels = [], []
    for annotation in sorted((voc / "Annotations").glob("*.xml")):
        objects = ElementTree.parse(annotation).getroot().iter("object")
        names = {thing.findtext("name") for thing in objects}
        photograph = voc / "JPEGImages" / f"{annotation.stem}.jpg"
        if len(names) == 1 and names <= set(ANIMALS) and photograph.is_file():
            files.append(photograph)
            labels.append(ANIMALS.index(names.pop()))
    return files, np.array(labels)


def leave_one_out(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let each photograph search among all others, by cosine, to the full depth.

    Parameters
    ----------
    vectors : numpy.ndarray
        (n, dim), of any length.
    labels : numpy.ndarray
        (n,)

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        Average precision (over all relevant) and precision at 1 of each query, (n,) both.
    """
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    precisions, first = [], []
    for query, row in enumerate(similarity):
        order = np.argsort(-row, kind="stable")
        relevant = labels[order[order != query]] == labels[query]
        ranks = np.flatnonzero(relevant) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        first.append(float(relevant[0]))
    return np.array(precisions), np.array(first)


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Give the bootstrap 95 % interval of a mean over queries (10,000 resamples)."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(10_000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def view(photograph: Image.Image, resize: int, crop: int) -> np.ndarray:
    """Resize the short side, keep the middle: uint8 (crop, crop, 3), as encoders do it."""
    width, height = photograph.size
    if width <= height:
        size = resize, int(resize * height / width)
    else:
        size = int(resize * width / height), resize
    photograph = photograph.resize(size, Image.Resampling.BILINEAR)
    left, upper = (round((side - crop) / 2) for side in size)
    return np.asarray(photograph.crop((left, upper, left + crop, upper + crop)))


def encode(network: Callable, photographs: list[Image.Image], resize: int, crop: int) -> np.ndarray:
    """Give the outputs (n, dim) of a network that wants values from -1 to 1."""
    import torch

    parts = []
    with torch.inference_mode():
        for i in range(0, len(photographs), 32):
            views = np.stack([view(p, resize, crop) for p in photographs[i : i + 32]])
            x = torch.from_numpy(views).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            parts.append(network(x).numpy())
    return np.concatenate(parts)


def colours(photograph: Image.Image) -> np.ndarray:
    """Give the histogram of 8 x 8 x 8 colours, with square roots taken (Hellinger)."""
    pixels = np.asarray(photograph.resize((128, 128), Image.Resampling.BILINEAR)) // 32
    codes = pixels[..., 0] * 64 + pixels[..., 1] * 8 + pixels[..., 2]
    return np.sqrt(np.bincount(codes.ravel().astype(int), minlength=512))


def quality(shared: Path) -> None:
    """Print mAP and P@1 of mini, its teacher and two baselines."""
    import torch

    from imgsearch import mini

    files, labels = animals(shared / "voc" / "VOC2012")
    photographs = [Image.open(file).convert("RGB") for file in files]
    teacher = torch.export.load(shared / "weights" / "mobilenet_v2.pt2").module()
    rng = np.random.default_rng(0)
    rows = {
        "mini": encode(mini.load(), photographs, mini.SPEC.resize, mini.SPEC.crop),
        "teacher, as it is": encode(teacher, photographs, 256, 224),
        "colour histogram": np.stack([colours(photograph) for photograph in photographs]),
        "random order": rng.standard_normal((len(files), 256)),
    }
    counts = ", ".join(f"{(labels == i).sum()} {name}" for i, name in enumerate(ANIMALS))
    print(f"{len(files)} photographs: {counts}")
    for name, vectors in rows.items():
        texts = []
        for values in leave_one_out(vectors, labels):
            low, high = interval(values)
            texts.append(f"{values.mean():.3f} ({low:.3f}-{high:.3f})")
        print(f"| {name} | {' | '.join(texts)} |", flush=True)


def speed(repeats: int) -> None:
    """Print images a second at batch 32 of mini and ResNet-50, taken in turn."""
    from imgsearch.encoder import load_encoder
    from imgsearch.runners import openvino_is_there

    for backend in ("eager", "openvino") if openvino_is_there() else ("eager",):
        encoders = {
            "resnet50": load_encoder("resnet50", weights="random:0", backend=backend),
            "mini": load_encoder("mini", backend=backend),
        }
        taken = {name: [] for name in encoders}
        for turn in range(repeats + 1):
            for name, encoder in encoders.items():
                side = encoder.preprocessing.crop
                batch = np.random.default_rng(turn).integers(
                    0, 256, (32, side, side, 3), dtype=np.uint8
                )
                begin = time.perf_counter()
                encoder.encode_prepared(batch)
                if turn:  # the first one prepares things
                    taken[name].append(time.perf_counter() - begin)
        for what, f in (("median", np.median), ("best", min)):
            other, ours = (f(taken[name]) for name in encoders)
            print(
                f"{backend}, {what}: resnet50 {32 / other:.0f}/s, mini {32 / ours:.0f}/s, "
                f"ratio {other / ours:.1f}",
                flush=True,
            )


FIRST = """
import time
from PIL import Image
from imgsearch.encoder import load_encoder
import torch
begin = time.perf_counter()
load_encoder("mini", backend="eager").encode([Image.new("RGB", (500, 375))])
print(f"first vector after a warm import, eager: {time.perf_counter() - begin:.2f} s")
"""


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(prog="python -m training.measure", description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    quality(options.shared)
    subprocess.run([sys.executable, "-c", FIRST], check=True, cwd=ROOT)
    speed(options.repeats)


if __name__ == "__main__":
    main()
