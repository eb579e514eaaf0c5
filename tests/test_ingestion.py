from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa
from PIL import Image

from imgsearch import collection as collection_module
from imgsearch import images, ingestion
from imgsearch.collection import Collection
from imgsearch.config import load_settings
from imgsearch.errors import ConfigError, EncoderMismatch, ImageError
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest, parse_shard
from imgsearch.maintenance import verify
from tests.conftest import EMBEDDED_FIRST, ROOT
from tests.guarantees.common import environment
from tests.helpers import PEAK_MEMORY, paint


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


def test_a_folder_becomes_searchable_and_the_report_says_so(
    run, photos, stores, collection, encoder
):
    report = run(photos)
    assert (report.state, report.total, report.encoded, report.failed) == ("done", 12, 12, 0)
    assert (report.images, report.paths) == (12, 12)
    assert report.encoder["name"] == encoder.name
    with Gallery.open(collection, settings=stores) as gallery:
        for path in photos.rglob("*.*g"):
            assert gallery.search(path, 1)[0].path == str(path)
        assert verify(gallery, files=True).sound
        (row,) = gallery.metadata.runs(collection)
        assert (row.state, row.total, row.done) == ("done", 12, 12)


@EMBEDDED_FIRST
def test_every_format_is_ingested_and_found_by_content(run, tmp_path, stores, collection):
    """Review 8.6: WebP, BMP, GIF and TIFF could be decoded but never ingested or searched with."""
    for i, kind in enumerate(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]):
        picture = Image.open(paint(tmp_path / "source" / f"{i}.png", seed=i))
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture.save(tmp_path / "photos" / f"{kind}.picture", kind)
    report = run(tmp_path / "photos")
    assert (report.encoded, report.failed, report.ignored) == (6, 0, 0)
    with Gallery.open(collection, settings=stores) as gallery:
        for path in (tmp_path / "photos").iterdir():
            assert gallery.search(path, 1)[0].path == str(path)


@EMBEDDED_FIRST
def test_a_second_ingest_reads_no_file(run, photos, monkeypatch):
    run(photos)
    for path in photos.rglob("*.*g"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns))  # access time only
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


def test_files_that_exchange_their_names_keep_their_vectors(run, photos, stores, collection):
    run(photos)
    one, other = sorted(photos.rglob("*.png"))[:2]
    third = photos / "third"
    one.rename(third)
    other.rename(one)
    third.rename(other)
    assert run(photos).linked == 2
    with Gallery.open(collection, settings=stores) as gallery:
        assert verify(gallery, files=True).sound


@EMBEDDED_FIRST
def test_a_folder_under_two_spellings_is_one_folder(run, photos, monkeypatch):
    """Attack row 10: `a/../a` doubled every path."""
    run(photos)
    spelled = photos / "a" / ".." / ".." / "photos"
    assert run(spelled).unchanged == 12
    assert run(f"/{photos}/").unchanged == 12
    monkeypatch.chdir(photos.parent)
    report = run("photos")
    assert (report.unchanged, report.paths, report.folder) == (12, 12, str(photos))


@EMBEDDED_FIRST
def test_files_that_are_no_images_are_ignored_whatever_their_size(run, photos, monkeypatch):
    """Attack row 10 (h), review 8.5: an empty note and a large film counted as failed images."""
    (photos / "notes.txt").touch()
    film = photos / "film.mp4"
    film.touch()
    os.truncate(film, images.MAX_BYTES + 1)
    (photos / "archive.zip").write_bytes(b"PK" + bytes(1_000_000))
    read = []
    read_file = images.read
    monkeypatch.setattr(images, "read", lambda path: (read.append(path), read_file(path))[1])
    for _ in range(2):
        report = run(photos)
        assert (report.ignored, report.failed, report.images) == (3, 0, 12)
        names = {Path(path).name: reason for path, reason in report.ignored_files}
        assert names.keys() == {"notes.txt", "film.mp4", "archive.zip"}
        assert all(names.values())
    assert {Path(path).suffix for path in read} == {".png", ".jpg"}


