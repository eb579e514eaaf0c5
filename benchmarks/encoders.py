"""Time encoders side by side: images a second of each, and mini's first vector.

    python benchmarks/encoders.py --colours colours.npz --voc ../shared/voc/VOC2012

Batches of random pixels, encoders taken in turn in one process; ResNet-50 has random
weights, which are as quick as any. `--colours` also writes colour histograms of a VOC
folder's photographs, a baseline for `single_label.py --vectors`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from imgsearch.encoders import load_encoder
from imgsearch.encoders.backends import openvino_installed

ROOT = Path(__file__).resolve().parent.parent
FIRST = """
import time
import torch
from PIL import Image
from imgsearch.encoders import load_encoder
begin = time.perf_counter()
load_encoder("mini", backend=BACKEND).encode([Image.new("RGB", (500, 375))])
print(f"{time.perf_counter() - begin:.2f}")
"""


def speed(backend: str, batch: int, repeats: int) -> None:
    encoders = {
        "resnet50": load_encoder("resnet50", weights="random:0", backend=backend),
        "mini": load_encoder("mini", backend=backend),
    }
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    rng = np.random.default_rng(0)
    for turn in range(repeats + 1):
        for name, encoder in encoders.items():
            side = encoder.preprocessing.crop
            pixels = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
            begin = time.perf_counter()
            encoder.encode_batch(pixels)
            if turn:  # the first turn prepares things
                taken[name].append(time.perf_counter() - begin)
    for what, reduce in (("median", np.median), ("best", min)):
        slow, quick = (reduce(taken[name]) for name in encoders)
        print(
            f"{backend} ({encoders['mini'].precision}), batch {batch}, {what} of {repeats}: "
            f"resnet50 {batch / slow:.0f}/s, mini {batch / quick:.0f}/s, ratio {slow / quick:.1f}",
            flush=True,
        )


def colours(voc: Path, target: Path) -> None:
    """Write histograms of 8 x 8 x 8 colours, square roots taken (Hellinger's distance)."""
    from PIL import Image

    names, vectors = [], []
    for path in sorted((voc / "JPEGImages").glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB").resize((128, 128)), dtype=int) // 32
        codes = pixels @ (64, 8, 1)
        names.append(path.stem)
        vectors.append(np.sqrt(np.bincount(codes.ravel(), minlength=512)))
    np.savez(target, names=names, vectors=np.array(vectors, dtype=np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--voc", type=Path)
    parser.add_argument("--colours", type=Path, help="an .npz to write")
    arguments = parser.parse_args()
    if arguments.colours:
        colours(arguments.voc, arguments.colours)
    for backend in ("eager", "openvino") if openvino_installed() else ("eager",):
        code = FIRST.replace("BACKEND", repr(backend))
        times = [
            subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
            ).stdout.strip()
            for _ in range(3)
        ]
        print(f"{backend}: first vector after `import torch`, seconds: {', '.join(times)}")
        speed(backend, arguments.batch, arguments.repeats)


if __name__ == "__main__":
    main()
