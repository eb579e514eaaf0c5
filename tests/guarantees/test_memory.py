"""Too little memory: an error, and nothing healthy is taken for damaged or lost."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.errors import StoreDamaged, StoreError
from imgsearch.gallery import Gallery
from imgsearch.maintenance import repair, verify
from imgsearch.stores import vectors
from imgsearch.stores.connection import Connection
from imgsearch.stores.metadata import CollectionRow, MetadataStore
from imgsearch.stores.vectors import IndexSpec, VectorStore
from tests.guarantees.common import end_server, server_pid, soak
from tests.helpers import rows_and_vectors


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "spares",
    [
        pytest.param([15], id="quick"),
        pytest.param([0, 2, 8, 15, 20, 25, 40, 60, 80, 120], id="soak", marks=[soak]),
    ],
)
def test_a_repair_with_a_server_short_of_memory_loses_nothing(tmp_path, spares):
    """Attack row 1: a healthy collection was set aside, and the rows of 25,000 images deleted."""
    settings = load_settings(imgsearch_home=tmp_path / "home", imgsearch_timeout=5.0)
    home, counts = settings.imgsearch_home, {"large": 25_000, "other": 10}
    for name, n in counts.items():
        with MetadataStore.open(settings) as metadata:
            metadata.create_collection(CollectionRow(name, "none", {}, "0" * 16, 256, "FLAT"))
        with Gallery.open(name, settings=settings) as gallery:
            rows, vectors = rows_and_vectors(256, n)
            for start in range(0, n, 5_000):
                gallery.store(rows[start : start + 5_000], vectors)
            gallery.flush()
    for spare in spares:
        end_server(home)
        with VectorStore.open(settings):
            pid = server_pid(home)
            status = Path(f"/proc/{pid}/status").read_text()
            limit = int(re.search(r"VmSize:\s+(\d+)", status)[1]) * 1024 + spare * 2**20
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
            with pytest.MonkeyPatch.context() as patch:
                # Seconds for a call that the server accepts and never answers.
                patch.setitem(Connection.call.__kwdefaults__, "limit", 10.0)
                try:
                    outcome = repair("large", settings=settings)
                except (StoreError, MemoryError) as error:
                    outcome = error
        print(f"{spare} MiB to spare: {outcome}")
        assert not isinstance(outcome, StoreDamaged)
        assert (getattr(outcome, "set_aside", None), getattr(outcome, "lost", [])) == (None, [])
        end_server(home)
        assert not (home / "damaged").exists()
        for name, n in counts.items():
            with Gallery.open(name, settings=settings) as gallery:
                found = verify(gallery)
                assert (found.sound, found.images) == (True, n), str(found)
    end_server(home)


SIZE, STEP = 25_000, 2_500  # vectors of 256 numbers, and how many are written at a time


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A home of 25,000 vectors, most of them written out, the rest in the log."""
    home = tmp_path_factory.mktemp("memory") / "home"
    points = np.random.default_rng(0).standard_normal((SIZE, 256), dtype=np.float32)
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        store.create("c", 256, IndexSpec.parse("FLAT"))
        for start in range(0, SIZE, STEP):
            store.upsert("c", np.arange(start, start + STEP), points[start : start + STEP])
            if start == SIZE - 3 * STEP:
                store.flush("c")
        end_server(home)
        yield home, store, points
    end_server(home)


def assert_complete(store: VectorStore, points: np.ndarray, extra: int) -> None:
    """Check that a fresh server has everything, and remove what was added."""
    store.restart()
    assert store.ids("c").tolist() == list(range(SIZE + extra))
    chosen = np.random.default_rng(1).choice(SIZE, 500, replace=False)
    ids, vectors = store.get("c", chosen)
    assert np.array_equal(ids, chosen)
    assert np.array_equal(vectors, points[chosen])
    store.delete("c", np.arange(SIZE, SIZE + extra))
    end_server(store._home)


@contextlib.contextmanager
def servers_limited_to(megabytes: int, folder: Path) -> Iterator[None]:
    """Limit the address space of servers that are started meanwhile."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nulimit -v {megabytes * 1024}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        yield


def use(store: VectorStore, points: np.ndarray, refused: list[StoreError]) -> int:
    """Read and write in every way; return how many batches were acknowledged."""
    store._loaded.add("c")  # there is nothing to load, and a load may take an hour
    calls = (
        lambda: store.count("c"),
        lambda: store.search("c", points[:200], 100),
        lambda: store.ids("c"),
        lambda: store.get("c", np.arange(5_000)),
        lambda: store.flush("c"),
        lambda: store.about("c"),
        store.collections,
    )
    written = 0
    for call in calls:
        try:
            call()
        except StoreError as error:
            refused.append(error)
        try:
            first = SIZE + 100 * written
            store.upsert("c", np.arange(first, first + 100), points[:100])
            written += 1
        except StoreError as error:
            refused.append(error)
    return written


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param([450], id="quick"),
        pytest.param([150, 250, 350, 550, 900], id="soak", marks=[soak]),
    ],
)
def test_a_server_that_starts_short_of_memory_loses_nothing(large, tmp_path, limits, monkeypatch):
    """Attack row 1: `ulimit -v 250` at start cost the whole store."""
    home, store, points = large
    monkeypatch.setitem(Connection.call.__kwdefaults__, "limit", 15.0)
    monkeypatch.setattr(vectors, "WORK_LIMIT", 15.0)  # for a flush behind a search that hangs
    for limit in limits:
        refused, written = [], 0
        with servers_limited_to(limit, tmp_path):
            written = use(store, points, refused)
        print(f"{limit} MB at start: {written} writes, {len(refused)} refusals", refused[:1])
        assert not [error for error in refused if isinstance(error, StoreDamaged)]
        assert not (home / "damaged").exists()
        assert_complete(store, points, 100 * written)


@pytest.mark.parametrize(
    "spares",
    [
        pytest.param([60], id="quick"),
        pytest.param([0, 20, 100, 200, 400], id="soak", marks=[soak]),
    ],
)
def test_a_server_that_runs_short_of_memory_loses_nothing(large, spares, monkeypatch):
    """Attack row 1: "malloc of size ... failed" became damage, and `repair` deleted the rows."""
    home, store, points = large
    monkeypatch.setitem(Connection.call.__kwdefaults__, "limit", 15.0)
    monkeypatch.setattr(vectors, "WORK_LIMIT", 15.0)  # for a flush behind a search that hangs
    for spare in spares:
        store.collections()
        pid = server_pid(home)
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (size + spare * 2**20,) * 2)
        refused: list[StoreError] = []
        written = use(store, points, refused)
        print(f"{spare} MB to spare: {written} writes, {len(refused)} refusals", refused[:1])
        assert not [error for error in refused if isinstance(error, StoreDamaged)]
        assert not (home / "damaged").exists()
        assert_complete(store, points, 100 * written)
