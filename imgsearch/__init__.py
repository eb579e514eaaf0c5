"""Reverse image search for researchers: ingest, search and evaluate from notebooks.

Importing this package loads none of torch, towhee, pymilvus and matplotlib: the
names below are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "Gallery": "gallery",
    "Hit": "hits",
    "Hits": "hits",
    "Image": "hits",
    "ImgSearchError": "errors",
    "IngestReport": "ingestion",
    "Session": "sessions",
    "Settings": "config",
    "evaluate": "evaluation.report:evaluate_gallery",
    "ingest": "ingestion",
    "list_galleries": "gallery",
    "list_sessions": "sessions",
    "load_encoder": "encoders",
    "load_settings": "config",
    "repair": "maintenance",
    "verify": "maintenance",
}

_PACKAGES = ("datasets", "encoders", "evaluation", "widgets")

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        module, _, other = _HOMES[name].partition(":")
        return getattr(import_module(f"imgsearch.{module}"), other or name)
    if name in _PACKAGES:
        return import_module(f"imgsearch.{name}")
    raise AttributeError(f"module 'imgsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_PACKAGES]
