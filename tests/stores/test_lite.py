"""Its promises about writes that fail and damaged indexes are held by tests/guarantees."""

import faiss
import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.stores.lite import connect
from imgsearch.stores.vectors import IndexSpec, VectorStore


def unit(count: int, dim: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def unfound(graph, vectors: np.ndarray) -> int:
    """Vectors that a search which follows every edge does not find."""
    graph.hnsw.efSearch = len(vectors)
    found = graph.search(vectors, 1)[1][:, 0]
    return int((found != np.arange(len(vectors))).sum())


def test_every_vector_of_a_graph_is_found_though_its_last_edge_was_pruned():
    vectors = unit(1500, 32)
    graph = faiss.IndexHNSWFlat(32, 4, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 8
    graph.add(vectors)
    before = unfound(graph, vectors)
    assert before
    assert connect(graph, 3 * vectors) >= before  # vectors of any length
    assert unfound(graph, vectors) == 0
    assert connect(graph, vectors) == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_graph_of_few_vectors_is_left_alone(count):
    graph = faiss.IndexHNSWFlat(8, 4, faiss.METRIC_INNER_PRODUCT)
    graph.add(unit(count, 8))
    assert connect(graph, unit(count, 8)) == 0


def test_every_vector_of_a_collection_is_found(shared_home, collection):
    vectors = unit(1500, 32)
    with VectorStore.open(load_settings(imgsearch_home=shared_home)) as store:
        store.create(collection, 32, IndexSpec.parse("HNSW:M=4,efConstruction=8"))
        store.upsert(collection, np.arange(1500), vectors)
        store.flush(collection)
        found = store.search(collection, vectors, 1, search_params={"ef": 1500})
        store.drop(collection)
    assert [ids.tolist() for ids, _ in found] == [[i] for i in range(1500)]
