"""``mini``, the encoder that is part of the package: small, fast, no download.

A MobileNetV2 (Sandler et al., CVPR 2018, arXiv:1801.04381) of width 1.0 for pictures of 160
pixels, with a linear head of 256 outputs in place of the classifier. It inherits the weights of
an ImageNet-trained MobileNetV2 and was distilled from it by ``training/distil.py``.
``docs/mini-encoder.md`` describes what it can do and what it is not for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from imgsearch.encoders import weights as files
from imgsearch.encoders.backends import TorchModel
from imgsearch.encoders.base import Preprocessing
from imgsearch.encoders.mini_words import known_words
from imgsearch.errors import ConfigError, WeightsError

DIM = 256
PREPROCESSING = Preprocessing(183, 160, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FILE = Path(__file__).parent / "mini.safetensors"
SHA256 = "6b494120c34934e3146e9c9e04ef7b67e5f78b60f755e8d01cffb609b5b7e7a4"

# Expansion, channels, blocks and first stride of each stage (MobileNetV2, table 2).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FEATURES = 1280


class MiniModel(TorchModel):
    """``mini``."""

    text = True

    @classmethod
    def load(cls, name: str, weights: str | None, home: Path) -> MiniModel:
        """Build the network and load the bundled weights."""
        if weights is not None:
            raise ConfigError("weights", "leave it out: mini has its own")
        if files.file_digest(FILE) != SHA256:
            raise WeightsError("mini", f"{FILE} is damaged: install imgsearch again")
        network, state = build(), files.read_state(FILE)
        files.load_state(network, state, name)
        return cls(name, DIM, PREPROCESSING, files.digest(state), network=network)

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Return the directions of known words; EncoderError for any other."""
        return known_words().encode(texts)


def build() -> MiniNet:
    """Make the network in eval mode, with random weights."""
    return MiniNet(DIM).eval()


def _conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    # There are no batch norms: the inherited weights came with theirs folded in.
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where shapes allow."""

    def __init__(self, inside: int, outside: int, expansion: int, stride: int):
        super().__init__()
        hidden = inside * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [_conv(inside, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [_conv(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(inplace=True)]
        layers += [_conv(hidden, outside, 1)]
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inside, h, w) to (n, outside, h / stride, w / stride)."""
        y = self.layers(x)
        return x + y if self.skip else y


class MiniNet(nn.Module):
    """MobileNetV2 1.0 with a linear head of `dim` outputs."""

    def __init__(self, dim: int):
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.ReLU6(inplace=True)]
        channels = 32
        for expansion, outside, blocks, stride in STAGES:
            for block in range(blocks):
                first = stride if block == 0 else 1
                layers.append(InvertedResidual(channels, outside, expansion, first))
                channels = outside
        layers += [_conv(channels, FEATURES, 1), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, dim)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Map pictures (n, 3, side, side) to features (n, 1280), before the head."""
        # TensorFlow pads a strided convolution at the right and bottom, torch at the left
        # and top. So picture and kernels are turned by half a turn: the inherited numbers
        # are met exactly, and no layer has to copy its input for a lopsided border.
        return self.features(x.flip((2, 3))).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pictures (n, 3, side, side) to vectors (n, dim), not L2-normalised."""
        return self.head(self.pooled(x))
