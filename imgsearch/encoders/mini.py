"""``mini``, the encoder that is part of the package: small, quick, no download.

A MobileNetV2 [1]_ of width 1.0 for pictures of 160 pixels, with a linear head of 256
outputs in place of the classifier. It inherits the weights of an ImageNet-trained
MobileNetV2 and was distilled from it by ``training/distil.py``;
``docs/mini-encoder.md`` says what it can do and what it is not for.

References
----------
.. [1] Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
   CVPR 2018, arXiv:1801.04381.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Spec(NamedTuple):
    """What the bundled weights are, and what a picture must look like for them.

    Attributes
    ----------
    name : str
        The encoder's name.
    dim : int
        Number of outputs.
    resize, crop : int
        Short side after resizing, and side of the centre crop, in pixels.
    interpolation : str
        Filter of the resize.
    mean, std : tuple of float
        Normalisation of each channel, for values from 0 to 1.
    file : str
        Name of the weights in ``imgsearch/encoders``.
    sha256 : str
        Its digest, in hexadecimal.
    bytes : int
        Its size.
    """

    name: str
    dim: int
    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    file: str
    sha256: str
    bytes: int


SPEC = Spec(
    name="mini",
    dim=256,
    resize=183,
    crop=160,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    file="mini.safetensors",
    sha256="6b494120c34934e3146e9c9e04ef7b67e5f78b60f755e8d01cffb609b5b7e7a4",
    bytes=5079568,
)


def build() -> torch.nn.Module:
    """Make the network, with random weights.

    Returns
    -------
    torch.nn.Module
        In evaluation mode. It takes float32 of shape (n, 3, 160, 160), normalised as
        `SPEC` says, and gives float32 of shape (n, 256), not yet L2-normalised.
    """
    from imgsearch.encoders._mini_net import MiniNet

    return MiniNet(SPEC.dim).eval()
