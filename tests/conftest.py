"""What every test may ask for: a private home, the two kinds of stores, real photographs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def missing(part: str, how: str) -> None:
    """Skip the test, or fail it where ``IMGSEARCH_TEST_STRICT`` is set."""
    text = f"{part} is missing: {how}"
    if os.environ.get("IMGSEARCH_TEST_STRICT"):
        pytest.fail(text + " (IMGSEARCH_TEST_STRICT is set)", pytrace=False)
    pytest.skip(text)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch, tmp_path):
    """Tests neither read the user's settings nor write to the user's home."""
    from imgsearch.config import Settings

    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("IMGSEARCH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photographs and weights for development; never part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "voc").is_dir():
        pytest.skip("../shared is missing: real photographs lie beside a development checkout only")
    return folder


CARD = {
    "name": "tiny",
    "dim": 6,
    "resize": 20,
    "crop": 16,
    "interpolation": "bilinear",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
"""JSON file of the exported programs that `exported` makes."""


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Exported programs of a tiny network, and the network itself.

    The folder holds ``tiny.pt2`` (any batch), ``fixed.pt2`` (three pictures at a time) and
    their JSON files. The network has a batch norm, attention, and a reshape that depends on
    the batch's size.
    """
    import json

    import torch
    from torch import nn

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)
            self.norm = nn.BatchNorm2d(4)
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)
            self.head = nn.Linear(4, 6)
            self.register_buffer("shift", torch.randn(6), persistent=False)
            self.scale = torch.tensor([2.0])

        def forward(self, x):
            x = self.norm(self.conv(x)).relu_()
            x = x.reshape(x.shape[0], 4, -1).transpose(1, 2)
            x = nn.functional.scaled_dot_product_attention(x, x, x)
            return self.head(x).amax(1) * self.scale + self.shift

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Tiny().eval()
    folder = tmp_path_factory.mktemp("exported")
    shapes = {"x": {0: torch.export.Dim("n", min=1, max=100)}}
    for name, dynamic in (("tiny", shapes), ("fixed", None)):
        example = (torch.zeros(3, 3, 16, 16),)
        program = torch.export.export(network, example, dynamic_shapes=dynamic)
        torch.export.save(program, folder / f"{name}.pt2")
        (folder / f"{name}.json").write_text(json.dumps(CARD))
    return folder, network
