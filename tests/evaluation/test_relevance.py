"""Relevance, junk and counts, against the words of the definition taken one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgsearch.errors import ConfigError
from imgsearch.evaluation import ranking, relevance
from imgsearch.evaluation.relevance import Labels


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 6), st.integers(1, 63))
def test_counts_and_judgements_follow_the_definition(seed, n, classes, mask):
    generator = np.random.default_rng(seed)
    present = generator.random((n, classes)) < 0.4
    difficult = ~present & (generator.random((n, classes)) < 0.3)
    ids = np.sort(generator.integers(0, n, n))  # with copies
    labels = Labels.of(present, difficult)
    skip = ranking.copies(ids, ids)
    counted = [c for c in range(classes) if mask >> c & 1]
    rows = relevance.members(labels, mask)
    assert rows.tolist() == [i for i in range(n) if present[i, counted].any()]
    counts = relevance.count(labels[rows], labels, skip[rows], mask)
    order = np.tile(np.append(np.arange(n, dtype=np.int32), -1), (len(rows), 1))
    judge = relevance.Judge(labels)
    gains, junk, *_ = judge.verdicts(judge.places(order), labels[rows], mask)
    for at, i in enumerate(rows):
        expected = []
        for j in range(n):
            sure = sum(bool(present[i, c] and present[j, c]) for c in counted)
            shown = any(
                (present | difficult)[i, c] and (present | difficult)[j, c] for c in counted
            )
            expected.append((sure, shown and not sure))
        assert gains[at].tolist() == [g for g, _ in expected] + [0]
        assert junk[at].tolist() == [j for _, j in expected] + [True]
        others = [e for j, e in enumerate(expected) if ids[j] != ids[i]]
        assert counts.relevant[at] == sum(g > 0 for g, _ in others)
        assert counts.candidates[at] == sum(not j for _, j in others)
        for level, number in enumerate(counts.at_least[at], 1):
            assert number == sum(g >= level for g, _ in others)


def test_a_match_by_a_difficult_object_of_the_query_is_junk_too():
    # The query: a dog, and a person that is difficult. The other: a person.
    query = Labels.of(np.array([[True, False]]), np.array([[False, True]]))
    other = Labels.of(np.array([[False, True]]))
    judge = relevance.Judge(other)
    gains, junk, *_ = judge.verdicts(judge.places(np.array([[0]], np.int32)), query, 3)
    assert (gains.tolist(), junk.tolist()) == ([[0]], [[True]])
    gains, junk, *_ = judge.verdicts(judge.places(np.array([[0]], np.int32)), query, 1)
    assert (gains.tolist(), junk.tolist()) == ([[0]], [[False]])


@pytest.mark.parametrize("classes", [31, 32, 63])
def test_many_classes_fit_into_the_bits(classes):
    """Review 6(b): 31 classes were the limit."""
    present = np.eye(classes, dtype=bool)
    difficult = np.roll(present, 1, axis=1)
    labels, mask = Labels.of(present, difficult), (1 << classes) - 1
    judge = relevance.Judge(labels)
    order = np.tile(np.append(np.arange(classes, dtype=np.int32), -1), (classes, 1))
    gains, junk, *_ = judge.verdicts(judge.places(order), labels, mask)
    assert (gains[:, :-1] == present).all()
    assert (junk[:, :-1] == (difficult | difficult.T)).all()
    assert junk[:, -1].all()
    skip = np.stack([np.arange(classes), np.arange(classes) + 1], axis=1)
    counts = relevance.count(labels, labels, skip, mask)
    assert counts.relevant.tolist() == [0] * classes
    assert counts.candidates.tolist() == [classes - 3] * classes


def test_too_many_classes_are_refused():
    with pytest.raises(ConfigError, match="there are 80, but an evaluation supports at most 63"):
        Labels.of(np.ones((2, 80), bool))
