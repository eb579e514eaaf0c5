from __future__ import annotations

import multiprocessing
import threading
import uuid
from concurrent import futures

import numpy as np
import pytest

from imgsearch.errors import CollectionNotFound, ConfigError, StoreError
from imgsearch.stores import vectors
from imgsearch.stores.vectors import IndexSpec, VectorStore

DIM = 16
AUTO = IndexSpec.parse("auto")


def cloud(n: int, seed: int = 0, dim: int = DIM) -> tuple[np.ndarray, np.ndarray]:
    """63-bit ids and vectors of unequal lengths."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(2**62, n, replace=False) + 2**62 - 1
    return ids, rng.normal(size=(n, dim)).astype(np.float32)


def cosines(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    queries, points = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, points))
    return queries @ points.T


@pytest.fixture
def store(stores):
    with VectorStore.open(stores) as store:
        yield store


_kept: dict[str, str] = {}  # name of a filled collection, by store: servers take long to make one


@pytest.fixture
def filled(store):
    """A store, a collection of 300 that tests only read, its ids and vectors."""
    ids, points = cloud(300)
    name = _kept.get(store.where)
    if name is None:
        name = _kept[store.where] = f"kept_{uuid.uuid4().hex[:12]}"
        store.create(name, DIM, AUTO)
        store.upsert(name, ids, points)
    return store, name, ids, points


@pytest.fixture
def own(store, collection):
    """As ``filled``, for tests that write to it."""
    ids, points = cloud(300)
    store.create(collection, DIM, AUTO)
    store.upsert(collection, ids, points)
    yield store, collection, ids, points
    store.drop(collection)


# ---------------------------------------------------------------- what every store does


def test_a_search_straight_after_writing_is_exact_and_sorted(filled):
    store, name, ids, points = filled
    found = store.search(name, points[:5], 10)
    expected = cosines(points[:5], points)
    for i, (got, scores) in enumerate(found):
        order = np.argsort(-expected[i])[:10]
        assert got.tolist() == ids[order].tolist()
        assert scores == pytest.approx(expected[i][order], abs=1e-5)
        assert got.dtype == np.int64
        assert scores.dtype == np.float32
    again = store.search(name, points[:5], 10, timeout=30)
    assert [a.tolist() for a, _ in again] == [a.tolist() for a, _ in found]


def test_writing_again_replaces_and_deleting_removes(own):
    store, name, ids, points = own
    store.upsert(name, ids[:2], points[[1, 0]])
    assert store.count(name) == 300
    assert store.search(name, points[:1], 1)[0][0].tolist() == [ids[1]]
    store.delete(name, [int(ids[1]), 5])  # 5 never was there
    assert store.count(name) == 299
    assert ids[1] not in store.search(name, points[:1], 300)[0][0]
    store.upsert(name, ids[1:2], points[1:2])
    assert store.ids(name).tolist() == sorted(ids.tolist())


def test_vectors_are_returned_bit_for_bit_in_the_requested_order(filled):
    store, name, ids, points = filled
    got, read = store.get(name, [ids[7], 12345, ids[3]])
    assert got.tolist() == ids[[7, 3]].tolist()
    assert read.tobytes() == points[[7, 3]].tobytes()
    none, empty = store.get(name, [])
    assert none.shape == (0,)
    assert empty.shape == (0, DIM)


def test_equal_scores_are_sorted_by_id_also_where_the_list_is_cut(store, collection):
    store.create(collection, 4, IndexSpec.parse("FLAT"))
    ids = np.array([9, 3, 7, 1, 5], np.int64)
    store.upsert(collection, ids, np.tile(np.float32([0, 0, 2, 0]), (5, 1)))
    assert store.search(collection, np.float32([[0, 0, 1, 0]]), 3)[0][0].tolist() == [1, 3, 5]
    assert len(store.search(collection, np.float32([[0, 0, 1, 0]]), 100)[0][0]) == 5


def test_every_index_is_built_searched_and_described(store, collection):
    ids, points = cloud(1200)

    def check(text):
        spec, name = IndexSpec.parse(text), f"{collection}_{text[:3]}"
        store.create(name, DIM, spec, description="what it is ü")
        store.upsert(name, ids, points)
        store.flush(name)
        info = store.describe(name)
        assert (info.dim, info.count, info.pending_index_rows) == (DIM, 1200, 0)
        assert info.index == spec
        assert info.description == "what it is ü"
        top = store.search(name, points[:50], 1)
        assert np.mean([got[0][0] == i for got, i in zip(top, ids, strict=False)]) > 0.95
        params = {"ef": 100} if spec.kind == "HNSW" else None
        assert len(store.search(name, points[:1], 200, search_params=params)[0][0]) == 200
        store.drop(name)

    with futures.ThreadPoolExecutor(4) as pool:  # servers take seconds for each, mostly asleep
        list(pool.map(check, ["HNSW:M=8", "FLAT", "IVF_FLAT:nlist=8,nprobe=8", "AUTOINDEX"]))


def test_ef_of_hnsw_comes_from_the_index_the_call_or_the_number_of_hits(
    store, collection, monkeypatch
):
    ids, points = cloud(200)
    store.create(collection, DIM, IndexSpec.parse("HNSW:ef=70"))
    client, asked = store.connection.client(), []
    search = client.search

    def spy(*args, search_params, **others):
        asked.append(search_params["params"]["ef"])
        return search(*args, search_params=search_params, **others)

    monkeypatch.setattr(client, "search", spy)
    store.upsert(collection, ids, points)
    store.search(collection, points[:1], 5)
    store.search(collection, points[:1], 100)  # Milvus wants at least what it is to return
    store.search(collection, points[:1], 5, search_params={"ef": 40})
    assert asked == [70, 100 + vectors.SPARE_HITS, 40]
    store.drop(collection)


def test_more_rows_than_fit_into_one_response(store, collection, monkeypatch):
    ids, points = cloud(16_500, dim=4)
    store.create(collection, 4, AUTO)
    monkeypatch.setattr(vectors, "BATCH_BYTES", 600_000)  # so that every loop goes round
    store.upsert(collection, ids, points)
    store.delete(collection, ids[:100])
    assert store.count(collection) == 16_400
    assert store.ids(collection).tolist() == sorted(ids[100:].tolist())
    got, read = store.get(collection, ids[90:6_000])
    assert got.tolist() == ids[100:6_000].tolist()
    assert np.array_equal(read, points[100:6_000])
    store.drop(collection)


def test_many_queries_at_once_answer_as_one_by_one(filled, monkeypatch):
    store, name, _, points = filled
    one_by_one = [store.search(name, points[i : i + 1], 5)[0] for i in range(20)]
    monkeypatch.setattr(vectors, "BATCH_BYTES", 4 * DIM * 7)
    together = store.search(name, points[:20], 5)
    assert [a.tolist() for a, _ in together] == [a.tolist() for a, _ in one_by_one]
    assert store.search(name, np.empty((0, DIM), np.float32), 5) == []


def _with(value: float) -> np.ndarray:
    points = np.ones((3, DIM), np.float32)
    points[1, 4] = value
    return points


@pytest.mark.parametrize(
    ("ids", "points", "blamed"),
    [
        ([1, 2, 3], _with(np.nan), "number 1 contains NaN"),
        ([1, 2, 3], _with(np.inf), "number 1 contains NaN or infinity"),
        ([1, 2, 3], np.diag(np.float32([1, 0, 1])) @ _with(1), "number 1 has length zero"),
        ([1, 2, 3], np.ones((3, DIM + 1)), "encoder of the collection"),
        ([1, 2, 3], np.ones(DIM), "shape"),
        ([1, 2, 2], _with(1), "unique"),
        ([1, 2], _with(1), "2 ids for 3 vectors"),
        ([1.5, 2, 3], _with(1), "integers"),
    ],
)
def test_unusable_vectors_are_refused_and_nothing_is_stored(filled, ids, points, blamed):
    store, name, *_ = filled
    with pytest.raises(ConfigError, match=blamed):
        store.upsert(name, np.array(ids), points)
    assert store.count(name) == 300


def test_impossible_searches_are_refused(filled):
    store, name, _, points = filled
    for top_k in (0, -1):
        with pytest.raises(ConfigError, match="top_k"):
            store.search(name, points[:1], top_k)
    with pytest.raises(ConfigError, match="NaN"):
        store.search(name, _with(np.nan), 1)
    with pytest.raises(ConfigError, match="nprobe"):
        store.search(name, points[:1], 1, search_params={"nprobe": 3})


def test_more_hits_than_milvus_returns_are_cut_to_its_limit(filled):
    """Review 8.17: a sum of top_k and excluded ids was refused with a number nobody gave."""
    store, name, ids, points = filled
    assert len(store.search(name, points[:1], vectors.MAX_TOP_K + 1)[0][0]) == len(ids)


def test_rows_are_counted_and_metadata_read_without_loading(stores, own):
    """Attack row 2: a look at a shared server loaded every collection, other people's too."""
    store, name, *_ = own
    assert store.stored_rows(name) == 300
    store.delete(name, store.ids(name)[:10])
    assert store.stored_rows(name) == 290
    assert store.about(name) is None
    store.flush(name)
    client = store.connection.client()
    client.release_collection(name)
    with VectorStore.open(stores) as other:
        assert other.stored_rows(name) in (290, 300)
        assert other.about(name) is None
        if not stores.embedded_vectors:  # exact search embedded has nothing to load
            assert client.get_load_state(name)["state"].name == "NotLoad"
        with pytest.raises(CollectionNotFound):
            other.stored_rows(f"{name}_absent")
        with pytest.raises(CollectionNotFound):
            other.about(f"{name}_absent")
    made = f"{name}_made"
    store.create(made, DIM, AUTO, description='{"encoder": "mini"}')
    assert store.about(made) == {"encoder": "mini"}
    store.drop(made)


