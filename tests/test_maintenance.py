from __future__ import annotations

import errno
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from imgsearch import maintenance
from imgsearch.config import load_settings
from imgsearch.errors import CollectionNotFound, StoreDamaged, StoreError
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
from imgsearch.maintenance import repair, verify
from imgsearch.stores import embedded
from imgsearch.stores.metadata import CollectionRow, MetadataStore
from imgsearch.stores.vectors import VectorStore
from tests.conftest import EMBEDDED_FIRST
from tests.guarantees.test_damage import end_server
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


def test_an_ingested_collection_is_sound(filled):
    account = verify(filled, files=True)
    assert account.sound
    assert "8 images" in str(account)


def test_a_missing_vector_is_computed_again(filled, photos, stores):
    missing = filled.metadata.ids(filled.name)[:3]
    filled.vectors.delete(filled.name, missing)
    assert verify(filled).missing_vectors == tuple(missing.tolist())
    report = repair(filled.name, settings=stores)
    assert (report.encoded, report.lost) == (3, [])
    assert verify(filled).sound
    assert whole(filled, photos)


@EMBEDDED_FIRST
def test_a_changed_vector_is_computed_again(filled, photos, stores):
    victim = filled.metadata.ids(filled.name)[4:5]
    _, vector = filled.vectors.get(filled.name, victim)
    vector[0, 0] += 0.25
    filled.vectors.upsert(filled.name, victim, vector)
    assert verify(filled).wrong_vectors == tuple(victim.tolist())
    assert repair(filled.name, settings=stores).encoded == 1
    assert verify(filled).sound
    assert whole(filled, photos)


@pytest.mark.parametrize("stores", ["servers"], indirect=True)
def test_a_missing_index_is_built_again(filled, photos, stores, milvus_client):
    milvus_client.release_collection(filled.name)
    milvus_client.drop_index(filled.name, "vector")
    assert "no index" in verify(filled).damage
    planned = repair(filled.name, settings=stores, dry_run=True)
    assert "the index rebuilt" in str(planned)
    assert "no index" in verify(filled).damage
    report = repair(filled.name, settings=stores)
    assert (report.index_rebuilt, report.set_aside, report.encoded) == (True, None, 0)
    with Gallery.open(filled.name, settings=stores) as gallery:
        assert verify(gallery).sound
        assert whole(gallery, photos)


@EMBEDDED_FIRST
def test_vectors_without_an_image_are_removed_only_on_request(filled, stores):
    rows, vectors = rows_and_vectors(filled.row.dim, 2)
    ids = np.array([row.image_id for row in rows])
    filled.vectors.upsert(filled.name, ids, np.stack([vectors[i] for i in ids.tolist()]))
    assert set(verify(filled).orphan_vectors) == set(ids.tolist())
    assert len(filled.search(vectors[rows[0].image_id], 20)) == 8
    assert repair(filled.name, settings=stores).orphans_left == 2
    report = repair(filled.name, settings=stores, remove_orphans=True)
    assert (report.orphans_removed, report.orphans_left) == (2, 0)
    assert verify(filled).sound


@EMBEDDED_FIRST
def test_missing_rows_are_added_from_folders_that_were_ingested(filled, photos, stores):
    paths = [str(path) for path in sorted(photos.iterdir())[:5]]
    filled.metadata.remove(filled.name, paths)
    assert len(verify(filled).orphan_vectors) == 5
    assert repair(filled.name, settings=stores).rows_added == 5
    assert verify(filled, files=True).sound
    assert whole(filled, photos)


@EMBEDDED_FIRST
def test_a_folder_ingested_long_ago_is_still_searched_for_files(filled, photos, stores, tmp_path):
    """Attack row 7, review 8.3: after 50 other runs, orphans of older folders were deleted."""
    paths = [str(path) for path in sorted(photos.iterdir())[:5]]
    filled.metadata.remove(filled.name, paths)
    for _ in range(51):
        run = filled.metadata.start_run(filled.name, tmp_path / "other")
        filled.metadata.finish_run(run, "done")
    report = repair(filled.name, settings=stores, remove_orphans=True)
    assert (report.rows_added, report.orphans_removed) == (5, 0)
    assert verify(filled, files=True).sound
    assert whole(filled, photos)


