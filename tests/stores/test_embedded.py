from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.errors import StoreBusy, StoreDamaged, StoreError, StoreUnavailable
from imgsearch.stores import embedded
from imgsearch.stores.vectors import IndexSpec, VectorStore

ROOT = Path(embedded.__file__).resolve().parents[2]
DIM = 8
AUTO = IndexSpec.parse("auto")

# What the other processes of these tests begin with. `say` tells the test something.
PRELUDE = """
import sys, time
from pathlib import Path
import numpy as np
from imgsearch.stores import embedded
from imgsearch.config import load_settings
from imgsearch.stores.vectors import IndexSpec, VectorStore
home = Path(sys.argv[1])
embedded.lease.__kwdefaults__["grace"] = 0.5
def say(*what): print(*what, flush=True)
"""


class Script:
    """A process of ours that runs some lines on a home."""

    def __init__(self, home: Path, code: str, *arguments: object):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, str(home), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def hear(self) -> str:
        line = self.process.stdout.readline()
        assert line, "the process ended too early"
        return line.strip()

    def end(self) -> list[str]:
        said = self.process.communicate(timeout=120)[0].splitlines()
        assert self.process.returncode == 0
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def gone(pid: int) -> bool:
    until = time.monotonic() + 60
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


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


def test_one_writes_two_search_and_the_server_ends_after_the_last(home):
    # The writer says what was acknowledged; the readers check that nothing of it is missing.
    writer = """
say("ready"); sys.stdin.readline()
with VectorStore.open(load_settings(imgsearch_home=home)) as store:
    say(store._lease.pid)
    store.create("c", 8, IndexSpec.parse("auto"))
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
    say(store._lease.pid)
    while "c" not in store.collections(): time.sleep(0.02)
    store.create("c", 8, IndexSpec.parse("auto"))
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

    def start(code):
        script = Script.__new__(Script)
        script.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return script

    scripts = [start(writer), start(reader), start(reader)]
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
        store.create("c", DIM, AUTO)
        points = np.random.default_rng(0).normal(size=(1200, DIM)).astype(np.float32)
        pids, acknowledged, stop = set(), [], threading.Event()

        def kill():
            while not stop.wait(0.4):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(store._lease.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            start, until = 0, time.monotonic() + 60
            while len(pids) < 3 and time.monotonic() < until:
                pids.add(store._lease.pid)
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


def test_a_flush_ends_when_the_server_is_killed_before_the_index_is_built(home, monkeypatch):
    monkeypatch.setattr("imgsearch.stores.vectors.STALLED", 5)  # seconds, instead of ten minutes
    index, asked = VectorStore._index, []

    def killing(store, collection):
        asked.append(store._lease.pid)
        if len(asked) == 1:
            os.kill(store._lease.pid, signal.SIGKILL)
        return index(store, collection)

    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        store.create("c", DIM, AUTO)
        store.upsert("c", np.arange(100), np.random.default_rng(0).normal(size=(100, DIM)))
        monkeypatch.setattr(VectorStore, "_index", killing)
        store.flush("c")
        assert len(set(asked)) == 2
        assert store.describe("c").pending_index_rows == 0


def test_two_writers_at_once_lose_nothing_when_the_server_is_killed(home):
    code = """
with VectorStore.open(load_settings(imgsearch_home=home)) as store:
    first = int(sys.argv[2])
    for start in range(first, first + 4000, 100):
        store.upsert("c", np.arange(start, start + 100), np.ones((100, 8)))
