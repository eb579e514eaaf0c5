"""One query vector from several parts: a picture, a text, examples and counter-examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

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
    chosen = WEIGHTS | _checked(weights)
    given = {name: _unit(vectors) for name, vectors in parts.items() if len(vectors)}
    if not given.keys() - {"unlike"}:
        raise ConfigError(
            "query", "is empty: give a picture, a text, or an example of what is looked for"
        )
    scale = max(chosen[name] for name in given) or 1  # only the proportions of weights matter
    signs = {"unlike": -1.0}
    total = sum(
        signs.get(name, 1.0) * (chosen[name] / scale) * vectors.mean(axis=0)
        for name, vectors in given.items()
    )
    length = np.linalg.norm(total)
    if length < 1e-6:
        raise ConfigError("query", "its parts cancel each other out: change the parts or weights")
    return (total / length).astype(np.float32)


def _checked(weights: Mapping[str, float] | None) -> dict[str, float]:
    if not isinstance(weights or {}, Mapping):
        example = '{"unlike": 0.5}'
        raise ConfigError("weights", f"are {weights!r}; give a dict, such as {example}")
    for name, weight in (weights or {}).items():
        if name not in WEIGHTS:
            raise ConfigError("weights", f"{name!r} is none of {', '.join(WEIGHTS)}")
        if not (isinstance(weight, Real) and 0 <= weight < math.inf):
            raise ConfigError("weights", f"{name} is {weight!r}; use a number of at least 0")
    return {name: float(weight) for name, weight in (weights or {}).items()}


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ConfigError("query", "one of its vectors contains NaN or infinity, or is zero")
    return vectors / lengths
