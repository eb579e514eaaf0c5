"""The server process: what it refuses, who may connect, how it is ended and replaced."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.errors import ConfigError, StoreBusy, StoreDamaged, StoreError
from imgsearch.stores import embedded
from imgsearch.stores.vectors import IndexSpec, VectorStore
from tests.conftest import ROOT
from tests.guarantees.common import freeze

DIM = 8
FLAT = IndexSpec.parse("FLAT")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setitem(embedded.lease.__kwdefaults__, "grace", 0.5)
    yield tmp_path / "home"
    try:
        os.kill(json.loads((tmp_path / "home/embedded/server.json").read_text())["pid"], 9)
    except (OSError, ValueError):
        return


def opened(home, **others) -> VectorStore:
    return VectorStore.open(load_settings(imgsearch_home=home, **others))


def filled(store, name="c", count=100):
    points = np.random.default_rng(0).normal(size=(count, DIM)).astype(np.float32)
    store.create(name, DIM, FLAT)
    store.upsert(name, np.arange(count), points)
    return points


def test_a_damaged_collection_is_named_and_others_stay_usable(home):
    """Attack row 1: one collection is damaged, never the whole store."""
    with opened(home) as store:
        for name in ("good", "bad"):
            points = filled(store, name)
            store.flush(name)
        os.kill(store.connection.lease.pid, signal.SIGKILL)
        for data in (home / embedded.STORE / "collections" / "bad").rglob("*.parquet"):
            data.write_bytes(data.read_bytes()[:100])
        assert store.collections() == ["bad", "good"]
        assert store.search("good", points[:1], 1)[0][0].tolist() == [0]
        for call in (store.count, store.about, store.stored_rows, store.describe, store.ids):
            with pytest.raises(StoreDamaged, match=r"collection 'bad': Arrow.*repair") as caught:
                call("bad")
            assert str(home) in caught.value.where
        kept = store.set_aside("bad")
        assert list(kept.rglob("*.parquet"))
        assert store.collections() == ["good"]
        store.create("bad", DIM, FLAT)
        assert store.count("bad") == 0
        assert store.count("good") == 100


def test_a_collection_is_set_aside_though_no_server_can_open_the_store(home, monkeypatch):
    with opened(home) as store:
        filled(store, "bad")
        filled(store, "good")
    script = home.parent / "bin" / "python"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(script))
        with embedded.stopped(home):
            pass
        store = VectorStore(load_settings(imgsearch_home=home))
        with pytest.raises(StoreError, match="cannot start: it exited immediately"):
            store.collections()
        store.set_aside("bad")
    assert store.collections() == ["good"]
    store.close()


def test_a_server_is_restarted_while_others_use_it(home):
    with opened(home) as store, opened(home) as other:
        points = filled(store)
        pid = store.connection.lease.pid
        store.restart()
        assert store.connection.lease.pid != pid
        assert other.search("c", points[:1], 1)[0][0].tolist() == [0]
        freeze(store.connection.lease.pid)
        embedded_patience = embedded.LEAVING_TIMEOUT
        try:
            embedded.LEAVING_TIMEOUT = 0.5
            store.restart()  # it ends one that is frozen, too
        finally:
            embedded.LEAVING_TIMEOUT = embedded_patience
        assert store.count("c") == 100


def test_another_version_of_milvus_lite_is_refused_before_anything_is_opened(home, tmp_path):
    """Review 1 and 8.1: a renamed internal became damage."""
    fake = tmp_path / "site" / "milvus_lite-9.9.9.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: milvus-lite\nVersion: 9.9.9\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{ROOT}")
        with pytest.raises(StoreError, match=r"milvus-lite 9\.9\.9 .*pip install") as caught:
            opened(home)
    assert type(caught.value) is StoreError
    assert not (home / embedded.STORE).exists()


def test_a_foreign_module_on_the_path_is_an_error_and_nothing_is_moved(home, tmp_path):
    """Review 8.1: an ImportError of the server moved a healthy store aside."""
    with opened(home) as store:
        filled(store)
        store.flush("c")
    with embedded.stopped(home):
        before = sorted((home / embedded.STORE).rglob("*"))
    (tmp_path / "grpc.py").write_text("raise ImportError('not the one')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(StoreError, match="ImportError: not the one") as caught:
            opened(home)
    assert type(caught.value) is StoreError
    assert sorted((home / embedded.STORE).rglob("*")) == before
    assert not (home / "damaged").exists()


def test_a_home_that_is_not_utf8_is_refused_with_its_name(tmp_path):
    """Attack row 10: it was called damaged."""
    with pytest.raises(ConfigError, match=r"IMGSEARCH_HOME.*not valid UTF-8"):
        opened(tmp_path / os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize("umask", [0o022, 0, 0o077])
def test_a_home_is_for_its_owner_only(home, umask):
    """Attack row 5: with umask 022 `nobody` could list the vectors."""
    before = os.umask(umask)
    try:
        with opened(home) as store:
            filled(store)
            store.flush("c")
            for path in [home, *home.rglob("*")]:
                assert path.stat().st_mode & 0o077 == 0, path
    finally:
        os.umask(before)


def test_nobody_else_can_connect_and_no_port_is_open(home):
    """Attack row 6: idle connections and large messages of strangers cost the server nothing."""
    with opened(home) as store:
        path = json.loads((home / "embedded/server.json").read_text())["socket"]
        assert store.connection.lease.uri.startswith("unix:")
        ports = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True)
        assert f"pid={store.connection.lease.pid}," not in ports.stdout
        if os.getuid():
            pytest.skip("another user is tried as root only")
        code = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX)\n"
            "try: s.connect(sys.argv[1])\nexcept PermissionError: print('refused')"
        )
        tried = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert tried.stdout == "refused\n", tried.stderr


def test_many_idle_connections_leave_the_server_answering(home):
    """Attack row 6: 400 idle connections silenced a server limited to 256 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        store = opened(home)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1024), hard))
    with store:
        points = filled(store)
        path = json.loads((home / "embedded/server.json").read_text())["socket"]
        idle = [socket.socket(socket.AF_UNIX) for _ in range(400)]
        try:
            for one in idle:
                one.connect(path)
            assert store.search("c", points[:1], 1)[0][0].tolist() == [0]
        finally:
            for one in idle:
                one.close()


def test_a_home_with_a_long_path_is_served_from_a_private_folder(tmp_path, monkeypatch):
    runtime = tempfile.TemporaryDirectory(prefix="imgsearch-")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime.name)
    monkeypatch.setitem(embedded.lease.__kwdefaults__, "grace", 0.5)
    home = tmp_path / ("long" * 30) / "home"
    with runtime, opened(home) as store:
        filled(store)
        path = json.loads((home / "embedded/server.json").read_text())["socket"]
        assert len(path) < 108
        assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700  # noqa: PTH116, PTH120
        os.kill(store.connection.lease.pid, signal.SIGKILL)
        assert store.count("c") == 100


def test_a_server_of_another_version_is_named(home):
    lock = embedded.FileLock(home / "embedded" / "server.lock")
    assert lock.take()
    state = {"host": socket.gethostname(), "pid": 1, "port": 1, "token": "x"}
    (home / "embedded" / "server.json").write_text(json.dumps(state))
    with pytest.raises(StoreBusy, match="another version of imgsearch"):
        opened(home)
    lock.close()
