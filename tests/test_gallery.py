from __future__ import annotations

import numpy as np
import pytest

from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    ImageError,
    ImageNotFound,
)
from imgsearch.gallery import Gallery
from tests.helpers import paint, rows_and_vectors


@pytest.fixture
def gallery(stores, encoder, collection):
    with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as gallery:
        yield gallery


def test_what_was_added_is_found_best_first_with_its_facts(gallery):
    rows, vectors = rows_and_vectors(gallery.row.dim, 20)
    assert gallery.store(rows, vectors) == []
    hits = gallery.search(vectors[rows[3].image_id], top_k=5)
    assert len(hits) == 5
    assert hits[0].image_id == rows[3].image_id
    assert hits[0].path == rows[3].path
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert list(hits) == sorted(hits, key=lambda hit: (-hit.score, hit.image_id))
    assert hits.seconds.keys() == {"encode", "vectors", "metadata", "total"}


def test_excluded_images_make_room_for_others(gallery):
    rows, vectors = rows_and_vectors(gallery.row.dim, 8)
    gallery.store(rows, vectors)
    stored = gallery.get(rows[2].path)
    hits = gallery.search(stored, top_k=7, exclude=[stored.image_id])
    assert len(hits) == 7
    assert stored.image_id not in {hit.image_id for hit in hits}


def test_a_picture_finds_itself_and_a_box_searches_with_a_part(gallery, tmp_path):
    paths = [paint(tmp_path / f"{i}.png", seed=i) for i in range(6)]
    made = gallery.pipeline(paths)
    rows = [
        row._replace(path=str(path), image_id=item.info.image_id)
        for row, path, item in zip(
            rows_and_vectors(gallery.row.dim, 6)[0], paths, made, strict=True
        )
    ]
    gallery.store(rows, {item.info.image_id: item.vector for item in made})
    hits = gallery.search(paths[4], top_k=3)
    assert hits[0].path == str(paths[4])
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert hits.encoder["device"]
    part = gallery.search(paths[4], top_k=3, box=(0, 0, 20, 20))
    assert part[0].score < hits[0].score - 1e-4


def test_an_image_is_found_by_any_integer_and_by_a_relative_path(gallery, tmp_path, monkeypatch):
    """Review 5: ids from `embeddings` are numpy integers, and paths may be relative."""
    (row,), vectors = rows_and_vectors(gallery.row.dim, 1)
    gallery.store([row._replace(path=str(tmp_path / "a.jpg"))], vectors)
    ids, _ = gallery.embeddings()
    monkeypatch.chdir(tmp_path)
    assert gallery.get(ids[0]).path == gallery.get("a.jpg").path == str(tmp_path / "a.jpg")
    with pytest.raises(ImageNotFound, match="7"):
        gallery.get(np.int64(7))


def test_more_hits_than_one_search_returns_are_refused_in_the_caller_s_terms(gallery):
    """Review 8.17: the error named 16385, a number that nobody had given."""
    query = np.ones(gallery.row.dim, np.float32)
    with pytest.raises(ConfigError, match=r"top_k: is 16384; .*16383 besides 1 excluded"):
        gallery.search(query, 16_384, exclude=[5])
    with pytest.raises(ConfigError, match=r"top_k: is 16385; .*16384$"):
        gallery.search(query, 16_385)
    assert list(gallery.search(query, 16_383, exclude=[5])) == []


def test_an_empty_collection_gives_no_hits(gallery):
    assert list(gallery.search(np.ones(gallery.row.dim, np.float32))) == []


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_one_is_refused(gallery, top_k):
    with pytest.raises(ConfigError, match="top_k"):
        gallery.search(np.ones(gallery.row.dim, np.float32), top_k)


def test_a_vector_of_another_dimension_is_refused(gallery):
    with pytest.raises(ConfigError, match=str(gallery.row.dim)):
        gallery.search(np.ones(3, np.float32))


def test_a_query_that_is_no_image_is_named(gallery, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image at all")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        gallery.search(bad)


def test_unknown_images_and_collections_are_named(gallery, stores):
    with pytest.raises(ImageNotFound, match="nowhere"):
        gallery.get("/nowhere.jpg")
    with pytest.raises(ImageNotFound, match="12345"):
        gallery.get(12345)
    with pytest.raises(CollectionNotFound, match=gallery.name):
        Gallery.open("not_there", settings=stores)
    with pytest.raises(ConfigError, match="collection"):
        Gallery.open("drop table;", settings=stores)


def test_embeddings_are_every_ready_image_in_order(gallery):
    rows, vectors = rows_and_vectors(gallery.row.dim, 30)
    gallery.store(rows, vectors)
    gallery.flush()
    ids, found = gallery.embeddings()
    assert ids.tolist() == sorted(vectors)
    np.testing.assert_array_equal(found, np.stack([vectors[i] for i in sorted(vectors)]))
