"""Find or start the one Milvus Lite server of a home, which all notebooks share.

Milvus Lite allows only one process to open a store. A background process therefore serves the
store of a home on a Unix domain socket in a private folder. The first client starts it, other
clients find it through ``embedded/server.json``, and it exits a while after its last client.

Three ``flock`` locks coordinate this; the kernel releases them when their holder dies:

``embedded/clients.lock``
    Shared by every :class:`Lease`. The server may exit once it has locked it exclusively.
``embedded/server.lock``
    Held by the server while it has the store open.
``embedded/start.lock``
    Held while a process looks for a server, starts one or stops one.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from imgsearch.errors import ConfigError, StoreBusy, StoreDamaged, StoreError, StoreUnavailable
from imgsearch.stores.locks import FOLDER, FileLock, private_folder

STORE = "vectors.db"
GRACE = 20.0  # seconds that the server keeps running after its last lease
START_TIMEOUT = 60.0  # seconds for a server to start; imports on a busy machine are slow
LEAVING_TIMEOUT = 40.0  # seconds of these in which the previous server may exit
FORGOTTEN = 60.0  # seconds without a heartbeat after which another machine's server counts as dead
# Status codes that the embedded server adds to those of Milvus: the files of a collection are
# corrupted, and any other unexpected error of Milvus Lite.
DAMAGED, FAILED = 20_001, 20_002
# Return freed memory to the system; without these settings the server keeps twice as much.
# Huge pages make an exact search among 100,000 vectors a sixth faster.
# The exact search has threads of its own. Those of OpenBLAS keep the processors busy for some time
# after each product, and split a product evenly even if one of them waits for a processor.
_TUNING = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "OPENBLAS_NUM_THREADS": "1",
}
ALL_IDS = "id >= -9223372036854775808"  # a filter that the server evaluates by column, not by row
AMONG = "imgsearch among "  # prefix of the ids of a filtered search, 8 bytes each, in base64


class Lease:
    """A client's lease on the server of a home, which runs while any lease is open."""

    def __init__(self, home: Path, grace: float):
        try:
            str(home).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                "IMGSEARCH_HOME", f"{str(home)!a} is not valid UTF-8: use another folder"
            ) from None
        self.home, self._grace = home, grace
        self._lock = FileLock(home / FOLDER / "clients.lock")
        try:
            # Only a server that is about to exit holds this lock exclusively, and only briefly.
            if not self._lock.wait(START_TIMEOUT, shared=True):
                raise _unavailable(home, "its server has not finished exiting")
            self.renew()
        except BaseException:
            self._lock.close()
            raise

    def renew(self) -> None:
        """Find or start a server, also after the previous one died."""
        with _starting(self.home):
            state = _running(self.home) or _start(self.home, self._grace)
        self.pid: int = state["pid"]
        self.uri = f"unix:{quote(state['socket'])}"

    def close(self) -> None:
        """End the lease. Calling this again has no effect."""
        self._lock.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lease(home: Path, *, grace: float = GRACE) -> Lease:
    """Lease the server of a home, starting it if none is running."""
    return Lease(home, grace)


def log_of(home: Path) -> Path:
    """Return the path of the log of a home's server."""
    return home / FOLDER / "server.log"


@contextlib.contextmanager
def stopped(home: Path) -> Iterator[None]:
    """Stop the server of a home, and keep others from starting one inside the block."""
    serving = FileLock(home / FOLDER / "server.lock")
    try:
        with _starting(home):
            state = _running(home, frozen=True)
            if state is not None:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(state["pid"], number)
                    if serving.wait(LEAVING_TIMEOUT):
                        break
            if not serving.wait(LEAVING_TIMEOUT):
                raise _unavailable(home, "its server cannot be stopped")
            yield
    finally:
        serving.close()


