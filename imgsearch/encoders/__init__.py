"""Encoders: images in, vectors out."""

from imgsearch.encoders.base import RESNETS, Encoder, Preprocessing, load_encoder

__all__ = ["RESNETS", "Encoder", "Preprocessing", "load_encoder"]
