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
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}
"""Whether the blocks are bottlenecks, and how many the four stages have (table 1 of the paper)."""


class ResNetModel(TorchModel):
    """``resnet18`` to ``resnet152``."""

    @classmethod
    def load(cls, name: str, weights: str | None, home: Path) -> ResNetModel:
        """Build the network and load its weights."""
        network = resnet(name)
        state = files.state_of(network, name, weights, home)
        files.load_state(network, state, weights or name)
        digest = files.digest(state)
        return cls(name, network.dim, Preprocessing(), digest, network=fuse_conv_bn(network))


def resnet(name: str) -> ResNet:
    """Build a ResNet in eval mode that has no weights yet (it is on the meta device)."""
    with torch.device("meta"):
        return ResNet(name).eval()


class _Block(nn.Module):
    """Convolutions of 3 x 3 twice, or of 1 x 1, 3 x 3 and 1 x 1; added to a shortcut."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, *, bottleneck: bool):
        super().__init__()
        # A bottleneck has its stride in the middle ("v1.5"), as in torchvision and timm.
        kernel, first, second = (1, 1, stride) if bottleneck else (3, stride, 1)
        self.conv1, self.bn1 = _conv(inputs, width, kernel, first)
        self.conv2, self.bn2 = _conv(width, width, 3, second)
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv3, self.bn3 = _conv(width, outputs, 1)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.downsample.extend(_conv(inputs, outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(functional.relu(y, inplace=True)))
        return functional.relu(y + self.downsample(x), inplace=True)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class ResNet(nn.Module):
    """ResNet without its classifier: images in, average-pooled features out."""

    def __init__(self, name: str):
        super().__init__()
        bottleneck, counts = LAYERS[name]
        self.conv1, self.bn1 = _conv(3, 64, 7, 2)
        inputs = 64
        for stage, count in enumerate(counts):
            width, blocks = 64 * 2**stage, nn.Sequential()
            for index in range(count):
                outputs = 4 * width if bottleneck else width
                stride = 2 if stage and not index else 1
                blocks.append(_Block(inputs, width, outputs, stride, bottleneck=bottleneck))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", blocks)
        self.dim = inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pictures (n, 3, height, width) to features (n, dim), not normalised."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


def fuse_conv_bn(network: nn.Module) -> nn.Module:
    """Merge each batch norm of a network in eval mode into the convolution before it, in place."""
    for module in network.modules():
        for (first, conv), (second, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return network
