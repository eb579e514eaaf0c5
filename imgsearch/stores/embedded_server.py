"""The server process of an embedded home: Milvus Lite on a Unix domain socket.

Milvus Lite promises nothing when two requests write at once, or when one reads while another
replaces the memory table: acknowledged rows get lost, and rows vanish for a moment. Requests
therefore pass a read-write lock for each collection. A client's request goes on in the server
after the client has given up waiting, so a lock among clients could not replace it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import resource
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imgsearch.stores import embedded, milvus_lite_patches
from imgsearch.stores.locks import FOLDER, FileLock, private_folder

THREADS = 64  # those that wait for a collection take one each
HEARTBEAT = 5.0  # seconds between two touches of server.json
LAST_FLUSH = 20.0  # seconds for writing everything out at the end; the log holds the rest
_LOG_BYTES = 1_000_000
_MESSAGE_BYTES = 256 * 1024 * 1024  # Milvus' own limit
_PATH_BYTES = 100  # of a socket; the system takes 107, and 103 on macOS

_log = logging.getLogger(__name__)


class _Gate:
    """A read-write lock; a writer that waits goes before new readers."""

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


class _Gates:
    """The lock of each collection, the same one for every thread that asks."""

    def __init__(self) -> None:
        self._gates: dict[str, _Gate] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> _Gate:
        with self._lock:
            return self._gates.setdefault(name, _Gate())


_READS = {"Search", "Query", "HybridSearch", "GetCollectionStatistics", "DescribeIndex"}
_WRITES = {"Insert", "Upsert", "Delete", "Flush", "LoadCollection", "ReleaseCollection"} | {
    f"{verb}{noun}"
    for verb in ("Create", "Drop", "Alter", "Rename")
    for noun in ("Collection", "Index", "Partition")
}


class _LoggedError(logging.Handler):
    """Keeps the exception that Milvus Lite logs before it answers with no more than its text."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.thread = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.thread.error = record.exc_info[1]


class Damaged(Exception):
    """The files of a collection hold something that cannot be read."""


