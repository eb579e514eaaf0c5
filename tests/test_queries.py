"""Queries of several parts: Rocchio's formula, its weights, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from imgsearch.errors import ConfigError
from imgsearch.queries import combine

X, Y, Z = np.eye(3, dtype=np.float32)


def unit(*numbers):
    return np.array(numbers) / np.linalg.norm(numbers)


def test_each_part_has_its_weight_and_a_part_is_the_mean_of_its_vectors():
    found = combine({"query": [X], "text": [Y], "like": [Y, Z], "unlike": [X]})
    np.testing.assert_allclose(found, unit(1 - 0.15, 1 + 0.375, 0.375), rtol=1e-6)
    assert found.dtype == np.float32


def test_weights_can_be_chosen_one_by_one():
    found = combine({"query": [X], "like": [Y]}, {"like": 2})
    np.testing.assert_allclose(found, unit(1, 2, 0), rtol=1e-6)
    np.testing.assert_allclose(combine({"query": [X], "like": [Y]}, {"query": 0}), Y)


def test_parts_without_a_vector_do_not_count():
    np.testing.assert_allclose(combine({"query": [X], "like": [], "unlike": np.empty((0, 3))}), X)


@pytest.mark.parametrize(
    ("parts", "weights", "reason"),
    [
        ({}, None, "give a picture, a text or something to be like"),
        ({"unlike": [X]}, None, "give a picture, a text or something to be like"),
        ({"query": [X]}, {"dislike": 1}, "'dislike' is none of query, text, like, unlike"),
        ({"query": [X]}, {"text": -1}, "text is -1"),
        ({"query": [X]}, {"text": float("nan")}, "text is nan"),
        ({"query": [X]}, {"text": "much"}, "text is 'much'"),
        ({"query": [X], "unlike": [X]}, {"unlike": 1}, "cancel each other out"),
        ({"query": [X]}, {"query": 0}, "cancel each other out"),
    ],
)
def test_what_makes_no_query_is_refused(parts, weights, reason):
    with pytest.raises(ConfigError, match=reason):
        combine(parts, weights)
