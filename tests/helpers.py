"""Small makers of test data, and a loader that tests and benchmarks share."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from imgsearch.stores.metadata import ImageRow


def paint(path: Path, seed: int, size: tuple[int, int] = (64, 48)) -> Path:
    """Make a picture of coarse coloured noise: other seeds look unlike it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def rows_and_vectors(
    dim: int, n: int, seed: int = 0
) -> tuple[list[ImageRow], dict[int, np.ndarray]]:
    """Rows as an ingest makes them, and random unit vectors by id."""
    rng = np.random.default_rng(seed)
    rows, vectors = [], {}
    for i in range(n):
        digest = hashlib.sha256(f"{seed}/{i}".encode()).hexdigest()
        image_id = int(digest[:16], 16) >> 1
        vector = rng.standard_normal(dim).astype(np.float32)
        vectors[image_id] = vector / np.linalg.norm(vector)
        rows.append(
            ImageRow(
                path=f"/photos/{seed}/{i:05d}.jpg",
                image_id=image_id,
                sha256=digest,
                size=1000 + i,
                width=640,
                height=480,
                format="JPEG",
                mtime_ns=1_700_000_000_000_000_000 + i,
                state="pending",
                added_at=datetime.now(UTC),
                vector_crc=0,
            )
        )
    return rows, vectors


def write_small_onnx(path: Path) -> None:
    """Write a network for pictures of 32 pixels that gives 512 numbers, with its JSON card.

    Its weights are random and always the same. It takes a thousandth of the time of a ResNet.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    shapes = {"conv": (16, 3, 4, 4), "head": (1024, 512)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape, np.float32) / shape[0], name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["a"], strides=[4, 4]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "head"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])]
        for name, shape in (("x", (3, 32, 32)), ("y", (512,)))
    ]
    graph = helper.make_graph(nodes, "small", *ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    half = [0.5, 0.5, 0.5]
    card = {"name": "small", "dim": 512, "resize": 32, "crop": 32, "mean": half, "std": half}
    path.with_suffix(".json").write_text(json.dumps(card))
    save(model, path)


def load_torchvision() -> None:
    """Import torchvision, also beside a torch that its compiled operators do not fit."""
    try:
        import torchvision
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        from torch import library as extending

        operators = extending.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        load_torchvision.operators = operators  # they live as long as this
        import torchvision  # noqa: F401


PEAK_MEMORY = """
import re, resource
from pathlib import Path
def peak_memory():
    # ru_maxrss would count the memory of the process that started this one, too.
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024
"""
"""Defines ``peak_memory()`` in a program: the most memory that it has held so far, in bytes."""


def run_async(work):
    """Run a coroutine in a thread: the browser's event loop may be running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