def test_a_collection_that_the_metadata_lost_is_restored(filled, photos, stores):
    before = filled.row
    filled.metadata.hide(filled.name, "deleting")
    filled.metadata.drop_collection(filled.name)
    planned = repair(filled.name, image_dirs=[photos], settings=stores, dry_run=True)
    assert (planned.metadata_rebuilt, planned.rows_added, planned.orphans_left) == (True, 8, 0)
    with pytest.raises(CollectionNotFound):
        Gallery.open(filled.name, settings=stores)
    report = repair(filled.name, image_dirs=[photos], settings=stores)
    assert (report.metadata_rebuilt, report.rows_added, report.orphans_left) == (True, 8, 0)
    with Gallery.open(filled.name, settings=stores) as again:
        assert again.row._replace(created_at=None, id=None) == before._replace(
            created_at=None, id=None
        )
        assert verify(again, files=True).sound
        assert whole(again, photos)


@EMBEDDED_FIRST
def test_rows_of_missing_and_changed_files_are_kept(filled, photos, stores):
    """Attack row 1: rows were deleted because their files were merely absent."""
    gone, changed, *_ = sorted(photos.iterdir())
    contents = {path: path.read_bytes() for path in (gone, changed)}
    gone.unlink()
    paint(changed, seed=99)
    found = verify(filled, files=True)
    assert found.lost_files == (str(gone),)
    assert found.changed_files == (str(changed),)
    ids = [filled.get(str(path)).image_id for path in (gone, changed)]
    filled.vectors.delete(filled.name, np.array(ids))
    report = repair(filled.name, settings=stores)
    assert {path for path, _ in report.lost} == {str(gone), str(changed)}
    assert all(reason for _, reason in report.lost)
    assert filled.count().paths == 8
    assert set(verify(filled).missing_vectors) == set(ids)
    for path, data in contents.items():
        path.write_bytes(data)
    report = repair(filled.name, settings=stores)
    assert (report.encoded, report.lost) == (2, [])
    assert verify(filled, files=True).sound


@EMBEDDED_FIRST
def test_a_moved_file_restores_its_image(filled, photos, stores, tmp_path):
    """Attack row 1: `image_dirs` also restores images whose vector and file are missing."""
    path = sorted(photos.iterdir())[0]
    image_id = filled.get(path).image_id
    filled.vectors.delete(filled.name, np.array([image_id]))
    (tmp_path / "moved").mkdir()
    path.rename(tmp_path / "moved" / "new.png")
    report = repair(filled.name, settings=stores)
    assert [lost for lost, _ in report.lost] == [str(path)]
    report = repair(filled.name, settings=stores, image_dirs=[tmp_path / "moved"])
    assert (report.encoded, report.rows_added, report.lost) == (1, 1, [])
    hit = filled.search(tmp_path / "moved" / "new.png", 1)[0]
    assert set(hit.paths) == {str(path), str(tmp_path / "moved" / "new.png")}
    assert verify(filled).sound


def snapshot(gallery) -> tuple:
    """Everything that both stores hold of a collection."""
    ids = gallery.vectors.ids(gallery.name)
    rows = gallery.metadata.browse(gallery.name, limit=10_000)
    return sorted(rows), ids.tolist(), gallery.vectors.get(gallery.name, ids)[1].tolist()


@EMBEDDED_FIRST
def test_a_dry_run_reports_the_same_and_changes_nothing(filled, photos, stores):
    first, second, third, *_ = sorted(photos.iterdir())
    missing = [filled.get(path).image_id for path in (first, second)]
    filled.vectors.delete(filled.name, np.array(missing))
    filled.metadata.remove(filled.name, [str(third)])
    first.unlink()
    rows, vectors = rows_and_vectors(filled.row.dim, 2)
    for row in rows:
        filled.vectors.upsert(filled.name, [row.image_id], vectors[row.image_id][None])
    before = snapshot(filled)
    planned = repair(filled.name, settings=stores, remove_orphans=True, dry_run=True)
    assert snapshot(filled) == before
    assert (planned.encoded, planned.rows_added, planned.orphans_removed) == (1, 1, 2)
    assert [path for path, _ in planned.lost] == [str(first)]
    assert "1 vector will be computed again" in str(planned)
    assert "2 vectors without an image will be removed" in str(planned)
    report = repair(filled.name, settings=stores, remove_orphans=True)
    assert replace(report, dry_run=True) == planned
    assert "will be" not in str(report)


