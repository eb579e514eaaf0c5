"""Find or start the one Milvus Lite server of a home, which all notebooks share.

Milvus Lite lets one process open a store. A background process therefore serves the store of a
home on a Unix domain socket in a private folder. Whoever comes first starts it, others find it
through ``embedded/server.json``, and it ends by itself a while after its last user is gone.

These locks are ``flock``s, which the kernel releases when their holder dies:

``embedded/clients.lock``
    Shared by every :class:`Lease`. The server may end when it gets it exclusively.
``embedded/server.lock``
    Held by the server while it has the store open.
``embedded/start.lock``
    Held while a process looks for a server, starts one or ends one.
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
GRACE = 20.0  # seconds that the server outlives its last lease
START_TIMEOUT = 60.0  # seconds for a server to come up; imports on a busy machine are slow
LEAVING_TIMEOUT = 40.0  # seconds, of these, to wait for the server before it to end
FORGOTTEN = 60.0  # seconds without a heartbeat after which another machine's server is gone
# Milvus status codes of the embedded server: the files of a collection hold what cannot be
# read, or anything else that Milvus Lite does not expect.
DAMAGED, FAILED = 20_001, 20_002
# Memory that is freed goes back to the system; without these the server keeps twice as much.
# Huge pages make an exact search among 100,000 vectors a sixth faster.
_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
}
ALL_IDS = "id >= -9223372036854775808"  # the filter that the server answers column by column
AMONG = "imgsearch among "  # precedes the ids of a filtered search, 8 bytes each, in base64


class Lease:
    """A share in the server of a home; the server stays while one is open."""

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
            # Only a server that is about to end holds this exclusively, and not for long.
            if not self._lock.wait(START_TIMEOUT, shared=True):
                raise _unavailable(home, "its server does not finish leaving")
            self.renew()
        except BaseException:
            self._lock.close()
            raise

    def renew(self) -> None:
        """Find or start a server, also after the last one died."""
        with _starting(self.home):
            state = _running(self.home) or _start(self.home, self._grace)
        self.pid: int = state["pid"]
        self.uri = f"unix:{quote(state['socket'])}"

    def close(self) -> None:
        """Give the share back. May be called twice."""
        self._lock.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lease(home: Path, *, grace: float = GRACE) -> Lease:
    """Take a share in the server of a home, and start the server where none runs."""
    return Lease(home, grace)


def log_of(home: Path) -> Path:
    """Where the server of a home writes what goes wrong."""
    return home / FOLDER / "server.log"


@contextlib.contextmanager
def stopped(home: Path) -> Iterator[None]:
    """End the server of a home, and keep others from starting one for the duration."""
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
                raise _unavailable(home, "its server does not end")
            yield
    finally:
        serving.close()


def set_aside(home: Path, collection: str) -> Path:
    """Move the files of one collection to ``damaged/``, whether or not they can be read."""
    folder = home / STORE / "collections" / collection
    with stopped(home):
        if not folder.is_dir():
            raise StoreError(str(home / STORE), f"holds no files of collection {collection!r}")
        kept = damaged_folder(home, collection)
        folder.rename(kept)
    return kept


def damaged_folder(home: Path, collection: str) -> Path:
    """Name a folder, not there yet, for the damaged files of a collection."""
    return private_folder(home / "damaged") / f"{collection}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"


def listens(path: str) -> bool:
    """Whether a server accepts connections on a socket, even one that is frozen."""
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
                home, f"another process has been starting its server for {START_TIMEOUT:g} s"
            )
        yield
    finally:
        start.close()


def _running(home: Path, *, frozen: bool = False) -> dict | None:
    """State of the server that serves a home. `frozen`: also of one that accepts nobody."""
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
                    str(home / STORE), f"process {state.get('pid')}", "it is served by another "
                    "version of imgsearch: close the notebooks that use it, and wait half a minute"
                )  # fmt: skip
            if frozen or listens(state["socket"]):
                return state
            # A killed process releases its sockets before its locks.
            if time.monotonic() >= end:
                raise _unavailable(home, f"its server, process {state['pid']}, hangs: end it")
            time.sleep(0.02)
            continue
        # Not every network file system carries flock to other machines: check the heartbeat too.
        if free and time.time() - touched > FORGOTTEN:
            return None
        raise StoreBusy(
            str(home / STORE),
            f"process {state.get('pid')} on {state.get('host')}",
            "the embedded store is open on another machine, and works on one at a time; close "
            "the notebooks there, or use a Milvus server (MILVUS_URI). If that machine is gone, "
            f"remove {path}",
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
        env={**_MEMORY, **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        answer = _answer(process)
    finally:
        process.stdout.close()
        process.wait()  # it forks at once; the server itself is nobody's child
    if answer is None:
        raise _unavailable(home, f"its server did not come up within {START_TIMEOUT:g} s")
    if "socket" in answer:
        return answer
    where, log = str(home / STORE), log_of(home)
    kind, reason = answer.get("kind"), answer.get("reason", "it ended at once")
    if kind == "busy":
        raise StoreBusy(where, "another program", reason)
    if kind == "damaged":
        raise StoreDamaged(where, reason)
    raise StoreError(
        where, f"its server does not start: {reason}. Nothing was changed; check memory, "
        f"permissions and the installation; details in {log} and {log.with_suffix('.err')}"
    )  # fmt: skip


def _answer(process: subprocess.Popen) -> dict | None:
    """Read the line that the server writes once it is up or has failed."""
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
