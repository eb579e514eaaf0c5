from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.errors import StoreBusy, StoreDamaged, StoreError, StoreUnavailable
from imgsearch.stores import embedded
from imgsearch.stores.vectors import IndexSpec, VectorStore
from tests.guarantees.common import freeze
from tests.stores.scripts import Script, alive, gone

DIM = 8
FLAT = IndexSpec.parse("auto", embedded=True)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of the test's own, whose server does not outlive the test."""
    monkeypatch.setitem(embedded.lease.__kwdefaults__, "grace", 0.5)
    home = tmp_path / "a home with ümlaut"
    yield home
    try:
        pid = json.loads((home / "embedded" / "server.json").read_text())["pid"]
    except (OSError, ValueError):
        return
    if alive(pid):
        os.kill(pid, signal.SIGKILL)


def test_clients_share_a_server_that_exits_after_the_last_of_them(home):
    # The writer says what was acknowledged; the readers check that nothing of it is missing.
    writer = """
say("ready"); sys.stdin.readline()
with VectorStore.open(load_settings(imgsearch_home=home)) as store:
    say(store.connection.lease.pid)
    store.create("c", 8, IndexSpec.parse("auto", embedded=True))
    for start in range(0, 1500, 50):
        rng = np.random.default_rng(start)
        store.upsert("c", np.arange(start, start + 50), rng.normal(size=(50, 8)))
        if start == 700: store.flush("c", wait=False)
    store.flush("c")
say("written")
"""
    reader = """
say("ready"); sys.stdin.readline()
with VectorStore.open(load_settings(imgsearch_home=home)) as store:
    say(store.connection.lease.pid)
    while "c" not in store.collections(): time.sleep(0.02)
    store.create("c", 8, IndexSpec.parse("auto", embedded=True))
    n = searches = 0
    while n < 1500:
        before, n = n, store.count("c")
        assert n >= before, (before, n)
        probe = np.random.default_rng(0).normal(size=(50, 8))[:1]
        ids, scores = store.search("c", probe, 3)[0]
        if n: assert ids[0] == 0 and scores[0] > 0.999, (n, ids, scores)
        got = store.get("c", range(n))[0]
        assert len(got) == n, (n, len(got))
        searches += 1
say(searches)
"""

    scripts = [Script(home, code) for code in (writer, reader, reader)]
    for script in scripts:
        assert script.hear() == "ready"
    for script in scripts:  # all three find no server, at once
        script.process.stdin.write("go\n")
        script.process.stdin.flush()
    pids = {script.hear() for script in scripts}
    assert len(pids) == 1
    assert scripts[0].end() == ["written"]
    assert all(int(script.end()[0]) > 0 for script in scripts[1:])
    assert gone(int(pids.pop()))
    assert not (home / "embedded" / "server.json").exists()
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        assert store.count("c") == 1500


