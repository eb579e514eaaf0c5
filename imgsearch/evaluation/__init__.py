"""Evaluation of retrieval quality: protocols, rankings, scores, statistics and reports.

:func:`prepare` combines a collection with a dataset into a :class:`Task`; :func:`evaluate`
ranks and scores it; :func:`compare` sets two evaluations against each other; :func:`sweep`
measures how much of the exact ranking an index finds, which is another matter than the
quality of the embedding. :mod:`~imgsearch.evaluation.plots` draws the results, and
:mod:`~imgsearch.evaluation.trec` writes them for trec_eval.

The names below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module

_MODULES = {
    "Comparison": "comparison",
    "Evaluation": "scoring",
    "IndexPoint": "index_sweep",
    "METRICS": "metrics",
    "Metric": "metrics",
    "Protocol": "protocols",
    "SWEEP": "index_sweep",
    "Score": "scoring",
    "Task": "scoring",
    "compare": "comparison",
    "evaluate": "scoring",
    "evaluate_collections": "report",
    "prepare": "protocols",
    "sweep": "index_sweep",
    "task": "scoring",
    "write_evaluations": "report",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
