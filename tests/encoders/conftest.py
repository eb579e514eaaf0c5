"""Small ONNX models, and timm where `make .timm/stamp` has put it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import ROOT, missing
from tests.helpers import load_torchvision

CARD = {
    "name": "tiny",
    "dim": 6,
    "resize": 20,
    "crop": 16,
    "interpolation": "bilinear",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "license": "CC0-1.0",
}
"""JSON card of the models that `write_onnx` makes."""


class Tiny(nn.Module):
    """A convolution, a pooling and a linear layer: pictures of 16 pixels to 6 numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 6)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


def write_onnx(path: Path, network: Tiny, *, batch: int | None = None, **card) -> Path:
    """Write a network as an ONNX file, for batches of one size or of any, with its card."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = [
        numpy_helper.from_array(value.numpy(), name) for name, value in network.state_dict().items()
    ]
    nodes = [
        helper.make_node(
            "Conv", ["x", "conv.weight", "conv.bias"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or "n", *shape])
        for name, shape in (("x", (3, 16, 16)), ("y", (6,)))
    ]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    path.with_suffix(".json").write_text(json.dumps(CARD | card))
    return path


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def onnx_file(tiny, tmp_path_factory) -> Path:
    """`tiny` as an ONNX file that takes any batch."""
    return write_onnx(tmp_path_factory.mktemp("onnx") / "tiny.onnx", tiny)


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """Preprocessed pictures for `tiny`."""
    return np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, installed or from ``.timm``."""
    sys.path.append(os.fspath(ROOT / ".timm"))
    try:
        load_torchvision()
    except ImportError:
        missing("torchvision", "make .timm/stamp")
    import torchvision

    return torchvision


@pytest.fixture(scope="session")
def open_clip(torchvision):
    """open_clip, installed or from ``.timm``."""
    try:
        import open_clip
    except ImportError:
        missing("open_clip", "make .timm/stamp")
    return open_clip


@pytest.fixture(scope="session")
def timm(torchvision):
    """timm, installed or from ``.timm``."""
    try:
        import timm
    except ImportError:
        missing("timm", "make .timm/stamp")
    return timm