def test_a_killed_server_is_replaced_and_nothing_acknowledged_is_lost(home):
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        store.create("c", DIM, FLAT)
        points = np.random.default_rng(0).normal(size=(1200, DIM)).astype(np.float32)
        pids, acknowledged, stop = set(), [], threading.Event()

        def kill():
            while not stop.wait(0.4):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(store.connection.lease.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            start, until = 0, time.monotonic() + 60
            while len(pids) < 3 and time.monotonic() < until:
                pids.add(store.connection.lease.pid)
                part = np.arange(start, start + 20)
                try:
                    store.upsert("c", part, points[part % 1200])
                except StoreUnavailable:  # killed twice within one call
                    continue
                acknowledged += part.tolist()
                start += 20
        finally:
            stop.set()
            killer.join()
        assert len(pids) >= 3
        assert set(acknowledged) <= set(store.ids("c").tolist())
        got, read = store.get("c", acknowledged[:1000])
        assert np.array_equal(read, points[got % 1200])


def test_two_writers_at_once_lose_nothing_when_the_server_is_killed(home):
    code = """
with VectorStore.open(load_settings(imgsearch_home=home)) as store:
    first = int(sys.argv[2])
    for start in range(first, first + 4000, 100):
        store.upsert("c", np.arange(start, start + 100), np.ones((100, 8)))
"""
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        store.create("c", DIM, FLAT)
        for script in [Script(home, code, first) for first in (0, 10_000)]:
            script.end()
        os.kill(store.connection.lease.pid, signal.SIGKILL)
        assert store.ids("c").tolist() == [*range(4000), *range(10_000, 14_000)]


def test_the_server_serializes_writers_that_ignore_the_lock(home, monkeypatch):
    # A request goes on after its client gave up and let the lock go.
    monkeypatch.setattr(VectorStore, "_writing", lambda self: contextlib.nullcontext())
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        store.create("c", DIM, FLAT)

        def write(first):
            for start in range(first, first + 2000, 50):
                store.upsert("c", np.arange(start, start + 50), np.ones((50, DIM)))

        threads = [threading.Thread(target=write, args=(i * 10_000,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.kill(store.connection.lease.pid, signal.SIGKILL)
        assert store.count("c") == 8000


def test_the_server_exits_after_its_clients_were_killed(home):
    code = "lease = embedded.lease(home); say(lease.pid); time.sleep(600)"
    first = Script(home, code)
    pid = int(first.hear())
    second = Script(home, code)
    assert int(second.hear()) == pid
    first.kill()
    time.sleep(1)  # longer than the grace
    assert alive(pid)
    second.kill()
    assert gone(pid)


def test_a_server_whose_starter_was_killed_serves_the_next_client(home):
    code = "embedded._answer = lambda process: os._exit(0); embedded.lease(home)"
    for _ in range(2):
        Script(home, "import os; " + code).end()
    with embedded.lease(home, grace=0.5) as lease:
        with embedded.lease(home) as second:
            assert second.pid == lease.pid
        pid = lease.pid
    assert gone(pid)
    folder = home / "embedded"
    lock = embedded.FileLock(folder / "server.lock")
    assert lock.wait(30)
    lock.close()
    assert not (folder / "server.json").exists()


def test_the_server_is_detached_and_holds_no_pipe(home):
    # `end` waits for the end of standard output, which a server that inherits it would hold open.
    script = Script(home, "lease = embedded.lease(home, grace=30); say(lease.pid)")
    (pid,) = map(int, script.end())
    assert alive(pid)
    assert os.getsid(pid) not in (os.getsid(0), script.process.pid)
    assert {str(Path(f"/proc/{pid}/fd/{i}").readlink()) for i in (0, 1, 2)} == {
        os.devnull,
        str(home / "embedded" / "server.err"),
    }
    os.kill(pid, signal.SIGTERM)
    assert gone(pid)
    assert not (home / "embedded" / "server.json").exists()


def test_a_dropped_or_twice_closed_lease_ends(home):
    lease = embedded.lease(home, grace=0.3)
    lease.close()
    lease.close()
    pid = embedded.lease(home, grace=0.3).pid  # nobody keeps this one
    assert gone(pid)


def test_a_server_on_another_machine_is_respected(home):
    state = home / "embedded" / "server.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"host": "elsewhere", "pid": 1, "port": 1, "token": "x"}))
    with pytest.raises(StoreBusy, match="process 1 on elsewhere") as caught:
        embedded.lease(home)
    assert str(state) in str(caught.value)
    os.utime(state, (0, 0))  # no sign of life since 1970
    with embedded.lease(home, grace=0.3) as lease:
        assert json.loads(state.read_text())["host"] == socket.gethostname()
        assert alive(lease.pid)


def test_a_store_that_is_open_elsewhere_is_busy(home):
    from milvus_lite.db import MilvusLite

    home.mkdir()
    db = MilvusLite(str(home / embedded.STORE))
    try:
        with pytest.raises(StoreBusy, match="another program"):
            embedded.lease(home)
    finally:
        db.close()


def test_a_file_in_place_of_the_store_is_damage(home):
    home.mkdir()
    (home / embedded.STORE).write_bytes(b"a store of Milvus Lite 2 was a file")
    with pytest.raises(StoreDamaged, match="repair") as caught:
        embedded.lease(home)
    assert str(home / embedded.STORE) in str(caught.value)


def test_a_home_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="IMGSEARCH_HOME"):
        embedded.lease(tmp_path / "file" / "home")


@pytest.fixture
def former(home):
    """A home made at commit 7c5ed6d, whose default was HNSW with a checksum behind each index.

    Random vectors of 8 numbers (seed 0): ids 0 to 39 written out, 7 and 8 deleted, 40 to 44 in
    the log of a server that was killed.
    """
    with tarfile.open(Path(__file__).parent / "data" / "former-home.tar.gz") as archive:
        archive.extractall(home, filter="data")
    points = np.random.default_rng(0).normal(size=(45, DIM)).astype(np.float32)
    return home, points


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn index"])
def test_a_home_of_the_previous_version_is_opened_searched_and_written(former, torn):
    home, points = former
    (index,) = (home / embedded.STORE).rglob("*.idx")
    assert index.read_bytes()[-13:-4] == b"imgsearch"
    if torn:  # by a kill while it was written
        os.truncate(index, 3000)
    kept = [i for i in range(45) if i not in (7, 8)]
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        assert str(store.describe("old").index) == "HNSW:M=16,efConstruction=200,ef=128"
        assert store.about("old") == {"encoder": "mini"}
        assert store.stored_rows("old") == store.count("old") == 43
        assert store.ids("old").tolist() == kept
        ids, vectors = store.get("old", range(45))
        assert ids.tolist() == kept
        assert np.array_equal(vectors, points[kept])
        found = store.search("old", points[kept], 1)
        assert [hits.tolist() for hits, _ in found] == [[i] for i in kept]
        store.create("old", DIM, FLAT)  # as every writer does
        store.upsert("old", [7], points[7:8])
        store.flush("old")
        assert store.search("old", points[7:8], 1)[0][0].tolist() == [7]
        assert store.count("old") == 44
        store.restart()
        assert store.search("old", points[40:41], 1)[0][0].tolist() == [40]


def test_searches_of_one_hnsw_collection_do_not_change_each_others_ef(home):
    """Review 8.14: a search at ef=10 lowered the recall of those beside it."""
    points = np.random.default_rng(0).normal(size=(3000, 32)).astype(np.float32)
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        store.create("c", 32, IndexSpec.parse("HNSW:M=4,efConstruction=8"))
        store.upsert("c", np.arange(3000), points)
        store.flush("c")
        store.restart()  # so that the index is built before the first search
        alone = [ids.tolist() for ids, _ in store.search("c", points[:20], 10)]
        stop = threading.Event()

        def narrow():
            while not stop.is_set():
                store.search("c", points[:1], 1, search_params={"ef": 17})

        threads = [threading.Thread(target=narrow) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                beside = [ids.tolist() for ids, _ in store.search("c", points[:20], 10)]
                assert beside == alone
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_large_write_to_a_frozen_server_is_given_up_in_time(home):
    """A write that fills the socket must not keep the pings waiting that find a silent server."""
    points = np.random.default_rng(0).normal(size=(300, 2048)).astype(np.float32)
    config = load_settings(imgsearch_home=home, imgsearch_timeout=2.0)
    with VectorStore.open(config) as store:
        store.create("c", 2048, FLAT)
        store.upsert("c", np.arange(300), points)
        pid = store.connection.lease.pid
        freeze(pid)
        try:
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match="has not answered"):
                store.upsert("c", np.arange(300), points)
            assert time.monotonic() - start < 40  # the limit of a call is 60
        finally:
            os.kill(pid, signal.SIGCONT)
        assert store.count("c") == 300


def test_a_flush_waits_for_a_requested_index(home):
    points = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        store.create("c", 64, IndexSpec.parse("HNSW"))
        store.upsert("c", np.arange(4000), points)
        store.flush("c")
        (index,) = (home / embedded.STORE).rglob("*.hnsw.idx")
        assert index.stat().st_size > points.nbytes
        found = store.search("c", points[:50], 1)
        assert [ids.tolist() for ids, _ in found] == [[i] for i in range(50)]
