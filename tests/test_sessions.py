"""Sessions: searched, judged, taken back, resumed by another process, exported."""

from __future__ import annotations

import csv
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from imgsearch import images
from imgsearch.errors import ConfigError, EncoderError, FilterError, ImageError, ImageNotFound
from imgsearch.gallery import Gallery
from imgsearch.queries import combine
from imgsearch.sessions import Session, list_sessions
from tests.helpers import paint, rows_and_vectors

IMAGES = 40


@pytest.fixture
def rows_of(stores, encoder, collection):
    with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as gallery:
        rows, vectors = rows_and_vectors(encoder.dim, IMAGES)
        gallery.store(rows, vectors)
        yield gallery, rows, vectors


def expected(vectors, like, unlike, left_out):
    """Ids in the order of Rocchio's vector."""
    parts = {"like": [vectors[i] for i in like], "unlike": [vectors[i] for i in unlike]}
    query = combine(parts)
    found = sorted(vectors, key=lambda i: (-float(vectors[i] @ query), i))
    return [i for i in found if i not in left_out]


def test_judgments_refine_the_query_and_leave_the_results(rows_of, collection):
    gallery, rows, vectors = rows_of
    a = rows[0].image_id
    session = Session.open(gallery, collection, like=[a])
    first = session.search(10)
    assert [hit.image_id for hit in first] == expected(vectors, [a], [], {a})[:10]
    good, bad = first[0].image_id, first[1].image_id
    session.judge(first[0])
    session.judge(first[1], relevant=False)
    assert session.judgments() == {good: True, bad: False}
    second = [hit.image_id for hit in session.search(10)]
    assert second == expected(vectors, [a, good], [bad], {a, good, bad})[:10]
    everything = [hit.image_id for hit in session.search(IMAGES, include_judged=True)]
    assert set(everything) == set(vectors)


def test_undo_gives_the_earlier_results_back(rows_of, collection):
    gallery, rows, _ = rows_of
    session = Session.open(gallery, collection, like=[rows[0]])
    before = [hit.image_id for hit in session.search(10)]
    session.judge(rows[5].path, relevant=False)
    session.judge(rows[5].image_id)
    assert session.judgments() == {rows[5].image_id: True}
    assert session.undo().value == 1
    assert session.judgments() == {rows[5].image_id: False}
    assert session.undo().value == -1
    assert session.undo() is None
    assert [hit.image_id for hit in session.search(10)] == before


def test_a_session_is_listed_and_resumed_elsewhere(rows_of, collection, stores, tmp_path):
    gallery, rows, _ = rows_of
    paint(tmp_path / "query.png", seed=1)
    session = Session.open(
        gallery, collection, tmp_path / "query.png", unlike=[rows[1]], weights={"unlike": 0.5},
        where={"width": {">=": 100}}, who="she",
    )  # fmt: skip
    session.judge(rows[3])
    with Gallery.open(gallery.name, settings=stores) as other:
        again = Session.open(other, collection)
        assert again.query == session.query
        assert again.judgments() == {rows[3].image_id: True}
        assert [h.image_id for h in again.search(5)] == [h.image_id for h in session.search(5)]
        assert again.undo() is None, "it is another user's judgment"
    listed = {row.name: row for row in list_sessions(stores)}[collection]
    assert (listed.collection, listed.judged) == (gallery.name, 1)
    changed = Session.open(gallery, collection, like=[rows[2]])
    assert changed.query.keys() == {"like"}
    assert changed.judgments() == {rows[3].image_id: True}


def test_what_cannot_be_saved_or_judged_is_refused(rows_of, collection):
    gallery, rows, _ = rows_of
    with pytest.raises(ConfigError, match=f"there is no topic '{collection}'"):
        Session.open(gallery, collection)
    with pytest.raises(ConfigError, match="no vectors"):
        Session.open(gallery, collection, np.zeros(8, np.float32))
    with pytest.raises(ImageError):
        Session.open(gallery, collection, b"no picture")
    session = Session.open(gallery, collection, like=[rows[0]])
    with pytest.raises(ImageNotFound):
        session.judge(12345)
    assert session.judgments() == {}
    for wrong in (-1, "no", None):
        with pytest.raises(ConfigError, match="give True or False"):
            session.judge(rows[1], wrong)
    assert session.judgments() == {}
    with pytest.raises(ConfigError, match="resume it, or choose another name"):
        Session.open(gallery, collection, like=[rows[1]], new=True)
    assert Session.open(gallery, collection).query == session.query


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({"text": "dog"}, EncoderError), ({"text": ""}, ConfigError),
        ({"unlike": [0]}, ConfigError), ({"where": {"width": {">": 1}}}, ConfigError),
        ({"like": [0], "where": {"width": {"~": 1}}}, FilterError),
        ({"like": [0], "weights": {"dislike": 1}}, ConfigError),
        ({"like": [0], "box": (0, 0, 5, 5)}, ConfigError),
        ({"like": ["none.png"]}, ImageError), ({"like": [12345]}, ImageNotFound),
    ],
)  # fmt: skip
def test_a_query_that_cannot_be_searched_with_does_not_replace_the_saved_one(
    rows_of, collection, parts, error
):
    gallery, rows, _ = rows_of
    session = Session.open(gallery, collection, like=[rows[0]])
    places = {
        n: [rows[0] if v == 0 else v for v in parts[n]] for n in ("like", "unlike") & parts.keys()
    }
    with pytest.raises(error):
        Session.open(gallery, collection, **parts | places)
    assert Session.open(gallery, collection).query == session.query


