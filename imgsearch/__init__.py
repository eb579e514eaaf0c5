"""Reverse image search for researchers: ingest, search and evaluate from notebooks.

Importing this package loads none of torch, towhee, pymilvus and matplotlib: the
names below are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "Gallery": "gallery",
    "Hits": "hits",
    "ImgSearchError": "errors",
    "IngestReport": "ingestion",
    "Settings": "config",
    "ingest": "ingestion",
    "load_encoder": "encoders",
    "repair": "maintenance",
    "load_settings": "config",
    "verify": "maintenance",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"imgsearch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'imgsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
