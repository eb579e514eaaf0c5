"""Damaged, lost and outdated stores, and full disks: noticed, named, and repaired."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgsearch.collection import Collection
from imgsearch.config import load_settings
from imgsearch.errors import StoreDamaged, StoreError
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
from imgsearch.maintenance import repair, verify
from imgsearch.stores import embedded
from tests.guarantees.common import (
    assert_consistent,
    end_server,
    rounds,
    searchable_paths,
    soak,
)
from tests.helpers import paint, rows_and_vectors

N, LATE = 40, 8  # pictures, and how many of them are in the log only
NO_SOCKET = shutil.ignore_patterns("socket")  # which no file system copies


def answers(gallery: Gallery) -> dict[str, list[str]]:
    """Return the first five hits of every image."""
    rows = gallery.metadata.browse(gallery.name, limit=10_000)
    return {row.path: [hit.path for hit in gallery.search(row, 5)] for row in rows}


class FilledHome:
    """A home that is filled once, then damaged and restored many times."""

    def __init__(self, folder: Path, encoder):
        self.photos, self._template = folder / "photos", folder / "template"
        self.settings = load_settings(imgsearch_home=folder / "home")
        self.home = self.settings.imgsearch_home
        for i in range(N - LATE):
            paint(self.photos / f"{i}.png", seed=i, size=(32, 24))
        ingest(self.photos, "kept", encoder=encoder, settings=self.settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Collection, "flush", lambda self: None)
            for i in range(N - LATE, N):
                paint(self.photos / f"{i}.png", seed=i, size=(32, 24))
            ingest(self.photos, "kept", encoder=encoder, settings=self.settings)
        with self.open() as gallery:
            self.answers = answers(gallery)
        end_server(self.home)
        shutil.copytree(self.home, self._template, ignore=NO_SOCKET)

    def open(self) -> Gallery:
        return Gallery.open("kept", settings=self.settings)

    def restore(self) -> None:
        end_server(self.home)
        shutil.rmtree(self.home)
        shutil.copytree(self._template, self.home)

    @property
    def store(self) -> Path:
        return self.home / embedded.STORE

    def is_sound(self) -> bool:
        """Return what `verify` finds; where it finds nothing, every answer must be right."""
        try:
            with self.open() as gallery:
                sound = verify(gallery).sound
                if sound:
                    assert answers(gallery) == self.answers, "sound, but the answers are wrong"
                return sound
        except StoreDamaged:
            return False

    def repair(self) -> str:
        """Repair the collection and check that everything is back."""
        done = repair("kept", settings=self.settings)
        assert done.lost == []
        with self.open() as gallery:
            assert_consistent(gallery, {str(path) for path in self.photos.iterdir()})
            assert answers(gallery) == self.answers
        return str(done)


@pytest.fixture(scope="module")
def filled(tmp_path_factory, encoder) -> Iterator[FilledHome]:
    made = FilledHome(tmp_path_factory.mktemp("damage"), encoder)
    yield made
    end_server(made.home)


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def scramble(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    data[start : start + 64] = rng.randbytes(64)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


DAMAGES = {f.__name__: f for f in (flip, scramble, truncate, delete)}
KINDS = {
    "log": "wal_data_*.arrow",
    "segment": "data_*.parquet",
    "manifest": "manifest.json",
    "schema": "schema.json",
}


def damage(filled: FilledHome, kind: str, how: str, seed: int) -> str:
    """Damage a file of some kind, and return what was done."""
    rng = random.Random(f"{kind} {how} {seed}")
    files = sorted(filled.store.rglob(KINDS[kind]))
    assert files, f"no {kind} to damage"
    file = rng.choice(files)
    DAMAGES[how](file, rng)
    return f"{how} {file.name}"


@pytest.mark.parametrize(
    ("kind", "how"), [("log", "flip"), ("segment", "scramble"), ("schema", "delete")]
)
def test_a_damaged_file_is_noticed_and_the_store_rebuilt(filled, kind, how):
    filled.restore()
    damage(filled, kind, how, 0)
    if kind == "log" and how == "flip":  # a few bits of a vector: nothing but the checksums knows
        (log,) = filled.store.rglob(KINDS["log"])
        data = bytearray(log.read_bytes())
        data[len(data) // 2] ^= 0x10
        log.write_bytes(data)
    assert not filled.is_sound()
    assert filled.repair() != "kept: nothing to repair"


@pytest.mark.parametrize("turns", rounds("DAMAGE", 0, 7))
def test_any_damage_is_noticed_or_harmless_and_repaired(filled, turns, record_property):
    """`verify` never calls a store sound that answers wrongly."""
    noticed, harmless = Counter(), Counter()
    for seed, kind, how in itertools.product(range(turns), KINDS, DAMAGES):
        filled.restore()
        what = damage(filled, kind, how, seed)
        sound = filled.is_sound()
        (harmless if sound else noticed)[kind] += 1
        print(f"{what}: {'harmless' if sound else filled.repair()}", flush=True)
    total = turns * len(KINDS) * len(DAMAGES)
    record_property(
        "figures",
        f"{total} files damaged: {noticed.total()} noticed and repaired, "
        f"{harmless.total()} harmless",
    )


def test_an_older_metadata_file_is_brought_up_to_date(tmp_path, encoder):
    settings = load_settings(imgsearch_home=tmp_path / "home")
    folder, file = tmp_path / "photos", tmp_path / "home" / "metadata.sqlite"
    for i in range(6):
        paint(folder / f"{i}.png", seed=i)
    ingest(folder, "kept", encoder=encoder, settings=settings, limit=3)
    with Gallery.open("kept", settings=settings) as gallery:
        gallery.metadata.close()
    old = file.read_bytes()
    ingest(folder, "kept", encoder=encoder, settings=settings)
    gone = folder / "0.png"
    with Gallery.open("kept", settings=settings) as gallery:
        gallery.delete([gone])
    gone.unlink()
    for path in file.parent.glob("metadata.sqlite*"):
        path.unlink()
    file.write_bytes(old)
    with Gallery.open("kept", settings=settings) as gallery:
        account = verify(gallery)
        assert (len(account.orphan_vectors), len(account.missing_vectors)) == (3, 1)
    report = repair("kept", settings=settings)
    assert (report.rows_added, [path for path, _ in report.lost]) == (3, [str(gone)])
    with Gallery.open("kept", settings=settings) as gallery:
        gallery.delete(gone)
        assert_consistent(gallery, {str(path) for path in folder.iterdir()})


def test_an_older_vector_store_is_brought_up_to_date(tmp_path, encoder):
    settings = load_settings(imgsearch_home=tmp_path / "home")
    folder, store = tmp_path / "photos", tmp_path / "home" / embedded.STORE
    for i in range(6):
        paint(folder / f"{i}.png", seed=i)
    ingest(folder, "kept", encoder=encoder, settings=settings, limit=3)
    end_server(settings.imgsearch_home)
    shutil.copytree(store, tmp_path / "old")
    ingest(folder, "kept", encoder=encoder, settings=settings)
    end_server(settings.imgsearch_home)
    shutil.rmtree(store)
    shutil.copytree(tmp_path / "old", store)
    with Gallery.open("kept", settings=settings) as gallery:
        assert len(verify(gallery).missing_vectors) == 3
    assert repair("kept", settings=settings).encoded == 3
    with Gallery.open("kept", settings=settings) as gallery:
        assert_consistent(gallery, {str(path) for path in folder.iterdir()})


def test_a_broken_metadata_file_is_named_with_the_way_out(filled):
    filled.restore()
    file = filled.home / "metadata.sqlite"
    for path in filled.home.glob("metadata.sqlite-*"):
        path.unlink()
    data = bytearray(file.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 64] = b"\xff" * 64
    file.write_bytes(data)
    with (
        pytest.raises(StoreDamaged, match=r"metadata\.sqlite.*move it away"),
        filled.open() as gallery,
    ):
        verify(gallery)
    file.rename(file.with_suffix(".broken"))
    report = repair("kept", image_dirs=[filled.photos], settings=filled.settings)
    assert report.metadata_rebuilt
    with filled.open() as gallery:
        assert_consistent(gallery, {str(path) for path in filled.photos.iterdir()})


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 48 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"mounting a file system needs root: {made.stderr.strip()}")
    try:
        yield disk
    finally:
        for home in disk.glob("home*"):
            end_server(home)
        until = time.monotonic() + 10
        while subprocess.run(["umount", disk], capture_output=True).returncode:
            if time.monotonic() > until:
                subprocess.run(["umount", "-l", disk], check=True)
                break
            time.sleep(0.1)


FULL = r"disk is full|check free space"


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes free; return the file that takes up the rest."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - left))
    return filler


@pytest.mark.parametrize(
    "free",
    [
        pytest.param([700_000], id="quick"),
        pytest.param([*range(0, 4_000_000, 200_000)], id="soak", marks=[soak]),
    ],
)
def test_a_full_disk_is_named_and_nothing_that_was_acknowledged_is_lost(
    small_disk, encoder, free, record_property
):
    rows, vectors = rows_and_vectors(encoder.dim, 2000)
    steps = [rows[i : i + 50] for i in range(0, len(rows), 50)]
    for turn, left in enumerate(free):
        home = small_disk / f"home{turn}"
        settings = load_settings(imgsearch_home=home)
        with Gallery.open("kept", encoder=encoder, create=True, settings=settings) as gallery:
            stored, step = [], 0
            for step in range(3):
                gallery.store(steps[step], vectors)
                stored += steps[step]
            gallery.flush()
            filler = fill(small_disk, left)

            def go_on(stored=stored):
                for step in range(3, len(steps)):
                    gallery.store(steps[step], vectors)
                    stored.extend(steps[step])
                    if step % 5 == 4:
                        gallery.flush()

            with pytest.raises(StoreError, match=FULL) as full:
                go_on()
            assert "home" in str(full.value)
            filler.unlink()
            # The same process goes on, as a notebook would; then everything is killed.
            gallery.recover()
            for step in range(max(3, len(stored) // 50), len(stored) // 50 + 3):
                gallery.store(steps[step], vectors)
                stored += steps[step]
            end_server(home)
            ids = {row.image_id for row in stored}
            assert set(gallery.metadata.ids("kept").tolist()) == ids
            assert_consistent(gallery)
            for row in stored[::10]:
                assert gallery.search(vectors[row.image_id], 1)[0].image_id == row.image_id
        print(f"{left} bytes left: {len(stored) // 50 - 6} steps before '{full.value.reason[:60]}'")
        end_server(home)
        shutil.rmtree(home)
    record_property("figures", f"{len(free)} times, with up to {max(free) / 1e6:.1f} MB left")


def test_an_ingest_onto_a_full_disk_goes_on_after_space_is_made(small_disk, encoder, tmp_path):
    settings = load_settings(imgsearch_home=small_disk / "home")
    for i in range(12):
        paint(tmp_path / "photos" / f"{i}.png", seed=i)
    ingest(tmp_path / "photos", "kept", encoder=encoder, settings=settings, limit=4)
    with Gallery.open("kept", settings=settings) as gallery:
        assert len(searchable_paths(gallery)) == 4
        filler = fill(small_disk, 0)
        with pytest.raises(StoreError, match=FULL):
            ingest(tmp_path / "photos", "kept", encoder=encoder, settings=settings)
        assert len(searchable_paths(gallery)) == 4, "a notebook that is open goes on searching"
    filler.unlink()
    report = ingest(tmp_path / "photos", "kept", encoder=encoder, settings=settings)
    assert (report.state, report.paths) == ("done", 12)
    with Gallery.open("kept", settings=settings) as gallery:
        assert_consistent(gallery, {str(path) for path in (tmp_path / "photos").iterdir()})