class Stop(Exception):
    """What a panel raises when its Stop button was pressed."""


@EMBEDDED_FIRST
def test_a_repair_stops_at_any_call_of_progress_and_loses_nothing(
    filled, photos, stores, tmp_path, monkeypatch
):
    """Review 8.16: Stop did nothing while `repair` hashed folders or verified."""
    monkeypatch.setattr(maintenance, "ENCODE_BATCH", 2)
    monkeypatch.setattr(maintenance, "BATCH", 3)
    ids = filled.metadata.ids(filled.name)
    filled.vectors.delete(filled.name, ids[:4])
    removed = [str(path) for path in sorted(photos.iterdir())]
    removed = [path for path in removed if filled.get(path).image_id not in ids[:4]][:3]
    filled.metadata.remove(filled.name, removed)
    stops = 0
    while True:
        calls = 0

        def progress(report, limit=stops):
            nonlocal calls
            calls += 1
            if calls > limit:
                raise Stop

        try:
            repair(filled.name, settings=stores, progress=progress)
        except Stop:
            stops += 1
            found = verify(filled)
            assert set(found.missing_vectors) <= set(ids.tolist())
            assert len(set(found.missing_vectors)) + len(filled.vectors.ids(filled.name)) == 8
        else:
            break
    assert stops > 6
    assert verify(filled, files=True).sound
    assert whole(filled, photos)


@EMBEDDED_FIRST
def test_no_encoder_is_needed_where_nothing_can_be_encoded(stores, collection):
    with MetadataStore.open(stores) as metadata:
        metadata.create_collection(
            CollectionRow(collection, "no such encoder", {}, "0" * 16, 8, "FLAT")
        )
    with Gallery.open(collection, settings=stores) as gallery:
        rows, vectors = rows_and_vectors(8, 5)
        gallery.store(rows, vectors)
        gallery.vectors.delete(collection, [rows[0].image_id])
        report = repair(collection, settings=stores)
        assert [path for path, _ in report.lost] == [rows[0].path]
        assert gallery.count().images == 5


def test_an_unknown_collection_is_named(stores, collection):
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
    """Whether `verify` finds nothing; a store that cannot be opened is not sound."""
    try:
        return verify(gallery).sound
    except StoreDamaged:
        return False


def _until_gone(home) -> None:
    until = time.monotonic() + 60
    while (home / embedded.FOLDER / "server.json").exists():
        assert time.monotonic() < until, "the server did not leave"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "how",
    [
        "deleted",
        "garbage",
        *(pytest.param(h, marks=pytest.mark.soak) for h in ("emptied", "truncated")),
    ],
)
def test_a_damaged_store_directory_is_rebuilt_from_the_images(home, photos, how):
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
    assert repair("mine", settings=home).lost == []
    with Gallery.open("mine", settings=home) as gallery:
        assert verify(gallery, files=True).sound
        assert whole(gallery, photos)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("schema.json", '"imgsearch.index": "FLAT"', '"imgsearch.index": "FLAU"'),
        pytest.param("schema.json", '"vector"', '"vectos"', marks=pytest.mark.soak),
        ("schema.json", '"dim": 512', '"dim": 516'),
    ],
)
def test_only_the_damaged_collection_is_set_aside_and_its_vectors_kept(
    home, photos, encoder, file, old, new
):
    """Attack row 1: the whole store was set aside, and vectors whose files were absent lost."""
    ingest(photos, "other", encoder=encoder, settings=home)
    end_server(home.imgsearch_home)
    (victim,) = (home.imgsearch_home / embedded.STORE / "collections" / "mine").rglob(file)
    text = victim.read_text()
    assert old in text
    victim.write_text(text.replace(old, new))
    hidden = photos.rename(photos.with_name("absent"))
    with Gallery.open("mine", settings=home) as gallery:
        assert not sound(gallery)
        planned = repair("mine", settings=home, dry_run=True)
        assert (planned.restored, planned.encoded, planned.lost) == (8, 0, [])
        assert "moved aside" in str(planned)
        assert not (home.imgsearch_home / "damaged").exists()
    report = repair("mine", settings=home)
    assert (report.restored, report.encoded, report.lost) == (8, 0, [])
    kept = list((home.imgsearch_home / "damaged").iterdir())
    assert [str(folder) for folder in kept] == [report.set_aside]
    hidden.rename(photos)
    for name in ("mine", "other"):
        with Gallery.open(name, settings=home) as gallery:
            assert verify(gallery, files=True).sound
            assert whole(gallery, photos)


