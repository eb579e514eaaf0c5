"""What is replaced in Milvus Lite is reached, and answers as Milvus Lite itself does."""

import functools
import importlib

import numpy as np
import pytest
from milvus_lite import CollectionSchema, DataType, FieldSchema, MilvusLite

from imgsearch.config import load_settings
from imgsearch.stores import embedded, milvus_lite_patches
from imgsearch.stores.vectors import IndexSpec, VectorStore

REPLACED = (
    ("storage.wal", "WAL.write_insert"),
    ("storage.wal", "WAL.write_delete"),
    ("storage.wal", "_read_wal_file"),
    ("storage.manifest", "Manifest.remove_data_files"),
    ("engine.collection", "Collection.insert"),
    ("engine.collection", "Collection.delete"),
    ("engine.collection", "Collection.flush"),
    ("engine.collection", "Collection.close"),
    ("engine.collection", "execute_search_with_index"),
    ("engine.compaction", "CompactionManager.maybe_compact"),
    ("search.bitmap", "build_valid_mask"),
)
READS = [name for name in REPLACED if name[0] == "search.bitmap" or "search" in name[1]]
RNG = np.random.default_rng(7)


def place(module: str, path: str):
    """The object that holds a replaced name, the name, and what is there now."""
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(f"milvus_lite.{module}"))
    return owner, name, getattr(owner, name)


THEIRS = {replaced: place(*replaced) for replaced in REPLACED}


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
        client = MilvusClient(uri=lease.uri, dedicated=True)
        yield client
        client.close()


def both(client, collection, queries):
    """Ids and scores as this package answers, and as Milvus Lite itself does."""
    for fields in (["id"], ["id", "vector"]):  # with vectors, the request is left to Milvus Lite
        hits = client.search(
            collection,
            data=list(queries),
            anns_field="vector",
            limit=12,
            output_fields=fields,
            search_params={"metric_type": "COSINE", "params": {}},
        )
        yield [{h["id"]: h["distance"] for h in of_query} for of_query in hits]


def test_answers_as_milvus_lite_does_whatever_was_written(store, client, collection):
    store.create(collection, 24, IndexSpec.parse("FLAT"))
    vectors = unit(300)
    queries = np.concatenate([unit(3), 5 * vectors[[7]]])  # of any length

    def same():
        ours, theirs = both(client, collection, queries)
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


def test_a_collection_dropped_and_recreated_is_not_served_from_the_cache(store, collection):
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
def failures(monkeypatch):
    """Writes that failed, with the replacements in place until the test ends."""
    for replaced in THEIRS.values():
        monkeypatch.setattr(*replaced)  # to be put back
    return []


@pytest.fixture
def exact(failures):
    return milvus_lite_patches.install(failures.append)


def opened(store: MilvusLite, ids: DataType, index: str | None, metric: str = "COSINE"):
    name = {"name": "id", "dtype": ids, "is_primary": True}
    schema = CollectionSchema(
        [
            FieldSchema(**name, **({"max_length": 20} if ids == DataType.VARCHAR else {})),
            FieldSchema("vector", DataType.FLOAT_VECTOR, dim=8),
            FieldSchema("size", DataType.INT64),
        ]
    )
    collection = store.create_collection("c", schema)
    if index:
        collection.create_index("vector", {"index_type": index, "metric_type": metric})
        collection.load()
    return collection


@pytest.mark.parametrize("ids", [DataType.INT64, DataType.VARCHAR], ids=["numbers", "words"])
@pytest.mark.parametrize("metric", ["COSINE", "L2", "IP"])
def test_any_history_is_answered_as_by_unpatched_milvus_lite(tmp_path, exact, ids, metric):
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
            exact.forget()
            queries = unit(2, 8).tolist()
            ours = answers()
            with pytest.MonkeyPatch.context() as patch:
                for replaced in READS:
                    patch.setattr(*THEIRS[replaced])
                theirs = answers()
            assert ours == theirs


def rows(first: int, count: int) -> list[dict]:
    return [
        {"id": first + i, "vector": v.tolist(), "size": 1} for i, v in enumerate(unit(count, 8))
    ]


def test_every_replaced_name_is_reached(tmp_path, exact, monkeypatch):
    """A name that Milvus Lite no longer looks up there would be replaced without effect."""
    reached = set()

    def counting(replaced, work):
        @functools.wraps(work)
        def counted(*args, **others):
            reached.add(replaced)
            return work(*args, **others)

        return counted

    for replaced in REPLACED:
        owner, name, now = place(*replaced)
        assert now is not THEIRS[replaced][2], replaced
        monkeypatch.setattr(owner, name, counting(replaced, now))
    for _ in range(2):  # the second time with a log to replay
        store = MilvusLite(str(tmp_path / "lite.db"))
        try:
            collection = store.get_collection("c")
        except Exception:
            collection = opened(store, DataType.INT64, None)
        for first in range(0, 40, 10):  # four files are merged
            collection.insert(rows(first, 10))
            collection.flush()
        collection._wait_for_bg()
        collection.insert(rows(100, 5))
        collection.delete([3])
        assert collection.num_entities == 44
        assert len(collection.search([rows(0, 1)[0]["vector"]], 5, output_fields=["id"])[0]) == 5
        store._release_lock()  # as after a kill: what is in the log stays there
    store._acquire_lock()
    store.close()
    assert reached == set(REPLACED)


def test_a_torn_log_yields_its_valid_part_and_an_unreadable_one_raises(tmp_path, exact):
    """Attack row 1: a server without free file handles took its log for empty."""
    with MilvusLite(str(tmp_path / "lite.db")) as store:
        collection = opened(store, DataType.INT64, None)
        for first in (0, 10):
            collection.insert(rows(first, 10))
        (log,) = (tmp_path / "lite.db").rglob("wal_data_*.arrow")
        whole = log.read_bytes()
        assert [batch.num_rows for batch in milvus_lite_patches.read_log(str(log))] == [10, 10]
        log.write_bytes(whole[:-100])
        assert [batch.num_rows for batch in milvus_lite_patches.read_log(str(log))] == [10]
        log.write_bytes(whole)
    assert milvus_lite_patches.read_log(str(tmp_path / "absent")) == []
    log.parent.mkdir(exist_ok=True)
    log.mkdir()
    with pytest.raises(IsADirectoryError):
        milvus_lite_patches.read_log(str(log))


def test_a_failed_write_is_reported_and_a_refused_one_is_not(tmp_path, exact, failures):
    with MilvusLite(str(tmp_path / "lite.db")) as store:
        collection = opened(store, DataType.INT64, None)
        with pytest.raises(Exception, match="size"):
            collection.insert([{"id": 1, "vector": [0.0] * 8, "size": "large"}])
        assert failures == []
        for number in range(3):
            log = tmp_path / "lite.db" / "collections" / "c" / "wal" / f"wal_data_{number:06}.arrow"
            log.symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            collection.insert(rows(0, 1))
        assert len(failures) == 1
