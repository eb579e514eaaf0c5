"""Processes are killed: nothing acknowledged is lost, and the next ingest completes the rest."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imgsearch.collection import Collection
from imgsearch.config import Settings, load_settings
from imgsearch.errors import CollectionNotFound, StoreError
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
from imgsearch.maintenance import verify
from imgsearch.stores.metadata import CollectionRow, MetadataStore
from tests.forkserver import Child, ForkServer
from tests.guarantees.common import (
    INGEST,
    assert_consistent,
    environment,
    rounds,
    searchable_paths,
    server_pid,
)
from tests.helpers import paint, rows_and_vectors

NEW, CHANGED, GONE = 20, 3, 2  # files of one round


def change_files(folder: Path, turn: int, rng: random.Random) -> None:
    """Add, change, touch, copy and delete pictures, so that an ingest takes every branch."""
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


class KilledIngests:
    """Ingests that are struck at random moments, each followed by checks and a whole ingest."""

    def __init__(self, forkserver: ForkServer, folder: Path, encoder):
        self._forkserver, self._folder, self._encoder = forkserver, folder, encoder
        self.returned = 0  # deleted vectors that a server brought back

    def run(self, settings: Settings, kills: int, kill: Callable[[Child], None], seed: int) -> int:
        """Strike ``kills`` ingests by ``kill``, and return how many ingests it took.

        An ingest that had ended before it was struck does not count.
        """
        rng, longest, struck, turn = random.Random(seed), 1.0, 0, 0
        while struck < kills:
            assert turn < 4 * kills + 8, f"only {struck} of {turn} ingests were struck under way"
            change_files(self._folder, turn, rng)
            child = self._forkserver.run(
                INGEST,
                environment(settings),
                folder=str(self._folder),
                prune=True,
                encoder=self._encoder.name,
            )
            child.wait_for("begins")
            time.sleep(rng.uniform(0, longest))  # the random moment
            in_time = child.alive
            kill(child)
            struck += in_time
            longest *= 1.05 if in_time else 0.8
            last = child.wait()
            self._check(settings, child, turn, killed="end" not in last)
            report = ingest(
                self._folder, "kept", encoder=self._encoder, prune=True, settings=settings
            )
            assert report.state == "done"
            with Gallery.open("kept", settings=settings) as gallery:
                self.returned += assert_consistent(gallery, paths_of(self._folder))
            turn += 1
        return turn

    def _check(self, settings: Settings, child: Child, turn: int, *, killed: bool) -> None:
        """Check that everything that was acknowledged is found."""
        stored = max(child.reported("stored"), default=0)
        try:
            with Gallery.open("kept", settings=settings) as gallery:
                there = searchable_paths(gallery)
                for run_id in set(child.reported("run_id")):
                    run = next(r for r in gallery.metadata.runs("kept") if r.run_id == run_id)
                    assert run.encoded <= len(there)
                    assert run.state != "running", "a dead process is shown as running"
                    if killed:  # it may have written its last row and not yet reported it
                        assert run.state in ("stale", "done")
                fresh = {path for path in there if f"/{turn:03d}/" in path}
                assert stored <= len(fresh) + 2 * CHANGED + 1, "acknowledged, but not there"
        except CollectionNotFound:
            assert not stored


@pytest.fixture
def ingests(forkserver, tmp_path, encoder) -> KilledIngests:
    return KilledIngests(forkserver, tmp_path / "photos", encoder)


@pytest.mark.parametrize("kills", rounds("KILLS", 1, 50))
def test_an_ingest_is_killed(ingests, tmp_path, kills, record_property):
    settings = load_settings(imgsearch_home=tmp_path / "home")
    turns = ingests.run(settings, kills, lambda child: child.kill(), seed=1)
    record_property("figures", f"{kills} kills under way, in {turns} ingests")


@pytest.mark.parametrize("kills", rounds("SERVER_KILLS", 1, 50))
def test_the_embedded_server_is_killed_under_an_ingest(ingests, tmp_path, kills, record_property):
    settings = load_settings(imgsearch_home=tmp_path / "home")

    def kill(child):
        with contextlib.suppress(OSError, ValueError):  # not up yet, or just being replaced
            os.kill(server_pid(settings.imgsearch_home), signal.SIGKILL)

    turns = ingests.run(settings, kills, kill, seed=2)
    record_property("figures", f"{kills} kills under way, in {turns} ingests")


@pytest.mark.parametrize("kills", rounds("KILLS_INTO_SERVERS", 0, 25))
def test_an_ingest_into_servers_is_killed(
    ingests, tmp_path, mariadb, milvus_server, kills, record_property
):
    settings = load_settings(
        imgsearch_home=tmp_path / "home",
        milvus_uri=milvus_server.uri,
        **mariadb.settings("killed_ingest"),
    )
    turns = ingests.run(settings, kills, lambda child: child.kill(), seed=3)
    with Gallery.open("kept", settings=settings) as gallery:
        gallery.drop()
    figures = f"{kills} kills under way, in {turns} ingests; {ingests.returned} vectors came back"
    record_property("figures", figures)


@pytest.mark.parametrize("kills", rounds("MARIADB_KILLS", 0, 25))
def test_mariadb_is_killed_under_an_ingest(ingests, tmp_path, own_mariadb, kills, record_property):
    settings = load_settings(imgsearch_home=tmp_path / "home", **own_mariadb.settings("killed_sql"))

    def kill(child):
        own_mariadb.kill()
        own_mariadb.start()

    turns = ingests.run(settings, kills, kill, seed=4)
    record_property("figures", f"{kills} kills under way, in {turns} ingests")


@pytest.mark.parametrize("kills", rounds("MILVUS_KILLS", 0, 5))  # a restart takes a minute
def test_milvus_is_killed_under_an_ingest(
    ingests, tmp_path, mariadb, own_milvus, kills, record_property
):
    settings = load_settings(
        imgsearch_home=tmp_path / "home",
        milvus_uri=own_milvus.uri,
        **mariadb.settings("killed_milvus"),
    )

    def kill(child):
        own_milvus.kill()
        own_milvus.start()

    turns = ingests.run(settings, kills, kill, seed=5)
    record_property("figures", f"{kills} kills under way, in {turns} ingests")


REPAIR = """
from imgsearch.maintenance import repair
report(begins=True)
report(repaired=repair("kept", image_dirs=[arguments["folder"]]).to_dict())
"""


@pytest.mark.parametrize("kills", rounds("REPAIR_KILLS", 1, 30))
def test_a_repair_is_killed_and_the_next_one_finishes(
    forkserver, tmp_path, encoder, kills, record_property
):
    """A repair must not forget an image because it died while it made its vector anew."""
    settings, folder = load_settings(imgsearch_home=tmp_path / "home"), tmp_path / "photos"
    for i in range(40):
        paint(folder / f"{i}.png", seed=i, size=(32, 24))
    ingest(folder, "kept", encoder=encoder, settings=settings)
    rng, env = random.Random(6), environment(settings)
    for _ in range(kills):
        with Gallery.open("kept", settings=settings) as gallery:
            gallery.vectors.delete("kept", gallery.metadata.ids("kept")[:36])
        child = forkserver.run(REPAIR, env, folder=str(folder))
        child.wait_for("begins")
        time.sleep(rng.uniform(0, 2))  # the random moment
        child.kill()
        with Gallery.open("kept", settings=settings) as gallery:
            assert gallery.count().paths == 40, "an image was forgotten"
        again = forkserver.run(REPAIR, env, folder=str(folder))
        assert again.wait() == {"end": "done"}
        assert again.reported("repaired")[0]["lost"] == []
        with Gallery.open("kept", settings=settings) as gallery:
            assert_consistent(gallery, paths_of(folder))
            assert len(searchable_paths(gallery)) == 40
    record_property("figures", f"{kills} kills")


SET_ATTRIBUTES = """
from imgsearch.config import load_settings
from imgsearch.stores.metadata import MetadataStore
with MetadataStore.open(load_settings()) as store:
    for number in range(arguments["first"], 10**6):
        changes = {path: {"round": number, "tags": [number, "t"]} for path in arguments["paths"]}
        store.set_attributes("kept", changes)
        report(set=number)
