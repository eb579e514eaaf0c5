"""The connection to Milvus: it reconnects and retries, and classifies errors."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from imgsearch.config import Settings
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from imgsearch.stores import embedded

OLDEST = (2, 3)  # the first version of Milvus with upsert and cosine similarity
CALL_LIMIT = 60.0  # seconds for one request to a server that answers pings
LEAST_PING = 5.2  # seconds; a Milvus server closes connections that ping every 5 seconds
_CONNECT_FAILED, _NOT_FOUND, _NOT_IN_MEMORY = 2, 100, 101  # error codes of pymilvus and Milvus

T = TypeVar("T")


class _Lost(Exception):
    """The connection was lost, or was closed by another thread."""


class _Silent(Exception):
    """The server does not answer in time."""


class _NotReady(Exception):
    """The server has started but cannot serve requests yet; the text says why."""


class NotLoaded(Exception):
    """The collection is not in the server's memory, for example after a restart."""


# Messages for which some versions of the server have no error code.
_TEXTS: tuple[tuple[str, Callable[[str], Exception]], ...] = (
    (r"can't find collection|collection not found", lambda text: CollectionNotFound("", ())),
    (
        r"channel not (available|subscribed)|service not ready|no available shard|not healthy"
        r"|unrecoverable error",  # of a server that still looks for its nodes after a restart
        lambda text: _NotReady(text[:160]),
    ),
    (r"not loaded|not been loaded", NotLoaded),
)


