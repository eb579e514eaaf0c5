"""The gRPC service that runs Milvus Lite in the server process of an embedded home.

Milvus Lite is not safe against concurrent writes, nor against reads during a replacement of its
memtable: acknowledged rows are lost, or vanish for a moment. Requests therefore take a read-write
lock for each collection. Locks held by clients would not suffice, because a request continues in
the server after its client has given up waiting.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import pyarrow as pa
from milvus_lite import Collection
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from milvus_lite.exceptions import (
    ManifestCorruptedError,
    MilvusLiteError,
    SchemaValidationError,
)
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc, schema_pb2

from imgsearch.stores import embedded, milvus_lite_patches
from imgsearch.stores.milvus_lite_patches import ExactSearch

THREADS = 64  # each request that waits for a collection occupies one
_MESSAGE_BYTES = 256 * 1024 * 1024  # Milvus' own limit

_log = logging.getLogger(__name__)


class _Gate:
    """A read-write lock in which a waiting writer has priority over new readers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = self._waiting = 0
        self._writer = False

    @contextlib.contextmanager
    def passing(self, writes: bool) -> Iterator[None]:
        with self._changed:
            self._waiting += writes
            others = (lambda: self._readers) if writes else (lambda: self._waiting)
            try:
                self._changed.wait_for(lambda: not self._writer and not others())
            finally:
                self._waiting -= writes
            self._writer, self._readers = writes, self._readers + (not writes)
        try:
            yield
        finally:
            with self._changed:
                self._writer, self._readers = False, self._readers - (not writes)
                self._changed.notify_all()


class Gates:
    """The lock of each collection, created when it is first needed."""

    def __init__(self) -> None:
        self._gates: dict[str, _Gate] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> _Gate:
        with self._lock:
            return self._gates.setdefault(name, _Gate())


READS = {"Search", "Query", "HybridSearch", "GetCollectionStatistics", "DescribeIndex"}
WRITES = {"Insert", "Upsert", "Delete", "Flush", "LoadCollection", "ReleaseCollection"} | {
    f"{verb}{noun}"
    for verb in ("Create", "Drop", "Alter", "Rename")
    for noun in ("Collection", "Index", "Partition")
}


# ArrowException itself is not among them: it is also raised when a thread cannot be started.
_CONTENT = (
    ManifestCorruptedError, SchemaValidationError, ValueError, KeyError, pa.ArrowInvalid,
    pa.ArrowTypeError, pa.ArrowIndexError, pa.ArrowNotImplementedError, pa.ArrowSerializationError,
)  # fmt: skip


class LoggedError(logging.Handler):
    """Remembers the exception that Milvus Lite logs, because its response has only the text."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.thread = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.thread.error = record.exc_info[1]


class Damaged(Exception):
    """The files of a collection are corrupted."""


def from_content(error: BaseException) -> bool:
    """Whether an error raised while opening a collection is due to the content of its files."""
    if isinstance(error, MemoryError):
        return False
    if isinstance(error, OSError):  # pyarrow's errors about content have no errno
        return error.errno is None and not re.search("memory|alloc", str(error), re.IGNORECASE)
    return isinstance(error, _CONTENT)


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class Store(MilvusLite):
    """A store that opens each collection once, even if several threads ask for it."""

    def __init__(self, home: Path):
        self._home, self._opening = home, threading.RLock()
        self.opened: dict[str, Collection] = {}
        super().__init__(str(home / embedded.STORE))

    def get_collection(self, name: str, *args: object, **kwargs: object) -> Collection:
        with self._opening:
            try:
                collection = super().get_collection(name, *args, **kwargs)
            except Exception as error:
                if not from_content(error):
                    raise
                raise Damaged(f"collection {name!r}: {named(error)}") from error
            self.opened[collection.name] = collection
            return collection

    def create_collection(self, name: str, *args: object, **kwargs: object) -> Collection:
        with self._opening:
            # An interrupted creation or drop leaves a folder without a schema, which Milvus Lite
            # can neither open nor replace.
            remains = self._home / embedded.STORE / "collections" / name
            if remains.is_dir() and not (remains / "schema.json").exists():
                remains.rename(embedded.damaged_folder(self._home, name))
            return super().create_collection(name, *args, **kwargs)

    def drop_collection(self, name: str, *args: object, **kwargs: object) -> None:
        with self._opening:
            super().drop_collection(name, *args, **kwargs)
            self.opened.pop(name, None)


class Servicer(MilvusServicer):
    """Milvus Lite's handlers, except for those that are replaced because they are slow or wrong."""

    def __init__(self, home: Path, store: Store, exact: ExactSearch, logged: LoggedError):
        self._home, self._store, self._exact, self._logged = home, store, exact, logged
        super().__init__(store)

    def ShowCollections(self, request: object, context: object):
        """List the collections by name; Milvus Lite would open and load each of them."""
        names = self._store.list_collections()
        return milvus_pb2.ShowCollectionsResponse(
            status=common_pb2.Status(), collection_names=names
        )

    def DescribeIndex(self, request: object, context: object):
        """Wait for an index that is being built, which Milvus Lite reports as finished."""
        with contextlib.suppress(MilvusLiteError, Damaged):  # reported by the call below
            collection = self._get_collection(request, context)
            if collection.has_index():
                collection._wait_for_bg()
        return super().DescribeIndex(request, context)

    def LoadCollection(self, request: object, context: object):
        """Rebuild the indexes if their files cannot be read, as after a kill during a write."""
        self._logged.thread.error = None
        response = super().LoadCollection(request, context)
        if response.code and not isinstance(self._logged.thread.error, MemoryError | OSError):
            folder = self._home / embedded.STORE / "collections" / request.collection_name
            torn = list(folder.glob("partitions/*/indexes/*.idx"))
            for file in torn:
                file.unlink()
            if torn:
                self._logged.thread.error = None
                response = super().LoadCollection(request, context)
        return response

    def Search(self, request: object, context: object):
        """Search among ids sent in binary form; parsing them as an expression would take longer."""
        if not request.dsl.startswith(embedded.AMONG):
            return super().Search(request, context)
        ids = np.frombuffer(base64.b64decode(request.dsl.removeprefix(embedded.AMONG)), "<i8")
        request.dsl = ""
        with self._exact.among(ids):
            return super().Search(request, context)

    def Query(self, request: object, context: object):
        """Read all ids, or vectors by id, by column instead of row by row."""
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
        found = self._exact.read(collection, "vector", numbers) if loaded else None
        if found is None:
            return super().Query(request, context)
        ids, parts = found
        long_data = schema_pb2.LongArray(data=ids.tolist())
        columns = [_column("id", schema_pb2.Int64, scalars={"long_data": long_data})]
        if wanted:
            vectors = schema_pb2.FloatArray()
            for part in parts:
                vectors.data.extend(part.ravel().tolist())
            data = {"dim": parts[0].shape[1], "float_vector": vectors}
            columns.append(_column("vector", schema_pb2.FloatVector, vectors=data))
        return milvus_pb2.QueryResults(
            status=common_pb2.Status(), fields_data=columns, output_fields=fields,
            collection_name=request.collection_name, primary_field_name="id",
        )  # fmt: skip


