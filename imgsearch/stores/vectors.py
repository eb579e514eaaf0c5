"""The vectors of every collection, in Milvus: embedded, a server or a cluster.

Nothing else in the package knows pymilvus. A collection has two fields, ``id``
(int64, primary key) and ``vector`` (float32), and is searched by cosine.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
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
MAX_TOP_K = 16_384  # Milvus' own limit, for rows of one answer too
BATCH_BYTES = 8 * 1024 * 1024  # of one message; Milvus takes 64 MiB, readers wait meanwhile
OLDEST = (2, 3)  # the first Milvus with upsert and cosine
_CONNECT_FAILED = 2  # error code of pymilvus
# What a Milvus says for a while after it was restarted, or stood still.
_COMING_UP = r"channel not (available|subscribed)|service not ready|no available shard|not healthy"
SPARE_HITS = 16  # fetched beyond top_k, so that ties at the cut fall by id
CALL_LIMIT = 60.0  # seconds for one request to a server that keeps answering
WORK_LIMIT = 3600.0  # seconds for loading or writing out a whole collection
FRESH = 60.0  # seconds for which the size of a collection is not asked again
STALLED = 600.0  # seconds without one more indexed row

T = TypeVar("T")

# name: (lowest, highest, default or None where Milvus chooses)
_ABOUT, _INDEX = "imgsearch.about", "imgsearch.index"  # properties of a collection
_BUILD = {
    "HNSW": {"M": (4, 64, 16), "efConstruction": (8, 512, 200)},
    "FLAT": {},
    "IVF_FLAT": {"nlist": (1, 65_536, 128)},
    "AUTOINDEX": {},
}
_SEARCH = {
    "HNSW": {"ef": (1, 32_768, None)},  # by the size of the collection: _ef
    "FLAT": {},
    "IVF_FLAT": {"nprobe": (1, 65_536, 16)},
    "AUTOINDEX": {},
}
# A collection of so many vectors at most: its ef.
_EF = ((20_000, 64), (100_000, 128), (math.inf, 256))


@dataclass(frozen=True)
class IndexSpec:
    """An index that Milvus can build, with parameters that were checked.

    Attributes
    ----------
    kind : str
        ``HNSW``, ``FLAT``, ``IVF_FLAT`` or ``AUTOINDEX``.
    params : dict
        What it is built with: ``M`` and ``efConstruction``, or ``nlist``.
    search : dict
        What it is searched with: ``ef``, or ``nprobe``. Without ``ef``, each search
        takes what the size of the collection asks for.
    """

    kind: str
    params: dict[str, int] = field(default_factory=dict)
    search: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> IndexSpec:
        """Read an index from its text, as in ``IMGSEARCH_INDEX``.

        Milvus Lite takes a misspelt index without a word and fails much later,
        so names and ranges are checked here.

        Parameters
        ----------
        text : str
            ``KIND`` or ``KIND:name=number,…``; ``auto`` is HNSW, and ``ef=auto`` the
            ``ef`` that grows with the collection.

        Returns
        -------
        IndexSpec
            With every parameter filled in, save ``ef`` where it is chosen by size.

        Raises
        ------
        ConfigError
            An unknown index, an unknown parameter or a value out of range.

        Examples
        --------
        >>> str(IndexSpec.parse("HNSW:M=32"))
        'HNSW:M=32,efConstruction=200,ef=auto'
        """
        kind, _, rest = text.strip().partition(":")
        kind = {"AUTO": "HNSW"}.get(kind.strip().upper(), kind.strip().upper())
        if kind not in _BUILD:
            raise ConfigError(
                "index", f"{text!r} is unknown: use auto, {', '.join(_BUILD)}, with parameters as "
                "in HNSW:M=16,efConstruction=200"
            )  # fmt: skip
        known = {**_BUILD[kind], **_SEARCH[kind]}
        values = {name: default for name, (_, _, default) in known.items()}
        if "nlist" in values:
            values["nprobe"] = 0  # filled in below
        for part in filter(None, (p.strip() for p in rest.split(","))):
            name, _, value = (x.strip() for x in part.partition("="))
            name = {n.lower(): n for n in known}.get(name.lower(), name)
            if name not in known:
                raise ConfigError(
                    "index", f"{kind} has no parameter {name!r}"
                    + (f", only {', '.join(known)}" if known else "")
                )  # fmt: skip
            low, high, default = known[name]
            if value.lower() == "auto" and default is None:
                continue
            if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
                raise ConfigError(
                    "index", f"{name}={value} of {kind} must be a whole number, {low} to {high}"
                )
            values[name] = int(value)
        if "nlist" in values:
            values["nprobe"] = values["nprobe"] or min(16, values["nlist"])
            if values["nprobe"] > values["nlist"]:
                raise ConfigError(
                    "index", f"nprobe={values['nprobe']} is more than nlist={values['nlist']}"
                )
        return cls(
            kind,
            {n: values[n] for n in _BUILD[kind]},
            {n: values[n] for n in _SEARCH[kind] if values[n] is not None},
        )

    def __str__(self) -> str:
        pairs = {**self.params, **dict.fromkeys(_SEARCH[self.kind], "auto"), **self.search}
        return self.kind + (":" if pairs else "") + ",".join(f"{n}={v}" for n, v in pairs.items())


class VectorInfo(NamedTuple):
    """What a store says about a collection.

    Attributes
    ----------
    dim : int
        Length of its vectors.
    index : IndexSpec
        Its index.
    count : int
        Vectors in it.
    pending_index_rows : int
        Vectors that are written out and not indexed yet: searched one by one.
    server_version : str
        Version of the Milvus that holds it.
    description : str
        What :meth:`VectorStore.create` was given.
    """

    dim: int
    index: IndexSpec
    count: int
    pending_index_rows: int
    server_version: str
    description: str


class _Facts(NamedTuple):
    """What a search must know of its collection, and until when that is taken for true.

    The count is 0 where nothing depends on it.
    """

    dim: int
    index: IndexSpec
    count: int
    until: float


class _Gone(Exception):
    """Nobody listens at the server's address any more."""


