from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgsearch import gallery as gallery_module
from imgsearch.config import load_settings
from imgsearch.encoders import load_encoder
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    EncoderError,
    EncoderMismatch,
    ImageError,
    ImageNotFound,
)
from imgsearch.gallery import Gallery, list_galleries
from imgsearch.pipeline import Pipeline
from imgsearch.queries import combine
from imgsearch.stores.vectors import MAX_TOP_K
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
    assert list(gallery.search(query, np.int64(16_383), exclude=5)) == []


def test_an_empty_collection_gives_no_hits(gallery):
    assert list(gallery.search(np.ones(gallery.row.dim, np.float32))) == []


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "5", None])
def test_top_k_is_a_whole_number_of_at_least_one(gallery, top_k):
    with pytest.raises(ConfigError, match=r"top_k: is .*give a whole number from 1 to"):
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


# ---------------------------------------------------------------- what a researcher types


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A folder of five pictures in the working folder."""
    for seed in range(5):
        paint(tmp_path / "photos" / f"{seed}.png", seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_everything_that_is_an_image_can_be_added_and_searched_with(gallery, photos):
    assert gallery.add("photos/").encoded == 5
    picture = Image.open(paint(photos.parent / "scan.png", 7))
    array = np.asarray(Image.open(paint(photos.parent / "array.png", 8)))
    jpeg = io.BytesIO()
    Image.fromarray(array[::-1]).save(jpeg, "JPEG")
    grey = np.asarray(Image.open(paint(photos.parent / "grey.png", 9)).convert("L"))
    paint(photos.parent / "file.png", 10)
    given = [picture, array, jpeg.getvalue(), grey, Path("file.png")]
    report = gallery.add(given)
    assert (report.encoded, report.failed, len(gallery)) == (5, 0, 10)
    assert gallery.add([*given, io.BytesIO(jpeg.getvalue()), "photos"]).encoded == 0
    assert gallery.count()[:2] == (10, 10)

    with Path("file.png").open("rb") as file:
        given += [file, jpeg.getbuffer(), str(photos / "3.png")]
        found = gallery.search(given, top_k=3)
    assert [len(hits) for hits in found] == [3] * len(given)
    assert all(hits[0].score > 0.999 for hits in found)
    assert found[0][0].path.startswith(str(gallery.pictures))
    assert found[4][0].path == found[5][0].path == str(photos.parent / "file.png")
    assert found[2][0].image_id == found[6][0].image_id
    assert found[2][0].path.endswith(".jpg")
    jpeg.seek(0)
    assert gallery.search(jpeg, 3)[0].image_id == found[2][0].image_id
    hit = found[7][0]
    ids, vectors = gallery.embeddings()
    vector = vectors[ids == hit.image_id][0]
    same = [hit, gallery[hit.path], hit.image_id, np.int64(hit.image_id), vector]
    for hits in gallery.search(same, top_k=2):
        assert hits[0][1:4] == pytest.approx((hit.score, hit.image_id, hit.path), abs=1e-5)
    assert gallery.search(hit, box=(0, 0, 20, 20))[0].score < 1 - 1e-4


def test_a_list_of_queries_gives_what_each_query_gives_alone(gallery, photos):
    gallery.add(photos)
    paths = sorted(photos.iterdir())
    alone = [gallery.search(path, top_k=2, exclude=["photos/0.png"]) for path in paths]
    for many in (paths, tuple(paths), iter(paths), np.array(list(map(str, paths)))):
        found = gallery.search(many, top_k=2, exclude=["photos/0.png"])
        for one, hits in zip(alone, found, strict=True):
            assert [hit.image_id for hit in hits] == [hit.image_id for hit in one]
            assert [h.score for h in hits] == pytest.approx([h.score for h in one], abs=1e-5)
    ids, vectors = gallery.embeddings()
    assert [hits[0].image_id for hits in gallery.search(ids)] == ids.tolist()
    assert [hits[0].image_id for hits in gallery.search(vectors)] == ids.tolist()
    assert [hits[0].image_id for hits in gallery.search(gallery)] == ids.tolist()
    assert gallery.search([]) == []


def test_a_query_of_several_parts_is_searched_without_its_examples(gallery, photos):
    gallery.add(photos)
    photos = sorted(photos.iterdir())
    a, b, c, d = (gallery[path] for path in photos[:4])
    vector = dict(zip(*gallery.embeddings(), strict=True))
    parts = {"query": [vector[a.image_id]], "like": [vector[b.image_id], vector[c.image_id]]}
    expected = combine(parts | {"unlike": [vector[d.image_id]]}, {"unlike": 0.5})
    asked = {"like": [photos[1], c], "unlike": d.image_id, "weights": {"unlike": 0.5}}
    (found,), examples = gallery.query_vectors([a], **asked)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert examples == {b.image_id, c.image_id, d.image_id}
    hits = gallery.search(a, len(photos), **asked)
    assert {hit.image_id for hit in hits} == set(vector) - examples
    again = gallery.search(a, len(photos), include_examples=True, **asked)
    scores = {i: float(v @ expected) for i, v in vector.items()}
    assert {hit.image_id: hit.score for hit in again} == pytest.approx(scores, abs=1e-5)
    assert next(hit for hit in again if hit.image_id not in examples).score == hits[0].score


def test_each_query_of_a_list_has_the_other_parts_as_well(gallery, photos):
    gallery.add(photos)
    photos = sorted(photos.iterdir())
    together = gallery.search(photos[:2], 3, like=photos[2], unlike=[photos[3]])
    alone = [gallery.search(path, 3, like=[photos[2]], unlike=photos[3]) for path in photos[:2]]
    for one, other in zip(together, alone, strict=True):
        assert [hit.image_id for hit in one] == [hit.image_id for hit in other]


def test_a_text_is_searched_with_alone_and_with_a_picture(tmp_path):
    settings, mini = load_settings(imgsearch_home=tmp_path / "home"), load_encoder("mini")
    with Gallery.open("words", encoder=mini, create=True, settings=settings) as gallery:
        rows, _ = rows_and_vectors(mini.dim, 3)
        dog, car, sofa = mini.encode_text(["dog", "car", "sofa"])
        gallery.store(rows, {r.image_id: v for r, v in zip(rows, (dog, car, sofa), strict=True)})
        hits = gallery.search(text="cars", top_k=3)
        assert (hits[0].image_id, hits[0].score) == (rows[1].image_id, pytest.approx(1, abs=1e-5))
        both = gallery.search(dog, text="sofa", unlike=[rows[1].image_id], top_k=3)
        assert {hit.image_id for hit in both} == {rows[0].image_id, rows[2].image_id}
        assert both[0].score == pytest.approx(both[1].score, abs=0.1)
        with pytest.raises(EncoderError, match="does not know the word 'unicorn'"):
            gallery.search(text="unicorn")


@pytest.mark.parametrize("name", ["resnet18@random:1", "mini"])
def test_a_collection_that_was_created_again_with_another_encoder_is_noticed(tmp_path, name):
    settings = load_settings(imgsearch_home=tmp_path / "home")

    def create(name: str) -> Gallery:
        gallery = Gallery.open("again", encoder=name, create=True, settings=settings)
        gallery.store(*rows_and_vectors(gallery.row.dim, 3))
        return gallery

    with create("resnet18@random:0") as held:
        image = next(iter(held))
        with Gallery.open("again", settings=settings) as other:
            other.drop()
        with create(name):
            for use in (lambda: held.search(image), held.embeddings):
                with pytest.raises(EncoderMismatch, match=f"'again' was created with {name}"):
                    use()


def test_a_text_needs_an_encoder_with_a_text_tower(gallery, photos):
    gallery.add(photos)
    with pytest.raises(EncoderError, match=r"has no text tower.*mini"):
        gallery.search(text="dog")


def test_what_makes_no_query_is_refused(gallery, photos):
    gallery.add(photos)
    photos = sorted(photos.iterdir())
    with pytest.raises(ConfigError, match="is empty: give a picture, a text, or an example"):
        gallery.search()
    with pytest.raises(ConfigError, match="is empty: give a picture, a text, or an example"):
        gallery.search(unlike=photos[0])
    for text in ("", " ", 5, ["dog"]):
        with pytest.raises(ConfigError, match=r"text: is .*: give words, as one str"):
            gallery.search(text=text)
    with pytest.raises(ImageError, match="dog: no such file; to search with words"):
        gallery.search("dog")
    with pytest.raises(ConfigError, match="'dislike' is none of"):
        gallery.search(photos[0], weights={"dislike": 1})
    with pytest.raises(ConfigError, match="is a part of the query's picture"):
        gallery.search(like=photos[0], box=(0, 0, 5, 5))
    with pytest.raises(ConfigError, match="besides 2 excluded images"):
        gallery.search(like=photos[:2], top_k=MAX_TOP_K - 1)


def test_a_gallery_is_a_container_of_images(gallery, photos):
    gallery.add(photos)
    assert len(gallery) == 5
    assert f"'{gallery.name}': 5 images" in repr(gallery)
    assert "photos/1.png" in gallery
    assert "photos/9.png" not in gallery
    image = gallery["photos/1.png"]
    assert (image.path, image.width, image.format) == (str(photos / "1.png"), 64, "PNG")
    assert image in gallery
    assert gallery[image.image_id] == gallery[image] == image
    assert [one.image_id for one in gallery] == gallery.embeddings()[0].tolist()
    assert [Path(one.path).name for one in gallery.browse(1, 2)] == ["1.png", "2.png"]
    table = gallery.to_pandas()
    assert table.path.tolist() == sorted(map(str, photos.iterdir()))
    assert table.set_index("path").image_id[image.path] == image.image_id
    assert gallery
    gallery.delete(gallery)
    assert (len(gallery), list(gallery), bool(gallery)) == (0, [], True)
    assert gallery.to_pandas().empty


def test_a_picture_with_a_name_is_found_by_it_and_deleted_with_its_file(gallery):
    one, other = (np.full((9, 9, 3), value, np.uint8) for value in (50, 200))
    gallery.add(one, name="scan-17")
    image = gallery["scan-17"]
    assert Path(image.path).name == "scan-17.png"
    assert gallery.add(one, name="scan-17.png").unchanged == 1
    with pytest.raises(ConfigError, match="'scan-17' is taken by another picture"):
        gallery.add(other, name="scan-17")
    gallery.add([one, other], name=["first", "second"])
    assert gallery["first"].paths == gallery["scan-17"].paths
    assert gallery.delete("scan-17") == 1
    assert not Path(image.path).exists()
    gallery.add(other, name="scan-17")
    assert gallery["scan-17"].image_id == gallery["second"].image_id
    assert gallery.delete([gallery["first"], gallery["second"].image_id, "unknown"]) == 3
    assert list(gallery.pictures.iterdir()) == []


@pytest.mark.parametrize("stores", ["embedded"], indirect=True)
def test_a_deletion_that_was_not_meant_deletes_nothing(gallery, photos):
    gallery.add(photos, attributes={"label": "cat"})
    for where in ({"lable": {"!=": "cat"}}, {"or": [{"label": "cat"}, {"lable": "dog"}]}):
        with pytest.raises(ConfigError, match=r"no file has the attribute 'lable'.*mean 'label'"):
            gallery.delete(where=where)
    with pytest.raises(ConfigError, match=r'photos is a folder: use where=\{"path"'):
        gallery.delete("photos")
    assert gallery.delete(where={"lable": "cat"}) == 0
    assert len(gallery) == 5
    assert gallery.delete(where={"lable": {"exists": False}, "path": {"prefix": f"{photos}/"}}) == 5


@pytest.mark.parametrize("stores", ["embedded"], indirect=True)
@pytest.mark.parametrize("page", [{"limit": None}, {"limit": 2.5}, {"offset": -1}])
def test_a_page_is_counted_in_whole_numbers(gallery, page):
    with pytest.raises(ConfigError, match=r"(limit|offset): is .*give a whole number from 0"):
        gallery.browse(**page)
    assert gallery.browse(np.int64(0), np.int64(5)) == []


def test_a_filter_is_the_same_for_everything_that_takes_one(gallery, photos):
    gallery.add(photos)
    odd = {"photos/1.png": {"odd": True, "tags": ["a", "b"]}, "photos/3.png": {"odd": True}}
    assert gallery.set_attributes(odd) == 2
    copy = photos / "copy of 2.png"
    copy.write_bytes((photos / "2.png").read_bytes())
    gallery.add(copy, attributes={"odd": True})
    where = {"odd": True}
    hits = gallery.search("photos/0.png", where=where)
    assert {Path(hit.path).name for hit in hits} == {"1.png", "2.png", "3.png"}
    assert (hits.matched, hits.way) == (3, "exact")
    assert hits[0].attributes["odd"] is True
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert [len(one) for one in gallery.search(gallery, top_k=2, where=where)] == [2] * 5
    assert list(gallery.search("photos/0.png", where={"odd": False})) == []
    ids, vectors = gallery.embeddings(where=where)
    assert (len(ids), vectors.shape) == (3, (3, gallery.row.dim))
    names = ["1.png", "3.png", "copy of 2.png"]
    assert [Path(image.path).name for image in gallery.browse(where=where)] == names
    assert gallery.to_pandas(where=where).name.tolist() == names
    assert gallery["photos/2.png"].attributes == {"odd": True}
    assert gallery.search("photos/1.png", where={})[0].rank == 1
    assert gallery.search("photos/1.png").matched is None
    for bad in ({"odd": {"~": 1}}, {"width": "wide"}):
        with pytest.raises(ConfigError, match="where"):
            gallery.search("photos/0.png", where=bad)
    with pytest.raises(ConfigError, match="where: is empty"):
        gallery.delete(where={})
    assert gallery.delete(where={"tags": "b"}) == 1
    assert gallery.delete("photos/0.png", where=where) == 3
    assert [Path(image.path).name for image in gallery.browse()] == ["2.png", "4.png"]


@pytest.mark.parametrize("stores", ["embedded"], indirect=True)
def test_a_search_with_one_picture_again_and_again_moves_to_a_faster_backend(
    gallery, photos, monkeypatch
):
    gallery.add(photos)
    moved, went_on = threading.Event(), threading.Event()

    def optimize_for(pipeline, count):
        assert went_on.wait(60), "a search waited for the other backend"
        moved.set()

    monkeypatch.setattr(Pipeline, "optimize_for", optimize_for)
    for _ in range(gallery_module.REPEATED + 2):
        gallery.search("photos/1.png")
    went_on.set()
    assert moved.wait(60)


@pytest.mark.parametrize("stores", ["embedded"], indirect=True)
def test_hits_of_another_gallery_are_searched_with(gallery, photos, stores, encoder):
    gallery.add(photos)
    with Gallery.open(
        "other", encoder="resnet18", weights="random:1", create=True, settings=stores
    ) as other:
        other.add(["photos/1.png", "photos/2.png"])
        hits = gallery.search("photos/1.png", 5)
        found = other.search(hits)  # those that it has not are encoded
        assert [Path(one[0].path).name in ("1.png", "2.png") for one in found] == [True] * 5
        assert other.add(hits).total == 5
        assert len(other) == 5
        assert [one[0].image_id for one in other.search(hits)] == [hit.image_id for hit in hits]


def test_names_of_all_galleries_are_listed(gallery, stores):
    assert gallery.name in list_galleries(stores)
