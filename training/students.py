"""Networks that were tried as students; the bundled one is ``imgsearch.encoders.mini``."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from imgsearch.encoders.mini import MiniNet

OTHERS = ("resnet", "squeeze")


def build(name: str, dim: int) -> nn.Module:
    """``mini``; ``resnet``: 18 layers, width 32; ``squeeze``: depthwise, squeeze-excite."""
    if name == "mini":
        return MiniNet(dim)
    layers: list[nn.Module]
    if name == "resnet":
        layers, width = [_unit(3, 32, 3, 2), nn.MaxPool2d(3, 2, 1)], 32
        for outside, stride in ((32, 1), (64, 2), (128, 2), (256, 2)):
            layers += [Basic(width, outside, stride), Basic(outside, outside, 1)]
            width = outside
    else:
        layers, width = [_unit(3, 24, 3, 2)], 24
        for outside, blocks, stride in ((24, 1, 2), (48, 2, 2), (96, 4, 2), (192, 3, 2)):
            for block in range(blocks):
                layers.append(Squeeze(width, outside, stride if block == 0 else 1))
                width = outside
        layers.append(_unit(width, 768))
        width = 768
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, dim))


def _unit(
    inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True) if act else nn.Identity(),
    )


class Basic(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            _unit(inside, outside, 3, stride), _unit(outside, outside, 3, act=False)
        )
        plain = stride == 1 and inside == outside
        self.shortcut = nn.Identity() if plain else _unit(inside, outside, 1, stride, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inside, h, w) to (n, outside, h / stride, w / stride)."""
        return functional.relu(self.body(x) + self.shortcut(x))


class Squeeze(nn.Module):
    """Inverted residual with channels weighted by what the whole picture says."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        hidden = 4 * inside
        self.filter = nn.Sequential(
            _unit(inside, hidden), _unit(hidden, hidden, 3, stride, groups=hidden)
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, hidden // 8, 1), nn.ReLU(),
            nn.Conv2d(hidden // 8, hidden, 1), nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = _unit(hidden, outside, act=False)
        self.skip = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inside, h, w) to (n, outside, h / stride, w / stride)."""
        y = self.filter(x)
        y = self.project(y * self.gate(y))
        return x + y if self.skip else y
