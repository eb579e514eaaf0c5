"""What every test may ask for: a private home, the two kinds of stores, real photographs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

if TYPE_CHECKING:
    from imgsearch.config import Settings

ROOT = Path(__file__).resolve().parent.parent


def missing(part: str, how: str) -> None:
    """Skip the test, or fail it where ``IMGSEARCH_TEST_STRICT`` is set."""
    text = f"{part} is missing: {how}"
    if os.environ.get("IMGSEARCH_TEST_STRICT"):
        pytest.fail(text + " (IMGSEARCH_TEST_STRICT is set)", pytrace=False)
    pytest.skip(text)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch, tmp_path):
    """Tests neither read the user's settings nor write to the user's home."""
    from imgsearch.config import Settings

    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("IMGSEARCH_HOME", str(tmp_path / "home"))
    # OpenVINO takes seconds to convert a network; tests of it ask for it by name.
    monkeypatch.setenv("IMGSEARCH_BACKEND", "eager")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photographs and weights for development; never part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "voc").is_dir():
        pytest.skip("../shared is missing: real photographs lie beside a development checkout only")
    return folder


# ---------------------------------------------------------------- real servers


def free_port() -> int:
    """A port of 127.0.0.1 that is free now; bound to by the caller at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _tool(*names: str) -> str | None:
    for name in names:
        if found := shutil.which(
            name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
        ):
            return found
    return None


def _end(process: subprocess.Popen, patience: float = 20) -> None:
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class MariaDB:
    """A private MariaDB on loopback. ``restart`` ends and begins it on the same port."""

    user, password = "tester", "s3cret-Pa55"

    def __init__(self, folder: Path, program: str):
        self.folder, self.program, self.port = folder, program, free_port()
        self.start()

    def start(self) -> None:
        import pymysql

        self.process = subprocess.Popen(
            [
                self.program,
                "--no-defaults",
                "--bind-address=127.0.0.1",
                f"--port={self.port}",
                f"--socket={self.folder / 's'}",
                f"--datadir={self.folder / 'data'}",
                f"--pid-file={self.folder / 'pid'}",
                "--innodb-buffer-pool-size=32M",
                "--innodb-log-file-size=16M",
                "--skip-log-bin",
                *(["--user=root"] if os.getuid() == 0 else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
        )
        until = time.monotonic() + 60
        while True:
            try:
                self.link = pymysql.connect(unix_socket=str(self.folder / "s"), user="root")
                return
            except pymysql.Error:
                if self.process.poll() is not None or time.monotonic() > until:
                    pytest.fail((self.folder / "log").read_text()[-2000:], pytrace=False)
                time.sleep(0.05)

    def stop(self) -> None:
        _end(self.process)

    def restart(self) -> None:
        self.stop()
        self.start()

    def sql(self, *statements: str) -> list[tuple]:
        with self.link.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            self.link.commit()
            return list(cursor.fetchall())

    def settings(self, database: str) -> dict[str, object]:
        return {
            "mysql_host": "127.0.0.1",
            "mysql_port": self.port,
            "mysql_user": self.user,
            "mysql_password": self.password,
            "mysql_db": database,
        }


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory) -> Iterator[MariaDB]:
    """A MariaDB server of this test session, with a user that may do everything."""
    server, install = _tool("mariadbd", "mysqld"), _tool("mariadb-install-db", "mysql_install_db")
    if not server or not install:
        missing("mariadbd", "apt-get install mariadb-server, or conda install mariadb")
    # Sockets have short names, and test folders have long ones.
    folder = Path(tempfile.mkdtemp(prefix="imgsearch-"))
    try:
        subprocess.run(
            [
                install,
                "--no-defaults",
                f"--datadir={folder / 'data'}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *(["--user=root"] if os.getuid() == 0 else []),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        database = MariaDB(folder, server)
        try:
            database.sql(
                f"CREATE USER {database.user}@'127.0.0.1' IDENTIFIED BY '{database.password}'",
                f"GRANT ALL ON *.* TO {database.user}@'127.0.0.1'",
            )
            yield database
        finally:
            database.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Runs in the interpreter of the venv that has `milvus`; unpacks its program once for all.
_MILVUS = """
import fcntl, json, os, sys
import milvus
base, shared, ports = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
os.makedirs(shared, exist_ok=True)
with open(os.path.join(shared, "lock"), "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    milvus._initialize_data_files(shared)
config = milvus.MilvusServerConfig(data_dir=base, **ports)
for part in ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode"):
    config.set(part + ".ip", "127.0.0.1")
config.set("log.level", "error")
config.resolve()
print(os.path.join(shared, "bin", "milvus"))
"""
_MILVUS_PORTS = [
    *("proxy", "proxy_internal", "etcd", "root_coord", "query_coord", "query_node"),
    *("index_coord", "index_node", "data_coord", "data_node"),
]
# Milliseconds, and seconds, of inner rhythms that make a load take three seconds.
_HASTY = {
    **{
        f"QUERYCOORD_{rhythm}INTERVAL": "50"
        for rhythm in ("CHECK", "CHECKCHANNEL", "CHECKSEGMENT", "CHECKINDEX", "DISTPULL")
    },
    "QUERYCOORD_CHECKEXECUTEDFLAGINTERVAL": "50",
    "PROXY_TIMETICKINTERVAL": "50",
    "DATACOORD_SEGMENTFLUSHINTERVAL": "1",
}


class Milvus:
    """A private Milvus 2.3 server. ``stop`` and ``start`` keep its port and its data.

    A hasty one loads and flushes quickly; its own work then takes from that of searches.
    """

    def __init__(self, folder: Path, venv: Path, *, hasty: bool = True):
        self.folder = folder
        self.rhythms = _HASTY if hasty else {}
        ports = {f"{name}_port": free_port() for name in _MILVUS_PORTS}
        self.port, self.health = ports["proxy_port"], free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        made = subprocess.run(
            [venv / "bin" / "python", "-c", _MILVUS, folder, venv / "program", json.dumps(ports)],
            capture_output=True,
            text=True,
            check=True,
        )
        self.program = made.stdout.strip()
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        etcd = {
            "name": "default",
            "data-dir": str(folder / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }
        (folder / "etcd.yaml").write_text(json.dumps(etcd))  # JSON is YAML
        self.start()

    def start(self) -> None:
        libraries = str(Path(self.program).parent)
        self.process = subprocess.Popen(
            [self.program, "run", "standalone"],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "out").open("ab"),
            stderr=subprocess.STDOUT,
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder),
                "LD_LIBRARY_PATH": libraries,
                "DEPLOY_MODE": "STANDALONE",
                "METRICS_PORT": str(self.health),
                **self.rhythms,
                "ETCD_CONFIG_PATH": str(self.folder / "etcd.yaml"),
                "MILVUS_RUN_DIR": str(self.folder / "run"),
            },
        )
        until = time.monotonic() + 120
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{self.health}/healthz", timeout=5) as answer:
                    if b"OK" in answer.read():
                        return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > until:
                pytest.fail((self.folder / "out").read_text()[-2000:], pytrace=False)
            time.sleep(0.1)

    def stop(self) -> None:
        _end(self.process)


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory) -> Iterator[Milvus]:
    """A real Milvus server of this test session."""
    venv = Path(os.environ.get("IMGSEARCH_TEST_MILVUS_VENV") or ROOT / ".venv-milvus")
    if not (venv / "bin" / "python").exists():
        missing("a Milvus server", "make .venv-milvus/stamp")
    try:
        Path("/tmp/milvus").mkdir(exist_ok=True)  # whatever it is told, it writes there too
        tempfile.TemporaryFile(dir="/tmp/milvus").close()
    except OSError as error:
        missing("a folder that Milvus can write", f"/tmp/milvus: {error.strerror}")
    server = Milvus(tmp_path_factory.mktemp("milvus"), venv)
    try:
        yield server
    finally:
        server.process.kill()  # it takes half a minute to leave, and nobody wants its data
        server.process.wait()


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory) -> Iterator[Path]:
    """An embedded home of this test session; its server stays until the end."""
    from imgsearch.stores import embedded

    home = tmp_path_factory.mktemp("embedded")
    with embedded.lease(home, grace=0.2):
        yield home


