"""The one Milvus Lite server of a home, shared by every notebook that uses it.

Milvus Lite lets one process into a store. So the store of a home is served on
loopback by one background process: whoever comes first starts it, the others
find it through ``embedded/server.json``, and it ends by itself a while after
its last user is gone.

Everything rests on ``flock``, because the kernel drops those locks when their
holder dies, by whatever signal:

``embedded/clients.lock``
    Shared by every :class:`Lease`. The server may go when it gets it alone.
``embedded/server.lock``
    Held by the server for as long as it has the store open.
``embedded/start.lock``
    Held while a process looks for a server and starts one.
``embedded/write.lock``
    Held by the one who writes, see :func:`writing`.

Milvus Lite promises nothing when two requests write at once, or when one reads
while another replaces the memory table: acknowledged rows get lost, and rows
vanish for a moment. The server therefore passes its requests through a gate for
each collection, one writer or many readers. A client's request goes on in the
server after the client has given up waiting, so a lock among clients could not
replace that gate.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from imgsearch.errors import StoreBusy, StoreDamaged, StoreError, StoreUnavailable
from imgsearch.stores import lite
from imgsearch.stores.locks import FOLDER, FileLock, writing

if TYPE_CHECKING:
    from imgsearch.stores.lite_search import LiteSearch

STORE = "vectors.db"
GRACE = 20.0  # seconds that the server outlives its last lease
START_TIMEOUT = 60.0  # seconds for a server to come up; imports on a busy machine are slow
LEAVING_TIMEOUT = 40.0  # seconds that it waits, among these, for the one before it to end
ANSWERING = 64  # threads of the server; those that wait at a gate take one each
HEARTBEAT = 5.0  # seconds between two touches of server.json
SETTLING = 600.0  # seconds that a server whose users are gone waits for indexes to be built
FORGOTTEN = 60.0  # seconds without a touch after which another machine's server is gone
_LOG_BYTES = 1_000_000
_MESSAGE_BYTES = 256 * 1024 * 1024  # Milvus' own limit


# ---------------------------------------------------------------- leases


class Lease:
    """A share in the server of a home: while one is open, the server stays.

    Given by :func:`lease`.

    Attributes
    ----------
    home : Path
        The home.
    uri : str
        ``http://127.0.0.1:port``.
    token : str
        What the server asks for, so that no other user of the machine gets in.
    pid : int
        The server's process.
    log : Path
        Where the server writes what goes wrong.
    """

    def __init__(self, home: Path, *, grace: float = GRACE):
        self.home, self._grace = home, grace
        self.log = home / FOLDER / "server.log"
        self._lock = FileLock(home / FOLDER / "clients.lock")
        try:
            # Only a server that is just leaving holds this alone, and not for long.
            if not self._lock.wait(START_TIMEOUT, shared=True):
                raise StoreUnavailable(
                    str(home / STORE), "the server that was leaving hangs; see " + str(self.log)
                )
            self._take(_find_or_start(home, grace))
        except BaseException:
            self._lock.close()
            raise

    def _take(self, state: dict) -> None:
        self.uri = f"http://127.0.0.1:{state['port']}"
        self.token, self.pid = state["token"], state["pid"]

    def renew(self) -> None:
        """Find or start a server again, after this one was found dead.

        Raises
        ------
        StoreError
            As :func:`lease`.
        """
        self._take(_find_or_start(self.home, self._grace))

    def close(self) -> None:
        """Give the share back. May be called twice."""
        self._lock.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lease(home: Path, *, grace: float = GRACE) -> Lease:
    """Take a share in the server of a home; starts it where none runs.

    Parameters
    ----------
    home : Path
        ``IMGSEARCH_HOME``; made if it is not there.
    grace : float
        Seconds that a server started by this call outlives its last lease.

    Returns
    -------
    Lease

    Raises
    ------
    StoreBusy
        The server runs on another machine, or the store is open elsewhere.
    StoreDamaged
        The store's folder cannot be opened as a Milvus Lite store.
    StoreUnavailable
        The server did not come up in time.
    StoreError
        The home cannot be written.
    """
    return Lease(home, grace=grace)


def set_aside(home: Path) -> Path:
    """Move a store that cannot be opened out of the way, so that a new one can begin.

    Parameters
    ----------
    home : Path
        ``IMGSEARCH_HOME``.

    Returns
    -------
    pathlib.Path
        Where the store lies now.

    Raises
    ------
    StoreBusy
        A server has it open, so it can be opened.
    """
    with writing(home):
        start = FileLock(home / FOLDER / "start.lock")
        try:
            if not start.wait(START_TIMEOUT) or _running(home):
                raise StoreBusy(str(home / STORE), "its server", "the store is in use")
            kept = aside(home, STORE)
            (home / STORE).rename(kept)
            return kept
        finally:
            start.close()


def aside(home: Path, name: str) -> Path:
    """Name a folder for damaged files that are kept.

    Parameters
    ----------
    home : Path
        ``IMGSEARCH_HOME``.
    name : str
        What is damaged.

    Returns
    -------
    pathlib.Path
        In a folder that is there, itself not there yet.
    """
    folder = home / "damaged"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"


def _find_or_start(home: Path, grace: float) -> dict:
    folder = home / FOLDER
    start = FileLock(folder / "start.lock")
    try:
        if not start.wait(START_TIMEOUT):
            raise StoreUnavailable(
                str(home / STORE),
                f"another process has been starting its server for {START_TIMEOUT:g} s; "
                f"see {folder / 'server.log'}",
            )
        return _running(home) or _start(home, grace)
    finally:
        start.close()


def _running(home: Path) -> dict | None:
    """Read server.json, if the server it names is alive."""
    path = home / FOLDER / "server.json"
    end = time.monotonic() + START_TIMEOUT
    while True:
        try:
            state = json.loads(path.read_text())
            touched = path.stat().st_mtime
        except (OSError, ValueError):
            return None
        alive = FileLock(home / FOLDER / "server.lock")
        try:
            free = alive.take()
        finally:
            alive.close()
        if state.get("host") == socket.gethostname():
            if free:
                return None
            if _listens(state["port"]):
                return state
            # A killed process lets go of its ports before it lets go of its locks.
            if time.monotonic() < end:
                time.sleep(0.02)
                continue
            raise StoreUnavailable(
                str(home / STORE),
                f"its server, process {state.get('pid')}, hangs: end it, and see "
                f"{home / FOLDER / 'server.log'}",
            )
        # Not every network file system carries flock to other machines: ask the heartbeat too.
        if free and time.time() - touched > FORGOTTEN:
            return None
        raise StoreBusy(
            str(home / STORE),
            f"process {state.get('pid')} on {state.get('host')}",
            "the embedded store is open on another machine, and works on one at a time; close "
            "the notebooks there, or use a Milvus server (MILVUS_URI). If that machine is gone, "
            f"remove {path}",
        )


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return False
    except OSError:  # a frozen server whose queue is full
        return True
    return True


def _start(home: Path, grace: float) -> dict:
    (home / FOLDER / "server.json").unlink(missing_ok=True)
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "imgsearch.stores.embedded", str(home), str(grace)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        answer = _answer(process)
    finally:
        process.stdout.close()
        process.wait()  # it forks at once; what goes on is nobody's child
    where, log = str(home / STORE), home / FOLDER / "server.log"
    if answer is None:
        raise StoreUnavailable(
            where, f"its server did not come up within {START_TIMEOUT:g} s; see {log}"
        )
    if "port" in answer:
        return answer
    reason = answer.get("reason", "its server ended at once")
    if answer.get("kind") == "busy":
        raise StoreBusy(where, "another program", reason)
    if answer.get("kind") == "damaged":
        raise StoreDamaged(
            where,
            f"cannot be opened: {reason}. Move the folder away and run `repair`, which "
            f"rebuilds it from the metadata and the files; details in {log}",
        )
    raise StoreError(where, f"{reason}; details in {log} and {log.with_suffix('.err')}")


def _answer(process: subprocess.Popen) -> dict | None:
    """Read the one line the server says when it is up, or when it fails."""
    end = time.monotonic() + START_TIMEOUT
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not said.endswith(b"\n"):
            if not selector.select(max(0.0, end - time.monotonic())):
                return None
            more = os.read(process.stdout.fileno(), 65536)
            if not more:
                return {}
            said += more
    return json.loads(said)


# ---------------------------------------------------------------- the server process


class _Gate:
    """Many readers or one writer; a writer that waits comes before new readers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = self._waiting = 0
        self._writer = False

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._writer and not self._waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._writer and not self._readers)
                self._writer = True
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._writer = False
                self._changed.notify_all()