def from_content(error: BaseException) -> bool:
    """Whether an error raised while a collection was opened comes from what its files hold."""
    import pyarrow as pa
    from milvus_lite.exceptions import ManifestCorruptedError, SchemaValidationError

    if isinstance(error, MemoryError):
        return False
    if isinstance(error, OSError):  # pyarrow's errors about content have no number
        return error.errno is None and not re.search("memory|alloc", str(error), re.IGNORECASE)
    return isinstance(
        error,
        pa.ArrowException | ManifestCorruptedError | SchemaValidationError | ValueError | KeyError,
    )


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _serving_threads(died: Callable[[BaseException], None]) -> Any:
    """A pool that says when a request died unanswered: gRPC would leave its client waiting."""
    from concurrent import futures

    def check(future: futures.Future) -> None:
        if not future.cancelled() and future.exception() is not None:
            died(future.exception())

    class Pool(futures.ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> futures.Future:
            future = super().submit(*args, **kwargs)
            future.add_done_callback(check)
            return future

    threading.excepthook = lambda failure: died(failure.exc_value)  # gRPC's own thread
    return Pool(THREADS)


def _serve(home: Path, end: Callable[[], None]) -> tuple[Any, str, Callable[[], None]]:
    """Open the store; give the gRPC server, its socket and what writes everything out.

    `end` is called once a write has failed: nothing is acknowledged from then on.
    """
    import grpc
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from milvus_lite.db import MilvusLite
    from milvus_lite.exceptions import MilvusLiteError
    from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc, schema_pb2

    broken = threading.Event()

    def failed(error: BaseException) -> None:
        if not broken.is_set():
            broken.set()
            _log.critical("leaving, a write or a request failed: %s", _named(error))
            end()

    exact = milvus_lite_patches.install(failed)

    class Store(MilvusLite):
        def __init__(self, folder: str):
            self._opening = threading.RLock()
            self.opened: dict[str, Any] = {}
            super().__init__(folder)

        def get_collection(self, name: str, *args: object, **kwargs: object):
            with self._opening:  # two requests that open a collection must get the same object
                try:
                    collection = super().get_collection(name, *args, **kwargs)
                except Exception as error:
                    if not from_content(error):
                        raise
                    raise Damaged(f"collection {name!r}: {_named(error)}") from error
                self.opened[collection.name] = collection
                return collection

        def create_collection(self, name: str, *args: object, **kwargs: object):
            with self._opening:
                # What an interrupted creation or drop left has no schema: Milvus Lite would
                # neither open it nor create another in its place.
                remains = home / embedded.STORE / "collections" / name
                if remains.is_dir() and not (remains / "schema.json").exists():
                    remains.rename(embedded.damaged_folder(home, name))
                return super().create_collection(name, *args, **kwargs)

        def drop_collection(self, name: str, *args: object, **kwargs: object) -> None:
            with self._opening:
                super().drop_collection(name, *args, **kwargs)
                self.opened.pop(name, None)

    store = Store(str(home / embedded.STORE))

    class Servicer(MilvusServicer):
        def ShowCollections(self, request: object, context: object):
            """List names without opening, and so loading, every collection."""
            names = store.list_collections()
            return milvus_pb2.ShowCollectionsResponse(
                status=common_pb2.Status(), collection_names=names
            )

        def LoadCollection(self, request: object, context: object):
            """Build indexes again where an index file cannot be read: a kill tears them."""
            logged.thread.error = None
            response = super().LoadCollection(request, context)
            if response.code and not isinstance(logged.thread.error, MemoryError | OSError):
                folder = home / embedded.STORE / "collections" / request.collection_name
                torn = list(folder.glob("partitions/*/indexes/*.idx"))
                for file in torn:
                    file.unlink()
                if torn:
                    logged.thread.error = None
                    response = super().LoadCollection(request, context)
            return response

        def Query(self, request: object, context: object):
            """Read all ids, or vectors by id, column by column instead of row by row."""
            fields = list(request.output_fields)
            wanted = re.fullmatch(r"id in \[([-0-9, ]*)\]", request.expr)
            everything = request.expr == embedded.ALL_IDS and fields == ["id"]
            if not everything and not (wanted and fields == ["id", "vector"]):
                return super().Query(request, context)
            try:
                collection = self._get_collection(request, context)
                loaded = collection.load_state == "loaded"
            except (MilvusLiteError, Damaged):
                loaded = False
            numbers = [int(i) for i in wanted[1].split(",") if i.strip()] if wanted else None
            found = exact.read(collection, "vector", numbers) if loaded else None
            if found is None:
                return super().Query(request, context)
            ids, parts = found
            columns = [
                schema_pb2.FieldData(
                    type=schema_pb2.Int64,
                    field_name="id",
                    scalars=schema_pb2.ScalarField(
                        long_data=schema_pb2.LongArray(data=ids.tolist())
                    ),
                )
            ]
            if wanted:
                vectors = schema_pb2.FloatArray()
                for part in parts:
                    vectors.data.extend(part.ravel().tolist())
                dim = next((part.shape[1] for part in parts), 0)
                columns.append(
                    schema_pb2.FieldData(
                        type=schema_pb2.FloatVector,
                        field_name="vector",
                        vectors=schema_pb2.VectorField(dim=dim, float_vector=vectors),
                    )
                )
            return milvus_pb2.QueryResults(
                status=common_pb2.Status(),
                fields_data=columns,
                collection_name=request.collection_name,
                output_fields=fields,
                primary_field_name="id",
            )

    gates, logged = _Gates(), _LoggedError()
    logging.getLogger(MilvusServicer.__module__).addHandler(logged)

    class Requests(grpc.ServerInterceptor):
        """Leads each request through its gate, and tells the client the class of an error."""

        def intercept_service(self, continuation, details):
            handler = continuation(details)
            if handler is None or handler.unary_unary is None:
                return handler
            name = details.method.rsplit("/", 1)[-1]

            def answer(request: object, context: object):
                names = getattr(request, "collection_names", None)
                names = sorted(set(names)) if names else [getattr(request, "collection_name", "")]
                with contextlib.ExitStack() as stack:
                    if name in _READS | _WRITES:
                        for gate in (gates[n] for n in names):
                            writes = name in _WRITES
                            stack.enter_context(gate.writing() if writes else gate.reading())
                    if broken.is_set():
                        context.abort(grpc.StatusCode.UNAVAILABLE, "leaving, a write failed")
                    if name in _WRITES:  # while no other request runs
                        stack.callback(exact.forget)
                    logged.thread.error = None
                    try:
                        response = handler.unary_unary(request, context)
                    except NotImplementedError:  # gRPC's own answer to an unknown request
                        raise
                    except Exception as error:
                        _log.exception("%s failed", name)
                        memory = isinstance(error, MemoryError)
                        codes = grpc.StatusCode
                        code = codes.RESOURCE_EXHAUSTED if memory else codes.INTERNAL
                        context.abort(code, _named(error))
                    error, logged.thread.error = logged.thread.error, None
                    if error is not None:
                        status = getattr(response, "status", response)
                        damaged = isinstance(error, Damaged)
                        status.code = embedded.DAMAGED if damaged else embedded.FAILED
                        status.reason = str(error) if damaged else _named(error)
                    return response

            return grpc.unary_unary_rpc_method_handler(
                answer, handler.request_deserializer, handler.response_serializer
            )

    server = grpc.server(
        _serving_threads(failed),
        interceptors=[Requests()],
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
            # Small windows: a message that filled the socket of a frozen server would keep the
            # pings waiting that find it silent.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.max_ping_strikes", 0),  # clients ping as often as IMGSEARCH_TIMEOUT asks
        ],
    )
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(Servicer(store), server)
    path = _socket_path(home)
    server.add_insecure_port(f"unix:{quote(str(path))}")
    server.start()

    def write_out() -> None:
        for name, collection in list(store.opened.items()):
            with gates[name].writing():
                if store.opened.get(name) is collection:
                    collection.flush()
                    exact.forget()

    return server, str(path), write_out


