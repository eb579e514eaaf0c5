"""ResNets (He et al. 2015) with the ImageNet weights that torchvision published.

The names in the state dict are those that torchvision and timm share, so that the weights of
either load unchanged.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from imgsearch.encoders import weights as files
from imgsearch.encoders.backends import TorchModel
from imgsearch.encoders.base import Preprocessing

LAYERS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""Kind of block and number of blocks in the four stages (table 1 of the paper)."""


class ResNetModel(TorchModel):
    """``resnet18`` to ``resnet152``."""

    @classmethod
    def load(cls, name: str, weights: str | None, home: Path) -> ResNetModel:
        """Build the network and load its weights."""
        network = resnet(name)
        seed = files.random_seed(weights)
        if seed is None:
            state = files.read_state(files.locate(name, weights, home))
        else:
            state = files.random_state(network, seed)
        files.load_state(network, state, weights or name)
        return cls(
            f"{name}@{weights}" if weights else name, name, network.dim, Preprocessing(),
            files.digest(state), network=fuse_conv_bn(network),
        )  # fmt: skip


def resnet(name: str) -> ResNet:
    """Build a ResNet in eval mode that has no weights yet (it is on the meta device)."""
    with torch.device("meta"):
        return ResNet(name).eval()


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        return functional.relu(x + shortcut, inplace=True)


class _Bottleneck(nn.Module):
    # the stride is on the 3 x 3 convolution ("v1.5"), as in torchvision and timm
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(x))
        return functional.relu(x + shortcut, inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """ResNet without its classifier: images in, average-pooled features out."""

    def __init__(self, name: str):
        super().__init__()
        kind, counts = LAYERS[name]
        block = {"basic": _Basic, "bottleneck": _Bottleneck}[kind]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(counts):
            width = 64 * 2**stage
            blocks = []
            for index in range(count):
                blocks.append(block(inputs, width, 2 if stage and not index else 1))
                inputs = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.dim = inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pictures (n, 3, height, width) to features (n, dim), not normalised."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


def fuse_conv_bn(network: nn.Module) -> nn.Module:
    """Merge each batch norm of a network in eval mode into the convolution before it, in place.

    Works on pairs that follow one another: ``convN`` and ``bnN`` of one module, and
    neighbours in a ``Sequential``.
    """
    for module in network.modules():
        children = dict(module.named_children())
        names = list(children)
        if isinstance(module, nn.Sequential):
            pairs = list(itertools.pairwise(names))
        else:
            pairs = [(name, name.replace("conv", "bn")) for name in names if "conv" in name]
        for first, second in pairs:
            conv, norm = children[first], children.get(second)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return network
