from __future__ import annotations

import shutil
import time

import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.errors import CollectionNotFound, StoreDamaged
from imgsearch.gallery import Gallery
from imgsearch.ingest import ingest
from imgsearch.maintenance import overview, repair, verify
from imgsearch.stores import embedded
from tests.helpers import paint, rows_and_vectors


@pytest.fixture
def photos(tmp_path):
    for i in range(8):
        paint(tmp_path / "photos" / f"{i}.png", seed=i)
    return tmp_path / "photos"


@pytest.fixture
def filled(photos, stores, encoder, collection):
    ingest(photos, collection, encoder=encoder, settings=stores)
    with Gallery.open(collection, settings=stores) as gallery:
        yield gallery


def whole(gallery, photos) -> bool:
    """Whether every picture is found by itself, first."""
    found = [gallery.search(path, 1)[0] for path in sorted(photos.iterdir())]
    return [hit.path for hit in found] == [str(path) for path in sorted(photos.iterdir())]


def test_what_was_ingested_is_sound(filled):
    account = verify(filled, files=True)
    assert account.sound
    assert "8 images" in str(account)


def test_a_lost_vector_is_found_and_made_again(filled, photos, stores):
    lost = filled.metadata.ids(filled.name)[:3]
    filled.vectors.delete(filled.name, lost)
    assert verify(filled).missing_vectors == tuple(lost.tolist())
    done = repair(filled.name, settings=stores)
    assert (done.encoded, done.lost) == (3, [])
    assert verify(filled).sound
    assert whole(filled, photos)


def test_a_changed_vector_is_found_and_made_again(filled, photos, stores):
    victim = filled.metadata.ids(filled.name)[4:5]
    _, vector = filled.vectors.get(filled.name, victim)
    vector[0, 0] += 0.25
    filled.vectors.upsert(filled.name, victim, vector)
    assert verify(filled).wrong_vectors == tuple(victim.tolist())
    assert repair(filled.name, settings=stores).encoded == 1
    assert verify(filled).sound
    assert whole(filled, photos)


def test_a_lost_index_is_found_and_built_again(filled, photos, stores):
    if stores.embedded_vectors:
        pytest.skip("exact search, which is the default embedded, needs no index")
    client = filled.vectors._client
    client.release_collection(filled.name)
    client.drop_index(filled.name, "vector")
    assert "no index" in verify(filled).damage
    done = repair(filled.name, settings=stores)
    assert (done.indexed, done.set_aside, done.encoded) == (True, None, 0)
    with Gallery.open(filled.name, settings=stores) as gallery:
        assert verify(gallery).sound
        assert whole(gallery, photos)


def test_orphans_are_seen_never_shown_and_removed_only_on_request(filled, stores):
    rows, vectors = rows_and_vectors(filled.row.dim, 2)
    ids = np.array([row.image_id for row in rows])
    filled.vectors.upsert(filled.name, ids, np.stack([vectors[i] for i in ids.tolist()]))
    assert set(verify(filled).orphan_vectors) == set(ids.tolist())
    assert len(filled.search(vectors[rows[0].image_id], 20)) == 8
    assert repair(filled.name, settings=stores).unmatched == 2
    done = repair(filled.name, settings=stores, remove_orphans=True)
    assert (done.removed, done.unmatched) == (2, 0)
    assert verify(filled).sound


def test_lost_rows_are_made_again_from_folders_that_were_ingested(filled, photos, stores):
    paths = [str(path) for path in sorted(photos.iterdir())[:5]]
    filled.metadata.remove(filled.name, paths)
    assert len(verify(filled).orphan_vectors) == 5
    assert repair(filled.name, settings=stores).linked == 5
    assert verify(filled, files=True).sound
    assert whole(filled, photos)


def test_metadata_that_forgot_the_collection_get_it_back(filled, photos, stores):
    before = filled.row
    filled.metadata.mark_deleting(filled.name)
    filled.metadata.drop_collection(filled.name)
    done = repair(filled.name, image_dirs=[photos], settings=stores)
    assert done.recovered
    assert done.linked == 8
    with Gallery.open(filled.name, settings=stores) as again:
        assert again.row._replace(created_at=None, id=None) == before._replace(
            created_at=None, id=None
        )
        assert verify(again, files=True).sound
        assert whole(again, photos)


