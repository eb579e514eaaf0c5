import numpy as np
import pytest

from imgsearch import embedded
from imgsearch.config import settings
from imgsearch.vectors import IndexSpec, VectorStore

RNG = np.random.default_rng(7)


def unit(count: int, dim: int = 24) -> np.ndarray:
    vectors = RNG.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def store(shared_home, collection):
    with VectorStore.open(settings(imgsearch_home=shared_home)) as store:
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