"""
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        store.create("c", DIM, AUTO)
        for script in [Script(home, code, first) for first in (0, 10_000)]:
            script.end()
        os.kill(store._lease.pid, signal.SIGKILL)
        assert store.ids("c").tolist() == [*range(4000), *range(10_000, 14_000)]


def test_writers_that_heed_no_lock_are_kept_apart_by_the_server(home, monkeypatch):
    # A request goes on after its client gave up and let the lock go.
    monkeypatch.setattr(VectorStore, "_writing", lambda self: contextlib.nullcontext())
    with VectorStore.open(load_settings(imgsearch_home=home)) as store:
        store.create("c", DIM, AUTO)

        def write(first):
            for start in range(first, first + 2000, 50):
                store.upsert("c", np.arange(start, start + 50), np.ones((50, DIM)))

        threads = [threading.Thread(target=write, args=(i * 10_000,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.kill(store._lease.pid, signal.SIGKILL)
        assert store.count("c") == 8000


def test_the_server_ends_after_holders_that_were_killed(home):
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


def test_a_server_whose_starter_was_killed_serves_the_next(home):
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


def test_the_server_is_nobodys_child_and_holds_no_pipe(home):
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


def test_other_users_of_the_machine_are_not_let_in(home):
    with embedded.lease(home, grace=0.5) as lease:
        for token in ("", "root:Milvus"):
            with pytest.raises(StoreError, match="credentials"):
                VectorStore.open(load_settings(milvus_uri=lease.uri, milvus_token=token or None))
        assert (home / "embedded" / "server.json").stat().st_mode & 0o077 == 0


def test_a_lease_that_is_dropped_or_closed_twice_is_given_back(home):
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


def test_a_file_in_the_stores_place_is_damage(home):
    home.mkdir()
    (home / embedded.STORE).write_bytes(b"a store of Milvus Lite 2 was a file")
    with pytest.raises(StoreDamaged, match="repair") as caught:
        embedded.lease(home)
    assert str(home / embedded.STORE) in str(caught.value)


def test_a_home_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="IMGSEARCH_HOME"):
        embedded.lease(tmp_path / "file" / "home")


def test_one_damaged_collection_does_not_hide_the_others(home):
    points = np.random.default_rng(0).normal(size=(100, DIM)).astype(np.float32)
    config = load_settings(imgsearch_home=home)
    with VectorStore.open(config) as store:
        for name in ("good", "bad"):
            store.create(name, DIM, AUTO)
            store.upsert(name, np.arange(100), points)
            store.flush(name)
        os.kill(store._lease.pid, signal.SIGKILL)
        for data in (home / embedded.STORE / "collections" / "bad").rglob("*.parquet"):
            data.write_bytes(data.read_bytes()[:100])
        assert store.collections() == ["bad", "good"]
        assert store.search("good", points[:1], 1)[0][0].tolist() == [0]
        with pytest.raises(StoreDamaged, match="repair") as caught:
            store.search("bad", points[:1], 1)
        assert str(home) in caught.value.where
        with pytest.raises(StoreDamaged):
            store.describe("bad")
        kept = store.set_aside("bad")
        assert list(kept.rglob("*.parquet"))
        assert store.collections() == ["good"]
        store.create("bad", DIM, AUTO)
        assert store.count("bad") == 0


# ---------------------------------------------------------------- one writer at a time


def test_a_writer_goes_on_in_its_thread_and_excludes_other_threads(tmp_path):
    order = []

    def other():
        with embedded.writing(tmp_path):
            order.append("other")

    thread = threading.Thread(target=other)
    with embedded.writing(tmp_path), embedded.writing(tmp_path, timeout=0):
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_who_writes_is_named_and_frees_the_lock_by_dying(tmp_path):
    writer = Script(tmp_path, "with embedded.writing(home): say('in'); time.sleep(600)")
    assert writer.hear() == "in"
    with (
        pytest.raises(StoreBusy, match="another ingest") as caught,
        embedded.writing(tmp_path, 0.1),
    ):
        pass
    assert f"process {writer.process.pid} on {socket.gethostname()}" in caught.value.holder
    writer.kill()
    with embedded.writing(tmp_path, 5):
        pass


def test_a_writer_that_fails_frees_the_lock(tmp_path):
    with pytest.raises(RuntimeError), embedded.writing(tmp_path):
        raise RuntimeError
    done = threading.Event()

    def other():
        with embedded.writing(tmp_path, 0):
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert done.is_set()


def test_a_forked_child_does_not_keep_the_parents_lock(tmp_path):
    read, write = os.pipe()
    with embedded.writing(tmp_path):
        child = os.fork()
        if not child:
            os.read(read, 1)
            os._exit(0)
    try:
        taken = Script(tmp_path, "with embedded.writing(home, 0): say('in')")
        assert taken.end() == ["in"]
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
