from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import uuid

import pytest

from imgsearch.config import load_settings
from imgsearch.errors import ConfigError, EncoderMismatch, ImageError
from imgsearch.gallery import Gallery
from imgsearch.ingest import ingest, parse_shard
from imgsearch.maintenance import verify
from tests.conftest import ROOT
from tests.helpers import paint


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for i in range(12):
        paint(folder / ("a" if i % 2 else "b/c") / f"{i}.{'png' if i % 3 else 'jpg'}", seed=i)
    return folder


@pytest.fixture
def run(stores, encoder, collection):
    def run(folder, **kwargs):
        kwargs = {"encoder": encoder, "batch_size": 4, "settings": stores} | kwargs
        return ingest(folder, collection, **kwargs)

    return run


def test_a_folder_becomes_searchable_and_the_report_says_so(run, photos, stores, collection):
    report = run(photos)
    assert (report.state, report.total, report.encoded, report.failed) == ("done", 12, 12, 0)
    assert (report.images, report.paths) == (12, 12)
    assert report.encoder["name"] == "resnet18@random:0"
    with Gallery.open(collection, settings=stores) as gallery:
        for path in photos.rglob("*.*g"):
            assert gallery.search(path, 1)[0].path == str(path)
        assert verify(gallery, files=True).sound
        (row,) = gallery.metadata.runs(collection)
        assert (row.state, row.total, row.done) == ("done", 12, 12)


def test_a_second_ingest_reads_no_file(run, photos, monkeypatch):
    run(photos)
    for path in photos.rglob("*.*g"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns))  # access time only
    from imgsearch import images

    monkeypatch.setattr(images, "read", lambda path: pytest.fail(f"{path} was read"))
    report = run(photos)
    assert (report.encoded, report.linked, report.unchanged) == (0, 0, 12)


def test_a_moved_folder_is_not_encoded_again(run, photos):
    run(photos)
    moved = photos.rename(photos.with_name("moved"))
    report = run(moved)
    assert (report.encoded, report.linked) == (0, 12)
    assert (report.images, report.paths) == (12, 24)
    report = run(moved.rename(photos), prune=True)
    assert report.unchanged == 12


def test_changed_and_vanished_files_are_followed(run, photos, stores, collection):
    run(photos)
    changed, gone = sorted(photos.rglob("*.png"))[:2]
    paint(changed, seed=99)
    gone.unlink()
    report = run(photos)
    assert (report.encoded, report.unchanged) == (1, 10)
    assert report.missing == (str(gone),)
    report = run(photos, prune=True)
    assert (report.pruned, report.paths) == (1, 11)
    with Gallery.open(collection, settings=stores) as gallery:
        assert verify(gallery, files=True).sound
        assert gallery.vectors.count(collection) == 11


