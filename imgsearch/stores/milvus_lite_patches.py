"""Everything that imgsearch replaces in Milvus Lite at run time, in the embedded server only.

The replaced names are internal, so the server accepts no version but `VERSION`. A comment at each
replacement states its reason and which upstream change would make it unnecessary.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgsearch.stores.exact import Part, among, nearest

if TYPE_CHECKING:
    from milvus_lite import Collection
    from milvus_lite.storage.delta_index import DeltaIndex
    from milvus_lite.storage.memtable import MemTable
    from milvus_lite.storage.segment import Segment

VERSION = "3.2.2"


def install(write_failed: Callable[[BaseException], None]) -> ExactSearch:
    """Apply the replacements; `write_failed` is called when a write has failed."""
    from milvus_lite.engine import collection
    from milvus_lite.engine.compaction import CompactionManager
    from milvus_lite.search import bitmap
    from milvus_lite.storage import wal
    from milvus_lite.storage.manifest import Manifest

    # 1. Milvus Lite accepts more writes after one that failed half way. The log is replayed only
    # up to its first torn record, and the next flush deletes it: rows acknowledged in between are
    # lost. The server therefore exits at the first failed write, and the next one replays the log.
    # Failures before anything was written are harmless. Needed until Milvus Lite refuses writes
    # after a failed one.
    writes = _Writes(write_failed)
    writes.watch(wal.WAL, "write_insert", begun=True, report=False)
    writes.watch(wal.WAL, "write_delete", begun=True, report=False)
    writes.watch(Manifest, "remove_data_files", begun=True, report=False)
    writes.watch(collection.Collection, "insert", begun=False)
    writes.watch(collection.Collection, "delete", begun=False)
    writes.watch(collection.Collection, "flush", begun=True)
    writes.watch(collection.Collection, "close", begun=True)
    writes.watch(CompactionManager, "maybe_compact", begun=False)

    # 2. Milvus Lite takes an I/O error while reading the log (too many open files, a failing disk)
    # for its end, so that acknowledged rows vanish. Needed until recovery raises such errors.
    wal._read_wal_file = functools.wraps(wal._read_wal_file)(read_log)

    # 3. Search and count check in Python, row by row, which rows are alive, and a search reads
    # all fields of each hit: ten times the cost of the matrix product at 17,000 vectors. Needed
    # until build_valid_mask and execute_search_with_index are vectorised upstream.
    exact = ExactSearch(collection.execute_search_with_index, bitmap.build_valid_mask)
    collection.execute_search_with_index = exact.search
    bitmap.build_valid_mask = exact.valid_mask
    return exact


class _Writes:
    """Distinguishes failures that may leave torn files from harmless ones."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed, self._thread = failed, threading.local()

    def watch(self, owner: type, name: str, *, begun: bool, report: bool = True) -> None:
        """Wrap a method; `begun` says that it writes from its start, not only in a later step."""
        work = getattr(owner, name)

        @functools.wraps(work)
        def watched(*args: object, **kwargs: object) -> Any:
            self._thread.begun = begun
            try:
                return work(*args, **kwargs)
            except BaseException as error:
                if report and self._thread.begun:
                    self._failed(error)
                raise

        setattr(owner, name, watched)


def read_log(path: str) -> list[Any]:
    """Return the valid batches of a log, up to the first torn one."""
    import pyarrow as pa

    batches: list[Any] = []
    try:
        with Path(path).open("rb") as source:  # its errors have an errno, pyarrow's not always
            for batch in pa.ipc.open_stream(source):
                batch.validate(full=True)
                batches.append(batch)
    except (pa.ArrowInvalid, FileNotFoundError):
        pass
    except OSError as error:
        if error.errno is not None:  # an I/O error, not pyarrow's error about the content
            raise
    return batches


