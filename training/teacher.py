"""The teacher: an exported MobileNetV2, its weights and its features."""

from __future__ import annotations

import torch
from torch import nn

SIDE = 224
"""Side of the teacher's input in pixels."""


def inherit(student: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give the student's convolutions the teacher's weights, batch norms folded in.

    Both list their convolutions in the same order. Kernels are turned by half a turn, as
    ``MiniNet.pooled`` turns the picture.

    Parameters
    ----------
    student : torch.nn.Module
        Its convolutions have biases and the shapes of the teacher's.
    state : dict of str to torch.Tensor
        The teacher's, in the order of its layers.
    """
    kernels = [name for name, value in state.items() if value.ndim == 4]
    norms = [n.removesuffix("running_mean") for n in state if n.endswith("running_mean")]
    convolutions = [module for module in student.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for convolution, kernel, norm in zip(convolutions, kernels, norms, strict=True):
            weight, bias, mean, variance = (
                state[norm + part] for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = weight / torch.sqrt(variance + 1e-5)
            turned = (state[kernel] * scale[:, None, None, None]).flip((2, 3))
            convolution.weight.copy_(turned)
            convolution.bias.copy_(bias - mean * scale)


def principal_axes(features: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (features,) and the `dim` strongest principal axes (features, dim) of a sample."""
    features = features.double()
    mean = features.mean(0)
    _, axes = torch.linalg.eigh((features - mean).T @ (features - mean))
    axes = axes.flip(1)[:, :dim]
    axes = axes * axes.sum(0).sign()  # an axis has no direction of its own: choose one
    return mean.float(), axes.float()