@EMBEDDED_FIRST
def test_pipes_and_sockets_with_an_image_s_name_are_reported(run, photos, monkeypatch):
    """Attack round "mangled files": a FIFO, a socket and devices were passed over in silence."""
    os.mkfifo(photos / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(photos)  # the names of sockets are short
        server.bind("socket.png")
        report = run(photos)
    assert {Path(path).name for path, _ in report.failures} == {"pipe.jpg", "socket.png"}
    assert all("not a regular file" in reason for _, reason in report.failures)
    assert report.encoded == 12


@EMBEDDED_FIRST
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


@EMBEDDED_FIRST
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


@EMBEDDED_FIRST
def test_only_an_ingest_of_the_whole_folder_looks_for_files_that_are_gone(run, photos, monkeypatch):
    """Review 1: each shard looked at every file of the other shards, a limit at all of them."""
    run(photos)
    sorted(photos.rglob("*.png"))[0].unlink()
    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "_is_gone", lambda path: pytest.fail(f"{path}: looked at"))
        for part in ({"shard": "0/2"}, {"limit": 3}, {"recursive": False}):
            assert run(photos, **part).missing == ()
            with pytest.raises(ConfigError, match="prune: needs the whole folder"):
                run(photos, **part, prune=True)
    assert len(run(photos).missing) == 1


@EMBEDDED_FIRST
def test_a_limit_and_no_recursion(run, photos):
    paint(photos / "top.png", seed=77)
    assert run(photos, recursive=False).encoded == 1
    assert run(photos, limit=5).total == 5


@EMBEDDED_FIRST
def test_another_encoder_is_refused_and_nothing_is_touched(run, photos):
    from imgsearch.encoders import load_encoder

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


@EMBEDDED_FIRST
@pytest.mark.parametrize("parameter", ["batch_size", "limit", "workers"])
@pytest.mark.parametrize("value", [0, -3, "many"])
def test_nonsense_parameters_are_named(run, photos, parameter, value):
    with pytest.raises(ConfigError, match=parameter):
        run(photos, **{parameter: value})


def test_processes_that_share_a_folder_give_exactly_the_union(
    forkserver, photos, tmp_path, milvus_server, mariadb, collection, encoder
):
    database = f"t_{uuid.uuid4().hex[:12]}"
    servers = {"milvus_uri": milvus_server.uri, **mariadb.settings(database)}
    code = """
from imgsearch.ingestion import ingest
ingested = ingest(
    arguments["folder"], arguments["collection"], shard=arguments["shard"], batch_size=2,
    encoder=arguments["encoder"],
)
report(state=ingested.state, encoded=ingested.encoded)
"""
    environment = {name.upper(): str(value) for name, value in servers.items()}
    workers = [
        forkserver.run(
            code,
            environment | {"IMGSEARCH_HOME": str(tmp_path / str(i))},
            folder=str(photos),
            collection=collection,
            shard=f"{i}/3",
            encoder=encoder.name,
        )
        for i in range(3)
    ]
    for worker in workers:
        worker.wait()
    assert [worker.reported("state") for worker in workers] == [["done"]] * 3
    assert sum(worker.reported("encoded")[0] for worker in workers) == 12
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
    milvus_server.drop(collection)


@pytest.mark.parametrize("shard", ["3/3", "-1/2", "1", "a/b", "1/2/3", "0/0"])
def test_nonsense_shards_are_refused(shard):
    with pytest.raises(ConfigError, match="shard"):
        parse_shard(shard)


def test_a_folder_that_is_not_there_is_named(run, tmp_path):
    with pytest.raises(ImageError, match="nowhere"):
        run(tmp_path / "nowhere")


