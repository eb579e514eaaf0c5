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


@pytest.mark.parametrize("factor", [1e-9, 1e300, np.float32(2), np.int64(2), 2])
def test_only_the_proportions_of_weights_count_and_not_the_length_of_vectors(factor):
    found = combine({"query": [X], "like": [7 * Y, Z / 7]}, {"query": factor, "like": factor})
    np.testing.assert_allclose(found, unit(1, 0.5, 0.5), rtol=1e-6)


def test_parts_without_a_vector_do_not_count():
    np.testing.assert_allclose(combine({"query": [X], "like": [], "unlike": np.empty((0, 3))}), X)


@pytest.mark.parametrize(
    ("parts", "weights", "reason"),
    [
        ({}, None, "is empty: give a picture, a text, or an example"),
        ({"unlike": [X]}, None, "is empty: give a picture, a text, or an example"),
        ({"query": [X]}, {"dislike": 1}, "'dislike' is none of query, text, like, unlike"),
        ({"query": [X]}, {"text": -1}, "text is -1"),
        ({"query": [X]}, {"text": float("nan")}, "text is nan"),
        ({"query": [X]}, {"text": "much"}, "text is 'much'"),
        ({"query": [X]}, [1, 2], r"are \[1, 2\]; give a dict"),
        ({"query": [X]}, {"text": [1, 2]}, r"text is \[1, 2\]; use a number"),
        ({"like": [X, 0 * X]}, None, "or is zero"),
        ({"like": [np.nan * X]}, None, "contains NaN"),
        ({"query": [X], "unlike": [X]}, {"unlike": 1}, "cancel each other out"),
        ({"query": [X]}, {"query": 0}, "cancel each other out"),
    ],
)
def test_what_makes_no_query_is_refused(parts, weights, reason):
    with pytest.raises(ConfigError, match=reason):
        combine(parts, weights)
