"""Whenever a process dies: what was acknowledged is found, the next ingest mends the rest."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from imgsearch.config import load_settings
from imgsearch.errors import CollectionNotFound, StoreError
from imgsearch.gallery import Gallery
from imgsearch.ingest import ingest
from imgsearch.maintenance import verify
from tests.guarantees.common import INGEST, agree, all_found, environment, opened, server_pid
from tests.helpers import paint, rows_and_vectors

soak = pytest.mark.soak
NEW, CHANGED, GONE = 20, 3, 2  # files of one round


def shuffle(folder: Path, turn: int, rng: random.Random) -> None:
    """New, changed, touched, copied and vanished pictures: every way through an ingest."""
    old = sorted(folder.rglob("*.png"))
    for path in rng.sample(old, min(GONE, len(old))):
        path.unlink()
    old = [path for path in old if path.exists()]
    for i, path in enumerate(rng.sample(old, min(CHANGED, len(old)))):
        paint(path, seed=100_000 + turn * 100 + i)
    for path in rng.sample(old, min(CHANGED, len(old))):
        os.utime(path, ns=(0, turn + 1))
    if old:
        shutil.copy(rng.choice(old), folder / f"copy-{turn}.png")
    for i in range(NEW):
        paint(folder / f"{turn:03d}" / f"{i}.png", seed=turn * 1000 + i, size=(32, 24))


def paths_of(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*.png")}


def attack(nursery, folder, settings, kills, victim, seed):
    """Kill `victim` at random moments of ingests, check, ingest again, check; so many times.

    `victim` gets the child and kills what it likes. An ingest that was over before it was
    struck does not count. Returns how many ingests it took.
    """
    rng, env, longest, struck, turn = random.Random(seed), environment(settings), 2.0, 0, 0
    while struck < kills:
        assert turn < 4 * kills + 8, f"only {struck} of {turn} ingests were struck under way"
        shuffle(folder, turn, rng)
        child = nursery.child(INGEST, env, folder=str(folder), prune=True)
        child.wait_for("begins")
        time.sleep(rng.uniform(0, longest))
        in_time = child.alive
        victim(child)
        struck += in_time
        longest *= 1.05 if in_time else 0.8
        last = child.wait()
        stored = max(child.facts("stored"), default=0)
        try:
            with opened("kept", settings) as gallery:
                there = all_found(gallery)
                for run_id in set(child.facts("run_id")):
                    run = next(r for r in gallery.metadata.runs("kept") if r.run_id == run_id)
                    assert run.encoded <= len(there)
                    assert run.state != "running", "a dead process is shown as running"
                    if "end" not in last:
                        assert run.state == "stale"
                fresh = {path for path in there if f"/{turn:03d}/" in path}
                assert stored <= len(fresh) + 2 * CHANGED + 1, "acknowledged, and not there"
        except CollectionNotFound:
            assert not stored
        report = ingest(folder, "kept", encoder=attack.encoder, prune=True, settings=settings)
        assert report.state == "done"
        with opened("kept", settings) as gallery:
            agree(gallery, paths_of(folder))
        turn += 1
    return turn


def rounds(quick: int, name: str, long: int) -> list:
    """How often: for `make test`, and for `make soak` unless IMGSEARCH_SOAK_<name> says so."""
    long = int(os.environ.get(f"IMGSEARCH_SOAK_{name}", long))
    return [pytest.param(quick, id="quick"), pytest.param(long, id="soak", marks=[soak])]


@pytest.fixture(autouse=True)
def _encoder(encoder):
    attack.encoder = encoder


@pytest.mark.parametrize("kills", rounds(1, "KILLS", 50))
def test_an_ingest_is_killed(nursery, tmp_path, kills):
    settings = load_settings(imgsearch_home=tmp_path / "home")
    turns = attack(nursery, tmp_path / "photos", settings, kills, lambda c: c.kill(), 1)
    print(f"{kills} of {turns} ingests were killed under way, embedded stores")


@pytest.mark.parametrize("kills", rounds(1, "SERVER_KILLS", 50))
def test_the_embedded_server_is_killed_under_an_ingest(nursery, tmp_path, kills):
    settings = load_settings(imgsearch_home=tmp_path / "home")

    def victim(child):
        with contextlib.suppress(OSError, ValueError):  # not up yet, or just being replaced
            os.kill(server_pid(settings.imgsearch_home), signal.SIGKILL)

    turns = attack(nursery, tmp_path / "photos", settings, kills, victim, 2)
    print(f"the embedded server was killed under {kills} of {turns} ingests")


@pytest.mark.parametrize("kills", rounds(0, "KILLS_INTO_SERVERS", 50)[1:])
def test_an_ingest_into_servers_is_killed(nursery, tmp_path, mariadb, milvus_server, kills):
    settings = load_settings(
        imgsearch_home=tmp_path / "home",
        milvus_uri=milvus_server.uri,
        **mariadb.settings("killed_ingest"),
    )
    turns = attack(nursery, tmp_path / "photos", settings, kills, lambda c: c.kill(), 3)
    with opened("kept", settings) as gallery:
        gallery.drop()
    print(f"{kills} of {turns} ingests were killed under way, Milvus and MariaDB servers")


def kill_hard(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize("kills", rounds(0, "MARIADB_KILLS", 50)[1:])
def test_mariadb_is_killed_under_an_ingest(nursery, tmp_path, mariadb, kills):
    settings = load_settings(
        imgsearch_home=tmp_path / "home", **mariadb.settings(f"killed_sql_{kills}")
    )

    def victim(child):
        kill_hard(mariadb.process)
        mariadb.start()

    turns = attack(nursery, tmp_path / "photos", settings, kills, victim, 4)
    print(f"MariaDB was killed under {kills} of {turns} ingests")


@pytest.mark.parametrize("kills", rounds(0, "MILVUS_KILLS", 5)[1:])  # a restart takes a minute
def test_milvus_is_killed_under_an_ingest(nursery, tmp_path, mariadb, milvus_server, kills):
    settings = load_settings(
        imgsearch_home=tmp_path / "home",
        milvus_uri=milvus_server.uri,
        **mariadb.settings("killed_milvus"),
    )

    def victim(child):
        kill_hard(milvus_server.process)
        milvus_server.start()

    turns = attack(nursery, tmp_path / "photos", settings, kills, victim, 5)
    with opened("kept", settings) as gallery:
        gallery.drop()
    print(f"Milvus was killed under {kills} of {turns} ingests")


REPAIR = """
from imgsearch.maintenance import repair
tell(begins=True)
tell(report=repair("kept", image_dirs=[order["folder"]]).to_dict())
"""


@pytest.mark.parametrize("kills", rounds(1, "REPAIR_KILLS", 30))
def test_a_repair_is_killed_and_the_next_one_finishes(nursery, tmp_path, encoder, kills):
    """A repair must not forget an image because it died while it made its vector anew."""
    settings, folder = load_settings(imgsearch_home=tmp_path / "home"), tmp_path / "photos"
    for i in range(40):
        paint(folder / f"{i}.png", seed=i, size=(32, 24))
    ingest(folder, "kept", encoder=encoder, settings=settings)
    rng = random.Random(6)
    for _ in range(kills):
        with opened("kept", settings) as gallery:
            gallery.vectors.delete("kept", gallery.metadata.ids("kept")[:36])
        child = nursery.child(REPAIR, environment(settings), folder=str(folder))
        child.wait_for("begins")
        time.sleep(rng.uniform(0, 2))
        child.kill()
        with opened("kept", settings) as gallery:
            assert gallery.count().paths == 40, "an image was forgotten"
        again = nursery.child(REPAIR, environment(settings), folder=str(folder))
        assert again.wait() == {"end": "done"}
        assert again.facts("report")[0]["lost"] == []
        with opened("kept", settings) as gallery:
            agree(gallery, paths_of(folder))
            assert len(all_found(gallery)) == 40


@pytest.mark.parametrize("step", ["announced", "stored", "marked", "vectors gone"])
def test_a_drop_or_an_addition_stops_between_any_two_steps(
    stores, encoder, collection, tmp_path, step, monkeypatch
):
    """The moments that random kills seldom meet, met on purpose."""
    folder = tmp_path / "photos"
    for i in range(6):
        paint(folder / f"{i}.png", seed=i)
    ingest(folder, collection, encoder=encoder, settings=stores, limit=3)

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with opened(collection, stores) as gallery:
        if step in ("announced", "stored"):
            target = ("vectors", "upsert") if step == "announced" else ("metadata", "commit")
            monkeypatch.setattr(getattr(gallery, target[0]), target[1], die)
            rows = gallery.metadata.browse(collection)
            made = gallery.pipeline(sorted(folder.iterdir())[3:])
            new = [
                rows[0]._replace(path=str(path), image_id=e.info.image_id, sha256=e.info.sha256)
                for path, e in zip(sorted(folder.iterdir())[3:], made, strict=True)
            ]
            with pytest.raises(Killed):
                gallery.add(new, {e.info.image_id: e.vector for e in made})
        else:
            target = ("vectors", "drop") if step == "marked" else ("metadata", "drop_collection")
            monkeypatch.setattr(getattr(gallery, target[0]), target[1], die)
            with pytest.raises(Killed):
                gallery.drop()
        monkeypatch.undo()
    with opened(collection, stores) as gallery:
        expected = 3 if step in ("announced", "stored") else 0
        assert len(all_found(gallery)) == expected
        assert not verify(gallery).sound
    ingest(folder, collection, encoder=encoder, settings=stores)
    with opened(collection, stores) as gallery:
        agree(gallery, {str(path) for path in folder.iterdir()})


def test_a_drop_that_stopped_half_way_hides_everything_from_searches(
    stores, encoder, collection, monkeypatch
):
    """However many vectors are left without a row: fewer hits, and no error."""
    from imgsearch import gallery as gallery_module

    monkeypatch.setattr(gallery_module, "MAX_TOP_K", 64)
    rows, vectors = rows_and_vectors(encoder.dim, 100)
    with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as gallery:
        gallery.add(rows, vectors)
        gallery.metadata.mark_deleting(collection)
        assert gallery.count()[:4] == (0, 0, 0, 100)
        assert list(gallery.search(vectors[rows[0].image_id], 5)) == []
        gallery.drop()


def test_a_touched_file_stays_searchable_while_its_row_is_written(
    stores, encoder, collection, tmp_path, monkeypatch
):
    path = paint(tmp_path / "photos" / "a.png", seed=1)
    ingest(path.parent, collection, encoder=encoder, settings=stores)
    with opened(collection, stores) as gallery:
        row = gallery.get(path)
        vector = gallery.vectors.get(collection, [row.image_id])[1][0]
        seen = []
        commit = gallery.metadata.commit
        monkeypatch.setattr(
            gallery.metadata,
            "commit",
            lambda *a: (seen.append(gallery.count()), commit(*a)),
        )
        gallery.add([row._replace(mtime_ns=5)], {row.image_id: vector})
        assert [(c.paths, c.pending) for c in seen] == [(1, 0)]
        assert gallery.get(path).mtime_ns == 5


def test_a_row_in_the_hands_of_another_ingest_does_not_count_as_done(
    stores, encoder, collection, tmp_path
):
    """The other one may die before the vector is there, and nobody would look again."""
    path = paint(tmp_path / "photos" / "a.png", seed=1)
    ingest(path.parent, collection, encoder=encoder, settings=stores)
    with opened(collection, stores) as gallery:
        row = gallery.get(path)
        gallery.delete([path])

        recover_all = Gallery.recover

        def recover(self):
            count = recover_all(self)
            gallery.metadata.prepare(collection, [row])  # as another process does just then
            return count

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Gallery, "recover", recover)
            report = ingest(path.parent, collection, encoder=encoder, settings=stores)
        assert (report.encoded, report.unchanged) == (1, 0)
        agree(gallery, {str(path)})


def test_a_run_that_cannot_be_finished_does_not_hide_why_the_ingest_failed(
    stores, encoder, collection, tmp_path, monkeypatch
):
    from imgsearch.stores.metadata import MetadataStore

    paint(tmp_path / "photos" / "a.png", seed=1)

    def fail(self, *_, **__):
        raise StoreError(self.where, "the runs table is gone")

    monkeypatch.setattr(MetadataStore, "finish_run", fail)
    with pytest.raises(RuntimeError, match="first") as caught:
        ingest(
            tmp_path / "photos",
            collection,
            encoder=encoder,
            settings=stores,
            progress=lambda _: (_ for _ in ()).throw(RuntimeError("the first error")),
        )
    assert "runs table is gone" in caught.value.__notes__[0]