def _socket_path(home: Path) -> Path:
    """Name a socket in the home, or in a private folder elsewhere where that name is too long."""
    path = home / FOLDER / "socket"
    if len(os.fsencode(path)) <= _PATH_BYTES:
        return path
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    folder = base / f"imgsearch-{os.getuid()}-{name}"
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
        with contextlib.suppress(OSError):  # whoever started this may be gone already
            os.write(answer, json.dumps(facts).encode() + b"\n")
        os.close(answer)

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
        # Who asks now finds no server and starts the next one, which waits for this one's lock.
        # The delay is for the answer that says what went wrong.
        path.unlink(missing_ok=True)
        threading.Timer(0.2, os._exit, (1,)).start()

    try:
        if problem := _unfit(home):
            report(**problem)
            return
        server, address, write_out = _serve(home, end)
    except BaseException as error:
        _log.exception("cannot open %s", home / embedded.STORE)
        busy = type(error).__name__ == "DataDirLockedError"
        report(
            kind="busy" if busy else "error",
            reason="the store is open in another program" if busy else _named(error),
        )
        return
    state = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "socket": address,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(state))
    draft.replace(path)
    report(**state)
    _log.info("serving %s on %s", home / embedded.STORE, address)
    try:
        _watch(home, grace, path, ended)
        _log.info("leaving")
        server.stop(grace=5).wait()
        flush = threading.Thread(target=write_out, daemon=True)
        flush.start()
        flush.join(LAST_FLUSH)
    except Exception:
        _log.exception("leaving after a failure")
    # Threads of requests that hang must not keep the process, nor its locks.
    logging.shutdown()
    os._exit(0)


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
