"""Vectors of every collection, in Milvus: the embedded store, a server or a cluster.

A collection has two fields, ``id`` (int64, primary key) and ``vector`` (float32), and is
searched by cosine similarity.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import numpy as np
from pydantic import SecretStr

from imgsearch.config import Settings, collection_name
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from imgsearch.stores import embedded, locks

METRIC = "COSINE"
MAX_TOP_K = 16_384  # Milvus' own limit, also for the rows of one answer
BATCH_BYTES = 8 * 1024 * 1024  # of one message; Milvus takes 64 MiB, readers wait meanwhile
OLDEST = (2, 3)  # the first Milvus with upsert and cosine
SPARE_HITS = 16  # fetched beyond top_k, so that ties at the cut are ordered by id
CALL_LIMIT = 60.0  # seconds for one request to a server that keeps answering pings
WORK_LIMIT = 3600.0  # seconds for loading or writing out a whole collection
STALLED = 600.0  # seconds without one more indexed row
# A Milvus server closes connections that ping more often than every 5 seconds.
_LEAST_PING = 5.2
_CONNECT_FAILED, _NOT_FOUND, _NOT_IN_MEMORY = 2, 100, 101  # error codes of pymilvus and Milvus
# What a Milvus says for a while after it was restarted or stood still.
_STARTING = r"channel not (available|subscribed)|service not ready|no available shard|not healthy"
_ABOUT, _INDEX = "imgsearch.about", "imgsearch.index"  # properties of a collection

T = TypeVar("T")

# name: (lowest, highest, default)
_BUILD = {
    "HNSW": {"M": (4, 64, 16), "efConstruction": (8, 512, 200)},
    "FLAT": {},
    "IVF_FLAT": {"nlist": (1, 65_536, 128)},
    "AUTOINDEX": {},
}
_SEARCH = {
    "HNSW": {"ef": (1, 32_768, 128)},
    "FLAT": {},
    "IVF_FLAT": {"nprobe": (1, 65_536, 16)},
    "AUTOINDEX": {},
}


@dataclass(frozen=True)
class IndexSpec:
    """An index that Milvus can build: its kind, and checked parameters to build and search it."""

    kind: str
    params: dict[str, int] = field(default_factory=dict)
    search: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, embedded: bool = False) -> IndexSpec:
        """Read ``KIND`` or ``KIND:name=number,…``; ``auto`` is FLAT embedded, HNSW on servers.

        Milvus Lite takes a misspelt index silently and fails much later, so names and ranges are
        checked here.
        """
        kind, _, rest = text.strip().partition(":")
        kind = kind.strip().upper()
        if kind == "AUTO":
            kind = "FLAT" if embedded else "HNSW"
        if kind not in _BUILD:
            raise ConfigError(
                "index", f"{text!r} is unknown: use auto, {', '.join(_BUILD)}, with parameters as "
                "in HNSW:M=16,efConstruction=200"
            )  # fmt: skip
        known = {**_BUILD[kind], **_SEARCH[kind]}
        values = {name: default for name, (_, _, default) in known.items()}
        given = set()
        for part in filter(None, (p.strip() for p in rest.split(","))):
            name, _, value = (x.strip() for x in part.partition("="))
            name = {n.lower(): n for n in known}.get(name.lower(), name)
            if name not in known:
                raise ConfigError(
                    "index", f"{kind} has no parameter {name!r}"
                    + (f", only {', '.join(known)}" if known else "")
                )  # fmt: skip
            if (name, value.lower()) == ("ef", "auto"):  # in the index of older collections
                continue
            low, high, _ = known[name]
            if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
                raise ConfigError(
                    "index", f"{name}={value} of {kind} must be a whole number, {low} to {high}"
                )
            values[name] = int(value)
            given.add(name)
        if "nlist" in values:
            if "nprobe" not in given:
                values["nprobe"] = min(values["nprobe"], values["nlist"])
            if values["nprobe"] > values["nlist"]:
                raise ConfigError(
                    "index", f"nprobe={values['nprobe']} is more than nlist={values['nlist']}"
                )
        return cls(
            kind, {n: values[n] for n in _BUILD[kind]}, {n: values[n] for n in _SEARCH[kind]}
        )

    def __str__(self) -> str:
        pairs = {**self.params, **self.search}
        return self.kind + (":" if pairs else "") + ",".join(f"{n}={v}" for n, v in pairs.items())


class VectorInfo(NamedTuple):
    """Facts about a collection; pending rows are written out and not in its index yet."""

    dim: int
    index: IndexSpec
    count: int
    pending_index_rows: int
    server_version: str
    description: str


class _Lost(Exception):
    """The connection is gone, or was closed by another thread."""


class _Silent(Exception):
    """The server does not answer."""


class _NotReady(Exception):
    """The server is there and not whole yet, for instance after a restart; text says why."""


class _NotLoaded(Exception):
    """The collection is not in the server's memory, for instance after its restart."""


