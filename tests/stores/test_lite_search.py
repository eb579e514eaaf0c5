import threading
import time

import numpy as np
import pytest
from milvus_lite import CollectionSchema, DataType, FieldSchema, MilvusLite
from milvus_lite.engine import collection as engine
from milvus_lite.search import bitmap
from milvus_lite.storage.segment import Segment

from imgsearch.config import load_settings
from imgsearch.stores import embedded
from imgsearch.stores.lite_search import LiteSearch
from imgsearch.stores.vectors import IndexSpec, VectorStore

THEIRS = (
    (engine, "execute_search_with_index", engine.execute_search_with_index),
    (bitmap, "build_valid_mask", bitmap.build_valid_mask),
)
RNG = np.random.default_rng(7)


def unit(count: int, dim: int = 24) -> np.ndarray:
    vectors = RNG.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def store(shared_home, collection):
    with VectorStore.open(load_settings(imgsearch_home=shared_home)) as store:
        yield store
        if collection in store.collections():
            store.drop(collection)


@pytest.fixture
def client(shared_home):
    from pymilvus import MilvusClient

    with embedded.lease(shared_home) as lease:
        client = MilvusClient(uri=lease.uri, token=lease.token, dedicated=True)
        yield client
        client.close()


def both(client, collection, queries, **params):
    """Ids and scores as this package answers, and as Milvus Lite itself does."""
    for fields in (["id"], ["id", "vector"]):  # with vectors, the request is left to Milvus Lite
        hits = client.search(
            collection,
            data=list(queries),
            anns_field="vector",
            limit=12,
            output_fields=fields,
            search_params={"metric_type": "COSINE", "params": params},
        )
        yield [{h["id"]: h["distance"] for h in of_query} for of_query in hits]


@pytest.mark.parametrize("index", ["HNSW:M=16,ef=64", "FLAT", "IVF_FLAT:nlist=4,nprobe=4"])
def test_answers_as_milvus_lite_does_whatever_was_written(store, client, collection, index):
    spec = IndexSpec.parse(index)
    store.create(collection, 24, spec)
    vectors = unit(300)
    queries = np.concatenate([unit(3), 5 * vectors[[7]]])  # of any length

    def same():
        ours, theirs = both(client, collection, queries, **spec.search)
        assert [list(hits) for hits in ours] == [list(hits) for hits in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert list(mine.values()) == pytest.approx(list(other.values()), abs=1e-5)
        return ours

    assert same() == [{}, {}, {}, {}]
    store.upsert(collection, np.arange(200), vectors[:200])
    same()  # in the memory table
    store.flush(collection)
    assert 7 in same()[3]
    store.upsert(collection, np.arange(150, 300), vectors[150:])
    same()  # in both, some of them twice
    store.delete(collection, [7, 290])
    assert all(not {7, 290} & set(hits) for hits in same())
    store.flush(collection)
    assert all(not {7, 290} & set(hits) for hits in same())
    store.upsert(collection, [7], vectors[[7]])
    assert next(iter(same()[3])) == 7
    store.upsert(collection, [7], -vectors[[7]])
    assert 7 not in same()[3]


def test_what_was_dropped_and_made_anew_is_not_remembered(store, collection):
    vectors = unit(20)
    for ids in (np.arange(20), np.arange(100, 120)):
        store.create(collection, 24, IndexSpec.parse("FLAT"))
        store.upsert(collection, ids, vectors)
        ((found, scores),) = store.search(collection, vectors[:1], 5)
        assert set(found) <= set(ids)
        assert found[0] == ids[0]
        assert scores[0] == pytest.approx(1)
        store.drop(collection)


@pytest.fixture
def searches(monkeypatch):
    """Installed until the test ends."""
    for replaced in THEIRS:
        monkeypatch.setattr(*replaced)  # to be put back
    searches = LiteSearch()
    searches.install()
    return searches


def opened(store: MilvusLite, ids: DataType, index: str, metric: str = "COSINE"):
    name = {"name": "id", "dtype": ids, "is_primary": True}
    schema = CollectionSchema(
        [
            FieldSchema(**name, **({"max_length": 20} if ids == DataType.VARCHAR else {})),
            FieldSchema("vector", DataType.FLOAT_VECTOR, dim=8),
            FieldSchema("size", DataType.INT64),
        ]
    )
    collection = store.create_collection("c", schema)
    collection.create_index("vector", {"index_type": index, "metric_type": metric})
    collection.load()
    return collection


@pytest.mark.parametrize("ids", [DataType.INT64, DataType.VARCHAR], ids=["numbers", "words"])
@pytest.mark.parametrize("metric", ["COSINE", "L2", "IP"])
def test_any_history_is_answered_as_without_it(tmp_path, searches, ids, metric):
    rng = np.random.default_rng(1)
    with MilvusLite(str(tmp_path / "lite.db")) as store:
        collection = opened(store, ids, "FLAT", metric)

        def answers():
            filtered = {"expr": "size > 4"}
            return (
                collection.num_entities,
                sorted(str(row["id"]) for row in collection.query(output_fields=["id"])),
                sorted(str(row["id"]) for row in collection.query(**filtered)),
                *(
                    [(h["id"], round(h["distance"], 4), sorted(h["entity"])) for h in hits]
                    for options in ({"output_fields": ["id"]}, {}, filtered)
                    for hits in collection.search(queries, 6, **options)
                ),
            )

        for step in range(24):
            names = rng.choice(30, 6, replace=False).tolist()
            names = [f"n{n}" for n in names] if ids == DataType.VARCHAR else names
            if step % 4 == 3:
                collection.delete(names)
            else:
                vectors = unit(6, 8).tolist()
                rows = zip(names, vectors, range(6), strict=True)
                collection.upsert([{"id": i, "vector": v, "size": s + 2} for i, v, s in rows])
            if step % 5 == 4:
                collection.flush()
            searches.forget()
            queries = unit(2, 8).tolist()
            ours = answers()
            with pytest.MonkeyPatch.context() as patch:
                for replaced in THEIRS:
                    patch.setattr(*replaced)
                theirs = answers()
            assert ours == theirs


def test_rows_without_an_index_are_counted(tmp_path, searches, monkeypatch):
    with MilvusLite(str(tmp_path / "lite.db")) as store:
        collection = opened(store, DataType.INT64, "HNSW")
        rows = [{"id": i, "vector": v.tolist(), "size": 1} for i, v in enumerate(unit(50, 8))]
        collection.insert(rows[:20])
        assert searches.unindexed(collection, "vector") == 0  # not written out yet
        assert searches.unindexed(collection, "size") == 0
        building, built = threading.Event(), threading.Event()
        build = Segment.build_or_load_index

        def slowly(*args):
            building.set()
            assert built.wait(60)
            build(*args)

        monkeypatch.setattr(Segment, "build_or_load_index", slowly)
        collection.flush()
        assert building.wait(60)
        assert searches.unindexed(collection, "vector") == 20
        assert len(collection.search([rows[0]["vector"]], 5)[0]) == 5  # found all the same
        built.set()
        end = time.monotonic() + 60
        while searches.unindexed(collection, "vector"):
            assert time.monotonic() < end
            time.sleep(0.01)
