"""Encoders: images in, vectors out."""

from imgsearch.encoders.base import Encoder, Preprocessing
from imgsearch.encoders.registry import Entry, entries, load_encoder, register

__all__ = ["Encoder", "Entry", "Preprocessing", "entries", "load_encoder", "register"]