class _Silent(Exception):
    """The server does not answer; text says since when."""


class _NotReady(Exception):
    """The server is there and not whole yet, for instance after a restart; text says why."""


class _NotLoaded(Exception):
    """The collection is not in the server's memory, for instance after its restart."""


class VectorStore:
    """Vectors by id, in named collections.

    Made by :meth:`open`. One store may be used by several threads. A
    forked child connects for itself at its first call.

    Attributes
    ----------
    where : str
        The store in words, without credentials.
    """

    def __init__(self, settings: Settings):
        self._timeout = settings.imgsearch_timeout
        self._home = settings.imgsearch_home if settings.embedded_vectors else None
        self._lease: embedded.Lease | None = None
        self._client: Any = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._loaded: set[str] = set()
        self._facts: dict[str, _Facts] = {}
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
        """Connect to the store that the settings name.

        Parameters
        ----------
        settings : Settings
            Embedded store of the home, or a Milvus server.

        Returns
        -------
        VectorStore

        Raises
        ------
        ConfigError
            The address is no URL.
        StoreUnavailable
            Nobody answers there within ``imgsearch_timeout`` seconds.
        StoreBusy, StoreDamaged
            See :func:`imgsearch.stores.embedded.lease`.
        StoreError
            The server refuses the token, or is too old.
        """
        store = cls(settings)
        try:
            store._attempt(lambda client, timeout: None)
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

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ collections

    def create(self, collection: str, dim: int, index: IndexSpec, *, description: str = "") -> None:
        """Make a collection; nothing happens where it is there with this dimension.

        Parameters
        ----------
        collection : str
            Its name.
        dim : int
            Length of its vectors, 2 to 32,768.
        index : IndexSpec
            Its index.
        description : str
            Kept with the collection.

        Raises
        ------
        ConfigError
            The name or the dimension is one that Milvus does not take.
        StoreError
            It is there with another dimension, or was made by another program.
        """
        collection_name(collection)
        if not 2 <= dim <= 32_768:
            raise ConfigError("dim", f"Milvus takes vectors of 2 to 32768 numbers, not {dim}")
        with self._writing():
            there = self._schema(collection)
            if there is None:
                about = {_ABOUT: description, _INDEX: str(index)}
                self._attempt(lambda client, t: _create(client, collection, dim, about, t))
                there = self._schema(collection)
            if there != dim:
                raise StoreError(
                    self.where, f"collection {collection!r} is there with vectors of {there} "
                    f"numbers, not {dim}: take another name, or drop it first"
                )  # fmt: skip
            # A process that died in between may have left a collection without an index.
            if self._index(collection) is None:
                self._attempt(
                    lambda client, t: _create_index(client, collection, index, t), limit=WORK_LIMIT
                )
            self._ready(collection)

    def collections(self) -> list[str]:
        """Names of all collections, sorted.

        A damaged collection of the embedded store is among them: it can be
        dropped, everything else on it raises :class:`StoreDamaged`.

        Returns
        -------
        list of str
        """
        try:
            return sorted(self._attempt(lambda client, t: client.list_collections(timeout=t)))
        except StoreDamaged:
            # Milvus Lite opens every collection to list them, and fails with the first bad one.
            folder = self._home / embedded.STORE / "collections"
            return sorted(p.parent.name for p in folder.glob("*/schema.json"))

    def describe(self, collection: str) -> VectorInfo:
        """Facts about a collection.

        Parameters
        ----------
        collection : str
            The collection.

        Returns
        -------
        VectorInfo

        Raises
        ------
        CollectionNotFound
            There is none of this name.
        StoreDamaged
            It has no index, since a process died while it made the collection, or
            one of a kind that nobody builds.
        """
        dim = self._dim(collection)
        found = self._index(collection)
        if found is None:
            raise self._no_index(collection)
        index, pending = found
        about = self._properties(collection).get(_ABOUT, "")
        return VectorInfo(dim, index, self.count(collection), pending, self._version, about)

    def drop(self, collection: str) -> None:
        """Remove a collection with all its vectors.

        Parameters
        ----------
        collection : str
            The collection.

        Raises
        ------
        CollectionNotFound
            There is none of this name.
        """
        collection_name(collection)
        with self._writing():
            names = self.collections()
            if collection not in names:
                raise CollectionNotFound(collection, names)
            self._attempt(lambda client, t: client.drop_collection(collection, timeout=t))
            with self._lock:
                self._loaded.discard(collection)
                self._facts.pop(collection, None)

    def set_aside(self, collection: str) -> Path:
        """Take a collection that cannot be read out of the embedded store, and keep its files.

        Parameters
        ----------
        collection : str
            The collection.

        Returns
        -------
        pathlib.Path
            Where its files lie now.

        Raises
        ------
        StoreError
            The store is a server's: its own tools must mend it.
        """
        if self._home is None:
            raise StoreError(
                self.where,
                f"collection {collection!r} cannot be read, and only the server's own tools can "
                "mend it; or drop the collection and ingest again",
            )
        with self._writing():
            kept = embedded.aside(self._home, collection)
            shutil.copytree(self._home / embedded.STORE / "collections" / collection, kept)
            self.drop(collection)
        return kept

    # ------------------------------------------------------------ vectors

    def upsert(self, collection: str, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Store vectors under their ids; what was there under the same ids is replaced.

        Parameters
        ----------
        collection : str
            The collection.
        ids : ndarray of int64, shape (n,)
            All different.
        vectors : ndarray of float32, shape (n, dim)
            Finite, and none of length zero.

        Raises
        ------
        ConfigError
            Ids or vectors cannot be stored; nothing was.
        CollectionNotFound
            There is no such collection.
        StoreError
            The store failed. Some batches may be stored; doing it again is harmless.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not (ids.dtype.kind in "iu" or ids.size == 0):
            raise ConfigError("ids", f"must be whole numbers in one dimension, not {ids.dtype}")
        facts = self._facts.get(collection)
        if facts is None or np.shape(vectors)[1:] != (facts.dim,):
            facts = self._fresh_facts(collection)
        dim = facts.dim
        vectors = _checked(vectors, dim)
        if len(ids) != len(vectors):
            raise ConfigError("ids", f"{len(ids)} ids for {len(vectors)} vectors")
        if len(np.unique(ids)) != len(ids):
            raise ConfigError("ids", "the same id twice in one call")
        numbers = ids.tolist()
        step = max(1, BATCH_BYTES // (4 * dim + 64))
        with self._writing():
            self._ready(collection)
            for start in range(0, len(numbers), step):
                part = slice(start, start + step)
                rows = [
                    {"id": i, "vector": v}
                    for i, v in zip(numbers[part], vectors[part], strict=True)
                ]
                try:
                    self._attempt(lambda client, t, rows=rows: client.upsert(collection, rows, t))
                except StoreUnavailable:
                    raise
                except StoreError:
                    # Another process may have dropped it and made it anew, in another form.
                    _checked(vectors, self._fresh_facts(collection).dim)
                    raise

    def delete(self, collection: str, ids: Sequence[int] | np.ndarray) -> None:
        """Remove vectors; ids that are not there are passed over.

        Parameters
        ----------
        collection : str
            The collection.
        ids : sequence of int
            Their ids.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        numbers = [int(i) for i in ids]
        with self._writing():
            self._ready(collection)
            for start in range(0, len(numbers), 5_000):
                part = numbers[start : start + 5_000]
                self._attempt(
                    lambda client, t, part=part: client.delete(collection, ids=part, timeout=t)
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
        """Nearest vectors by cosine similarity.

        Parameters
        ----------
        collection : str
            The collection.
        queries : ndarray of float32, shape (q, dim)
            Finite, and none of length zero.
        top_k : int
            How many to find for each query, 1 to 16,384.
        search_params : dict, optional
            ``ef`` or ``nprobe``, instead of the index's defaults.
        timeout : float, optional
            Seconds for the whole of it. Without it, a search may take its time
            as long as the server gives signs of life.

        Returns
        -------
        list of (ids, scores)
            For each query: int64 and float32 arrays of the same length, at most
            `top_k`; best first, equal scores by id. Scores are cosines, -1 to 1.

        Raises
        ------
        ConfigError
            Queries, `top_k` or `search_params` cannot be used.
        CollectionNotFound
            There is no such collection.
        StoreUnavailable
            No answer in time.
        """
        if not 1 <= top_k <= MAX_TOP_K:
            raise ConfigError("top_k", f"must be 1 to {MAX_TOP_K}, not {top_k}")
        end = None if timeout is None else time.monotonic() + timeout
        facts = self._facts.get(collection)
        # Whoever sets a limit of time does not wait for the size to be asked again.
        if facts is not None and (end is not None or time.monotonic() < facts.until):
            try:
                return self._search(collection, queries, top_k, facts, search_params, end)
            except StoreUnavailable:
                raise
            except (StoreError, ConfigError, CollectionNotFound):
                # Another process may have dropped it and made it anew, in another form.
                if self._fresh_facts(collection)[:2] == facts[:2]:
                    raise
        facts = self._fresh_facts(collection)
        return self._search(collection, queries, top_k, facts, search_params, end)

    def _fresh_facts(self, collection: str) -> _Facts:
        dim, found = self._dim(collection), self._index(collection)
        if found is None:
            raise self._no_index(collection)
        if found[0].kind == "HNSW" and "ef" not in found[0].search:  # chosen by size
            count, until = self.count(collection), time.monotonic() + FRESH
        else:
            count, until = 0, math.inf
        facts = _Facts(dim, found[0], count, until)
        self._facts[collection] = facts
        return facts

    def _search(
        self,
        collection: str,
        queries: np.ndarray,
        top_k: int,
        facts: _Facts,
        search_params: dict[str, int] | None,
        end: float | None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        dim = facts.dim
        queries = _checked(queries, dim)
        limit = min(top_k + SPARE_HITS, MAX_TOP_K)
        params = _search_params(facts, search_params, limit)
        if not len(queries):
            return []
        self._ready(collection)
        # Bounded by bytes both ways: the queries, and some 20 bytes for each hit.
        step = max(1, min(1_000, BATCH_BYTES // (4 * dim), BATCH_BYTES // (limit * 20)))
        answers: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(queries), step):
            part = list(queries[start : start + step])
            hits = self._attempt(
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
        """Read vectors back.

        Parameters
        ----------
        collection : str
            The collection.
        ids : sequence of int
            Which ones.

        Returns
        -------
        ids : ndarray of int64, shape (k,)
            Those that are there, in the order asked.
        vectors : ndarray of float32, shape (k, dim)

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        dim = self._dim(collection)
        self._ready(collection)
        wanted = [int(i) for i in ids]
        step = max(1, min(5_000, BATCH_BYTES // (4 * dim + 64)))
        there: dict[int, np.ndarray] = {}
        for start in range(0, len(wanted), step):
            part = list(dict.fromkeys(wanted[start : start + step]))
            rows = self._query(
                collection, ids=part, output_fields=["id", "vector"], consistency_level="Strong"
            )
            there |= {row["id"]: np.asarray(row["vector"], np.float32) for row in rows}
        kept = [i for i in wanted if i in there]
        vectors = np.stack([there[i] for i in kept]) if kept else np.empty((0, dim), np.float32)
        return np.asarray(kept, np.int64), vectors

    def ids(self, collection: str) -> np.ndarray:
        """All ids of a collection.

        Parameters
        ----------
        collection : str
            The collection.

        Returns
        -------
        numpy.ndarray
            int64, shape ``(n,)``, ascending.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        self._ready(collection)
        if self._home is not None:  # no limit there, and its cursor costs a full scan a page
            rows = self._query(
                collection, filter="id >= -9223372036854775808", output_fields=["id"]
            )
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

        return np.unique(np.asarray(self._attempt(walk, collection=collection), np.int64))

    def count(self, collection: str) -> int:
        """How many vectors a collection holds, what was just written included.

        Parameters
        ----------
        collection : str
            The collection.

        Returns
        -------
        int

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        self._ready(collection)
        rows = self._query(collection, output_fields=["count(*)"], consistency_level="Strong")
        return int(rows[0]["count(*)"])

    def flush(self, collection: str, *, wait: bool = True) -> None:
        """Write a collection out, and wait until its index is built.

        Until then searches compare one by one: 20 times slower at 17,000
        vectors.

        Parameters
        ----------
        collection : str
            The collection.
        wait : bool
            Whether to wait for the index.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        StoreError
            The index makes no progress for ten minutes.
        """
        self._dim(collection)  # Milvus Lite passes over an unknown name
        self._ready(collection)
        with self._writing():
            self._attempt(lambda client, t: client.flush(collection, timeout=t), limit=WORK_LIMIT)
        self._facts.pop(collection, None)
        least, since = None, time.monotonic()
        asked = since
        while wait and (found := self._index(collection)) is not None and found[1] > 0:
            self._ready(collection)  # an embedded server that had to be replaced builds no index
            if least is None or found[1] < least:
                least, since = found[1], time.monotonic()
            if time.monotonic() - since > STALLED:
                raise StoreError(
                    self.where, f"the index of {collection!r} makes no progress, {least} vectors "
                    "are not in it; searches work, slowly. Check the store's log and free memory"
                )  # fmt: skip
            # Asking costs Milvus Lite a count of all rows, and takes that from the work itself.
            time.sleep(min(0.5, 0.05 + (time.monotonic() - asked) / 10))

    # ------------------------------------------------------------ inside

    def _writing(self) -> AbstractContextManager[None]:
        return nullcontext() if self._home is None else locks.writing(self._home)

    def _describe(self, collection: str) -> dict[str, Any]:
        return self._attempt(lambda client, t: client.describe_collection(collection, timeout=t))

    def _properties(self, collection: str) -> dict[str, str]:
        return self._describe(collection).get("properties") or {}

    def _schema(self, collection: str) -> int | None:
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

    def _dim(self, collection: str) -> int:
        dim = self._schema(collection_name(collection))
        if dim is None:
            raise CollectionNotFound(collection, self.collections())
        return dim

    def _index(self, collection: str) -> tuple[IndexSpec, int] | None:
        """Index of a collection and rows not in it yet, None where there is no index."""
        facts = self._attempt(
            lambda client, t: client.describe_index(collection, "vector", timeout=t),
            collection=collection,
        )
        if not facts:
            return None
        given = {**facts, **(facts.get("params") or {})}
        kind = str(given.get("index_type", "")).upper()
        pairs = ",".join(f"{n}={given[n]}" for n in _BUILD.get(kind, ()) if n in given)
        # Milvus does not keep what an index is to be searched with.
        asked = self._properties(collection).get(_INDEX)
        try:
            index = IndexSpec.parse(f"{kind}:{pairs}")
            wish = IndexSpec.parse(asked) if asked else index
        except ConfigError as error:
            raise StoreDamaged(
                self.where, f"collection {collection!r} has an index that imgsearch did not make: "
                f"{error.reason}. `repair` makes an embedded one anew"
            ) from None  # fmt: skip
        if (wish.kind, wish.params) == (index.kind, index.params):
            index = wish
        return index, int(facts.get("pending_index_rows") or 0)

    def _no_index(self, collection: str) -> StoreDamaged:
        return StoreDamaged(self.where, f"collection {collection!r} has no index: run `repair`")

    def _query(self, collection: str, **what: object) -> list[dict]:
        return self._attempt(
            lambda client, t: client.query(collection, timeout=t, **what), collection=collection
        )

    def _ready(self, collection: str) -> None:
        """Have a collection in the server's memory, which search and query need."""
        if collection in self._loaded and self._pid == os.getpid():
            return
        self._attempt(
            lambda client, t: client.load_collection(collection, timeout=t),
            limit=WORK_LIMIT,
            collection=collection,
        )
        self._loaded.add(collection)

    def _attempt(
        self,
        call: Callable[[Any, float], T],
        *,
        end: float | None = None,
        limit: float = CALL_LIMIT,
        collection: str | None = None,
    ) -> T:
        """Call Milvus; once more where an embedded server died or forgot the collection.

        Everything that is asked of Milvus is either read-only or the same when
        it is done twice.
        """
        gone = absent = 0
        ready_by = time.monotonic() + self._timeout
        while True:
            try:
                return self._patiently(call, end, limit)
            except _NotReady as why:
                if time.monotonic() >= min(ready_by, end or ready_by):
                    raise self._unavailable(f"is not ready ({why})") from None
                time.sleep(0.25)
            except _Silent as silent:
                raise self._unavailable(f"is silent for {silent}") from None
            except _Gone:
                late = end is not None and time.monotonic() >= end
                gone += 1
                if self._home is None or gone > 1 or late:
                    raise self._unavailable("cannot be reached") from None
            except _NotLoaded:
                absent += 1
                if absent > 2 or collection is None:
                    raise StoreError(
                        self.where, f"collection {collection!r} does not stay in memory: another "
                        "program releases it, or memory is short"
                    ) from None  # fmt: skip
                self._loaded.discard(collection)
                self._ready(collection)
            except CollectionNotFound:
                if collection is None:
                    raise
                raise CollectionNotFound(collection, self.collections()) from None

    def _patiently(self, call: Callable[[Any, float], T], end: float | None, limit: float) -> T:
        """Wait for an answer while the server gives signs of life.

        A long write and a frozen server look the same to a plain time limit.
        So the call runs beside, and whenever half of ``imgsearch_timeout`` has
        passed the server must say its version within the other half.
        """
        started = time.monotonic()
        allowed = limit if end is None else max(0.001, end - started)
        client = self._connected(min(self._timeout, allowed))
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call(client, allowed))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="imgsearch-milvus", daemon=True).start()
        half = self._timeout / 2
        while True:
            left = started + allowed - time.monotonic()
            try:
                return future.result(max(0.0, min(half, left)))
            except NotYet:
                if future.done():  # Milvus' own timeout, of the same class
                    raise self._translated(future.exception(), allowed) from None
            except Exception as error:
                raise self._translated(error, allowed) from None
            if time.monotonic() - started >= allowed:
                self._forget(client)
                raise _Silent(f"{allowed:.3g} s") from None
            try:
                client.get_server_version(timeout=half)
            except Exception:
                if not future.done():
                    self._forget(client)
                    raise _Silent(f"{self._timeout:g} s") from None

    def _connected(self, timeout: float) -> Any:
        with self._lock:
            if self._pid != os.getpid():
                # The channel is the parent's: it is left alone, not closed.
                self._client, self._lease, self._pid = None, None, os.getpid()
            if self._client is None:
                self._client = self._connect(timeout)
            return self._client

    def _connect(self, timeout: float) -> Any:
        milvus_client = _pymilvus()
        uri, secret = self._uri, self._token
        if self._home is not None:
            if self._lease is None:
                self._lease = embedded.lease(self._home)
            else:
                self._lease.renew()
            uri, secret = self._lease.uri, SecretStr(self._lease.token)
        self._loaded.clear()
        self._facts.clear()
        try:
            client = milvus_client(
                uri=uri, token=secret.get_secret_value(), timeout=timeout, dedicated=True
            )
        except Exception as error:
            raise self._translated(error, timeout) from None
        try:
            self._version = client.get_server_version(timeout=timeout)
            found = re.match(r"v?(\d+)\.(\d+)", self._version)
            if found and (int(found[1]), int(found[2])) < OLDEST:
                raise StoreError(
                    self.where, f"runs Milvus {self._version}; imgsearch needs "
                    f"{OLDEST[0]}.{OLDEST[1]} or newer: update the server"
                )  # fmt: skip
        except StoreError:
            client.close()
            raise
        except Exception as error:
            client.close()
            raise self._translated(error, timeout) from None
        return client

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()

    def _forget(self, client: Any) -> None:
        """Give a connection up; calls that still wait on it end."""
        with self._lock:
            if self._client is client:
                self._disconnect()

    def _translated(self, error: BaseException, timeout: float) -> BaseException:
        """Turn whatever pymilvus or gRPC raised into an error of ours."""
        import grpc
        from pymilvus.exceptions import MilvusException

        if isinstance(error, StoreError | ConfigError):
            return error
        if isinstance(error.__cause__, grpc.RpcError):  # pymilvus hides why it cannot connect
            error = error.__cause__
        code = error.code() if isinstance(error, grpc.RpcError) else getattr(error, "code", None)
        text = str(getattr(error, "message", "") or error)
        status = grpc.StatusCode
        if code in (status.UNAUTHENTICATED, status.PERMISSION_DENIED) or re.search(
            r"auth check failure|unauthenticated|permission ?den", text, re.IGNORECASE
        ):
            if self._home is None:
                return StoreError(self.where, "refuses the credentials: check MILVUS_TOKEN")
            self._forget(self._client)  # another home's server listens on the old one's port now
            return _Gone()
        if code == status.DEADLINE_EXCEEDED or "DEADLINE_EXCEEDED" in text:
            self._forget(self._client)
            return _Silent(f"{timeout:.3g} s")
        lost = (status.UNAVAILABLE, status.CANCELLED, status.UNKNOWN, _CONNECT_FAILED)
        # What pymilvus says when the channel is closed under it, by another thread.
        closed = re.search(r"closed channel|NoneType|should create connection first", text)
        if code in lost or closed:
            self._forget(self._client)
            return _Gone()
        if code == 100 or re.search(
            r"can't find collection|collection not found", text, re.IGNORECASE
        ):
            return CollectionNotFound("", ())
        if self._home is None and re.search(_COMING_UP, text, re.IGNORECASE):
            return _NotReady(" ".join(text.split())[:160])
        if code == 101 or re.search(r"not loaded|not been loaded", text, re.IGNORECASE):
            return _NotLoaded(text)
        if not isinstance(error, MilvusException | grpc.RpcError):
            return error
        if code == status.UNIMPLEMENTED:
            return StoreError(
                self.where, f"runs Milvus {self._version or 'of an unknown version'}, which does "
                "not know a request of imgsearch: check its version, and update the older of both"
            )  # fmt: skip
        if self._home is None:
            return StoreError(self.where, text)
        # What is asked of the embedded store was checked before: its files are at fault.
        log = self._home / embedded.FOLDER / "server.log"
        if re.search(r"No space|Disk quota|Permission|Read-only", text):
            return StoreError(
                self.where, f"{text}: check free space and permissions; details in {log}"
            )
        return StoreDamaged(
            self.where,
            f"{text}. `verify` says what is missing, `repair` rebuilds it from the metadata "
            f"and the files; details in {log}",
        )

    def _unavailable(self, how: str) -> StoreUnavailable:
        if self._home is not None:
            log = self._home / embedded.FOLDER / "server.log"
            pid = f", process {self._lease.pid}," if self._lease else ""
            return StoreUnavailable(
                self.where, f"its server{pid} {how}: see {log}, and whether memory is short"
            )
        return StoreUnavailable(
            self.where, f"{how}: check that it runs, MILVUS_URI or MILVUS_HOST and MILVUS_PORT, "
            "and the firewall"
        )  # fmt: skip


def _pymilvus() -> Any:
    """Import ``MilvusClient``, without what its import does besides.

    pymilvus loads a ``.env`` of the working folder into the environment, and
    logs a traceback for every error that it raises.
    """
    before = dict(os.environ)
    from pymilvus import MilvusClient

    for name in set(os.environ) - set(before):
        del os.environ[name]
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return MilvusClient


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
        if "exist" not in str(error):  # another process may have been quicker
            raise


def _create_index(client: Any, collection: str, index: IndexSpec, timeout: float) -> None:
    # pymilvus sends every parameter by itself, Milvus Lite looks for them in one, `params`,
    # and takes its defaults without a word where that is missing.
    both = {**index.params, "params": index.params}
    params = client.prepare_index_params()
    params.add_index("vector", index_type=index.kind, metric_type=METRIC, params=both)
    client.create_index(collection, params, timeout=timeout)


def _search_params(facts: _Facts, given: dict[str, int] | None, limit: int) -> dict[str, int]:
    kind, params = facts.index.kind, dict(facts.index.search)
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
        params["ef"] = max(params.get("ef", _ef(facts.count)), limit)
    return params


def _ef(count: int) -> int:
    """Candidates that HNSW looks at, for a recall@10 of 0.99 at this size.

    `benchmarks/search.py` measures what that takes.
    """
    return next(ef for size, ef in _EF if count <= size)


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