def test_bad_files_are_reported_and_the_good_ones_go_in(run, photos):
    (photos / "empty.jpg").touch()
    (photos / "notes.txt").write_text("not an image, and does not claim to be")
    (photos / "liar.png").write_text("claims to be an image")
    good = (photos / "b/c/0.jpg").read_bytes()
    (photos / "half.jpg").write_bytes(good[: len(good) // 2])
    (photos / "jpeg without ending").write_bytes(paint(photos / "x.jpg", seed=50).read_bytes())
    report = run(photos)
    assert (report.images, report.paths, report.ignored, report.failed) == (13, 14, 1, 3)
    reasons = {path.rsplit("/", 1)[1]: reason for path, reason in report.failures}
    assert reasons.keys() == {"empty.jpg", "liar.png", "half.jpg"}
    assert all(reasons.values())


def test_copies_within_one_chunk_are_one_vector(run, photos):
    for i in range(3):
        shutil.copy(photos / "b/c/0.jpg", photos / f"b/c/0 copy {i}.jpg")
    report = run(photos, batch_size=64)
    assert (report.encoded, report.linked, report.images) == (12, 3, 12)


def test_a_stop_ends_after_the_chunk_and_the_next_run_goes_on(run, photos):
    stop = threading.Event()
    seen = []

    def watch(report):
        seen.append(report.done)
        if report.encoded:
            stop.set()

    report = run(photos, stop=stop, progress=watch)
    assert report.state == "stopped"
    assert report.encoded == 4
    assert seen == sorted(seen)
    again = run(photos)
    assert (again.state, again.unchanged + again.encoded) == ("done", 12)
    assert again.unchanged == report.encoded


def test_shards_are_disjoint_and_together_everything(run, photos):
    reports = [run(photos, shard=f"{i}/3") for i in range(3)]
    assert sum(report.encoded for report in reports) == 12
    assert reports[-1].images == 12


def test_a_limit_and_no_recursion(run, photos):
    paint(photos / "top.png", seed=77)
    assert run(photos, recursive=False).encoded == 1
    assert run(photos, limit=5).total == 5


def test_another_encoder_is_refused_and_nothing_is_touched(run, photos):
    from imgsearch.encoders.base import load_encoder

    run(photos)
    with pytest.raises(EncoderMismatch):
        run(photos, encoder=load_encoder("resnet18", weights="random:5"))


def test_an_error_marks_the_run_as_failed(run, photos, stores, collection):
    def fail(report):
        raise RuntimeError("the callback failed")

    with pytest.raises(RuntimeError):
        run(photos, progress=fail)
    with Gallery.open(collection, settings=stores) as gallery:
        assert [row.state for row in gallery.metadata.runs(collection)] == ["failed"]


@pytest.mark.parametrize("parameter", ["batch_size", "limit", "workers"])
@pytest.mark.parametrize("value", [0, -3, "many"])
def test_nonsense_parameters_are_named(run, photos, parameter, value):
    with pytest.raises(ConfigError, match=parameter):
        run(photos, **{parameter: value})


def test_processes_that_share_a_folder_give_exactly_the_union(
    photos, tmp_path, milvus_server, mariadb, collection
):
    database = f"t_{uuid.uuid4().hex[:12]}"
    servers = {"milvus_uri": milvus_server.uri, **mariadb.settings(database)}
    code = (
        "import sys; from imgsearch.ingest import ingest; "
        "r = ingest(sys.argv[1], sys.argv[2], shard=sys.argv[3], batch_size=2, "
        "encoder='resnet18@random:0', backend='eager'); print(r.state, r.encoded, r.failed)"
    )
    environment = {name.upper(): str(value) for name, value in servers.items()}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, photos, collection, f"{i}/3"],
            cwd=ROOT,
            env={**os.environ, **environment, "IMGSEARCH_HOME": str(tmp_path / str(i))},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    said = [worker.communicate(timeout=170)[0].split() for worker in workers]
    assert [words[0] for words in said] == ["done"] * 3
    assert sum(int(words[1]) for words in said) == 12
    with Gallery.open(collection, settings=load_settings(**servers)) as gallery:
        assert set(gallery.metadata.known(collection)) == {str(p) for p in photos.rglob("*.*g")}
        ids, vectors = gallery.embeddings()
        assert len(ids) == 12
        assert (gallery.vectors.ids(collection) == ids).all()
        alone = ingest(
            photos, f"{collection}_1", encoder=gallery.encoder, settings=load_settings(**servers)
        )
        assert alone.encoded == 12
        with Gallery.open(f"{collection}_1", settings=load_settings(**servers)) as whole:
            same, expected = whole.embeddings()
        assert (same == ids).all()
        assert abs(vectors - expected).max() < 1e-5
    mariadb.sql(f"DROP DATABASE {database}")


@pytest.mark.parametrize("shard", ["3/3", "-1/2", "1", "a/b", "1/2/3", "0/0"])
def test_nonsense_shards_are_refused(shard):
    with pytest.raises(ConfigError, match="shard"):
        parse_shard(shard)


def test_a_folder_that_is_not_there_is_named(run, tmp_path):
    with pytest.raises(ImageError, match="nowhere"):
        run(tmp_path / "nowhere")
