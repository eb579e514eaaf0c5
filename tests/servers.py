"""Real servers on loopback: MariaDB and Milvus, one of each for all processes of a test run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import psutil
from filelock import FileLock

RUN = "IMGSEARCH_TEST_RUN"
"""Environment variable with the folder that all processes of a test run share."""


_started: list[subprocess.Popen] = []  # servers that outlive this process


class ServerFailed(RuntimeError):
    """A server did not start; the text is the end of its log."""


_returned: set[int] = set()  # ports


def free_port() -> int:
    """Return a free port of 127.0.0.1.

    It lies below the range from which the kernel serves other programs, so that none of them is
    given it before the caller binds to it. No port is returned twice.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        if port in _returned:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _returned.add(port)
            return port


def shared(name: str, start: Callable[[Path], tuple[subprocess.Popen, dict]]) -> dict:
    """Start a server once for all processes of the test run.

    ``start`` is given a folder, and returns the process and what others need to reach it. The
    process that started the run ends the server.
    """
    run = Path(os.environ[RUN])
    with FileLock(run / f"{name}.lock"):
        file = run / f"{name}.json"
        if not file.exists():
            shutil.rmtree(run / name, ignore_errors=True)
            (run / name).mkdir()
            process, facts = start(run / name)
            _started.append(process)
            created = psutil.Process(process.pid).create_time()
            file.write_text(json.dumps(facts | {"pid": process.pid, "created": created}))
        return json.loads(file.read_text())


def end_shared(run: Path) -> None:
    """End all servers of a test run and remove its folder."""
    for file in run.glob("*.json"):
        facts = json.loads(file.read_text())
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(facts["pid"])
            if process.create_time() == facts["created"]:
                process.kill()
                process.wait(30)
    shutil.rmtree(run, ignore_errors=True)


def wait_until_ready(process: subprocess.Popen, ready: Callable[[], bool], log: Path) -> None:
    """Wait until a server answers; raise `ServerFailed` where it ends or needs two minutes."""
    until = time.monotonic() + 120
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            process.wait()
            raise ServerFailed(log.read_text(errors="replace")[-2000:])
        time.sleep(0.05)


def find_program(*names: str) -> str | None:
    """Find a program, also where only root's PATH has it."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def find_chromium() -> str | None:
    """Find Chromium; the first, which has no windows, takes two thirds of the processor time."""
    return find_program("chromium-headless-shell", "chromium", "chromium-browser")


def _as_root() -> list[str]:
    return ["--user=root"] if os.getuid() == 0 else []


class MariaDB:
    """A private MariaDB server; the folder needs a short name, because it holds the socket."""

    user, password = "tester", "s3cret-Pa55"

    def __init__(self, folder: Path, port: int):
        self.folder, self.port = folder, port
        self.process: subprocess.Popen | None = None  # None: another process started it

    @staticmethod
    def template() -> Path:
        """Make a data folder once; to copy it takes much less time than to make another."""
        folder = Path(os.environ[RUN]) / "mariadb-template"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                MariaDB._install(folder.with_suffix(".part"))
                folder.with_suffix(".part").rename(folder)
        return folder

    @staticmethod
    def _install(folder: Path) -> None:
        install = find_program("mariadb-install-db", "mysql_install_db")
        subprocess.run(
            [
                *(install, "--no-defaults", f"--datadir={folder}", *_as_root()),
                *("--auth-root-authentication-method=normal", "--skip-test-db"),
                *("--innodb-log-file-size=8M", "--innodb-flush-method=nosync"),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @classmethod
    def create(cls, folder: Path) -> MariaDB:
        """Start a server with an empty data folder."""
        shutil.copytree(cls.template(), folder / "data")
        server = cls(folder, free_port())
        server.start()
        server.sql(
            f"CREATE USER {cls.user}@'127.0.0.1' IDENTIFIED BY '{cls.password}'",
            f"GRANT ALL ON *.* TO {cls.user}@'127.0.0.1'",
        )
        return server

    def connect(self) -> bool:
        """Connect as root; return whether it worked."""
        import pymysql

        try:
            self.link = pymysql.connect(unix_socket=str(self.folder / "s"), user="root")
        except pymysql.Error:
            return False
        return True

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                find_program("mariadbd", "mysqld"),
                "--no-defaults",
                "--bind-address=127.0.0.1",
                f"--port={self.port}",
                f"--socket={self.folder / 's'}",
                f"--datadir={self.folder / 'data'}",
                f"--pid-file={self.folder / 'pid'}",
                "--innodb-buffer-pool-size=32M",
                "--innodb-log-file-size=8M",
                "--skip-log-bin",
                *_as_root(),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
        )
        wait_until_ready(self.process, self.connect, self.folder / "log")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

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


# Runs in the interpreter of the venv that has `milvus`; unpacks its program once for all.
_UNPACK = """
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
_PORTS = [
    *("proxy", "proxy_internal", "etcd", "root_coord", "query_coord", "query_node"),
    *("index_coord", "index_node", "data_coord", "data_node"),
]
# Intervals, in milliseconds and at the end in seconds, with which a load takes two seconds.
_SHORT_INTERVALS = {
    **{
        f"QUERYCOORD_{interval}INTERVAL": "50"
        for interval in ("CHECK", "CHECKCHANNEL", "CHECKSEGMENT", "CHECKINDEX", "DISTPULL")
    },
    "PROXY_TIMETICKINTERVAL": "50",
    "QUERYCOORD_CHECKEXECUTEDFLAGINTERVAL": "50",
    "DATACOORD_SEGMENTFLUSHINTERVAL": "1",
}


class Milvus:
    """A private Milvus 2.3 server. ``stop`` and ``start`` keep its ports and its data.

    With ``short_intervals`` it loads and flushes sooner; benchmarks leave its own.
    """

    def __init__(self, folder: Path, venv: Path, *, short_intervals: bool = True):
        self.folder = folder
        self.intervals = _SHORT_INTERVALS if short_intervals else {}
        ports = {f"{name}_port": free_port() for name in _PORTS}
        self.port, self.health = ports["proxy_port"], free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        unpacked = subprocess.run(
            [venv / "bin" / "python", "-c", _UNPACK, folder, venv / "program", json.dumps(ports)],
            capture_output=True,
            text=True,
            check=True,
        )
        self.program = unpacked.stdout.strip()
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
                "LD_LIBRARY_PATH": str(Path(self.program).parent),
                "DEPLOY_MODE": "STANDALONE",
                "METRICS_PORT": str(self.health),
                **self.intervals,
                "ETCD_CONFIG_PATH": str(self.folder / "etcd.yaml"),
                "MILVUS_RUN_DIR": str(self.folder / "run"),
            },
        )
        wait_until_ready(self.process, self._healthy, self.folder / "out")

    def _healthy(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.health}/healthz", timeout=5) as answer:
                return b"OK" in answer.read()
        except OSError:
            return False

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)  # it takes half a minute to end by itself
        self.process.wait()


class SharedMilvus:
    """A Milvus server that tests share; each drops its collections."""

    def __init__(self, uri: str):
        self.uri = uri
        self._client = None

    def drop(self, prefix: str) -> None:
        """Drop the collections whose names begin so."""
        from pymilvus import MilvusClient

        if self._client is None:
            self._client = MilvusClient(self.uri, dedicated=True)
        for name in self._client.list_collections():
            if name.startswith(prefix):
                self._client.drop_collection(name)
