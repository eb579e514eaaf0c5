"""Vectors of every collection, in Milvus: the embedded store, a server or a cluster.

A collection has two fields, ``id`` (int64, primary key) and ``vector`` (float32), and is
searched by cosine similarity.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from imgsearch.config import Settings, collection_name
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from imgsearch.stores import embedded, locks
from imgsearch.stores.connection import Connection, NotLoaded
from imgsearch.stores.index import IndexSpec

METRIC = "COSINE"
MAX_TOP_K = 16_384  # Milvus' own limit, which also applies to the rows of one response
BATCH_BYTES = 8 * 1024 * 1024  # per message; Milvus accepts 64 MiB, but readers wait for each write
SPARE_HITS = 16  # fetched beyond top_k, so that ties at the cut are ordered by id
WORK_LIMIT = 3600.0  # seconds for loading or flushing a whole collection
STALLED = 600.0  # seconds without progress after which building an index counts as stuck
_ABOUT, _INDEX = "imgsearch.about", "imgsearch.index"  # properties of a collection

T = TypeVar("T")
_Form = tuple[int, IndexSpec]  # dimension and index of a collection


class VectorInfo(NamedTuple):
    """Properties of a collection; pending rows are flushed but not yet indexed."""

    dim: int
    index: IndexSpec
    count: int
    pending_index_rows: int
    server_version: str
    description: str


class VectorStore:
    """Store of vectors by id in named collections; safe to use from threads and after a fork."""

    def __init__(self, settings: Settings):
        self._loaded: set[str] = set()
        self._forms: dict[str, _Form] = {}
        self.connection = Connection(settings, self._forget)
        self._home, self.where = self.connection.home, self.connection.where
        self.embedded = self._home is not None

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
        """Disconnect. The next use connects again."""
        self.connection.close()

    def restart(self) -> None:
        """Stop the embedded server, even if others are using it, and connect to a new one."""
        if self._home is None:
            raise StoreError(self.where, "imgsearch cannot restart a Milvus server")
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
        """Create a collection, unless it already exists with the same dimension."""
        collection_name(collection)
        if not 2 <= dim <= 32_768:
            raise ConfigError("dim", f"must be between 2 and 32768 for Milvus, not {dim}")
        with self._writing():
            existing = self._dimension(collection)
            if existing is None:
                about = {_ABOUT: description, _INDEX: str(index)}
                self._call(lambda client, t: _create(client, collection, dim, about, t))
                existing = self._dimension(collection)
            if existing != dim:
                raise StoreError(
                    self.where, f"collection {collection!r} already exists with {existing}-"
                    f"dimensional vectors, not {dim}: use another name, or drop it first"
                )  # fmt: skip
            # A process that died in between may have left a collection without an index.
            if self._index(collection) is None:
                self._call(
                    lambda client, t: _create_index(client, collection, index, t),
                    collection=collection,
                    limit=WORK_LIMIT,
                )
            self._load(collection)

    def collections(self) -> list[str]:
        """Return the names of all collections, damaged ones included, sorted."""
        return sorted(self._call(lambda client, t: client.list_collections(timeout=t)))

    def describe(self, collection: str) -> VectorInfo:
        """Return the properties of a collection, after loading it."""
        dim = self._known_dimension(collection)
        found = self._index(collection)
        if found is None:
            raise self._no_index(collection)
        index, pending = found
        about = self._properties(collection).get(_ABOUT, "")
        return VectorInfo(
            dim, index, self.count(collection), pending, self.connection.version, about
        )

    def about(self, collection: str) -> dict[str, Any] | None:
        """Return what imgsearch recorded when it created a collection; None if it did not."""
        try:
            found = json.loads(self._properties(collection).get(_ABOUT) or "null")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def stored_rows(self, collection: str) -> int | None:
        """Return the number of rows without loading the collection.

        The number is exact for the embedded store and for loaded collections. For other
        collections a server counts only flushed rows, but includes deleted ones.
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
        """Delete a collection and all its vectors."""
        collection_name(collection)
        with self._writing():
            names = self.collections()
            if collection not in names:
                raise CollectionNotFound(collection, names)
            self._call(
                lambda client, t: client.drop_collection(collection, timeout=t),
                collection=collection,
            )
            self._forget(collection)

    def set_aside(self, collection: str) -> Path:
        """Move the files of an embedded collection out of the store; return their new folder."""
        collection_name(collection)
        if self._home is None:
            raise StoreError(
                self.where,
                f"collection {collection!r} cannot be read: repair it with the server's own tools, "
                "or drop the collection and ingest again",
            )
        with self._writing():
            self.close()
            kept = embedded.set_aside(self._home, collection)
            self._forget(collection)
        return kept

    # ------------------------------------------------------------ vectors

    def upsert(self, collection: str, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Insert vectors, replacing those that are already stored under the same ids.

        Ids must be unique, and vectors finite and not zero. If the store fails, some batches may
        have been stored; repeating the call is harmless.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not (ids.dtype.kind in "iu" or ids.size == 0):
            reason = f"must be a one-dimensional array of integers, not {ids.dtype} {ids.shape}"
            raise ConfigError("ids", reason)
        dim, _ = self._form(collection)
        if np.shape(vectors)[1:] != (dim,):
            dim, _ = self._form(collection, fresh=True)
        vectors = checked(vectors, dim)
        if len(ids) != len(vectors):
            raise ConfigError("ids", f"{len(ids)} ids for {len(vectors)} vectors")
        if len(np.unique(ids)) != len(ids):
            raise ConfigError("ids", "must be unique within one call")
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
                    # Another process may have recreated the collection with another dimension.
                    checked(vectors, self._form(collection, fresh=True)[0])
                    raise

    def delete(self, collection: str, ids: Sequence[int] | np.ndarray) -> None:
        """Delete vectors, ignoring ids that do not exist."""
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
        among: np.ndarray | None = None,
        thorough: bool = False,
        search_params: dict[str, int] | None = None,
        timeout: float | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the ids and cosine similarities of the vectors nearest to each query.

        Hits are ordered best first, equal scores by id; there are at most `top_k` and never more
        than `MAX_TOP_K`. `among`, ascending ids, restricts the search: it is then exact in the
        embedded store; for servers see :mod:`imgsearch.stores.filtered`. `thorough` and
        `search_params` (``ef``, ``nprobe``) are passed to :meth:`IndexSpec.search_with`. `timeout`
        limits the whole call; without it, a search may run for as long as the server answers pings.
        """
        if top_k < 1:
            raise ConfigError("top_k", f"must be 1 or more, not {top_k}")
        end = None if timeout is None else time.monotonic() + timeout
        if among is not None and not len(among):
            none = np.empty(0, np.int64), np.empty(0, np.float32)
            return [none] * len(queries)
        known = self._forms.get(collection)
        how = self._restriction(among), thorough, search_params, end
        if known is not None:
            try:
                return self._search(collection, queries, top_k, known, *how)
            except StoreUnavailable:
                raise
            except (StoreError, ConfigError, CollectionNotFound):
                # Another process may have recreated the collection in another form.
                if self._form(collection, fresh=True) == known:
                    raise
        form = self._form(collection)
        return self._search(collection, queries, top_k, form, *how)

    def _restriction(self, among: np.ndarray | None) -> str:
        """Return the filter expression for ids; it contains integers only, so nothing to escape."""
        if among is None:
            return ""
        ids = np.asarray(among, "<i8")
        if self._home is not None:
            return embedded.AMONG + base64.b64encode(ids.tobytes()).decode()
        return f"id in [{','.join(map(str, ids.tolist()))}]"

    def _search(
        self,
        collection: str,
        queries: np.ndarray,
        top_k: int,
        form: tuple[int, IndexSpec],
        restriction: str,
        thorough: bool,
        search_params: dict[str, int] | None,
        end: float | None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        dim, index = form
        queries = checked(queries, dim)
        limit = min(top_k + SPARE_HITS, MAX_TOP_K)
        params = index.search_with(search_params, limit, thorough=thorough)
        if not len(queries):
            return []
        self._load(collection)
        # Limits the bytes of a request (the queries) and of a response (about 20 for each hit).
        step = max(1, min(1_000, BATCH_BYTES // (4 * dim), BATCH_BYTES // (limit * 20)))
        answers: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(queries), step):
            part = list(queries[start : start + step])
            hits = self._call(
                lambda client, t, part=part: client.search(
                    collection,
                    data=part,
                    anns_field="vector",
                    filter=restriction,
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
        """Return the ids that exist, in the given order, and their vectors."""
        dim = self._known_dimension(collection)
        self._load(collection)
        wanted = [int(i) for i in ids]
        step = max(1, min(5_000, BATCH_BYTES // (4 * dim + 64)))
        stored: dict[int, np.ndarray] = {}
        for start in range(0, len(wanted), step):
            part = list(dict.fromkeys(wanted[start : start + step]))
            rows = self._query(
                collection, ids=part, output_fields=["id", "vector"], consistency_level="Strong",
                strict_float32=True,
            )  # fmt: skip
            stored |= {row["id"]: row["vector"] for row in rows}
        found = [i for i in wanted if i in stored]
        if any(len(stored[i]) != dim for i in found):
            raise StoreDamaged(
                self.where, f"collection {collection!r} contains vectors that are not of dimension "
                f"{dim}: run `repair`"
            )  # fmt: skip
        vectors = np.stack([stored[i] for i in found]) if found else np.empty((0, dim), np.float32)
        return np.asarray(found, np.int64), vectors

    def ids(self, collection: str) -> np.ndarray:
        """Return all ids of a collection, ascending."""
        self._load(collection)
        if self._home is not None:  # one query suffices; its cursor would scan all rows per page
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
        """Return the number of vectors in a collection, including the most recent writes."""
        self._load(collection)
        return self._count(collection)

    def flush(self, collection: str, *, wait: bool = True) -> None:
        """Flush a collection to disk, and wait until a server has indexed it.

        Until then a server searches by brute force: 20 times slower at 17,000 vectors.
        """
        self._known_dimension(collection)  # Milvus Lite silently ignores an unknown name
        self._load(collection)
        with self._writing():
            self._call(
                lambda client, t: client.flush(collection, timeout=t),
                collection=collection,
                limit=WORK_LIMIT,
            )
        least, since = None, time.monotonic()
        while wait and (found := self._index(collection)) is not None and found[1] > 0:
            if least is None or found[1] < least:
                least, since = found[1], time.monotonic()
            if time.monotonic() - since > STALLED:
                raise StoreError(
                    self.where, f"building the index of {collection!r} has stalled with {least} "
                    "vectors left; searches work, but slowly. Check the store's log and free memory"
                )  # fmt: skip
            time.sleep(0.1)

    # ------------------------------------------------------------ internals

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
        """Return the dimension of a collection, or None if it does not exist."""
        try:
            fields = {f["name"]: f for f in self._describe(collection)["fields"]}
        except CollectionNotFound:
            return None
        if set(fields) != {"id", "vector"} or not fields["id"].get("is_primary"):
            made = f"created by another program, with the fields {', '.join(sorted(fields))}"
            if self._home is not None:
                raise StoreDamaged(
                    self.where, f"collection {collection!r} is damaged, or was {made}: "
                    "`repair` moves it aside"
                )  # fmt: skip
            raise StoreError(self.where, f"collection {collection!r} was {made}: use another name")
        return int(fields["vector"]["params"]["dim"])

    def _known_dimension(self, collection: str) -> int:
        dim = self._dimension(collection_name(collection))
        if dim is None:
            raise CollectionNotFound(collection, self.collections())
        return dim

    def _index(self, collection: str) -> tuple[IndexSpec, int] | None:
        """Return the index of a collection and its number of pending rows; None without index."""
        facts = self._call(
            lambda client, t: client.describe_index(collection, "vector", timeout=t),
            collection=collection,
            limit=WORK_LIMIT,
        )
        # Milvus does not store the search parameters of an index.
        recorded = self._properties(collection).get(_INDEX)
        try:
            spec = IndexSpec.parse(recorded) if recorded else None
            if not facts:
                # The embedded store searches exactly without an index, and Milvus Lite's FLAT
                # would hold a second copy of all vectors.
                exact = self._home is not None and spec is not None and spec.kind == "FLAT"
                return (spec, 0) if exact else None
            index = IndexSpec.described(facts)
        except ConfigError as error:
            text = f"collection {collection!r} has an index that imgsearch did not create: "
            if self._home is None:
                raise StoreError(self.where, text + error.reason) from None
            raise StoreDamaged(self.where, f"{text}{error.reason}. Run `repair`") from None
        if spec is not None and (spec.kind, spec.params) == (index.kind, index.params):
            index = spec
        return index, int(facts.get("pending_index_rows") or 0)

    def _no_index(self, collection: str) -> StoreDamaged:
        return StoreDamaged(self.where, f"collection {collection!r} has no index: run `repair`")

    def _form(self, collection: str, *, fresh: bool = False) -> tuple[int, IndexSpec]:
        """Return the dimension and index of a collection, which are cached between calls."""
        known = self._forms.get(collection)
        if known is None or fresh:
            dim, found = self._known_dimension(collection), self._index(collection)
            if found is None:
                raise self._no_index(collection)
            known = self._forms[collection] = dim, found[0]
        return known

    def _forget(self, collection: str | None = None) -> None:
        """Clear what is cached about a collection, or about all of them."""
        for name in [collection] if collection else list(self._loaded | self._forms.keys()):
            self._loaded.discard(name)
            self._forms.pop(name, None)

    def _query(self, collection: str, **what: object) -> list[dict]:
        return self._call(
            lambda client, t: client.query(collection, timeout=t, **what), collection=collection
        )

    def _count(self, collection: str) -> int:
        rows = self._query(collection, output_fields=["count(*)"], consistency_level="Strong")
        return int(rows[0]["count(*)"])

    def _load(self, collection: str) -> None:
        """Load a collection into the server's memory, as searches and queries require."""
        if collection in self._loaded:
            return
        self._call(
            lambda client, t: client.load_collection(collection, timeout=t),
            limit=WORK_LIMIT,
            collection=collection,
        )
        self._loaded.add(collection)

    def _call(
        self, request: Callable[[Any, float], T], *, collection: str | None = None, **limits: Any
    ) -> T:
        """Call Milvus, and repeat the call if another program released the collection."""
        for last in (False, False, True):
            try:
                return self.connection.call(request, **limits)
            except NotLoaded:
                if last or collection is None:
                    break
                self._loaded.discard(collection)
                self._load(collection)
            except CollectionNotFound:
                if collection is None:
                    raise
                self._forget(collection)
                raise CollectionNotFound(collection, self.collections()) from None
        raise StoreError(
            self.where,
            f"collection {collection!r} does not stay loaded: stop the program that keeps "
            "releasing it, or give the server more memory",
        )


def _create(client: Any, collection: str, dim: int, about: dict[str, str], timeout: float) -> None:
    from pymilvus import DataType, MilvusException

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    try:
        # Properties rather than a description, which Milvus Lite does not keep.
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
    # pymilvus sends each parameter separately, but Milvus Lite reads them from `params` only and
    # silently falls back to its defaults without it.
    both = {**index.params, "params": index.params}
    params = client.prepare_index_params()
    params.add_index("vector", index_type=index.kind, metric_type=METRIC, params=both)
    client.create_index(collection, params, timeout=timeout)


def _ranked(hits: Any, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    ids, scores = np.asarray(hits.ids, np.int64), np.asarray(hits.distances, np.float32)
    order = np.lexsort((ids, -scores))[:top_k]
    return ids[order], scores[order]


def checked(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Vectors as float32 (n, dim); ConfigError where one of them cannot be stored or searched."""
    vectors = np.asarray(vectors)
    if vectors.size == 0:
        return np.empty((0, dim), np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ConfigError(
            "vectors",
            f"have shape {vectors.shape}, but the collection needs (n, {dim}): use the "
            "encoder of the collection",
        )
    vectors = np.ascontiguousarray(vectors, np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ConfigError("vectors", f"number {int(np.argmin(finite))} contains NaN or infinity")
    length = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not length.all():
        reason = f"number {int(np.argmin(length))} has length zero, and so no direction"
        raise ConfigError("vectors", reason)
    return vectors
