from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from imgsearch import collection as collection_module
from imgsearch import encoders
from imgsearch.collection import checksum
from imgsearch.config import load_settings
from imgsearch.datasets import Voc
from imgsearch.encoders import registry
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    EncoderError,
    EncoderMismatch,
)
from imgsearch.evaluation.report import evaluate_gallery
from imgsearch.gallery import Gallery
from imgsearch.maintenance import verify
from imgsearch.stores.vectors import VectorStore
from tests.conftest import ROOT
from tests.helpers import rows_and_vectors


@pytest.fixture
def gallery(stores, encoder, collection):
    with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as gallery:
        yield gallery


def test_adding_twice_changes_nothing(gallery):
    rows, vectors = rows_and_vectors(gallery.row.dim, 10)
    gallery.store(rows, vectors)
    gallery.store(rows, vectors)
    assert gallery.count()[:2] == (10, 10)
    assert gallery.vectors.count(gallery.name) == 10


def test_same_content_under_two_paths_is_one_vector_and_one_hit(gallery):
    rows, vectors = rows_and_vectors(gallery.row.dim, 3)
    gallery.store(rows, vectors)
    twin = rows[0]._replace(path="/elsewhere/äöü 🐈.jpg")
    assert gallery.store([twin], {}) == []
    assert gallery.count()[:2] == (3, 4)
    hits = gallery.search(vectors[rows[0].image_id], top_k=10)
    assert len(hits) == 3
    assert set(hits[0].paths) == {rows[0].path, twin.path}
    gallery.delete([rows[0].path])
    assert gallery.search(vectors[rows[0].image_id], top_k=1)[0].paths == (twin.path,)
    gallery.delete([twin.path])
    assert gallery.vectors.count(gallery.name) == 2


def test_rows_without_a_vector_anywhere_are_handed_back_not_stored(gallery):
    rows, vectors = rows_and_vectors(gallery.row.dim, 2)
    lacking = {rows[0].image_id: vectors[rows[0].image_id]}
    assert [row.path for row in gallery.store(rows, lacking)] == [rows[1].path]
    assert gallery.count().images == 1


def test_a_path_with_new_content_gives_up_the_old_vector(gallery):
    rows, vectors = rows_and_vectors(gallery.row.dim, 2)
    gallery.store(rows[:1], vectors)
    changed = rows[1]._replace(path=rows[0].path)
    gallery.store([changed], vectors)
    assert gallery.count()[:2] == (1, 1)
    assert gallery.vectors.ids(gallery.name).tolist() == [rows[1].image_id]


def test_unfinished_rows_are_never_shown_and_recover_completes_or_undoes_them(gallery):
    rows, vectors = rows_and_vectors(gallery.row.dim, 6)
    gallery.store(rows[:4], vectors)
    # A crash after one row was prepared, and after the vector of another was stored.
    gallery.metadata.prepare(
        gallery.name, [r._replace(vector_crc=checksum(vectors[r.image_id])) for r in rows[4:]]
    )
    gallery.vectors.upsert(
        gallery.name, np.array([rows[5].image_id]), vectors[rows[5].image_id][None]
    )
    gallery.metadata.hide(gallery.name, "deleting", [rows[0].path])
    hits = gallery.search(vectors[rows[5].image_id], top_k=6)
    assert {hit.image_id for hit in hits} == {row.image_id for row in rows[1:4]}
    assert gallery.recover() == 3
    assert set(gallery.metadata.ids(gallery.name).tolist()) == {
        row.image_id for row in (*rows[1:4], rows[5])
    }
    assert set(gallery.vectors.ids(gallery.name).tolist()) == set(
        gallery.metadata.ids(gallery.name).tolist()
    )
    assert gallery.recover() == 0


def test_two_files_that_exchange_their_names_keep_both_vectors(gallery):
    """Each content moves to the other path in one step, and its only row is replaced."""
    (a, b), vectors = rows_and_vectors(gallery.row.dim, 2)
    gallery.store([a, b], vectors)
    assert gallery.store([a._replace(path=b.path), b._replace(path=a.path)], {}) == []
    assert verify(gallery).sound
    assert gallery.get(a.path).image_id == b.image_id
    assert gallery.get(b.path).image_id == a.image_id


def test_one_path_is_deleted_when_it_is_given_alone(gallery, tmp_path, monkeypatch):
    """Issue 15: a string was taken for a sequence of one-letter paths, and 0 was returned."""
    rows, vectors = rows_and_vectors(gallery.row.dim, 4)
    rows = [row._replace(path=str(tmp_path / f"{i}.jpg")) for i, row in enumerate(rows)]
    gallery.store(rows, vectors)
    assert gallery.delete(rows[0].path) == 1
    assert gallery.delete(tmp_path / "1.jpg") == 1
    monkeypatch.chdir(tmp_path)
    assert gallery.delete(["2.jpg", "x/../3.jpg", "unknown.jpg"]) == 2
    assert gallery.count().paths == 0
    with pytest.raises(ConfigError, match="path"):
        gallery.delete("")


