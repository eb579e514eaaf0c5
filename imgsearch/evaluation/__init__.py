"""Evaluation of retrieval quality: protocols, rankings, scores, statistics and reports.

:func:`prepare` combines a collection with a dataset into a :class:`Task`; :func:`evaluate`
ranks and scores it; :func:`compare` compares two evaluations; :func:`sweep` measures how much
of the exact ranking an index finds, which is separate from the quality of the embedding.
:mod:`~imgsearch.evaluation.plots` draws the results, and :mod:`~imgsearch.evaluation.trec`
writes them for trec_eval.

The names below are imported on first use.
"""

from __future__ import annotations

from importlib import import_module

_NAMES = {
    "comparison": ("Comparison", "compare"),
    "index_sweep": ("IndexPoint", "SWEEP", "sweep"),
    "metrics": ("METRICS", "Metric"),
    "protocols": ("Protocol", "prepare"),
    "report": ("evaluate_collections", "write_evaluations"),
    "scoring": ("Evaluation", "Score", "Task", "evaluate", "task"),
    "topics": ("JudgedTopics",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
