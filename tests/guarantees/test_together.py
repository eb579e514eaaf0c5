"""Several processes at once: each is done or refused by name; no row is lost, nothing hangs."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from imgsearch.config import load_settings
from imgsearch.errors import CollectionNotFound, ImgSearchError, StoreError
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
from imgsearch.maintenance import verify
from tests.guarantees.common import (
    INGEST,
    assert_consistent,
    environment,
    rounds,
    searchable_paths,
    server_pid,
)
from tests.helpers import paint

SEARCH = """
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
import time
report(begins=True)
end, seen = time.monotonic() + arguments["seconds"], set()
with Gallery.open(arguments["collection"]) as gallery:
    while time.monotonic() < end:
        rows = gallery.metadata.browse(arguments["collection"], limit=1000)
        paths = {row.path for row in rows}
        assert seen <= paths, ("vanished", sorted(seen - paths))
        seen |= paths
        for row in rows[:: max(1, len(rows) // 5)]:
            hits = gallery.search(row, 3)
            assert row.image_id in {hit.image_id for hit in hits}, row.path
report(searches=len(seen))
"""


def fill(folder: Path, n: int, seed: int) -> None:
    for i in range(n):
        paint(folder / f"{i}.png", seed=seed + i, size=(32, 24))


def paths_of(*folders: Path) -> set[str]:
    return {str(path) for folder in folders for path in folder.rglob("*.png")}


@pytest.mark.parametrize("turns", rounds("TOGETHER", 1, 10))
def test_ingests_of_the_same_and_of_other_folders_and_searches_with_a_kill(
    forkserver, stores, encoder, collection, tmp_path, turns, record_property
):
    one, two, env = tmp_path / "one", tmp_path / "two", environment(stores)
    rng = random.Random(7)
    fill(one, 4, 0)
    ingest(one, collection, encoder=encoder, settings=stores)
    for turn in range(turns):
        fill(one / str(turn), 24, 1000 * turn + 100)
        fill(two / str(turn), 24, 1000 * turn + 500)
        shutil.copy(one / str(turn) / "0.png", two / str(turn) / "copy.png")
        work = {"collection": collection}
        encoding = {"encoder": encoder.name, **work}
        searcher = forkserver.run(SEARCH, env, seconds=4, **work)
        writers = [
            forkserver.run(INGEST, env, folder=str(folder), **encoding)
            for folder in (one, one, two, one)
        ]
        struck = writers.pop()
        struck.wait_for("begins")
        time.sleep(rng.uniform(0, 2))  # the random moment
        struck.kill()
        for writer in writers:
            assert writer.wait()["end"] == "done", writer.reports
            assert writer.reported("ingested")[0]["failed"] == 0
        assert searcher.wait()["end"] == "done", searcher.reports
        report = ingest(one, collection, encoder=encoder, settings=stores)
        assert (report.state, report.encoded) == ("done", 0), "an ingest said done, and was not"
        with Gallery.open(collection, settings=stores) as gallery:
            assert_consistent(gallery, paths_of(one, two))
            assert len(searchable_paths(gallery)) == len(paths_of(one, two))
    with Gallery.open(collection, settings=stores) as gallery:
        gallery.drop()
    record_property("figures", f"{turns} rounds")


@pytest.mark.parametrize("turns", rounds("TOGETHER", 1, 10))
def test_an_ingest_and_a_drop(
    forkserver, stores, encoder, collection, tmp_path, turns, record_property
):
    folder, rng, outcomes = tmp_path / "photos", random.Random(8), []
    fill(folder, 24, 0)
    for _ in range(turns):
        child = forkserver.run(
            INGEST,
            environment(stores),
            folder=str(folder),
            collection=collection,
            encoder=encoder.name,
        )
        child.wait_for("begins")
        time.sleep(rng.uniform(0, 2))  # the random moment
        try:
            with Gallery.open(collection, settings=stores) as gallery:
                gallery.drop()
        except CollectionNotFound:
            pass
        last = child.wait()
        outcomes.append(last["end"])
        assert last["end"] in ("done", "CollectionNotFound", "StoreError"), last
        assert collection in last.get("text", collection)
        report = ingest(folder, collection, encoder=encoder, settings=stores)
        assert report.state == "done"
        with Gallery.open(collection, settings=stores) as gallery:
            assert_consistent(gallery, paths_of(folder))
            gallery.drop()
            assert collection not in gallery.vectors.collections()
    ends = ", ".join(f"{outcomes.count(end)} {end}" for end in sorted(set(outcomes)))
    record_property("figures", f"{turns} rounds; the ingests ended as: {ends}")


def test_a_collection_that_was_made_anew_is_not_written_into_by_who_knew_the_old_one(
    stores, encoder, collection, tmp_path
):
    fill(tmp_path / "photos", 3, 0)
    ingest(tmp_path / "photos", collection, encoder=encoder, settings=stores)
    with Gallery.open(collection, settings=stores) as gallery:
        rows = gallery.metadata.browse(collection)
        vectors = {r.image_id: gallery.vectors.get(collection, [r.image_id])[1][0] for r in rows}
        with Gallery.open(collection, settings=stores) as other:
            other.drop()
        with Gallery.open(collection, encoder=encoder, create=True, settings=stores) as anew:
            with pytest.raises(StoreError, match=f"{collection}.*created again"):
                gallery.store(rows, vectors)
            assert anew.count().paths == 0
            assert verify(anew).sound


def test_two_ingests_in_threads_of_one_process(stores, encoder, collection, tmp_path):
    fill(tmp_path / "one", 16, 0)
    fill(tmp_path / "two", 16, 8)
    ends: list[object] = []

    def work(folder):
        try:
            ends.append(
                ingest(folder, collection, encoder=encoder, settings=stores, batch_size=4).state
            )
        except ImgSearchError as error:
            ends.append(error)

    threads = [
        threading.Thread(target=work, args=[tmp_path / name]) for name in ("one", "two", "one")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    assert ends == ["done"] * 3
    with Gallery.open(collection, settings=stores) as gallery:
        assert_consistent(gallery, paths_of(tmp_path))
        assert gallery.count().images == 24
        gallery.drop()


@pytest.mark.parametrize("turns", rounds("TOGETHER", 1, 10))
def test_kernels_share_a_home_while_one_of_them_and_the_server_are_killed(
    forkserver, encoder, tmp_path, turns, record_property
):
    settings, rng = load_settings(imgsearch_home=tmp_path / "home"), random.Random(9)
    for turn in range(turns):
        folders = [tmp_path / f"{name}" for name in "abc"]
        for i, folder in enumerate(folders):
            fill(folder / str(turn), 20, 10_000 * turn + 1000 * i)
        env = environment(settings)
        kernels = [
            forkserver.run(
                INGEST, env, folder=str(f), collection=f"of_{f.name}", encoder=encoder.name
            )
            for f in folders
        ]
        kernels[0].wait_for("begins")
        time.sleep(rng.uniform(0, 1.5))  # the random moment
        kernels[0].kill()
        time.sleep(rng.uniform(0, 0.5))  # another random moment
        with contextlib.suppress(OSError, ValueError):
            os.kill(server_pid(settings.imgsearch_home), signal.SIGKILL)
        for kernel in kernels[1:]:
            assert kernel.wait()["end"] == "done", kernel.reports
        ingest(folders[0], "of_a", encoder=encoder, settings=settings)
        for folder in folders:
            with Gallery.open(f"of_{folder.name}", settings=settings) as gallery:
                assert_consistent(gallery, paths_of(folder))
                assert len(searchable_paths(gallery)) == len(paths_of(folder))
    record_property("figures", f"{turns} rounds")
