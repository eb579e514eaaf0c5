"""One query vector from several parts: a picture, a text, examples and counter-examples."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from imgsearch.errors import ConfigError

WEIGHTS = {"query": 1.0, "text": 1.0, "like": 0.75, "unlike": 0.15}
"""Weights of the parts: Rocchio's alpha (of a picture and of a text), beta and gamma."""


def combine(
    parts: Mapping[str, np.ndarray], weights: Mapping[str, float] | None = None
) -> np.ndarray:
    r"""Combine unit vectors by Rocchio's formula, float32 (dim,), of length 1.

    .. math:: q = \alpha\,(q_0 + t) + \frac{\beta}{|L|} \sum_{v \in L} v
              - \frac{\gamma}{|U|} \sum_{v \in U} v

    `parts` has the vectors, (n, dim), by the names of :data:`WEIGHTS`; a part without a
    vector does not count. See Rocchio: Relevance feedback in information retrieval, in
    Salton (ed.): The SMART Retrieval System, 1971; the default weights are those of
    Manning, Raghavan, Schütze: Introduction to Information Retrieval, 2008, section 9.1.1.
    """
    chosen = WEIGHTS | dict(weights or {})
    for name, weight in chosen.items():
        if name not in WEIGHTS:
            raise ConfigError("weights", f"{name!r} is none of {', '.join(WEIGHTS)}")
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
            raise ConfigError("weights", f"{name} is {weight!r}; use a number of at least 0")
    given = {name: np.asarray(v, np.float64) for name, v in parts.items() if len(v)}
    if not given.keys() - {"unlike"}:
        raise ConfigError("query", "give a picture, a text or something to be like")
    signs = {"unlike": -1.0}
    total = sum(signs.get(name, 1.0) * chosen[name] * v.mean(axis=0) for name, v in given.items())
    length = np.linalg.norm(total)
    if length < 1e-6:
        raise ConfigError("query", "its parts cancel each other out: change parts or weights")
    return (total / length).astype(np.float32)