_READS = {"Search", "Query", "HybridSearch", "GetCollectionStatistics", "DescribeIndex"}
_WRITES = {"Insert", "Upsert", "Delete", "Flush", "LoadCollection", "ReleaseCollection"} | {
    f"{verb}{noun}"
    for verb in ("Create", "Drop", "Alter", "Rename")
    for noun in ("Collection", "Index", "Partition")
}


def _serve(home: Path, token: str, end: Callable[[], None]):
    """Open the store and serve it on a free port of 127.0.0.1.

    Returns the gRPC server, the store, its port, and what writes everything out and
    waits for its indexes, unless the event that it is given is set. `end` is called once
    the store could not be written: nothing is acknowledged from then on.
    """
    from concurrent import futures

    import grpc
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from milvus_lite.db import MilvusLite
    from pymilvus.grpc_gen import milvus_pb2_grpc

    from imgsearch.stores.lite_search import LiteSearch

    searches = LiteSearch()
    searches.install()

    class Store(MilvusLite):
        """Two requests that open one collection at once must get the same object."""

        def __init__(self, folder: str):
            self._opening = threading.RLock()
            self.opened = {}
            super().__init__(folder)

        def get_collection(self, *args: object, **kwargs: object):
            with self._opening:
                collection = super().get_collection(*args, **kwargs)
                self.opened[collection.name] = collection
                return collection

        def create_collection(self, name: str, *args: object, **kwargs: object):
            with self._opening:
                # What a creation or a drop that was cut off left has no schema: Milvus Lite
                # would neither open it nor make another in its place.
                remains = home / STORE / "collections" / name
                if remains.is_dir() and not (remains / "schema.json").exists():
                    remains.rename(aside(home, name))
                return super().create_collection(name, *args, **kwargs)

        def drop_collection(self, name: str, *args: object, **kwargs: object) -> None:
            with self._opening:
                super().drop_collection(name, *args, **kwargs)
                self.opened.pop(name, None)

    class Servicer(MilvusServicer):
        """Milvus Lite calls every index finished; this says what is not built yet."""

        def DescribeIndex(self, request: object, context: object):
            response = super().DescribeIndex(request, context)
            for index in response.index_descriptions:
                collection = store.get_collection(request.collection_name)
                if collection.load_state == "loaded":
                    pending = searches.unindexed(collection, index.field_name)
                else:  # nobody builds it before somebody loads it
                    pending = index.total_rows
                index.pending_index_rows = pending
                index.indexed_rows = max(0, index.total_rows - pending)
            return response

    broken = threading.Event()

    def failed(error: BaseException) -> None:
        if not broken.is_set():
            broken.set()
            logging.getLogger(__name__).critical("leaving, a write failed: %s", error)
            end()

    lite.harden(failed)
    lite.remove_drafts(home / STORE)
    gates: defaultdict[str, _Gate] = defaultdict(_Gate)
    expected = base64.b64encode(token.encode()).decode()

    def refuse(_: object, context: grpc.ServicerContext) -> NoReturn:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "this store belongs to somebody else")

    class Doorkeeper(grpc.ServerInterceptor):
        """Lets in who has the token, and leads each request through its gate."""

        def intercept_service(self, continuation, details):
            given = dict(details.invocation_metadata).get("authorization", "")
            given = given.decode() if isinstance(given, bytes) else given
            if not secrets.compare_digest(given, expected):
                return grpc.unary_unary_rpc_method_handler(refuse)
            handler = continuation(details)
            name = details.method.rsplit("/", 1)[-1]
            if handler is None or name not in _READS | _WRITES:
                return handler

            def guarded(request: object, context: object):
                names = getattr(request, "collection_names", None)
                names = sorted(set(names)) if names else [getattr(request, "collection_name", "")]
                with contextlib.ExitStack() as stack:
                    for gate in (gates[n] for n in names):
                        stack.enter_context(gate.writing() if name in _WRITES else gate.reading())
                    if broken.is_set():
                        context.abort(grpc.StatusCode.UNAVAILABLE, "leaving, a write failed")
                    if name in _WRITES:  # while still the only one: no search comes between
                        stack.callback(searches.forget)
                    return handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(
                guarded, handler.request_deserializer, handler.response_serializer
            )

    store = Store(str(home / STORE))
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=ANSWERING),
        interceptors=[Doorkeeper()],
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ],
    )
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(Servicer(store), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, store, port, functools.partial(_settle, store, gates, searches)


def _settle(store, gates: dict[str, _Gate], searches: LiteSearch, ended: threading.Event) -> None:
    """Write out and index everything, so that the end itself is quick."""
    for name, collection in list(store.opened.items()):
        with gates[name].writing():
            if store.opened.get(name) is not collection:
                continue
            collection.flush()
        limit = time.monotonic() + SETTLING
        while time.monotonic() < limit:
            with gates[name].reading():
                if store.opened.get(name) is not collection or collection.load_state != "loaded":
                    break
                if not any(searches.unindexed(collection, f) for f in collection.list_indexes()):
                    break
            if ended.wait(0.05):
                return


def _watch(home: Path, grace: float, state_file: Path, ended: threading.Event, settle) -> None:
    """Return when the server should end; server.json is gone then."""
    clients = FileLock(home / FOLDER / "clients.lock")
    log = logging.getLogger(__name__)
    lonely: float | None = None
    touched = time.monotonic()
    pause = min(0.5, grace / 4)
    while not ended.wait(pause):
        if time.monotonic() - touched > HEARTBEAT:
            touched = time.monotonic()
            try:
                os.utime(state_file)
            except FileNotFoundError:
                log.warning("%s was removed: leaving", state_file)
                break
        if not clients.take():
            lonely = None
            continue
        clients.release()
        lonely = lonely or time.monotonic()
        if time.monotonic() - lonely < grace:
            continue
        settle(ended)
        if clients.take():  # nobody came while it settled, and nobody can come now
            break
        lonely = None
    state_file.unlink(missing_ok=True)
    clients.close()


def main(home: Path, grace: float = GRACE) -> None:
    """Serve the store of a home until nobody uses it any more.

    Parameters
    ----------
    home : Path
        The home.
    grace : float
        Seconds to stay after the last lease is gone.
    """
    # Nobody's child, in a session of its own: neither Ctrl-C in a terminal nor the end
    # of a kernel reaches it, and no notebook has to reap it.
    if os.fork():
        os._exit(0)
    folder = home / FOLDER
    answer = os.dup(1)
    errors = os.open(folder / "server.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(errors, 1)
    os.dup2(errors, 2)

    from logging.handlers import RotatingFileHandler

    handler = RotatingFileHandler(folder / "server.log", maxBytes=_LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    log = logging.getLogger(__name__)

    def tell(**facts: object) -> None:
        with contextlib.suppress(OSError):  # whoever started this may be gone already
            os.write(answer, json.dumps(facts).encode() + b"\n")
        os.close(answer)

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())

    path = folder / "server.json"
    serving = FileLock(folder / "server.lock")
    limit = time.monotonic() + LEAVING_TIMEOUT
    while not serving.take():
        # Whoever began another server may have been killed before that was up: it serves now.
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(path.read_text())
            if state["host"] == socket.gethostname() and _listens(state["port"]):
                tell(**state)
                return
        if time.monotonic() >= limit:
            tell(kind="error", reason="the server before this one is still writing")
            return
        time.sleep(0.02)
    token = secrets.token_hex(16)

    def end() -> None:
        # Who asks now finds no server and starts the next one, which waits for this one's
        # lock. The moment is for the answer that says what went wrong.
        path.unlink(missing_ok=True)
        threading.Timer(0.2, os._exit, (1,)).start()

    try:
        server, store, port, settle = _serve(home, token, end)
    except Exception as error:
        log.exception("cannot open %s", home / STORE)
        busy = type(error).__name__ == "DataDirLockedError"
        denied = isinstance(error, PermissionError)
        tell(
            kind="busy" if busy else "error" if denied else "damaged",
            reason="the store is open in another program" if busy else str(error),
        )
        return
    state = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "port": port,
        "token": token,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(state))
    draft.replace(path)
    tell(**state)
    log.info("serving %s on 127.0.0.1:%d", home / STORE, port)
    try:
        _watch(home, grace, path, ended, settle)
        log.info("leaving")
        server.stop(grace=5).wait()
        store.close()
    except Exception:
        log.exception("leaving after a failure")
    # Threads of requests that hang must not keep the process, nor its locks.
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
