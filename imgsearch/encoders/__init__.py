"""Encoders: images, and with some encoders texts, in; vectors out."""

from imgsearch.encoders.base import Encoder, Preprocessing
from imgsearch.encoders.functions import from_callable
from imgsearch.encoders.loading import license_of, load_encoder
from imgsearch.encoders.registry import Entry, register
from imgsearch.encoders.registry import list_encoders as list

__all__ = [
    "Encoder", "Entry", "Preprocessing", "from_callable", "license_of", "list", "load_encoder",
    "register",
]  # fmt: skip
