"""The process that serves an embedded home on a Unix domain socket, and when it ends."""

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
LAST_FLUSH = 20.0  # seconds for writing everything out at the end; the log holds the rest
_LOG_BYTES = 1_000_000
_PATH_BYTES = 100  # of a socket; the system takes 107, and 103 on macOS

_log = logging.getLogger(__name__)


def _socket_path(home: Path) -> Path:
    """Name a socket in the home, or in a private folder elsewhere where that name is too long."""
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
    """Return when the server should end; server.json is gone then."""
    clients = FileLock(home / FOLDER / "clients.lock")
    unused_since: float | None = None
    touched = time.monotonic()
    while not ended.wait(min(0.5, grace / 4)):
        if time.monotonic() - touched > HEARTBEAT:
            touched = time.monotonic()
            try:
                os.utime(state_file)
            except FileNotFoundError:
                _log.warning("%s was removed: leaving", state_file)
                break
        if not clients.take():
            unused_since = None
            continue
        unused_since = unused_since or time.monotonic()
        if time.monotonic() - unused_since >= grace:
            break  # the lock is kept: nobody can come now
        clients.release()
    state_file.unlink(missing_ok=True)
    clients.close()


def main(home: Path, grace: float) -> None:
    """Serve the store of a home until nobody uses it any more."""
    # Nobody's child, in a session of its own: neither Ctrl-C in a terminal nor the end of a
    # kernel reaches it, and no notebook has to reap it.
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
        with contextlib.suppress(OSError):  # whoever started this has its answer, or is gone
            os.write(answer, json.dumps(facts).encode() + b"\n")

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())

    path = folder / "server.json"
    serving = FileLock(folder / "server.lock")
    limit = time.monotonic() + embedded.LEAVING_TIMEOUT
    while not serving.take():
        # Whoever started another server may have been killed before it was up: it serves now.
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = json.loads(path.read_text())
            if state["host"] == socket.gethostname() and embedded.listens(state["socket"]):
                report(**state)
                return
        if time.monotonic() >= limit:
            report(reason="the server before this one is still writing")
            return
        time.sleep(0.02)

    def end() -> None:
        # The delay is for the answer that says what went wrong. An alarm ends the process though
        # it has no memory for a thread. Who asks now starts the next server, which waits for it.
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
        _log.info("leaving")
        signal.setitimer(signal.ITIMER_REAL, LAST_FLUSH)  # requests that hang must not keep it
        server.stop(grace=5).wait()
        write_out()
    except BaseException as error:
        _log.exception("the server of %s fails", home / embedded.STORE)
        if type(error).__name__ == "DataDirLockedError":
            report(kind="busy", reason="the store is open in another program")
        else:
            report(reason=f"{type(error).__name__}: {error}")
    finally:
        logging.shutdown()
        os._exit(0)  # whatever threads are left


def _unfit(home: Path) -> dict[str, str] | None:
    """Why the store must not be opened, checked before anything of it is touched."""
    from importlib.metadata import version

    found, store = version("milvus-lite"), home / embedded.STORE
    if found != milvus_lite_patches.VERSION:
        wanted = milvus_lite_patches.VERSION
        reason = f"milvus-lite {found} is installed, and imgsearch works with {wanted} only: "
        return {"reason": f"{reason}pip install milvus-lite=={wanted}"}
    if store.exists() and not store.is_dir():
        reason = "it is a file where a folder belongs, such as a store of Milvus Lite 2: "
        return {"kind": "damaged", "reason": f"{reason}move it away and run `repair`"}
    private_folder(store)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # macOS says unlimited, and refuses it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