"""


@pytest.mark.parametrize("kind", ["embedded", "servers"])
@pytest.mark.parametrize("kills", rounds("ATTRIBUTE_KILLS", 3, 100))
def test_a_change_of_attributes_is_killed(
    forkserver, tmp_path, request, kind, kills, record_property
):
    """A call changes all of its files or none, and the copy that filters look at agrees."""
    servers = (
        {} if kind == "embedded" else request.getfixturevalue("mariadb").settings("killed_set")
    )
    settings = load_settings(imgsearch_home=tmp_path / "home", **servers)
    rows, _ = rows_and_vectors(8, 400)
    paths, rng = [row.path for row in rows], random.Random(8)
    with MetadataStore.open(settings) as store:
        store.create_collection(CollectionRow("kept", "mini", {}, "f00d", 8, "FLAT"))
        store.prepare("kept", rows)
        store.commit("kept", paths)
        store.set_attributes("kept", {path: {"round": 0} for path in paths})
        known = 0
        for _ in range(kills):
            child = forkserver.run(
                SET_ATTRIBUTES, environment(settings), first=known + 1, paths=paths
            )
            child.wait_for("set")
            time.sleep(rng.uniform(0, 0.3))  # the random moment
            child.kill()
            acknowledged = max(child.reported("set"))
            (known,) = {row.attributes["round"] for row in store.browse("kept", limit=1_000)}
            assert known in (acknowledged, acknowledged + 1)
            assert store.count("kept", where={"round": known, "tags": known}).paths == len(paths)
            assert store.attribute_values("kept")["round"] == [(known, len(paths))]
    record_property("figures", f"{kills} kills, {known} calls")


@pytest.mark.parametrize("step", ["prepared", "stored", "marked", "vectors dropped"])
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

    with Gallery.open(collection, settings=stores) as gallery:
        if step in ("prepared", "stored"):
            target = ("vectors", "upsert") if step == "prepared" else ("metadata", "commit")
            monkeypatch.setattr(getattr(gallery, target[0]), target[1], die)
            rows = gallery.metadata.browse(collection)
            made = gallery.pipeline(sorted(folder.iterdir())[3:])
            new = [
                rows[0]._replace(path=str(path), image_id=e.info.image_id, sha256=e.info.sha256)
                for path, e in zip(sorted(folder.iterdir())[3:], made, strict=True)
            ]
            with pytest.raises(Killed):
                gallery.store(new, {e.info.image_id: e.vector for e in made})
        else:
            target = ("vectors", "drop") if step == "marked" else ("metadata", "drop_collection")
            monkeypatch.setattr(getattr(gallery, target[0]), target[1], die)
            with pytest.raises(Killed):
                gallery.drop()
        monkeypatch.undo()
    with Gallery.open(collection, settings=stores) as gallery:
        expected = 3 if step in ("prepared", "stored") else 0
        assert len(searchable_paths(gallery)) == expected
        assert not verify(gallery).sound
    ingest(folder, collection, encoder=encoder, settings=stores)
    with Gallery.open(collection, settings=stores) as gallery:
        assert_consistent(gallery, {str(path) for path in folder.iterdir()})


@pytest.mark.parametrize(
    ("store", "step"),
    [("vectors", "delete"), ("metadata", "prepare"), ("vectors", "upsert"), ("metadata", "commit")],
)
def test_a_file_keeps_its_attributes_wherever_a_change_of_its_content_stops(
    stores, encoder, collection, tmp_path, store, step, monkeypatch
):
    path = paint(tmp_path / "photos" / "a.png", seed=1)
    ingest(path.parent, collection, encoder=encoder, settings=stores, attributes={"label": "cat"})
    paint(path, seed=2)

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with Gallery.open(collection, settings=stores) as gallery:
        (row,) = gallery.metadata.browse(collection)
        (made,) = gallery.pipeline([path])
        info = made.info
        monkeypatch.setattr(getattr(gallery, store), step, die)
        changed = row._replace(image_id=info.image_id, sha256=info.sha256, attributes={})
        with pytest.raises(Killed):
            gallery.store([changed], {info.image_id: made.vector})
        monkeypatch.undo()
        gallery.recover()
        assert_consistent(gallery)
    ingest(path.parent, collection, encoder=encoder, settings=stores)
    with Gallery.open(collection, settings=stores) as gallery:
        assert_consistent(gallery, {str(path)})
        assert gallery[str(path)].attributes == {"label": "cat"}
        assert [hit.image_id for hit in gallery.search(path, 5, where={"label": "cat"})] == [
            info.image_id
        ]


def test_a_drop_that_stopped_half_way_hides_everything_from_searches(
    stores, encoder, collection, monkeypatch
):
    """However many vectors are left without a row: fewer hits, and no error."""
    from imgsearch import gallery as gallery_module

    monkeypatch.setattr(gallery_module, "MAX_TOP_K", 64)
    rows, vectors = rows_and_vectors(encoder.dim, 100)
    with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as gallery:
        gallery.store(rows, vectors)
        gallery.metadata.hide(collection, "deleting")
        assert gallery.count()[:4] == (0, 0, 0, 100)
        assert list(gallery.search(vectors[rows[0].image_id], 5)) == []
        gallery.drop()


def test_a_touched_file_stays_searchable_while_its_row_is_written(
    stores, encoder, collection, tmp_path, monkeypatch
):
    path = paint(tmp_path / "photos" / "a.png", seed=1)
    ingest(path.parent, collection, encoder=encoder, settings=stores)
    with Gallery.open(collection, settings=stores) as gallery:
        (row,) = gallery.metadata.by_path(collection, [str(path)]).values()
        vector = gallery.vectors.get(collection, [row.image_id])[1][0]
        seen = []
        commit = gallery.metadata.commit
        monkeypatch.setattr(
            gallery.metadata,
            "commit",
            lambda *a: (seen.append(gallery.count()), commit(*a)),
        )
        gallery.store([row._replace(mtime_ns=5)], {row.image_id: vector})
        assert [(c.paths, c.pending) for c in seen] == [(1, 0)]
        (row,) = gallery.metadata.by_path(collection, [str(path)]).values()
        assert row.mtime_ns == 5


def test_a_row_in_the_hands_of_another_ingest_does_not_count_as_done(
    stores, encoder, collection, tmp_path
):
    """The other one may die before the vector is there, and nobody would look again."""
    path = paint(tmp_path / "photos" / "a.png", seed=1)
    ingest(path.parent, collection, encoder=encoder, settings=stores)
    with Gallery.open(collection, settings=stores) as gallery:
        (row,) = gallery.metadata.by_path(collection, [str(path)]).values()
        gallery.delete(path)

        recover_all = Collection.recover

        def recover(self):
            count = recover_all(self)
            gallery.metadata.prepare(collection, [row])  # as another process does just then
            return count

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Collection, "recover", recover)
            report = ingest(path.parent, collection, encoder=encoder, settings=stores)
        assert (report.encoded, report.unchanged) == (1, 0)
        assert_consistent(gallery, {str(path)})


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


CALLS = """
import numpy as np
from imgsearch.gallery import Gallery
name, encoder = arguments["collection"], arguments["encoder"]
with Gallery.open(name, encoder=encoder, create=True) as gallery:
    report(begins=True)
    for turn in range(arguments["first"], arguments["first"] + 1000):
        names = [f"{turn}-{i}" for i in range(3)]
        pictures = [np.full((8, 8, 3), (turn % 256, turn // 256, i), np.uint8) for i in range(3)]
        gallery.add(pictures, name=names, attributes={"turn": turn}, progress=False)
        report(added=turn)
        gallery.set_attributes({name: {"marked": turn} for name in names}, key="name")
        report(marked=turn)
        gallery.delete(where={"turn": turn - 4})
        report(deleted=turn - 4)
"""


@pytest.mark.parametrize("kills", rounds("CALL_KILLS", 2, 50))
def test_add_set_attributes_and_delete_are_killed(
    forkserver, stores, collection, encoder, kills, record_property
):
    given, rng, first = {"collection": collection, "encoder": encoder.name}, random.Random(7), 10
    for _ in range(kills):
        child = forkserver.run(CALLS, environment(stores), **given, first=first)
        child.wait_for("marked")
        time.sleep(rng.uniform(0, 1))  # the random moment
        child.kill()
        added, marked, deleted = (
            max(child.reported(name), default=0) for name in ("added", "marked", "deleted")
        )
        with Gallery.open(collection, settings=stores) as gallery:
            stored = gallery.to_pandas().groupby("turn").size()
            alive = range(max(first, deleted + 2), added + 1)  # the next deletion may have begun
            assert [stored.get(turn, 0) for turn in alive] == [3] * len(alive)
            assert not set(stored.index) & set(range(first, deleted + 1))
            done = gallery.browse(where={"marked": {"<=": marked}}, limit=100)
            turns = [image.attributes["turn"] for image in done]
            assert {t: turns.count(t) for t in alive if t <= marked} == dict.fromkeys(
                range(alive.start, marked + 1), 3
            )
            gallery.add(np.full((8, 8, 3), 255, np.uint8), name="last")
            assert_consistent(gallery)
            gallery.delete(gallery)
        first = added + 10
    record_property("figures", f"{kills} kills, {first} turns")