class VectorStore:
    """Vectors by id in named collections; may be used by several threads, and after a fork."""

    def __init__(self, settings: Settings):
        self._timeout = settings.imgsearch_timeout
        self._home = settings.imgsearch_home if settings.embedded_vectors else None
        self._lease: embedded.Lease | None = None
        self._client: Any = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._loaded: set[str] = set()
        self._forms: dict[str, tuple[int, IndexSpec]] = {}  # dimension and index by collection
        self._version = ""
        self._uri = settings.milvus_address or ""
        self._token = settings.milvus_token or SecretStr("")
        if self._home is not None:
            self.where = f"embedded store {self._home / embedded.STORE}"
        else:
            parts = urlsplit(self._uri)
            if parts.scheme not in ("http", "https", "tcp") or not parts.hostname:
                raise ConfigError(
                    "MILVUS_URI", "must be http://host:port; unset it for the embedded store"
                )
            self.where = f"Milvus {parts.scheme}://{parts.hostname}:{parts.port or 19530}"

    @classmethod
    def open(cls, settings: Settings) -> VectorStore:
        """Connect to the store that the settings name."""
        store = cls(settings)
        try:
            store._call(lambda client, timeout: None)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Disconnect. The store connects again if it is used after that."""
        with self._lock:
            self._disconnect()
            if self._lease is not None:
                self._lease.close()
                self._lease = None

    def restart(self) -> None:
        """End the embedded server, whoever uses it, and connect to a new one."""
        if self._home is None:
            raise StoreError(self.where, "is a server, which imgsearch does not restart")
        self.close()
        with embedded.stopped(self._home):
            pass
        self._call(lambda client, timeout: None)

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ collections

    def create(self, collection: str, dim: int, index: IndexSpec, *, description: str = "") -> None:
        """Make a collection; nothing happens where it is there with this dimension."""
        collection_name(collection)
        if not 2 <= dim <= 32_768:
            raise ConfigError("dim", f"Milvus takes vectors of 2 to 32768 numbers, not {dim}")
        with self._writing():
            there = self._dimension(collection)
            if there is None:
                about = {_ABOUT: description, _INDEX: str(index)}
                self._call(lambda client, t: _create(client, collection, dim, about, t))
                there = self._dimension(collection)
            if there != dim:
                raise StoreError(
                    self.where, f"collection {collection!r} is there with vectors of {there} "
                    f"numbers, not {dim}: take another name, or drop it first"
                )  # fmt: skip
            # A process that died in between may have left a collection without an index.
            if self._index(collection) is None:
                self._call(
                    lambda client, t: _create_index(client, collection, index, t), limit=WORK_LIMIT
                )
            self._load(collection)

    def collections(self) -> list[str]:
        """Names of all collections, sorted; those that are damaged are among them."""
        return sorted(self._call(lambda client, t: client.list_collections(timeout=t)))

    def describe(self, collection: str) -> VectorInfo:
        """Facts about a collection, which is loaded for them."""
        dim = self._known_dimension(collection)
        found = self._index(collection)
        if found is None:
            raise self._no_index(collection)
        index, pending = found
        about = self._properties(collection).get(_ABOUT, "")
        return VectorInfo(dim, index, self.count(collection), pending, self._version, about)

    def about(self, collection: str) -> dict[str, Any] | None:
        """What imgsearch wrote about a collection as it made it; None if it did not make it."""
        try:
            found = json.loads(self._properties(collection).get(_ABOUT) or "null")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def stored_rows(self, collection: str) -> int | None:
        """Number of rows, without loading the collection.

        Exact embedded and where the collection is loaded already. Of another one, a server counts
        what it has written out, deleted rows included.
        """
        if self._home is None:
            state = self._call(
                lambda client, t: client.get_load_state(collection, timeout=t),
                collection=collection,
            )
            if getattr(state.get("state"), "name", "") == "Loaded":
                return self._count(collection)
        stats = self._call(
            lambda client, t: client.get_collection_stats(collection, timeout=t),
            collection=collection,
        )
        rows = stats.get("row_count")
        return None if rows is None else int(rows)

    def drop(self, collection: str) -> None:
        """Remove a collection with all its vectors."""
        collection_name(collection)
        with self._writing():
            names = self.collections()
            if collection not in names:
                raise CollectionNotFound(collection, names)
            self._call(lambda client, t: client.drop_collection(collection, timeout=t))
            self._forget_collection(collection)

    def set_aside(self, collection: str) -> Path:
        """Move the files of an embedded collection out of the store; gives where they are now."""
        collection_name(collection)
        if self._home is None:
            raise StoreError(
                self.where,
                f"collection {collection!r} cannot be read, and only the server's own tools can "
                "mend it; or drop the collection and ingest again",
            )
        with self._writing():
            self.close()
            kept = embedded.set_aside(self._home, collection)
            self._forget_collection(collection)
        return kept

    # ------------------------------------------------------------ vectors

    def upsert(self, collection: str, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Store vectors under their ids, which replaces what was there under the same ids.

        Ids must be different, vectors finite and of a length above zero. If the store fails, some
        batches may be stored; storing again is harmless.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not (ids.dtype.kind in "iu" or ids.size == 0):
            raise ConfigError("ids", f"must be whole numbers in one dimension, not {ids.dtype}")
        dim, _ = self._form(collection)
        if np.shape(vectors)[1:] != (dim,):
            dim, _ = self._form(collection, fresh=True)
        vectors = _checked(vectors, dim)
        if len(ids) != len(vectors):
            raise ConfigError("ids", f"{len(ids)} ids for {len(vectors)} vectors")
        if len(np.unique(ids)) != len(ids):
            raise ConfigError("ids", "the same id twice in one call")
        numbers = ids.tolist()
        step = max(1, BATCH_BYTES // (4 * dim + 64))
        with self._writing():
            self._load(collection)
            for start in range(0, len(numbers), step):
                part = slice(start, start + step)
                rows = [
                    {"id": i, "vector": v}
                    for i, v in zip(numbers[part], vectors[part], strict=True)
                ]
                try:
                    self._call(
                        lambda client, t, rows=rows: client.upsert(collection, rows, t),
                        collection=collection,
                    )
                except StoreUnavailable:
                    raise
                except StoreError:
                    # Another process may have dropped it and made it anew, in another form.
                    _checked(vectors, self._form(collection, fresh=True)[0])
                    raise

    def delete(self, collection: str, ids: Sequence[int] | np.ndarray) -> None:
        """Remove vectors; ids that are not there are passed over."""
        numbers = [int(i) for i in ids]
        with self._writing():
            self._load(collection)
            for start in range(0, len(numbers), 5_000):
                part = numbers[start : start + 5_000]
                self._call(
                    lambda client, t, part=part: client.delete(collection, ids=part, timeout=t),
                    collection=collection,
                )

    def search(
        self,
        collection: str,
        queries: np.ndarray,
        top_k: int,
        *,
        search_params: dict[str, int] | None = None,
        timeout: float | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and cosine similarities of the vectors nearest to each query.

        Best first, equal scores by id; at most `top_k`, and never more than `MAX_TOP_K`.
        `search_params` (``ef``, ``nprobe``) replace the defaults of the index. `timeout` bounds the
        whole call; without it, a search may take its time while the server answers pings.
        """
        if top_k < 1:
            raise ConfigError("top_k", f"must be 1 or more, not {top_k}")
        end = None if timeout is None else time.monotonic() + timeout
        known = self._forms.get(collection)
        if known is not None:
            try:
                return self._search(collection, queries, top_k, known, search_params, end)
            except StoreUnavailable:
                raise
            except (StoreError, ConfigError, CollectionNotFound):
                # Another process may have dropped it and made it anew, in another form.
                if self._form(collection, fresh=True) == known:
                    raise
        form = self._form(collection)
        return self._search(collection, queries, top_k, form, search_params, end)

    def _search(
        self,
        collection: str,
        queries: np.ndarray,
        top_k: int,
        form: tuple[int, IndexSpec],
        search_params: dict[str, int] | None,
        end: float | None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        dim, index = form
        queries = _checked(queries, dim)
        limit = min(top_k + SPARE_HITS, MAX_TOP_K)
        params = _search_params(index, search_params, limit)
        if not len(queries):
            return []
        self._load(collection)
        # Bounded by bytes both ways: the queries, and some 20 bytes for each hit.
        step = max(1, min(1_000, BATCH_BYTES // (4 * dim), BATCH_BYTES // (limit * 20)))
        answers: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(queries), step):
            part = list(queries[start : start + step])
            hits = self._call(
                lambda client, t, part=part: client.search(
                    collection,
                    data=part,
                    anns_field="vector",
                    limit=limit,
                    output_fields=["id"],  # Milvus Lite returns the vectors otherwise
                    search_params={"metric_type": METRIC, "params": params},
                    consistency_level="Session",
                    timeout=t,
                ),
                end=end,
                collection=collection,
            )
            answers += [_ranked(of_query, top_k) for of_query in hits]
        return answers

    def get(
        self, collection: str, ids: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read vectors back: those ids that are there, in the order asked, and their vectors."""
        dim = self._known_dimension(collection)
        self._load(collection)
        wanted = [int(i) for i in ids]
        step = max(1, min(5_000, BATCH_BYTES // (4 * dim + 64)))
        there: dict[int, np.ndarray] = {}
        for start in range(0, len(wanted), step):
            part = list(dict.fromkeys(wanted[start : start + step]))
            rows = self._query(
                collection, ids=part, output_fields=["id", "vector"], consistency_level="Strong",
                strict_float32=True,
            )  # fmt: skip
            there |= {row["id"]: row["vector"] for row in rows}
        kept = [i for i in wanted if i in there]
        if any(len(there[i]) != dim for i in kept):
            raise StoreDamaged(
                self.where, f"collection {collection!r} holds vectors of another length than {dim}"
            )
        vectors = np.stack([there[i] for i in kept]) if kept else np.empty((0, dim), np.float32)
        return np.asarray(kept, np.int64), vectors

    def ids(self, collection: str) -> np.ndarray:
        """All ids of a collection, ascending."""
        self._load(collection)
        if self._home is not None:  # no limit there, and its cursor costs a full scan a page
            rows = self._query(collection, filter=embedded.ALL_IDS, output_fields=["id"])
            return np.unique(np.asarray([row["id"] for row in rows], np.int64))

        def walk(client: Any, timeout: float) -> list[int]:
            pages = client.query_iterator(
                collection,
                batch_size=10_000,
                output_fields=["id"],
                timeout=timeout,
                consistency_level="Strong",
            )
            found: list[int] = []
            try:
                while page := pages.next():
                    found += [row["id"] for row in page]
            finally:
                pages.close()
            return found

        return np.unique(np.asarray(self._call(walk, collection=collection), np.int64))

    def count(self, collection: str) -> int:
        """How many vectors a collection holds, what was just written included."""
        self._load(collection)
        return self._count(collection)

    def flush(self, collection: str, *, wait: bool = True) -> None:
        """Write a collection out, and wait until a server has built its index.

        Until then a server compares one by one: 20 times slower at 17,000 vectors.
        """
        self._known_dimension(collection)  # Milvus Lite passes over an unknown name
        self._load(collection)
        with self._writing():
            self._call(lambda client, t: client.flush(collection, timeout=t), limit=WORK_LIMIT)
        least, since = None, time.monotonic()
        while wait and (found := self._index(collection)) is not None and found[1] > 0:
            if least is None or found[1] < least:
                least, since = found[1], time.monotonic()
            if time.monotonic() - since > STALLED:
                raise StoreError(
                    self.where, f"the index of {collection!r} makes no progress, {least} vectors "
                    "are not in it; searches work, slowly. Check the store's log and free memory"
                )  # fmt: skip
            time.sleep(0.1)

    # ------------------------------------------------------------ inside

    def _writing(self) -> AbstractContextManager[None]:
        return nullcontext() if self._home is None else locks.writing(self._home)

    def _describe(self, collection: str) -> dict[str, Any]:
        return self._call(
            lambda client, t: client.describe_collection(collection, timeout=t),
            collection=collection,
        )

    def _properties(self, collection: str) -> dict[str, str]:
        return self._describe(collection).get("properties") or {}

    def _dimension(self, collection: str) -> int | None:
        """Dimension of a collection, None where there is none."""
        try:
            fields = {f["name"]: f for f in self._describe(collection)["fields"]}
        except CollectionNotFound:
            return None
        if set(fields) != {"id", "vector"} or not fields["id"].get("is_primary"):
            made = f"made by another program, with the fields {', '.join(sorted(fields))}"
            if self._home is not None:
                raise StoreDamaged(
                    self.where, f"collection {collection!r} is damaged, or was {made}: "
                    "`repair` moves it aside"
                )  # fmt: skip
            raise StoreError(self.where, f"collection {collection!r} was {made}: take another name")
        return int(fields["vector"]["params"]["dim"])

    def _known_dimension(self, collection: str) -> int:
        dim = self._dimension(collection_name(collection))
        if dim is None:
            raise CollectionNotFound(collection, self.collections())
        return dim

    def _index(self, collection: str) -> tuple[IndexSpec, int] | None:
        """Index of a collection and rows not in it yet, None where there is no index."""
        facts = self._call(
            lambda client, t: client.describe_index(collection, "vector", timeout=t),
            collection=collection,
        )
        # Milvus does not keep what an index is to be searched with.
        asked = self._properties(collection).get(_INDEX)
        try:
            wish = IndexSpec.parse(asked) if asked else None
            if not facts:
                # Exact search embedded needs no index, and Milvus Lite's FLAT is a copy of all.
                exact = self._home is not None and wish is not None and wish.kind == "FLAT"
                return (wish, 0) if exact else None
            given = {**facts, **(facts.get("params") or {})}
            kind = str(given.get("index_type", "")).upper()
            pairs = ",".join(f"{n}={given[n]}" for n in _BUILD.get(kind, ()) if n in given)
            index = IndexSpec.parse(f"{kind}:{pairs}")
        except ConfigError as error:
            text = f"collection {collection!r} has an index that imgsearch did not make: "
            if self._home is None:
                raise StoreError(self.where, text + error.reason) from None
            raise StoreDamaged(
                self.where, f"{text}{error.reason}. `repair` makes it anew"
            ) from None
        if wish is not None and (wish.kind, wish.params) == (index.kind, index.params):
            index = wish
        return index, int(facts.get("pending_index_rows") or 0)

    def _no_index(self, collection: str) -> StoreDamaged:
        return StoreDamaged(self.where, f"collection {collection!r} has no index: run `repair`")

    def _form(self, collection: str, *, fresh: bool = False) -> tuple[int, IndexSpec]:
        """Dimension and index of a collection, remembered between calls."""
        known = self._forms.get(collection)
        if known is None or fresh:
            dim, found = self._known_dimension(collection), self._index(collection)
            if found is None:
                raise self._no_index(collection)
            known = self._forms[collection] = dim, found[0]
        return known

    def _forget_collection(self, collection: str) -> None:
        with self._lock:
            self._loaded.discard(collection)
            self._forms.pop(collection, None)

    def _query(self, collection: str, **what: object) -> list[dict]:
        return self._call(
            lambda client, t: client.query(collection, timeout=t, **what), collection=collection
        )

    def _count(self, collection: str) -> int:
        rows = self._query(collection, output_fields=["count(*)"], consistency_level="Strong")
        return int(rows[0]["count(*)"])

    def _load(self, collection: str) -> None:
        """Have a collection in the server's memory, which search and query need."""
        if collection in self._loaded and self._pid == os.getpid():
            return
        self._call(
            lambda client, t: client.load_collection(collection, timeout=t),
            limit=WORK_LIMIT,
            collection=collection,
        )
        self._loaded.add(collection)

    def _call(
        self,
        call: Callable[[Any, float], T],
        *,
        end: float | None = None,
        limit: float = CALL_LIMIT,
        collection: str | None = None,
    ) -> T:
        """Call Milvus; again where the connection was lost or the collection is not in memory.

        Every request is either read-only or harmless to repeat.
        """
        lost = unloaded = 0
        ready_by = time.monotonic() + self._timeout
        while True:
            allowed = limit if end is None else max(0.001, end - time.monotonic())
            try:
                client = self._connected(allowed)
                try:
                    with _quietly():
                        return call(client, allowed)
                except Exception as error:
                    raise self._translated(error, client) from None
            except _NotReady as why:
                if time.monotonic() >= min(ready_by, end or ready_by):
                    raise self._unavailable(f"is not ready ({why})") from None
                time.sleep(0.25)
            except _Silent:
                seconds = min(self._timeout, allowed)
                raise self._unavailable(f"is silent for {seconds:.3g} s") from None
            except _Lost:
                lost += 1
                late = end is not None and time.monotonic() >= end
                if lost > 1 or late:
                    raise self._unavailable("cannot be reached") from None
            except _NotLoaded:
                unloaded += 1
                if unloaded > 2 or collection is None:
                    raise StoreError(
                        self.where, f"collection {collection!r} does not stay in memory: another "
                        "program releases it, or memory is short"
                    ) from None  # fmt: skip
                self._loaded.discard(collection)
                self._load(collection)
            except CollectionNotFound:
                if collection is None:
                    raise
                self._forget_collection(collection)
                raise CollectionNotFound(collection, self.collections()) from None

    def _connected(self, allowed: float) -> Any:
        with self._lock:
            if self._pid != os.getpid():
                # The channel is the parent's: it is left alone, not closed.
                self._client, self._lease, self._pid = None, None, os.getpid()
            if self._client is None:
                self._client = self._connect(allowed)
            return self._client

    def _connect(self, allowed: float) -> Any:
        milvus_client = _pymilvus()
        uri, pings = self._uri, max(self._timeout / 2, _LEAST_PING)
        if self._home is not None:
            if self._lease is None:
                self._lease = embedded.lease(self._home)
            else:
                self._lease.renew()
            uri, pings = self._lease.uri, self._timeout / 2
        self._loaded.clear()
        self._forms.clear()
        # A server that answers no pings is given up after IMGSEARCH_TIMEOUT: half of it until a
        # ping, a sixth for its answer, and a third for pymilvus, which then connects once more.
        options = {
            "grpc.keepalive_time_ms": int(1000 * pings),
            "grpc.keepalive_timeout_ms": int(1000 * self._timeout / 6),
            "grpc.keepalive_permit_without_calls": 0,
            "grpc.http2.max_pings_without_data": 0,
            "grpc.use_local_subchannel_pool": 1,  # no back-off left by a server that is gone
        }
        timeout, client = min(self._timeout / 3, allowed), None
        try:
            with _quietly():
                client = milvus_client(
                    uri=uri,
                    token=self._token.get_secret_value() if self._home is None else "",
                    timeout=timeout,
                    dedicated=True,
                    grpc_options=options,
                )
                self._version = client.get_server_version(timeout=timeout)
            found = re.match(r"v?(\d+)\.(\d+)", self._version)
            if found and (int(found[1]), int(found[2])) < OLDEST:
                raise StoreError(
                    self.where, f"runs Milvus {self._version}; imgsearch needs "
                    f"{OLDEST[0]}.{OLDEST[1]} or newer: update the server"
                )  # fmt: skip
        except Exception as error:
            if client is not None:
                client.close()
            raise self._translated(error, None) from None
        return client

    def _disconnect(self, only: Any = None) -> None:
        """Close the connection, if it is (still) this one; calls that wait on it end."""
        with self._lock:
            client = self._client
            if client is None or only not in (None, client):
                return
            self._client = None
            if self._pid == os.getpid():
                client.close()

    def _translated(self, error: Exception, client: Any) -> Exception:
        """Turn what pymilvus or gRPC raised into an error of ours; others stay as they are."""
        import grpc
        from pymilvus.exceptions import MilvusException

        if isinstance(error, StoreError | ConfigError):
            return error
        if client is not None and client is not self._client:
            return _Lost()  # another thread closed it
        cause = error.__cause__
        if isinstance(cause, grpc.RpcError) or (
            isinstance(error, MilvusException)
            and isinstance(cause, Exception)
            and not isinstance(cause, MilvusException)
        ):
            error = cause  # pymilvus wraps whatever is raised inside
        if not isinstance(error, MilvusException | grpc.RpcError):
            return error
        code = error.code() if isinstance(error, grpc.RpcError) else error.code
        text = error.details() if isinstance(error, grpc.RpcError) else error.message
        text, status = " ".join(str(text).split()), grpc.StatusCode
        if code == status.DEADLINE_EXCEEDED or isinstance(error, grpc.FutureTimeoutError):
            return _Silent()
        if code in (status.UNAVAILABLE, status.CANCELLED, _CONNECT_FAILED):
            self._disconnect(client)
            return _Lost()
        if code == _NOT_FOUND:
            return CollectionNotFound("", ())
        if code == _NOT_IN_MEMORY:
            return _NotLoaded(text)
        if self._home is not None:
            return self._embedded_error(code, text)
        refused = r"auth check failure|unauthenticated|permission ?den"
        if code in (status.UNAUTHENTICATED, status.PERMISSION_DENIED) or re.search(
            refused, text, re.IGNORECASE
        ):
            return StoreError(self.where, "refuses the credentials: check MILVUS_TOKEN")
        if code == status.UNIMPLEMENTED:
            return StoreError(
                self.where, f"runs Milvus {self._version or 'of an unknown version'}, which does "
                "not know a request of imgsearch: check its version, and update the older of both"
            )  # fmt: skip
        for pattern, kind in (
            (r"can't find collection|collection not found", CollectionNotFound("", ())),
            (_STARTING, _NotReady(text[:160])),
            (r"not loaded|not been loaded", _NotLoaded(text)),
        ):
            if re.search(pattern, text, re.IGNORECASE):
                return kind
        return StoreError(self.where, text)

    def _embedded_error(self, code: object, text: str) -> StoreError:
        log = embedded.log_of(self._home)
        if code == embedded.DAMAGED:
            return StoreDamaged(
                self.where, f"{text}. `verify` says what is missing, `repair` rebuilds it from the "
                f"metadata and the files; details in {log}"
            )  # fmt: skip
        if code == embedded.FAILED:
            text = f"{text}: check free space, memory and permissions; details in {log}"
        return StoreError(self.where, text)

    def _unavailable(self, how: str) -> StoreUnavailable:
        if self._home is not None:
            pid = f", process {self._lease.pid}," if self._lease else ""
            return StoreUnavailable(
                self.where, f"its server{pid} {how}: see {embedded.log_of(self._home)}, and check "
                "whether memory is short"
            )  # fmt: skip
        return StoreUnavailable(
            self.where, f"{how}: check that it runs, MILVUS_URI or MILVUS_HOST and MILVUS_PORT, "
            "and the firewall"
        )  # fmt: skip


_importing = threading.Lock()
_thread = threading.local()


def _pymilvus() -> Any:
    """Import ``MilvusClient`` without its loading a ``.env`` file into the environment."""
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
                logging.getLogger(f"pymilvus.{module}").addFilter(_not_ours)
    from pymilvus import MilvusClient

    return MilvusClient


def _not_ours(record: logging.LogRecord) -> bool:
    return not getattr(_thread, "quiet", False)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep pymilvus from logging a traceback for each error that imgsearch raises anyway."""
    before, _thread.quiet = getattr(_thread, "quiet", False), True
    try:
        yield
    finally:
        _thread.quiet = before


def _create(client: Any, collection: str, dim: int, about: dict[str, str], timeout: float) -> None:
    from pymilvus import DataType, MilvusException

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    try:
        # Not as a description: Milvus Lite forgets those.
        client.create_collection(
            collection,
            schema=schema,
            properties=about,
            timeout=timeout,
            consistency_level="Session",
        )
    except MilvusException as error:
        if "exist" not in str(error):  # another process may have created it first
            raise


def _create_index(client: Any, collection: str, index: IndexSpec, timeout: float) -> None:
    # pymilvus sends every parameter by itself, Milvus Lite looks for them in one, `params`,
    # and takes its defaults without a word where that is missing.
    both = {**index.params, "params": index.params}
    params = client.prepare_index_params()
    params.add_index("vector", index_type=index.kind, metric_type=METRIC, params=both)
    client.create_index(collection, params, timeout=timeout)


def _search_params(index: IndexSpec, given: dict[str, int] | None, limit: int) -> dict[str, int]:
    kind, params = index.kind, dict(index.search)
    for name, value in (given or {}).items():
        if name not in _SEARCH[kind]:
            raise ConfigError(
                "search_params", f"{kind} has no {name!r}"
                + (f", only {', '.join(_SEARCH[kind])}" if _SEARCH[kind] else "")
            )  # fmt: skip
        low, high, _ = _SEARCH[kind][name]
        if not low <= value <= high:
            raise ConfigError("search_params", f"{name}={value} must be {low} to {high}")
        params[name] = int(value)
    if kind == "HNSW":  # Milvus refuses to look at fewer than it is to return
        params["ef"] = max(params["ef"], limit)
    return params


def _ranked(hits: Any, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.asarray([hit["id"] for hit in hits], np.int64)
    scores = np.asarray([hit["distance"] for hit in hits], np.float32)
    order = np.lexsort((ids, -scores))[:top_k]
    return ids[order], scores[order]


def _checked(vectors: np.ndarray, dim: int) -> np.ndarray:
    vectors = np.asarray(vectors)
    if vectors.size == 0:
        return np.empty((0, dim), np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ConfigError(
            "vectors", f"shape {vectors.shape} where (n, {dim}) is needed: made by another encoder?"
        )
    vectors = np.ascontiguousarray(vectors, np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ConfigError("vectors", f"number {int(np.argmin(finite))} holds NaN or infinity")
    length = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not length.all():
        raise ConfigError(
            "vectors", f"number {int(np.argmin(length))} has length zero: it has no direction"
        )
    return vectors