def settings_of(kind: str, request, tmp_path) -> Iterator[Settings]:
    """Settings of one kind of stores: Milvus Lite and SQLite, or Milvus and MariaDB.

    The metadata are the test's own; vectors are in a store that lives as long as the
    session, so take the name of a collection from the fixture ``collection``.
    """
    from imgsearch.config import load_settings

    if kind == "embedded":
        home = request.getfixturevalue("shared_home")
        yield load_settings(
            imgsearch_home=home, database_url=f"sqlite:///{tmp_path / 'metadata.sqlite'}"
        )
        return
    milvus = request.getfixturevalue("milvus_server")
    database = request.getfixturevalue("mariadb")
    name = f"t_{uuid.uuid4().hex[:12]}"
    yield load_settings(
        imgsearch_home=tmp_path / "home", milvus_uri=milvus.uri, **database.settings(name)
    )
    database.sql(f"DROP DATABASE IF EXISTS {name}")


@pytest.fixture(params=["embedded", "servers"])
def stores(request, tmp_path) -> Iterator[Settings]:
    """Settings of both kinds of stores in turn: the same test must hold on each."""
    yield from settings_of(request.param, request, tmp_path)


@pytest.fixture
def collection() -> str:
    """A name that no other test uses."""
    return f"t_{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def encoder():
    """An encoder that needs no file: quick, and unlike any other."""
    from imgsearch.encoders import load_encoder

    return load_encoder("resnet18", weights="random:0", backend="eager")
