"""The process that serves an embedded home on a Unix domain socket."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import resource
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from imgsearch.stores import embedded, milvus_lite_patches
from imgsearch.stores.locks import FOLDER, FileLock, private_folder

HEARTBEAT = 5.0  # seconds between two touches of server.json
LAST_FLUSH = 20.0  # seconds for flushing everything at exit; the rest stays in the write-ahead log
_LOG_BYTES = 1_000_000
_PATH_BYTES = 100  # longest path of a socket; Linux allows 107 bytes, macOS 103

_log = logging.getLogger(__name__)


def _socket_path(home: Path) -> Path:
    """Return a path for the socket: in the home, or in a private folder if that is too long."""
    path = home / FOLDER / "socket"
    if len(os.fsencode(path)) <= _PATH_BYTES:
        return path
    name = f"imgsearch-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
    bases = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    folders = [Path(base) / name for base in bases if base]
    folder = next(f for f in folders if len(os.fsencode(f / "socket")) <= _PATH_BYTES)
    folder.mkdir(mode=0o700, exist_ok=True)
    at = folder.lstat()
    if not stat.S_ISDIR(at.st_mode) or at.st_uid != os.getuid() or at.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user: remove it")
    return folder / "socket"


def _watch(home: Path, grace: float, state_file: Path, ended: threading.Event) -> None:
    """Wait until the server should exit, and remove server.json."""
    clients = FileLock(home / FOLDER / "clients.lock")
    unused_since: float | None = None
    touched = time.monotonic()
    while not ended.wait(min(0.5, grace / 4)):
        if time.monotonic() - touched > HEARTBEAT:
            touched = time.monotonic()
            try:
                os.utime(state_file)
            except FileNotFoundError:
                _log.warning("%s was removed: exiting", state_file)
                break
        if not clients.take():
            unused_since = None
            continue
        unused_since = unused_since or time.monotonic()
        if time.monotonic() - unused_since >= grace:
            break  # with the lock held, so that no client can connect any more
        clients.release()
    state_file.unlink(missing_ok=True)
    clients.close()


def main(home: Path, grace: float) -> None:
    """Serve the store of a home until its last client is gone."""
    # Detach: neither Ctrl-C in a terminal nor the end of a kernel may reach the server, and no
    # notebook should have to reap it.
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    folder = private_folder(home / FOLDER)
    answer = os.dup(1)
    errors = os.open(folder / "server.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(errors, 1)
    os.dup2(errors, 2)

    from logging.handlers import RotatingFileHandler

    handler = RotatingFileHandler(
        embedded.log_of(home), maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    def report(**facts: object) -> None:
        with contextlib.suppress(OSError):  # the starter has its answer already, or is gone
            os.write(answer, json.dumps(facts).encode() + b"\n")

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())

    path = folder / "server.json"
    serving = FileLock(folder / "server.lock")
    limit = time.monotonic() + embedded.LEAVING_TIMEOUT
    while not serving.take():
        # The starter of another server may have been killed before that server was ready.
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = json.loads(path.read_text())
            if state["host"] == socket.gethostname() and embedded.listens(state["socket"]):
                report(**state)
                return
        if time.monotonic() >= limit:
            report(reason="the previous server is still writing")
            return
        time.sleep(0.02)

    def end() -> None:
        # The delay leaves time to send the error. An alarm ends the process even if it has no
        # memory for a thread. New clients start the next server, which waits for this one.
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        path.unlink(missing_ok=True)

    try:
        if problem := _unfit(home):
            report(**problem)
            return
        from imgsearch.stores.milvus_lite_service import serve

        address = _socket_path(home)
        server, write_out = serve(home, address, end)
        state = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "socket": str(address),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(state))
        draft.replace(path)
        report(**state)
        _log.info("serving %s on %s", home / embedded.STORE, address)
        _watch(home, grace, path, ended)
        _log.info("exiting")
        signal.setitimer(signal.ITIMER_REAL, LAST_FLUSH)  # exit even if a request hangs
        server.stop(grace=5).wait()
        write_out()
    except BaseException as error:
        _log.exception("the server of %s failed", home / embedded.STORE)
        if type(error).__name__ == "DataDirLockedError":
            report(kind="busy", reason="the store is open in another program")
        else:
            report(reason=f"{type(error).__name__}: {error}")
    finally:
        logging.shutdown()
        os._exit(0)  # even if threads are still running


def _unfit(home: Path) -> dict[str, str] | None:
    """Return why the store must not be opened, or None; this touches none of its files."""
    from importlib.metadata import version

    found, store = version("milvus-lite"), home / embedded.STORE
    if found != milvus_lite_patches.VERSION:
        wanted = milvus_lite_patches.VERSION
        reason = f"milvus-lite {found} is installed, but imgsearch works only with {wanted}: "
        return {"reason": f"{reason}pip install milvus-lite=={wanted}"}
    if store.exists() and not store.is_dir():
        reason = "it is a file instead of a folder, perhaps a store of Milvus Lite 2: "
        return {"kind": "damaged", "reason": f"{reason}move it away and run `repair`"}
    private_folder(store)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # macOS reports unlimited but refuses it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