def test_weights_and_filters_are_saved_as_they_are_searched_with(rows_of, collection):
    gallery, rows, _ = rows_of
    parts = {
        "like": [rows[0], rows[1]], "unlike": [rows[2]], "weights": {"unlike": np.float32(0.5)},
        "where": {"width": {">=": np.int64(1)}, "added_at": {">": datetime(2020, 1, 1)}},
    }  # fmt: skip
    Session.open(gallery, collection, **parts)
    found = Session.open(gallery, collection).search(5)
    assert [hit.image_id for hit in found] == [hit.image_id for hit in gallery.search(**parts)][:5]


def test_a_query_with_an_image_of_another_collection_or_one_that_is_deleted(
    rows_of, collection, encoder, stores, tmp_path
):
    gallery, _, _ = rows_of
    paint(tmp_path / "a.png", seed=1)
    name = f"{collection}x"
    with Gallery.open(name, encoder=encoder, create=True, settings=stores) as other:
        other.add(tmp_path / "a.png")
        image = other.get(tmp_path / "a.png")
        first = Session.open(gallery, collection, image).search(5)
        assert [h.image_id for h in first] == [h.image_id for h in gallery.search(image, 5)]
        session = Session.open(other, collection, image)
        with pytest.raises(ImageNotFound, match=r"does not contain image /.*a\.png$"):
            Session.open(gallery, collection).judge(image)
        assert list(session.search(5)) == session.pool() == []
        assert [hit.image_id for hit in session.search(5, include_judged=True)] == [image.image_id]
        other.delete([tmp_path / "a.png"])
        with pytest.raises(
            ConfigError, match=r"an image that is missing: .*Add the image again, or"
        ):
            session.search(5)


def test_a_session_that_was_deleted_or_renamed_elsewhere(rows_of, collection, tmp_path):
    gallery, rows, _ = rows_of
    session = Session.open(gallery, collection, like=[rows[0]])
    other = Session.open(gallery, collection)
    other.rename(f"{collection} 1")
    Session.open(gallery, collection, like=[rows[1]]).judge(rows[5])
    session.judge(rows[2])
    assert other.judgments() == {rows[2].image_id: True}
    session.delete()
    assert Session.open(gallery, collection).judgments() == {rows[5].image_id: True}
    for use in (
        lambda: other.judge(rows[3]), other.judgments, other.search, other.undo, other.delete,
        lambda: other.withdraw(rows[3]), lambda: other.rename(f"{collection} 2"),
        lambda: other.write_csv(tmp_path / "a.csv"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="was deleted in the meantime"):
            use()
    assert not (tmp_path / "a.csv").exists()


def test_a_part_of_a_picture_without_a_file_is_kept_with_the_session(rows_of, collection, tmp_path):
    gallery, _, _ = rows_of
    picture = np.asarray(images.decode(paint(tmp_path / "a.png", 1, (60, 40))))
    session = Session.open(gallery, collection, picture, box=(0, 0, 30, 40))
    again = Session.open(gallery, collection)
    assert again.query["box"] == [0, 0, 30, 40]
    found = [hit.image_id for hit in again.search(5)]
    assert found == [hit.image_id for hit in gallery.search(picture, 5, box=(0, 0, 30, 40))]
    assert session.query == again.query
    kept = Path(session.query["query"]["path"])
    gallery.drop()
    assert kept.is_file(), "sessions outlive collections"


def test_a_session_is_renamed_and_deleted_and_judgments_are_withdrawn(rows_of, collection):
    gallery, rows, _ = rows_of
    first, other = f"{collection} 1", f"{collection} 2"
    Session.open(gallery, other, like=[rows[0]]).judge(rows[3])
    session = Session.open(gallery, first, like=[rows[0]])
    for row, relevant in ((rows[3], True), (rows[4], True), (rows[3], False)):
        session.judge(row, relevant)
    with pytest.raises(ConfigError, match="resume it, or choose another name"):
        session.rename(other)
    session.rename(collection)
    assert session.topic == collection
    assert [(i.path, r) for i, r in Session.open(gallery, collection).examples()] == [
        (rows[3].path, False), (rows[4].path, True),
    ]  # fmt: skip
    assert session.withdraw(rows[3]) == 2
    assert session.withdraw(rows[3].image_id) == 0
    assert session.judgments() == {rows[4].image_id: True}
    session.delete()
    with pytest.raises(ConfigError, match="there is no topic"):
        Session.open(gallery, collection)
    assert Session.open(gallery, other).judgments() == {rows[3].image_id: True}


def test_judgments_are_handed_on_as_csv_and_qrels(rows_of, collection, tmp_path):
    gallery, rows, _ = rows_of
    session = Session.open(gallery, collection, like=[rows[0]], who="me")
    header = session.write_csv(tmp_path / "a.csv").read_text()
    assert header.startswith("topic,image_id,relevance,path,")
    hit = session.search(3)[2]
    session.judge(hit)
    session.judge(rows[9], relevant=False)
    with session.write_csv(tmp_path / "a.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["image_id"], row["relevance"], row["depth"], row["who"]) for row in table] == [
        (str(hit.image_id), "1", "3", "me"), (str(rows[9].image_id), "0", "", "me"),
    ]  # fmt: skip
    assert table[0]["path"] == hit.path
    lines = session.write_qrels(tmp_path / "a.qrels").read_text().splitlines()
    assert lines == [f"{collection} 0 {hit.image_id} 1", f"{collection} 0 {rows[9].image_id} 0"]