class Connection:
    """A lazily opened connection that threads share; a forked child opens its own."""

    def __init__(self, settings: Settings, connected: Callable[[], None]):
        self.home = settings.imgsearch_home if settings.embedded_vectors else None
        self.lease: embedded.Lease | None = None
        self.version = ""
        self._connected = connected  # called for each new connection
        self._timeout = settings.imgsearch_timeout
        self._client: Any = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._uri = settings.milvus_address or ""
        self._token = settings.milvus_token or SecretStr("")
        if self.home is not None:
            self.where = f"embedded store {self.home / embedded.STORE}"
            return
        parts = urlsplit(self._uri)
        if parts.scheme not in ("http", "https", "tcp") or not parts.hostname:
            raise ConfigError(
                "MILVUS_URI", "must be http://host:port; unset it for the embedded store"
            )
        self.where = f"Milvus {parts.scheme}://{parts.hostname}:{parts.port or 19530}"

    def close(self) -> None:
        """Disconnect; the next call connects again."""
        with self._lock:
            self._disconnect()
            if self.lease is not None:
                self.lease.close()
                self.lease = None

    def call(
        self,
        request: Callable[[Any, float], T],
        *,
        end: float | None = None,
        limit: float = CALL_LIMIT,
    ) -> T:
        """Call ``request(client, seconds)``, once more if the connection was lost.

        Every request is either read-only or safe to repeat.
        """
        lost, ready_by = 0, time.monotonic() + self._timeout
        while True:
            allowed = limit if end is None else max(0.001, end - time.monotonic())
            try:
                client = self.client(allowed)
                try:
                    with quietly():
                        return request(client, allowed)
                except Exception as error:
                    raise self._translated(error, client) from None
            except _NotReady as why:
                if time.monotonic() >= min(ready_by, end or ready_by):
                    raise self._unavailable(f"is not ready ({why})") from None
                time.sleep(0.25)
            except _Silent:
                seconds = min(self._timeout, allowed)
                raise self._unavailable(f"has not answered for {seconds:.3g} s") from None
            except _Lost:
                lost += 1
                if lost > 1 or (end is not None and time.monotonic() >= end):
                    raise self._unavailable("cannot be reached") from None

    def client(self, allowed: float = CALL_LIMIT) -> Any:
        """Return a connected ``MilvusClient``; connecting takes at most `allowed` seconds."""
        with self._lock:
            if self._pid != os.getpid():
                # The channel belongs to the parent process and must not be closed here.
                self._client, self.lease, self._pid = None, None, os.getpid()
            if self._client is None:
                self._client = self._connect(allowed)
                self._connected()
            return self._client

    def _connect(self, allowed: float) -> Any:
        milvus_client = import_pymilvus()
        uri, token = self._uri, self._token.get_secret_value()
        pings = max(self._timeout / 2, LEAST_PING)
        if self.home is not None:
            if self.lease is None:
                self.lease = embedded.lease(self.home)
            else:
                self.lease.renew()
            uri, token, pings = self.lease.uri, "", self._timeout / 2
        # A server that answers no pings is given up after IMGSEARCH_TIMEOUT: half of it passes
        # before a ping, a sixth waits for the reply, and a third is for pymilvus to reconnect.
        options = {
            "grpc.keepalive_time_ms": int(1000 * pings),
            "grpc.keepalive_timeout_ms": int(1000 * self._timeout / 6),
            # gRPC also pings to measure bandwidth, and such a ping delays keepalive pings.
            "grpc.http2.ping_timeout_ms": int(1000 * self._timeout / 6),
            "grpc.keepalive_permit_without_calls": 0,
            "grpc.http2.max_pings_without_data": 0,
            "grpc.use_local_subchannel_pool": 1,  # not to inherit the back-off of a dead server
        }
        timeout, client = min(self._timeout / 3, allowed), None
        try:
            with quietly():
                client = milvus_client(
                    uri=uri, token=token, timeout=timeout, dedicated=True, grpc_options=options
                )
                self.version = client.get_server_version(timeout=timeout)
            found = re.match(r"v?(\d+)\.(\d+)", self.version)
            if found and (int(found[1]), int(found[2])) < OLDEST:
                raise StoreError(
                    self.where,
                    f"runs Milvus {self.version}; imgsearch needs {OLDEST[0]}.{OLDEST[1]} or "
                    "newer: update the server",
                )
        except Exception as error:
            if client is not None:
                client.close()
            raise self._translated(error, None) from None
        return client

    def _disconnect(self, only: Any = None) -> None:
        """Close the connection, if it is still the given one; pending calls on it fail."""
        with self._lock:
            client = self._client
            if client is None or only not in (None, client):
                return
            self._client = None
            if self._pid == os.getpid():
                client.close()

    def _translated(self, error: Exception, client: Any) -> Exception:
        """Translate errors of pymilvus and gRPC to those of imgsearch; return others unchanged."""
        import grpc
        from pymilvus.exceptions import MilvusException

        if isinstance(error, StoreError | ConfigError):
            return error
        if client is not None and client is not self._client:
            return _Lost()  # another thread closed it
        cause = error.__cause__
        wrapped = isinstance(error, MilvusException) and not isinstance(cause, MilvusException)
        if isinstance(cause, grpc.RpcError) or (wrapped and isinstance(cause, Exception)):
            error = cause  # pymilvus wraps any exception that is raised inside it
        if isinstance(error, grpc.RpcError):
            code, text = error.code(), error.details()
        elif isinstance(error, MilvusException):
            code, text = error.code, error.message
        else:
            return error
        text, status = " ".join(str(text).split()), grpc.StatusCode
        if code == status.DEADLINE_EXCEEDED:
            return _Silent()
        if code in (status.UNAVAILABLE, status.CANCELLED, _CONNECT_FAILED):
            self._disconnect(client)
            return _Lost()
        if code == _NOT_FOUND:
            return CollectionNotFound("", ())
        if code == _NOT_IN_MEMORY:
            return NotLoaded(text)
        if self.home is not None:
            log = f"details in {embedded.log_of(self.home)}"
            if code == embedded.DAMAGED:
                help = (
                    "`verify` lists what is missing, `repair` rebuilds it from metadata and files"
                )
                return StoreDamaged(self.where, f"{text}. {help}; {log}")
            check = f": check free space, memory and permissions; {log}"
            return StoreError(self.where, text + (check if code == embedded.FAILED else ""))
        if code in (status.UNAUTHENTICATED, status.PERMISSION_DENIED) or re.search(
            r"auth check failure|unauthenticated|permission ?den", text, re.IGNORECASE
        ):
            return StoreError(self.where, "rejected the credentials: check MILVUS_TOKEN")
        if code == status.UNIMPLEMENTED:
            version = self.version or "of an unknown version"
            return StoreError(
                self.where,
                f"runs Milvus {version}, which does not support a request of imgsearch: update the "
                "server or imgsearch, whichever is older",
            )
        for pattern, kind in _TEXTS:
            if re.search(pattern, text, re.IGNORECASE):
                return kind(text)
        return StoreError(self.where, text)

    def _unavailable(self, how: str) -> StoreUnavailable:
        if self.home is None:
            advice = (
                "check that it is running, the settings MILVUS_URI or MILVUS_HOST and MILVUS_PORT, "
                "and the firewall"
            )
            return StoreUnavailable(self.where, f"{how}: {advice}")
        pid = f", process {self.lease.pid}," if self.lease else ""
        advice = f"see {embedded.log_of(self.home)}, and check the free memory"
        return StoreUnavailable(self.where, f"its server{pid} {how}: {advice}")


_importing = threading.Lock()
_thread = threading.local()


def import_pymilvus() -> Any:
    """Import ``MilvusClient``, but keep it from loading a ``.env`` file into the environment."""
    with _importing:
        if "pymilvus" not in sys.modules:
            name = "PYTHON_DOTENV_DISABLED"
            before = os.environ.get(name)
            os.environ[name] = "1"
            try:
                import pymilvus  # noqa: F401
            finally:
                if before is None:
                    del os.environ[name]
                else:
                    os.environ[name] = before
        for module in ("decorators", "client.connection_manager", "client.grpc_handler"):
            logging.getLogger(f"pymilvus.{module}").addFilter(_is_logged)
    from pymilvus import MilvusClient

    return MilvusClient


def _is_logged(record: logging.LogRecord) -> bool:
    return not getattr(_thread, "quiet", False)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep pymilvus from logging tracebacks of errors that imgsearch reports itself."""
    before, _thread.quiet = getattr(_thread, "quiet", False), True
    try:
        yield
    finally:
        _thread.quiet = before