class ExactSearch:
    """Vectorised search of and access to collections with integer ids."""

    def __init__(self, search: Callable[..., Any], valid_mask: Callable[..., Any]) -> None:
        self._search, self._valid_mask = search, valid_mask
        self._parts: dict[int, tuple[MemTable, tuple[Segment, ...], list[Part] | None]] = {}
        self._lock = threading.Lock()
        self._approximate = threading.Lock()
        self._thread = threading.local()

    @contextlib.contextmanager
    def among(self, ids: np.ndarray) -> Iterator[None]:
        """Restrict the searches of this thread to these ids, which must be ascending."""
        self._thread.ids = ids
        try:
            yield
        finally:
            del self._thread.ids

    def forget(self) -> None:
        """Clear the cache of living rows after a write."""
        with self._lock:
            self._parts.clear()

    def search(self, **request: Any) -> list[list[dict]]:
        """Replace ``execute_search_with_index``, which still runs if there is an index."""
        segments, field = tuple(request["segments"]), request["vector_field"]
        some = vars(self._thread).get("ids")
        exact = (
            request["metric_type"] == "COSINE"
            and request["output_fields"] == [request["pk_field"]]
            and request["partition_names"] is None
            and request["compiled_filter"] is None
            and (some is not None or not any(_approximate(segment, field) for segment in segments))
        )
        queries = request["query_vectors"]
        if exact:
            parts = self.living(segments, request["memtable"], request["delta_index"], field)
            if parts is not None and all(p.vectors.shape[1] == queries.shape[1] for p in parts):
                if some is not None:
                    parts = [part for part in (among(p, some) for p in parts) if len(part.ids)]
                return [
                    [
                        {"id": i, "distance": d, "entity": {}}
                        for i, d in zip(ids.tolist(), far.tolist(), strict=True)
                    ]
                    for ids, far in nearest(parts, queries, request["top_k"])
                ]
        if some is not None:
            raise ValueError("a search among ids needs vectors of the query's dimension")
        with self._approximate:  # HNSW stores ef in the index, which concurrent searches share
            return self._search(**request)

    def valid_mask(
        self,
        ids: Sequence,
        written: np.ndarray,
        deleted: DeltaIndex,
        filter_mask: np.ndarray | None = None,
        memtable: MemTable | None = None,
    ) -> np.ndarray:
        """Replace ``build_valid_mask``."""
        numbers = _numbers(ids)
        if numbers is None:
            return self._valid_mask(ids, written, deleted, filter_mask, memtable)
        alive = _alive(numbers, written, deleted, memtable)
        return alive if filter_mask is None else alive & filter_mask.astype(bool)

    def read(
        self, collection: Collection, field: str, wanted: Sequence[int] | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Return ids and vectors of all or of the wanted rows; None if ids are not integers."""
        segments, deleted = collection._read_snapshot()
        parts = self.living(segments, collection._memtable, deleted, field)
        if not parts:
            return None
        ids, vectors = [np.empty(0, np.int64)], []
        for part in parts:
            rows = np.ones(len(part.ids), bool) if part.alive is None else part.alive
            if wanted is not None:
                rows = rows & np.isin(part.ids, np.asarray(wanted, np.int64))
                vectors.append(part.vectors[rows])
            ids.append(part.ids[rows])
        return np.concatenate(ids), vectors

    def living(
        self, segments: tuple[Segment, ...], memtable: MemTable, deleted: DeltaIndex, field: str
    ) -> list[Part] | None:
        """Return all rows, marked as alive or not; None if their ids are not integers."""
        with self._lock:
            known = self._parts.get(id(memtable))
        if known and known[0] is memtable and known[1] == segments:  # compaction replaces segments
            return known[2]
        parts = _read(segments, memtable, deleted, field)
        with self._lock:
            self._parts[id(memtable)] = memtable, segments, parts
        return parts


def _approximate(segment: Segment, field: str) -> bool:
    from milvus_lite.index.brute_force import BruteForceIndex

    index = segment.indexes.get(field)
    return index is not None and not isinstance(index, BruteForceIndex)


def _numbers(ids: Sequence) -> np.ndarray | None:
    return None if len(ids) and isinstance(ids[0], str) else np.asarray(ids, np.int64)


def _alive(
    ids: np.ndarray, written: np.ndarray, deleted: DeltaIndex, memtable: MemTable | None
) -> np.ndarray:
    """Return a mask of the rows that are the latest of their id and not deleted since."""
    alive = np.zeros(len(ids), bool)
    if not len(ids):
        return alive
    written = np.asarray(written, np.int64)
    order = np.lexsort((written, ids))
    alive[order[np.append(ids[order[1:]] != ids[order[:-1]], True)]] = True
    pending = memtable.delete_index_snapshot() if memtable else {}
    for gone in (deleted.snapshot, {i: at for i, (at, _) in pending.items()}):
        if gone:
            names = np.fromiter(gone, np.int64, len(gone))
            since = np.fromiter(gone.values(), np.int64, len(gone))
            order = np.argsort(names)
            near = order[np.searchsorted(names, ids, sorter=order).clip(max=len(gone) - 1)]
            alive &= (names[near] != ids) | (since[near] <= written)
    return alive


def _read(
    segments: tuple[Segment, ...], memtable: MemTable, deleted: DeltaIndex, field: str
) -> list[Part] | None:
    sources = [(s.pks, s.seqs, *s.vector_data(field)) for s in segments if s.num_rows]
    ids, written, vectors, *_ = memtable.to_search_snapshot(vector_field=field)
    if len(ids):
        sources.append((ids, written, vectors, None))
    numbers = [_numbers(ids) for ids, *_ in sources]
    if any(n is None for n in numbers) or any(nulls is not None for *_, nulls in sources):
        return None
    if not sources:
        return []
    written = np.concatenate([written for _, written, *_ in sources])
    alive = _alive(np.concatenate(numbers), written, deleted, memtable)
    parts = []
    for ids, (_, _, vectors, _) in zip(numbers, sources, strict=True):
        mine, alive = alive[: len(ids)], alive[len(ids) :]
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        lengths[lengths == 0] = 1
        parts.append(Part(ids, vectors, lengths, None if mine.all() else mine))
    return parts