def set_aside(home: Path, collection: str) -> Path:
    """Move the files of one collection to ``damaged/``, whether or not they can be read."""
    folder = home / STORE / "collections" / collection
    with stopped(home):
        if not folder.is_dir():
            raise StoreError(str(home / STORE), f"has no files of collection {collection!r}")
        kept = damaged_folder(home, collection)
        folder.rename(kept)
    return kept


def damaged_folder(home: Path, collection: str) -> Path:
    """Return the path of a new folder for the damaged files of a collection."""
    return private_folder(home / "damaged") / f"{collection}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"


def listens(path: str) -> bool:
    """Whether a server, even a frozen one, listens on a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # a frozen server whose queue is full
            return True
    return True


def _unavailable(home: Path, reason: str) -> StoreUnavailable:
    return StoreUnavailable(str(home / STORE), f"{reason}; see {log_of(home)}")


@contextlib.contextmanager
def _starting(home: Path) -> Iterator[None]:
    start = FileLock(home / FOLDER / "start.lock")
    try:
        if not start.wait(START_TIMEOUT):
            raise _unavailable(
                home, f"another process has been starting its server for over {START_TIMEOUT:g} s"
            )
        yield
    finally:
        start.close()


def _running(home: Path, *, frozen: bool = False) -> dict | None:
    """Return the state of a home's server, or None; `frozen` includes one that does not listen."""
    path = home / FOLDER / "server.json"
    end = time.monotonic() + START_TIMEOUT
    while True:
        try:
            state = json.loads(path.read_text())
            touched = path.stat().st_mtime
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise StoreError(str(path), f"cannot be read: {error.strerror}") from None
        alive = FileLock(home / FOLDER / "server.lock")
        try:
            free = alive.take()
        finally:
            alive.close()
        if state.get("host") == socket.gethostname():
            if free:
                return None
            if "socket" not in state:
                raise StoreBusy(
                    str(home / STORE), f"process {state.get('pid')}", "another version of "
                    "imgsearch has it open: close its notebooks, and wait half a minute"
                )  # fmt: skip
            if frozen or listens(state["socket"]):
                return state
            # A killed process releases its sockets before its locks.
            if time.monotonic() >= end:
                raise _unavailable(home, f"its server, process {state['pid']}, hangs: kill it")
            time.sleep(0.02)
            continue
        # flock may not reach other machines on a network file system: check the heartbeat too.
        if free and time.time() - touched > FORGOTTEN:
            return None
        raise StoreBusy(
            str(home / STORE),
            f"process {state.get('pid')} on {state.get('host')}",
            "the embedded store is open on another machine, and only one machine can use it at a "
            "time: close the notebooks there, or use a Milvus server (MILVUS_URI). If that "
            f"machine is gone, remove {path}",
        )


def _start(home: Path, grace: float) -> dict:
    (home / FOLDER / "server.json").unlink(missing_ok=True)
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "imgsearch.stores.embedded_server", str(home), str(grace)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env={**_TUNING, **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        answer = _answer(process)
    finally:
        process.stdout.close()
        process.wait()  # it forks immediately, and the server is the child that it leaves behind
    if answer is None:
        raise _unavailable(home, f"its server did not start within {START_TIMEOUT:g} s")
    if "socket" in answer:
        return answer
    where, log = str(home / STORE), log_of(home)
    kind, reason = answer.get("kind"), answer.get("reason", "it exited immediately")
    if kind == "busy":
        raise StoreBusy(where, "another program", reason)
    if kind == "damaged":
        raise StoreDamaged(where, reason)
    raise StoreError(
        where, f"its server cannot start: {reason}. Nothing was changed; check memory, "
        f"permissions and the installation; details in {log} and {log.with_suffix('.err')}"
    )  # fmt: skip


def _answer(process: subprocess.Popen) -> dict | None:
    """Read the line that the server writes once it has started or failed."""
    end = time.monotonic() + START_TIMEOUT
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, end - time.monotonic())):
                return None
            more = os.read(process.stdout.fileno(), 65536)
            if not more:
                return {}
            line += more
    return json.loads(line)
