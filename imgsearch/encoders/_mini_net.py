"""The network of `imgsearch.encoders.mini`, apart from it because it needs torch to be defined."""

from __future__ import annotations

import torch
from torch import nn

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
    """MobileNetV2 1.0 with a linear head of `dim` outputs.

    Parameters
    ----------
    dim : int
        Number of outputs.
    """

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
