from __future__ import annotations

import uuid

import numpy as np
import pytest

from imgsearch.errors import ConfigError
from imgsearch.stores import filtered
from imgsearch.stores.vectors import IndexSpec, VectorStore
from tests.stores.test_vectors import cosines

DIM, KINDS, OF_A_KIND = 16, 20, 100


@pytest.fixture
def store(stores):
    with VectorStore.open(stores) as store:
        yield store


_kept: dict[str, str] = {}  # name of a filled collection, by store


@pytest.fixture
def filled(store):
    """Vectors in clusters, which tests only read: the store, a name, ids and vectors."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(KINDS, 1, DIM))
    points = centres + 0.3 * rng.normal(size=(KINDS, OF_A_KIND, DIM))
    points = points.reshape(-1, DIM).astype(np.float32)
    ids = np.sort(rng.choice(2**62, len(points), replace=False) + 2**62 - 1)
    name = _kept.get(store.where)
    if name is None:
        name = _kept[store.where] = f"kept_{uuid.uuid4().hex[:12]}"
        store.create(name, DIM, IndexSpec.parse("auto", embedded=store.embedded))
        store.upsert(name, ids, points)
        store.flush(name)
    return store, name, ids, points


def assert_exact(found, queries, ids, points, among, top_k):
    """Check that these are the nearest, whatever way they were found."""
    rows = np.flatnonzero(np.isin(ids, among))
    scores = cosines(queries, points[rows])
    for answer, of_query in zip(found, scores, strict=True):
        order = np.lexsort((ids[rows], -of_query))[:top_k]
        assert answer.ids.tolist() == ids[rows][order].tolist()
        assert answer.scores == pytest.approx(of_query[order], abs=1e-5)


@pytest.mark.parametrize("count", [1, 5, 40, 400, 1_000, 2_000])
def test_a_search_among_some_ids_finds_the_nearest_of_them(filled, count):
    store, name, ids, points = filled
    among = np.sort(np.random.default_rng(count).choice(ids, count, replace=False))
    found = filtered.search(store, name, points[::200], 10, among)
    assert {answer.way for answer in found} == {
        "exact" if store.embedded or count <= 1_000 else "over-fetched"
    }
    assert_exact(found, points[::200], ids, points, among, 10)


def test_a_filter_that_has_nothing_in_common_with_the_query_loses_nothing(filled, monkeypatch):
    store, name, ids, points = filled
    monkeypatch.setattr(filtered, "FEW", 50)
    monkeypatch.setattr(filtered, "LAST", 20)
    queries, far = points[:OF_A_KIND:20], ids[15 * OF_A_KIND :]
    found = filtered.search(store, name, queries, 10, far)
    assert_exact(found, queries, ids, points, far, 10)
    assert {answer.way for answer in found} == {"exact"}
    monkeypatch.setattr(filtered, "MAX_TOP_K", 400)  # as if more were found than can be asked for
    found = filtered.search(store, name, queries, 10, far)
    assert_exact(found, queries, ids, points, far, 10)


def test_queries_of_one_call_may_take_different_ways(filled, monkeypatch):
    store, name, ids, points = filled
    monkeypatch.setattr(filtered, "FEW", 50)
    monkeypatch.setattr(filtered, "LAST", 20)
    queries, near = points[[0, 1_999, 50]], ids[:200]
    found = filtered.search(store, name, queries, 10, near)
    assert_exact(found, queries, ids, points, near, 10)
    over = "exact" if store.embedded else "over-fetched"
    assert [answer.way for answer in found] == [over, "exact", over]


def test_ids_without_a_vector_are_passed_over(filled):
    store, name, ids, points = filled
    among = np.sort(np.append(ids[:7], [5, 6]))
    (answer,) = filtered.search(store, name, points[:1], 10, among)
    assert_exact([answer], points[:1], ids, points, ids[:7], 10)
    none = np.empty(0, np.int64)
    assert [len(a.ids) for a in filtered.search(store, name, points[:2], 10, none)] == [0, 0]
    assert filtered.search(store, name, points[:0], 10, among) == []
    with pytest.raises(ConfigError, match="top_k"):
        filtered.search(store, name, points[:1], 0, none)


def test_what_was_just_written_and_deleted_counts(store, collection):
    store.create(collection, DIM, IndexSpec.parse("auto", embedded=store.embedded))
    points = np.eye(DIM, dtype=np.float32)
    store.upsert(collection, np.arange(DIM), points)
    store.delete(collection, [1])
    assert store.count(collection) == DIM - 1
    found = filtered.search(store, collection, points[:1], 10, np.array([0, 1, 2]))
    assert_exact(found, points[:1], np.arange(DIM), points, [0, 2], 10)
    store.drop(collection)


def test_embedded_an_approximate_index_is_passed_by(shared_home, collection, tmp_path):
    from imgsearch.config import load_settings

    with VectorStore.open(load_settings(imgsearch_home=shared_home)) as store:
        rng = np.random.default_rng(0)
        ids, points = np.arange(3_000), rng.normal(size=(3_000, DIM)).astype(np.float32)
        store.create(collection, DIM, IndexSpec.parse("HNSW:M=4,efConstruction=8,ef=1"))
        store.upsert(collection, ids, points)
        store.flush(collection)
        found = filtered.search(store, collection, points[:20], 10, ids[::7])
        assert_exact(found, points[:20], ids, points, ids[::7], 10)
        store.drop(collection)
