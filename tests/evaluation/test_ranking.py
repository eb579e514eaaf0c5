"""Exact rankings: the same for any block size, ties by place, copies left out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgsearch.evaluation import ranking


def run(queries, gallery, skip=None, rows=1000):
    size = 8 * len(gallery) * rows
    blocks = [make() for make in ranking.exact(queries, gallery, skip, block_bytes=size)]
    assert [b.start for b in blocks] == list(range(0, len(queries), rows))
    order = np.concatenate([b.order for b in blocks])
    scores = np.concatenate([[b.scores(r) for r in range(len(b.order))] for b in blocks])
    return order, scores


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 90), st.integers(1, 70))
def test_the_same_result_for_any_block_size_with_copies_far_apart(seed, rows, n, dim):
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((n, dim)).astype(np.float32)
    vectors = vectors[generator.integers(0, n, n)]  # some are equal
    whole, one = run(vectors, vectors), run(vectors, vectors, rows=rows)
    assert (whole[0] == one[0]).all()
    assert (whole[1] == one[1]).all()
    unit = vectors / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    expected = np.round(unit @ unit.T, 7)
    for row, order in enumerate(whole[0]):
        assert sorted(order) == list(range(n))
        ranked = np.take(expected[row], order)
        assert (np.diff(ranked) <= 2e-7).all()
        assert whole[1][row] == pytest.approx(ranked, abs=2e-7)
        for a, b in pairwise(order):
            if (vectors[a] == vectors[b]).all():
                assert a < b


def test_a_query_ranks_alone_as_in_a_block():
    generator = np.random.default_rng(3)
    vectors = generator.standard_normal((500, 64)).astype(np.float32)
    together, _ = run(vectors, vectors)
    for i in (0, 77, 499):
        assert (run(vectors[i : i + 1], vectors)[0][0] == together[i]).all()


def test_the_length_of_vectors_does_not_matter():
    generator = np.random.default_rng(4)
    vectors = generator.standard_normal((40, 8))
    scaled = vectors * generator.choice([2.0, 0.5, 1024.0], (40, 1))
    assert (run(vectors, vectors)[0] == run(scaled, scaled)[0]).all()


def test_a_query_and_its_copies_are_found_by_id():
    ids = np.array([3, 5, 5, 9])
    vectors = np.array([[1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0]])  # 3 ties with 5
    skip = ranking.copies(np.array([5, 9, 4]), ids)
    assert skip.tolist() == [[1, 3], [3, 4], [1, 1]]
    order, _ = run(vectors[[1, 3, 0]], vectors, skip)
    assert order.tolist() == [[0, 3, -1, -1], [0, 1, 2, -1], [0, 1, 2, 3]]


def test_opposite_and_equal_vectors_have_scores_of_minus_one_and_one():
    vectors = np.random.default_rng(5).standard_normal((1, 2048))
    order, scores = run(vectors, np.concatenate([-vectors, vectors]))
    assert order.tolist() == [[1, 0]]
    assert scores[0] == pytest.approx([1, -1], abs=1e-8)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_vectors_without_a_direction_are_refused(bad):
    good = np.ones((2, 3))
    with pytest.raises(ValueError, match="not finite, or has length zero"):
        run(good, good * [[1], [bad]])
    with pytest.raises(ValueError, match="differ"):
        list(ranking.exact(good, np.ones((2, 4))))