def test_nothing_new_loads_neither_the_encoder_nor_the_vector_store(
    shared_home, encoder, photos, tmp_path, collection
):
    """Review 1, issue 16: a second ingest imported torch, Towhee and pymilvus for nothing."""
    settings = load_settings(
        imgsearch_home=shared_home, database_url=f"sqlite:///{tmp_path / 'm.sqlite'}"
    )
    (photos / "notes.txt").write_text("not an image")
    (photos / "broken.jpg").write_text("not an image either")
    ingest(photos, collection, encoder=encoder, settings=settings)
    shutil.copy(photos / "b/c/0.jpg", photos / "copy.jpg")  # known content needs no encoder
    code = """
import sys
from imgsearch.ingestion import ingest
report = ingest(sys.argv[1], sys.argv[2], encoder=sys.argv[3])
assert report.encoder["name"] == sys.argv[3]
print(report.state, report.unchanged, report.linked, report.failed, report.ignored)
print([name for name in ("torch", "towhee", "pymilvus") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, photos, collection, encoder.name],
        env=environment(settings) | os.environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "done 12 1 1 1\n[]\n"


@pytest.mark.parametrize("kind", ["sqlite", "mysql"])
def test_a_chunk_costs_five_sql_statements(
    kind, request, shared_home, encoder, tmp_path, collection
):
    """Review 1: it cost 12. BEGIN, COMMIT and MySQL's GET_LOCK (one more) are not counted.

    Neither is the progress, which is written once a second whatever the chunks are.
    """
    if kind == "sqlite":
        database = {"database_url": f"sqlite:///{tmp_path / 'm.sqlite'}"}
    else:
        mariadb = request.getfixturevalue("mariadb")
        database = mariadb.settings(collection)
    settings = load_settings(imgsearch_home=shared_home, **database)
    seen: list[str] = []

    def listen(link, cursor, statement, parameters, context, executemany):
        if not statement.startswith(("BEGIN", "SELECT get_lock", "UPDATE imgsearch_runs")):
            seen.append(statement)

    counts = []
    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    try:
        for turn, chunks in enumerate((1, 2, 6)):
            folder = tmp_path / str(turn)
            for i in range(4 * chunks):
                paint(folder / f"{i}.png", seed=100 * turn + i)
            seen.clear()
            ingest(folder, collection, encoder=encoder, batch_size=4, settings=settings)
            counts.append(len(seen))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", listen)
    assert counts[2] - counts[1] == 4 * 5
    if kind == "mysql":
        mariadb.sql(f"DROP DATABASE {collection}")


@pytest.mark.parametrize("count", [10, pytest.param(36, marks=[pytest.mark.soak])])
def test_memory_is_bounded_by_bytes_not_by_files(shared_home, tmp_path, collection, count):
    """Attack row 4: 36 JPEGs of 100 MiB took 3,967 MB."""
    folder = tmp_path / "photos"
    for i in range(count):
        path = paint(folder / f"{i}.jpg", seed=i, size=(640, 480))
        os.truncate(path, 100 * 2**20)  # zeros after the end of the picture are never decoded
    settings = load_settings(
        imgsearch_home=shared_home, database_url=f"sqlite:///{tmp_path / 'm.sqlite'}"
    )
    code = """
import sys
from imgsearch.ingestion import ingest
report = ingest(sys.argv[1], sys.argv[2], encoder="mini")
print(report.encoded, peak_memory())
"""
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY + code, folder, collection],
        env=os.environ | environment(settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    encoded, peak = map(int, done.stdout.split())
    assert encoded == count
    assert peak <= 1.2e9


def test_large_files_make_small_chunks_and_small_ones_full_chunks(run, photos):
    files = [images.ImageFile(Path(str(i)), size, 0) for i, size in enumerate(SIZES)]
    job = ingestion._Ingest(None, None, None, 4, True, threading.Event(), print)
    parts = [([int(f.path.name) for f in part], size) for part, size in job._parts(files)]
    assert [part for part, _ in parts] == [[0, 1, 2, 3], [4, 5], [6], [7, 8]]
    assert [size >> 20 for _, size in parts] == [4, 51, 100, 20]


SIZES = [size * 2**20 for size in (1, 1, 1, 1, 1, 50, 100, 20, 9_999)]


def test_an_interrupt_while_the_encoder_is_loaded_ends_the_ingest(
    stores, encoder, photos, collection, monkeypatch
):
    Gallery.open(collection, encoder=encoder, create=True, settings=stores).close()

    def load(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(collection_module, "load_encoder", load)
    with pytest.raises(KeyboardInterrupt):
        ingest(photos, collection, settings=stores)
    assert not [t for t in threading.enumerate() if t.name.startswith("imgsearch-ingest")]
    with Gallery.open(collection, settings=stores) as gallery:
        assert [run.state for run in gallery.metadata.runs(collection)] == ["stopped"]


def test_after_an_interrupted_run_the_next_one_builds_the_index(
    run, photos, stores, collection, monkeypatch
):
    class Killed(BaseException):
        pass

    def die(self, **_):
        raise Killed

    flush = Collection.flush
    with monkeypatch.context() as patch:
        patch.setattr(Collection, "flush", die)
        with pytest.raises(Killed):
            run(photos)
    flushed = []
    monkeypatch.setattr(Collection, "flush", lambda self, **how: (flushed.append(1), flush(self)))
    assert run(photos).encoded == 0
    assert flushed == [1]
    assert run(photos).encoded == 0
    assert flushed == [1]