def test_creating_again_is_harmless_with_the_same_dimension_only(filled):
    store, name, *_ = filled
    store.create(name, DIM, AUTO)
    assert store.count(name) == 300
    with pytest.raises(StoreError, match=f"{DIM}-dimensional vectors, not 8"):
        store.create(name, 8, AUTO)
    with pytest.raises(ConfigError, match="not 1"):
        store.create(f"{name}_1", 1, AUTO)
    with pytest.raises(ConfigError, match="not a valid collection name"):
        store.create("a b", DIM, AUTO)


def test_a_collection_left_without_its_index_is_completed(store, collection):
    AUTO = IndexSpec.parse("HNSW")
    store._call(lambda client, t: vectors._create(client, collection, DIM, {}, t))
    with pytest.raises(StoreError, match="no index"):
        store.search(collection, np.ones((1, DIM)), 1)
    store.create(collection, DIM, AUTO)
    assert store.describe(collection).index == AUTO
    store.drop(collection)


def test_an_unknown_collection_is_named_with_the_existing_ones(filled, collection):
    store, name, _, points = filled
    absent = f"{collection}_absent"
    for call in (
        lambda: store.search(absent, points[:1], 1),
        lambda: store.upsert(absent, np.array([1]), points[:1]),
        lambda: store.delete(absent, [1]),
        lambda: store.get(absent, [1]),
        lambda: store.ids(absent),
        lambda: store.count(absent),
        lambda: store.describe(absent),
        lambda: store.flush(absent),
        lambda: store.drop(absent),
    ):
        with pytest.raises(CollectionNotFound) as caught:
            call()
        assert caught.value.collection == absent
        assert name in caught.value.known


