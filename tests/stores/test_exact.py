"""Exact search in parts finds what a sorted product finds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from imgsearch.stores import exact
from imgsearch.stores.exact import Part, among, nearest


def parts_of(ids, vectors, alive, sizes):
    ends = np.cumsum([0, *sizes]).tolist()
    return [
        Part(ids[a:b], vectors[a:b], np.linalg.norm(vectors[a:b], axis=1), alive[a:b])
        for a, b in pairwise(ends)
    ]


WAYS = {"at once": (2**24, 2**25), "query by query": (700, 2**25), "in threads": (2**24, 6_400)}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def rows(request, monkeypatch):
    monkeypatch.setattr(exact, "SCORES_AT_ONCE", request.param[0])
    monkeypatch.setattr(exact, "PIECE", request.param[1])
    random = np.random.default_rng(5)
    vectors = random.standard_normal((1_000, 16), dtype=np.float32)
    vectors[500:510] = vectors[100]  # equal scores in two parts
    return random.permutation(1_000) - 500, vectors, random.random(1_000) < 0.9


def wanted(ids, vectors, allowed, query, top_k):
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.round(units @ (query / np.linalg.norm(query)), 5)
    order = [row for row in np.lexsort((ids, -scores)) if allowed[row]]
    return ids[order[:top_k]].tolist()


def test_hits_are_the_nearest_living_rows_and_ties_go_by_id(rows):
    ids, vectors, alive = rows
    queries = np.concatenate([3 * vectors[[100, 7]], -vectors[[9]]])
    found = nearest(parts_of(ids, vectors, alive, (400, 599, 1)), queries, 15)
    for query, (hits, _) in zip(queries, found, strict=True):
        assert hits.tolist() == wanted(ids, vectors, alive, query, 15)
        (alone,) = nearest(parts_of(ids, vectors, alive, (400, 599, 1)), query[None], 15)
        assert alone[0].tolist() == hits.tolist()
    assert found[0][1][0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 1])
def test_among_some_ids_nothing_else_is_found(rows, share):
    ids, vectors, alive = rows
    some = np.sort(np.random.default_rng(1).choice(ids, max(1, int(share * 1_000)), replace=False))
    parts = [among(part, some) for part in parts_of(ids, vectors, alive, (300, 700))]
    parts = [part for part in parts if len(part.ids)]
    allowed = alive & np.isin(ids, some)
    ((hits, _),) = nearest(parts, vectors[[3]], 2_000)
    assert set(hits.tolist()) == set(ids[allowed].tolist())
    assert hits[:20].tolist() == wanted(ids, vectors, allowed, vectors[3], 20)


def test_without_rows_there_are_no_hits():
    assert [len(hits) for hits, _ in nearest([], np.ones((2, 4), np.float32), 5)] == [0, 0]
