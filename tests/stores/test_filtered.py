from __future__ import annotations

import uuid

import numpy as np
import pytest

from imgsearch.errors import ConfigError
from imgsearch.stores import filtered
from imgsearch.stores.filtered import Filtered
from imgsearch.stores.vectors import IndexSpec, VectorStore
from tests.stores.test_vectors import cosines

DIM, KINDS, OF_A_KIND = 16, 20, 100


@pytest.fixture
def store(stores):
    with VectorStore.open(stores) as store:
        yield store


@pytest.fixture
def searches(store):
    searches = Filtered(store)
    yield searches
    searches.close()


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
def test_a_search_among_some_ids_finds_the_nearest_of_them(filled, searches, count):
    store, name, ids, points = filled
    among = np.sort(np.random.default_rng(count).choice(ids, count, replace=False))
    found = searches.search(name, points[::200], 10, among)
    assert {answer.way for answer in found} == {
        "exact" if store.embedded or count <= 1_000 else "over-fetched"
    }
    assert_exact(found, points[::200], ids, points, among, 10)


def test_a_filter_that_has_nothing_in_common_with_the_query_loses_nothing(
    filled, searches, monkeypatch
):
    _, name, ids, points = filled
    monkeypatch.setattr(filtered, "FEW", 50)
    monkeypatch.setattr(filtered, "LAST", 20)
    queries, far = points[:OF_A_KIND:20], ids[15 * OF_A_KIND :]
    found = searches.search(name, queries, 10, far)
    assert_exact(found, queries, ids, points, far, 10)
    assert {answer.way for answer in found} == {"exact"}
    monkeypatch.setattr(filtered, "MAX_TOP_K", 400)  # as if more were found than can be asked for
    found = searches.search(name, queries, 10, far)
    assert_exact(found, queries, ids, points, far, 10)


def test_queries_of_one_call_may_take_different_ways(filled, searches, monkeypatch):
    store, name, ids, points = filled
    monkeypatch.setattr(filtered, "FEW", 50)
    monkeypatch.setattr(filtered, "LAST", 20)
    queries, near = points[[0, 1_999, 50]], ids[:200]
    found = searches.search(name, queries, 10, near)
    assert_exact(found, queries, ids, points, near, 10)
    over = "exact" if store.embedded else "over-fetched"
    assert [answer.way for answer in found] == [over, "exact", over]


def test_ids_without_a_vector_are_passed_over(filled, searches):
    _, name, ids, points = filled
    among = np.sort(np.append(ids[:7], [5, 6]))
    (answer,) = searches.search(name, points[:1], 10, among)
    assert_exact([answer], points[:1], ids, points, ids[:7], 10)
    none = np.empty(0, np.int64)
    assert [len(a.ids) for a in searches.search(name, points[:2], 10, none)] == [0, 0]
    assert searches.search(name, points[:0], 10, among) == []
    with pytest.raises(ConfigError, match="top_k"):
        searches.search(name, points[:1], 0, none)


def test_what_was_just_written_and_deleted_counts(store, searches, collection):
    store.create(collection, DIM, IndexSpec.parse("auto", embedded=store.embedded))
    points = np.eye(DIM, dtype=np.float32)
    store.upsert(collection, np.arange(DIM), points)
    store.delete(collection, [1])
    assert store.count(collection) == DIM - 1
    found = searches.search(collection, points[:1], 10, np.array([0, 1, 2]))
    assert_exact(found, points[:1], np.arange(DIM), points, [0, 2], 10)
    store.drop(collection)


def test_a_server_is_asked_once_for_vectors_that_a_filter_needs(filled, searches, monkeypatch):
    store, name, ids, points = filled
    monkeypatch.setattr(filtered, "PIECE", 150)
    queries, far, asked = points[:3], ids[15 * OF_A_KIND :], []
    searches.search(name, queries, 10, far)
    searches.wait()
    for read in ("search", "get"):
        work = getattr(store, read)
        monkeypatch.setattr(store, read, lambda *a, w=work, **k: (asked.append(w), w(*a, **k))[1])
    for among in (far, far[::3], far[:5]):
        found = searches.search(name, queries, 10, among)
        assert_exact(found, queries, ids, points, among, 10)
        assert {answer.way for answer in found} == {"exact"}
    assert store.embedded or not asked
    with pytest.raises(ConfigError, match="length zero"):
        searches.search(name, np.zeros((1, DIM), np.float32), 10, far)
    more = ids[14 * OF_A_KIND :]  # as after a change of the collection
    for _ in range(2):
        assert_exact(searches.search(name, queries, 10, more), queries, ids, points, more, 10)
        searches.wait()


def test_vectors_that_a_server_lacks_are_not_read_again_and_again(filled, searches, monkeypatch):
    store, name, ids, points = filled
    among = np.sort(np.append(ids[:50], [5, 6]))
    searches.search(name, points[:2], 10, among)
    searches.wait()
    if not store.embedded:
        monkeypatch.delattr(VectorStore, "get")
        monkeypatch.delattr(VectorStore, "search")
    found = searches.search(name, points[:2], 10, among)
    assert_exact(found, points[:2], ids, points, ids[:50], 10)


def test_no_more_vectors_are_kept_than_there_is_room_for(filled, searches, monkeypatch):
    store, name, ids, points = filled
    monkeypatch.setattr(filtered, "MOST", 100 * DIM * 4)
    for among in (ids[:90], ids[300:390], ids[:101], ids[::2]):
        for _ in range(2):
            found = searches.search(name, points[:2], 10, among)
            assert_exact(found, points[:2], ids, points, among, 10)
            searches.wait()
            kept, _ = searches._kept
            assert kept is None or len(kept.ids) <= 100
    assert store.embedded or kept.ids.tolist() == ids[300:390].tolist()


def test_embedded_an_approximate_index_is_passed_by(shared_home, collection, tmp_path):
    from imgsearch.config import load_settings

    with VectorStore.open(load_settings(imgsearch_home=shared_home)) as store:
        rng = np.random.default_rng(0)
        ids, points = np.arange(3_000), rng.normal(size=(3_000, DIM)).astype(np.float32)
        store.create(collection, DIM, IndexSpec.parse("HNSW:M=4,efConstruction=8,ef=1"))
        store.upsert(collection, ids, points)
        store.flush(collection)
        found = Filtered(store).search(collection, points[:20], 10, ids[::7])
        assert_exact(found, points[:20], ids, points, ids[::7], 10)
        store.drop(collection)