def test_an_interrupted_repair_still_keeps_what_was_set_aside(home, photos, monkeypatch):
    """A crash between setting aside and writing back loses nothing either."""
    (victim,) = (home.imgsearch_home / embedded.STORE).rglob("schema.json")
    victim.write_text(victim.read_text().replace('"vector"', '"vectos"'))
    hidden = photos.rename(photos.with_name("absent"))

    def stop(report):
        if report.set_aside:
            raise Stop

    with pytest.raises(Stop):
        repair("mine", settings=home, progress=stop)
    report = repair("mine", settings=home)
    assert (report.restored, report.lost, report.set_aside) == (8, [], None)
    hidden.rename(photos)
    with Gallery.open("mine", settings=home) as gallery:
        assert verify(gallery, files=True).sound


@pytest.mark.parametrize(
    "error", ["MemoryError", pytest.param("ImportError", marks=pytest.mark.soak), "OSError"]
)
def test_a_server_that_fails_to_start_is_not_damage(home, photos, tmp_path, monkeypatch, error):
    """Attack row 1, review 8.1: one passing MemoryError at start cost the whole store."""
    shadow = tmp_path / "shadow" / "milvus_lite"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text(f"raise {error}('passing trouble')\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(shadow.parent), prepend=":")
        for dry_run in (True, False):
            with pytest.raises(StoreError, match="passing trouble") as caught:
                repair("mine", settings=home, dry_run=dry_run)
            assert not isinstance(caught.value, StoreDamaged)
    assert not (home.imgsearch_home / "damaged").exists()
    assert repair("mine", settings=home).lost == []
    with Gallery.open("mine", settings=home) as gallery:
        assert verify(gallery, files=True).sound
        assert whole(gallery, photos)


def test_a_disk_error_is_not_damage(home, photos, monkeypatch):
    """Attack row 1: what is not corrupted content ends the repair and changes nothing."""

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with Gallery.open("mine", settings=home) as gallery:
        gallery.vectors.delete("mine", gallery.metadata.ids("mine")[:1])
        before = snapshot(gallery)
        with monkeypatch.context() as patch:
            patch.setattr(VectorStore, "get", fail)
            with pytest.raises(OSError, match="Input/output"):
                repair("mine", settings=home)
        assert snapshot(gallery) == before
    assert not (home.imgsearch_home / "damaged").exists()


def test_a_deleted_sqlite_file_is_rebuilt_from_the_vectors_and_the_files(home, photos):
    for file in home.imgsearch_home.glob("metadata.sqlite*"):
        file.unlink()
    report = repair("mine", image_dirs=[photos], settings=home)
    assert report.metadata_rebuilt
    assert (report.encoded, report.rows_added) == (0, 8)
    with Gallery.open("mine", settings=home) as gallery:
        assert verify(gallery, files=True).sound


def test_repair_finds_added_pictures_in_the_home(tmp_path, encoder):
    home = load_settings(imgsearch_home=tmp_path / "home")
    with Gallery.open("mine", encoder=encoder, create=True, settings=home) as gallery:
        gallery.add(np.zeros((9, 9, 3), np.uint8), name="scan")
        gallery.metadata.remove("mine", [gallery["scan"].path])
        assert repair("mine", settings=home).rows_added == 1
        assert "scan" in gallery
        assert verify(gallery).sound