def _column(name: str, kind: int, **data: object):
    return schema_pb2.FieldData(field_name=name, type=kind, **data)


class Requests(grpc.ServerInterceptor):
    """Runs each request under the lock of its collections, and sets the status code of errors."""

    def __init__(self, gates: Gates, exact: ExactSearch, logged: LoggedError):
        self._gates, self._exact, self._logged = gates, exact, logged
        self.broken = threading.Event()

    def intercept_service(self, continuation, details):
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        name = details.method.rsplit("/", 1)[-1]

        def answer(request: object, context: object):
            names = getattr(request, "collection_names", None)
            names = sorted(set(names)) if names else [getattr(request, "collection_name", "")]
            with contextlib.ExitStack() as stack:
                if name in READS | WRITES:
                    for gate in (self._gates[n] for n in names):
                        stack.enter_context(gate.passing(name in WRITES))
                if self.broken.is_set():
                    context.abort(grpc.StatusCode.UNAVAILABLE, "exiting after a failed write")
                if name in WRITES:  # while no other request runs
                    stack.callback(self._exact.forget)
                self._logged.thread.error = None
                try:
                    response = handler.unary_unary(request, context)
                except NotImplementedError:  # how gRPC rejects an unknown request
                    raise
                except Exception as error:
                    _log.exception("%s failed", name)
                    memory = isinstance(error, MemoryError)
                    codes = grpc.StatusCode
                    code = codes.RESOURCE_EXHAUSTED if memory else codes.INTERNAL
                    context.abort(code, named(error))
                error, self._logged.thread.error = self._logged.thread.error, None
                if error is not None:
                    status = getattr(response, "status", response)
                    damaged = isinstance(error, Damaged)
                    status.code = embedded.DAMAGED if damaged else embedded.FAILED
                    status.reason = str(error) if damaged else named(error)
                return response

        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


class _Threads(futures.ThreadPoolExecutor):
    """Threads that report a request that died unanswered; gRPC would leave its client waiting."""

    def __init__(self, died: Callable[[BaseException], None]):
        self._died = died
        threading.excepthook = lambda failure: died(failure.exc_value)  # gRPC's own thread
        super().__init__(THREADS)

    def submit(self, *args: Any, **kwargs: Any) -> futures.Future:
        future = super().submit(*args, **kwargs)
        future.add_done_callback(self._check)
        return future

    def _check(self, future: futures.Future) -> None:
        if not future.cancelled() and future.exception() is not None:
            self._died(future.exception())


def serve(
    home: Path, path: Path, end: Callable[[], None]
) -> tuple[grpc.Server, Callable[[], None]]:
    """Open the store and serve it on a socket; return the server and a function that flushes all.

    `end` is called after the first failed write, and no request is acknowledged after that.
    """

    def failed(error: BaseException) -> None:
        if not requests.broken.is_set():
            requests.broken.set()
            _log.critical("exiting, a write or a request failed: %s", named(error))
            end()

    gates, logged = Gates(), LoggedError()
    logging.getLogger(MilvusServicer.__module__).addHandler(logged)
    exact = milvus_lite_patches.install(failed)
    requests, store = Requests(gates, exact, logged), Store(home)
    server = grpc.server(
        _Threads(failed),
        interceptors=[requests],
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
            # Keep windows small: a message that fills the socket of a frozen server would hold
            # up the pings that detect that it is frozen.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.max_ping_strikes", 0),  # clients ping as often as IMGSEARCH_TIMEOUT asks
        ],
    )
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(
        Servicer(home, store, exact, logged), server
    )
    server.add_insecure_port(f"unix:{quote(str(path))}")
    server.start()

    def write_out() -> None:
        for name, collection in list(store.opened.items()):
            with gates[name].passing(writes=True):
                if store.opened.get(name) is collection:
                    collection.flush()
                    exact.forget()

    return server, write_out