def test_a_named_encoder_that_the_collection_has_is_not_loaded_to_open_it(gallery, stores):
    with Gallery.open(gallery.name, encoder=gallery.row.encoder, settings=stores) as again:
        assert again._encoder is None
        assert again.describe_encoder()["fingerprint"] == gallery.row.fingerprint
        assert again.encoder.fingerprint == gallery.row.fingerprint
        assert again.describe_encoder()["device"]


@pytest.mark.parametrize("create", [True, False])
def test_the_vector_store_starts_while_a_named_encoder_is_loaded(
    tmp_path, encoder, monkeypatch, create
):
    """Ingest with a named encoder waited 2 s for the store after it had loaded the encoder."""
    settings = load_settings(imgsearch_home=tmp_path / "home")
    if not create:
        Gallery.open("c", encoder=encoder, create=True, settings=settings).close()
    connecting, collections = threading.Event(), VectorStore.collections

    def connect(store):
        connecting.set()
        return collections(store)

    def load(*_, **__):
        assert connecting.wait(60), "nobody connects to the vector store meanwhile"
        return encoder

    monkeypatch.setattr(VectorStore, "collections", connect)
    monkeypatch.setattr(collection_module, "load_encoder", load)
    with Gallery.open("c", encoder=encoder.name, create=True, settings=settings) as gallery:
        assert gallery.encoder is encoder


def test_a_collection_brings_its_own_encoder_and_refuses_another(gallery, stores):
    from imgsearch.encoders import load_encoder

    with Gallery.open(gallery.name, settings=stores) as again:
        assert again.encoder.fingerprint == gallery.row.fingerprint
    other = load_encoder("resnet18", weights="random:9")
    with pytest.raises(EncoderMismatch) as caught:
        Gallery.open(gallery.name, encoder=other, settings=stores)
    assert gallery.row.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)


def test_a_dimension_that_was_set_is_held_against_the_encoder(stores, encoder):
    settings = stores.model_copy(update={"vector_dimension": encoder.dim + 1})
    with pytest.raises(EncoderError, match="VECTOR_DIMENSION"):
        Gallery.open("other_dim", encoder=encoder.name, create=True, settings=settings)


def test_a_dropped_collection_is_gone_from_both_stores_and_refuses_writers(
    gallery, stores, encoder
):
    rows, vectors = rows_and_vectors(gallery.row.dim, 3)
    gallery.store(rows, vectors)
    with Gallery.open(gallery.name, settings=stores) as other:
        other.drop()
    assert gallery.name not in gallery.vectors.collections()
    with pytest.raises(CollectionNotFound):
        gallery.store(rows, vectors)
    with Gallery.open(gallery.name, encoder=encoder, create=True, settings=stores) as anew:
        assert anew.count().paths == 0


def test_vectors_that_no_search_could_use_are_refused_and_nothing_is_stored(gallery):
    rows, vectors = rows_and_vectors(gallery.row.dim, 2)
    vectors[rows[1].image_id] = np.full(gallery.row.dim, np.nan, np.float32)
    with pytest.raises(ConfigError, match="vector"):
        gallery.store(rows, vectors)
    gallery.recover()
    assert gallery.count().paths == 0


def colours(pictures):
    """Mean colours of the quarters of pictures: an encoder that is a function."""
    small = [np.asarray(each.resize((2, 2), Image.Resampling.BOX), float) for each in pictures]
    return np.stack(small).reshape(len(small), -1) + 1


def test_a_function_serves_a_collection_from_ingest_to_evaluation(stores, collection, monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    sample = ROOT / "data" / "VOCsample"
    photos = sorted((sample / "JPEGImages").iterdir())
    with Gallery.open(collection, encoder=colours, create=True, settings=stores) as gallery:
        report = gallery.add(sample / "JPEGImages")
        assert report.encoded == len(photos)
        assert report.encoder["license"] == "not stated"
        hits = gallery.search([*photos[:5], Image.open(photos[5])], top_k=3)
        assert [each[0].path for each in hits] == [str(path) for path in photos[:6]]
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda path: gallery.search(path)[0].path, photos[:20]))
        assert found == [str(path) for path in photos[:20]]
        evaluation = evaluate_gallery(gallery, Voc(sample))
        assert evaluation.about["license"] == "not stated"
    # In this session the function is known by its name; in another one it is not.
    with Gallery.open(collection, settings=stores) as gallery:
        assert gallery.search(photos[3])[0].path == str(photos[3])
        assert gallery.row.encoder == f"{__name__}.colours@0"
    registry._entries.pop(f"{__name__}.colours")
    with (
        Gallery.open(collection, settings=stores) as gallery,
        pytest.raises(EncoderError, match=r"register\(function, name='.*colours', version='0'\)"),
    ):
        gallery.search(photos[3])
    with Gallery.open(collection, encoder=colours, settings=stores) as gallery:
        assert gallery.search(photos[3])[0].path == str(photos[3])
    other = encoders.from_callable(colours, name=f"{__name__}.colours", version="1")
    with pytest.raises(EncoderMismatch, match=r"colours@1 \(.*colours@0 \("):
        Gallery.open(collection, encoder=other, settings=stores)
