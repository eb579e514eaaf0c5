from __future__ import annotations

import json

import pytest
from pymilvus import DataType

from imgsearch.errors import StoreError
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
from imgsearch.overview import drop, overview
from imgsearch.stores.index import IndexSpec
from imgsearch.stores.metadata import MetadataStore
from imgsearch.stores.vectors import VectorStore
from tests.helpers import paint


@pytest.fixture
def filled(tmp_path, stores, encoder, collection):
    for i in range(8):
        paint(tmp_path / "photos" / f"{i}.png", seed=i)
    ingest(tmp_path / "photos", collection, encoder=encoder, settings=stores)
    with Gallery.open(collection, settings=stores) as gallery:
        yield gallery


def overview_of(name, settings):
    return next((one for one in overview(settings) if one.name == name), None)


@pytest.mark.parametrize("store", [VectorStore, MetadataStore])
def test_a_collection_dropped_in_the_meantime_is_left_out(filled, stores, monkeypatch, store):
    """Another process drops a collection after it was listed and before it is looked at."""
    listed = store.collections

    def with_a_dropped_one(self):
        names = listed(self)
        gone = f"{filled.name}_gone"
        return [*names, gone if store is VectorStore else names[0]._replace(name=gone)]

    monkeypatch.setattr(store, "collections", with_a_dropped_one)
    assert overview_of(filled.name, stores).problem == ""
    assert overview_of(f"{filled.name}_gone", stores) is None


def test_the_overview_compares_both_stores(filled, stores, tmp_path):
    one = overview_of(filled.name, stores)
    assert (one.images, one.paths, one.vectors, one.unfinished) == (8, 8, 8, 0)
    assert one.problem == ""
    assert (one.size is None) == (not stores.embedded_vectors)
    assert one.last_run.state == "done"
    assert one.last_run.folder == str(tmp_path / "photos")
    json.dumps(one.to_dict())
    filled.vectors.delete(filled.name, filled.metadata.ids(filled.name)[:3])
    assert "8 images, but 5 vectors" in overview_of(filled.name, stores).problem
    filled.metadata.drop_collection(filled.name)
    one = overview_of(filled.name, stores)
    assert (one.vectors, one.images, one.created_at) == (5, 0, None)
    assert "`repair` restores it" in one.problem
    drop(filled.name, settings=stores)
    assert overview_of(filled.name, stores) is None


def test_the_overview_includes_collections_left_by_a_sweep(filled, stores):
    """Attack row 10, review 8.10: a left-over of a sweep could neither be repaired nor dropped."""
    name = f"{filled.name}_sweep"
    about = json.dumps({"sweep": "index sweep of mine, process 7 on host here"})
    filled.vectors.create(name, 4, IndexSpec.parse("FLAT"), description=about)
    one = overview_of(name, stores)
    assert "drop it" in one.problem
    drop(name, settings=stores)
    assert name not in filled.vectors.collections()
    assert overview_of(filled.name, stores).problem == ""


@pytest.mark.parametrize("stores", ["servers"], indirect=True)
def test_a_shared_server_loads_nothing_and_other_programs_are_not_listed(
    filled, stores, milvus_client
):
    """Attack row 2, review 8.2: the overview loaded every collection of a shared server."""
    foreign = f"{filled.name}_foreign"
    schema = milvus_client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    milvus_client.create_collection(foreign, schema=schema)
    params = milvus_client.prepare_index_params()
    params.add_index("vector", index_type="FLAT", metric_type="COSINE")
    milvus_client.create_index(foreign, params)
    milvus_client.release_collection(filled.name)
    try:
        names = [one.name for one in overview(stores)]
        assert filled.name in names
        assert foreign not in names
        for name in (filled.name, foreign):
            assert milvus_client.get_load_state(name)["state"].name == "NotLoad"
        with pytest.raises(StoreError, match="was not created by imgsearch"):
            drop(foreign, settings=stores)
        assert foreign in milvus_client.list_collections()
    finally:
        milvus_client.drop_collection(foreign)