def test_a_collection_recreated_by_another_process_is_searched_in_its_new_form(stores, own):
    store, name, _, points = own
    store.search(name, points[:1], 1)
    with VectorStore.open(stores) as other:
        other.drop(name)
        other.create(name, 5, IndexSpec.parse("FLAT"))
        other.upsert(name, np.array([77]), np.ones((1, 5)))
        other.flush(name)
    assert store.search(name, np.ones((1, 5)), 1)[0][0].tolist() == [77]


def test_a_collection_of_another_program_is_left_alone(store, collection):
    from pymilvus import DataType

    def foreign(client, timeout):
        schema = client.create_schema()
        schema.add_field("key", DataType.INT64, is_primary=True)
        schema.add_field("text", DataType.FLOAT_VECTOR, dim=DIM)
        client.create_collection(collection, schema=schema, timeout=timeout)

    store._call(foreign)
    with pytest.raises(StoreError, match="created by another program, with the fields key, text"):
        store.create(collection, DIM, AUTO)
    store.drop(collection)


def test_threads_share_a_store(filled):
    store, name, ids, points = filled

    def search(i):
        return int(store.search(name, points[i : i + 1], 1)[0][0][0])

    with futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(search, range(60))) == ids[:60].tolist()


def test_a_forked_child_connects_for_itself(filled):
    store, name, ids, points = filled

    def child(answers):
        answers.put(store.search(name, points[:1], 1)[0][0].tolist())

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    assert answers.get(timeout=60) == [ids[0]]
    process.join()
    assert store.search(name, points[:1], 1)[0][0].tolist() == [ids[0]]


def test_a_closed_store_opens_again_when_it_is_used(filled):
    store, name, *_ = filled
    store.close()
    store.close()
    assert store.count(name) == 300


def test_a_programming_error_is_not_reported_as_a_lost_connection(filled):
    """Review 8.8: a TypeError became "cannot be reached: check the firewall"."""
    store, name, *_ = filled
    nothing = None
    with pytest.raises(TypeError, match="'NoneType' object is not subscriptable"):
        store._call(lambda client, t: t and nothing[0])
    assert store.count(name) == 300


def test_a_connection_closed_by_another_thread_is_reopened(filled):
    store, name, *_ = filled
    calls = []

    def count(client, timeout):
        calls.append(client)
        if len(calls) == 1:
            thread = threading.Thread(target=store.close)
            thread.start()
            thread.join()
        return client.get_collection_stats(name, timeout=timeout)

    store._call(count)
    assert len(set(map(id, calls))) == 2