def test_files_that_went_or_changed_are_named(filled, photos, stores):
    gone, changed, *_ = sorted(photos.iterdir())
    gone.unlink()
    paint(changed, seed=99)
    account = verify(filled, files=True)
    assert account.lost_files == (str(gone),)
    assert account.changed_files == (str(changed),)
    ids = [filled.get(str(path)).image_id for path in (gone, changed)]
    filled.vectors.delete(filled.name, np.array(ids))
    done = repair(filled.name, settings=stores)
    assert {path for path, _ in done.lost} == {str(gone), str(changed)}
    assert all(reason for _, reason in done.lost)
    assert verify(filled, files=True).sound


def test_a_collection_nobody_knows_is_named(stores, collection):
    with pytest.raises(CollectionNotFound, match=collection):
        repair(collection, settings=stores)


@pytest.fixture
def home(tmp_path, photos, encoder):
    """A home of one's own, whose server has left."""
    own = load_settings(imgsearch_home=tmp_path / "own")
    with embedded.lease(own.imgsearch_home, grace=0.1):
        ingest(photos, "mine", encoder=encoder, settings=own)
    _until_gone(own.imgsearch_home)
    return own


def sound(gallery) -> bool:
    """Whether `verify` is content; a store that cannot even be opened is no reason to be."""
    try:
        return verify(gallery).sound
    except StoreDamaged:
        return False


def _until_gone(home) -> None:
    until = time.monotonic() + 60
    while (home / embedded.FOLDER / "server.json").exists():
        assert time.monotonic() < until, "the server did not leave"
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["deleted", "emptied", "truncated", "garbage"])
def test_a_damaged_store_directory_is_rebuilt_from_the_files(home, photos, how):
    store = home.imgsearch_home / embedded.STORE
    if how == "deleted":
        shutil.rmtree(store)
    elif how == "emptied":
        for file in store.rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    else:
        for file in store.rglob("*"):
            if file.is_file() and file.stat().st_size > 64:
                data = file.read_bytes()
                file.write_bytes(data[: len(data) // 2] if how == "truncated" else b"\xff" * 64)
    with Gallery.open("mine", settings=home) as gallery:
        assert not sound(gallery)
    done = repair("mine", settings=home)
    assert done.lost == []
    with Gallery.open("mine", settings=home) as gallery:
        assert verify(gallery, files=True).sound
        assert whole(gallery, photos)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("schema.json", '"imgsearch.index": "FLAT"', '"imgsearch.index": "FLAU"'),
        ("schema.json", '"vector"', '"vectos"'),
        ("schema.json", '"dim": 512', '"dim": 516'),
    ],
)
def test_a_changed_letter_is_damage_and_the_store_rebuilt(home, photos, file, old, new):
    (victim,) = (home.imgsearch_home / embedded.STORE).rglob(file)
    text = victim.read_text()
    assert old in text
    victim.write_text(text.replace(old, new))
    with Gallery.open("mine", settings=home) as gallery:
        assert not sound(gallery)
    done = repair("mine", settings=home)
    assert done.set_aside
    assert done.lost == []
    with Gallery.open("mine", settings=home) as gallery:
        assert verify(gallery, files=True).sound
        assert whole(gallery, photos)


def test_a_deleted_sqlite_file_is_rebuilt_from_the_vectors_and_the_files(home, photos):
    for file in home.imgsearch_home.glob("metadata.sqlite*"):
        file.unlink()
    done = repair("mine", image_dirs=[photos], settings=home)
    assert done.recovered
    assert (done.encoded, done.linked) == (0, 8)
    with Gallery.open("mine", settings=home) as gallery:
        assert verify(gallery, files=True).sound


def test_the_overview_sees_both_stores_and_what_does_not_agree(filled, photos, stores):
    def mine():
        return next(one for one in overview(stores) if one.name == filled.name)

    one = mine()
    assert (one.images, one.paths, one.vectors, one.unfinished) == (8, 8, 8, 0)
    assert one.problem == ""
    assert (one.size is None) == (not stores.embedded_vectors)
    assert one.last_run.state == "done"
    assert one.last_run.folder == str(photos)
    filled.vectors.delete(filled.name, filled.metadata.ids(filled.name)[:3])
    assert "8 images and 5 vectors" in mine().problem
    filled.metadata.drop_collection(filled.name)
    one = mine()
    assert (one.vectors, one.images, one.created_at) == (5, 0, None)
    assert "repair brings it back" in one.problem
