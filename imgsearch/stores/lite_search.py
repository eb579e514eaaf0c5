"""Milvus Lite's searches and counts without what they spend on each row.

At every search and every count Milvus Lite asks each row, in Python, whether it is
alive, and a search reads back all fields of every hit: at 17,125 rows of 2,048 numbers
that costs ten times what the index itself needs, and it grows with the rows. Here two
of its functions are replaced by ones that keep their contract and ask with numpy, a
search once after each write, and that let only ids and scores leave the index. What is
not asked in the way of :class:`imgsearch.stores.vectors.VectorStore` is left to Milvus Lite's.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from milvus_lite import Collection
    from milvus_lite.storage.delta_index import DeltaIndex
    from milvus_lite.storage.memtable import MemTable
    from milvus_lite.storage.segment import Segment

_AT_ONCE = 2**24  # scores in memory: 64 MiB


class _Part(NamedTuple):
    """A segment, or the memory table, and which of its rows are alive (None: all)."""

    ids: np.ndarray
    vectors: np.ndarray
    lengths: np.ndarray
    alive: np.ndarray | None
    segment: Segment | None


class LiteSearch:
    """Answers the searches and counts of one process; used by all its threads."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[MemTable, tuple[Segment, ...], list[_Part]]] = {}
        self._lock = threading.Lock()
        self._asked = threading.local()

    def install(self) -> None:
        """Put itself in the place of Milvus Lite's functions."""
        from milvus_lite.engine import collection
        from milvus_lite.search import bitmap

        self._search, self._mask = collection.execute_search_with_index, bitmap.build_valid_mask
        collection.execute_search_with_index = self.search
        bitmap.build_valid_mask = self.mask

    def forget(self) -> None:
        """Note that something was written: what is alive must be found anew."""
        with self._lock:
            self._parts.clear()

    def unindexed(self, collection: Collection, field: str) -> int:
        """Count the rows that are written out and in no index yet.

        Parameters
        ----------
        collection : milvus_lite.Collection
            Must be loaded.
        field : str
            The index's; none is missing of one that is not of float vectors.

        Returns
        -------
        int
        """
        from milvus_lite import DataType

        types = {f.name: f.dtype for f in collection.schema.fields}
        if types[field] != DataType.FLOAT_VECTOR:
            return 0
        # A search is handed the segments; nothing else that Milvus Lite offers tells them.
        self._asked.segments = ()
        try:
            collection.search([[0.0]], 1, anns_field=field)
            segments = self._asked.segments
        finally:
            del self._asked.segments
        return sum(s.num_rows for s in segments if field not in s.indexes)

    def search(
        self,
        query_vectors: np.ndarray,
        segments: Sequence[Segment],
        memtable: MemTable,
        delta_index: DeltaIndex,
        top_k: int,
        metric_type: str,
        pk_field: str,
        vector_field: str,
        partition_names: list[str] | None = None,
        compiled_filter: object = None,
        output_fields: list[str] | None = None,
        search_params: dict[str, Any] | None = None,
        **others: object,
    ) -> list[list[dict]]:
        """Find the rows nearest to each query, while nobody writes to the collection.

        Keeps the contract of ``execute_search_with_index``, in whose place it is.

        Parameters
        ----------
        query_vectors : numpy.ndarray
            float32 (q, dim).
        segments : sequence of Segment
            What is written out.
        memtable : MemTable
            What is not yet.
        delta_index : DeltaIndex
            Deletions of what is.
        top_k : int
        metric_type : str
        pk_field, vector_field : str
            Names of the fields.
        partition_names, compiled_filter : optional
            What to search only; left to Milvus Lite.
        output_fields : list of str, optional
            What hits bring along; more than the primary key is left to Milvus Lite.
        search_params : dict, optional
            The index's, as ``{"ef": 128}``.
        **others
            For Milvus Lite.

        Returns
        -------
        list of list of dict
            For each query its hits, nearest first: id, distance (1 - cosine) and, empty, entity.
        """
        if hasattr(self._asked, "segments"):
            self._asked.segments = segments
            return []
        parts = None
        plain = metric_type == "COSINE" and partition_names is None and compiled_filter is None
        if plain and output_fields == [pk_field]:
            parts = self._living(tuple(segments), memtable, delta_index, vector_field)
        dim = query_vectors.shape[1]
        if parts is None or any(part.vectors.shape[1] != dim for part in parts):
            return self._search(
                query_vectors, segments, memtable, delta_index, top_k, metric_type, pk_field,
                vector_field, partition_names, compiled_filter, output_fields,
                search_params=search_params, **others,
            )  # fmt: skip
        found = [
            _nearest(part, vector_field, query_vectors, top_k, search_params) for part in parts
        ]
        return [
            [{"id": i, "distance": d, "entity": {}} for i, d in hits]
            for hits in _merged(found, len(query_vectors), top_k)
        ]

    def mask(
        self,
        all_pks: list,
        all_seqs: np.ndarray,
        delta_index: DeltaIndex,
        filter_mask: np.ndarray | None = None,
        memtable: MemTable | None = None,
    ) -> np.ndarray:
        """Tell which rows are the last of their id, and neither deleted nor filtered out.

        Keeps the contract of ``build_valid_mask``, in whose place it is.

        Parameters
        ----------
        all_pks : list of int or str
            Primary keys.
        all_seqs : numpy.ndarray
            int64 (n,); a greater number was written later.
        delta_index : DeltaIndex
            Deletions of what is written out.
        filter_mask : numpy.ndarray, optional
            bool (n,).
        memtable : MemTable, optional
            Deletions of what is not yet.

        Returns
        -------
        numpy.ndarray
            bool (n,).
        """
        ids = _numbers(all_pks)
        if ids is None:
            return self._mask(all_pks, all_seqs, delta_index, filter_mask, memtable)
        alive = _alive(ids, all_seqs, delta_index, memtable)
        return alive if filter_mask is None else alive & filter_mask.astype(bool)

    def _living(
        self,
        segments: tuple[Segment, ...],
        memtable: MemTable,
        deleted: DeltaIndex,
        field: str,
    ) -> list[_Part] | None:
        with self._lock:
            known = self._parts.get(id(memtable))
        # Compaction replaces segments without a request.
        if known and known[0] is memtable and known[1] == segments:
            return known[2]
        parts = _parts(segments, memtable, deleted, field)
        if parts is not None:
            with self._lock:
                self._parts[id(memtable)] = memtable, segments, parts
        return parts


def _numbers(ids: Sequence) -> np.ndarray | None:
    """Primary keys as int64; None where they are strings."""
    return None if len(ids) and isinstance(ids[0], str) else np.asarray(ids, np.int64)


def _alive(
    ids: np.ndarray, written: np.ndarray, deleted: DeltaIndex, memtable: MemTable | None
) -> np.ndarray:
    """Which rows are the last of their id and not deleted after that."""
    alive = np.zeros(len(ids), bool)
    if not len(ids):
        return alive
    written = np.asarray(written, np.int64)
    order = np.lexsort((written, ids))
    alive[order[np.append(ids[order[1:]] != ids[order[:-1]], True)]] = True
    for gone in (
        deleted.snapshot,
        {i: at for i, (at, _) in memtable.delete_index_snapshot().items()} if memtable else {},
    ):
        if gone:
            names = np.fromiter(gone, np.int64, len(gone))
            since = np.fromiter(gone.values(), np.int64, len(gone))
            order = np.argsort(names)
            near = order[np.searchsorted(names, ids, sorter=order).clip(max=len(gone) - 1)]
            alive &= (names[near] != ids) | (since[near] <= written)
    return alive


def _parts(
    segments: tuple[Segment, ...], memtable: MemTable, deleted: DeltaIndex, field: str
) -> list[_Part] | None:
    """Everything to be searched; None where rows may lack a vector or have names for ids."""
    sources = []
    for segment in segments:
        vectors, nulls = segment.vector_data(field)
        if nulls is not None:
            return None
        if segment.num_rows:
            sources.append((segment.pks, segment.seqs, vectors, segment))
    ids, written, vectors, _, _ = memtable.to_search_snapshot(vector_field=field)
    if len(ids):
        sources.append((ids, written, vectors, None))
    each = [_numbers(ids) for ids, *_ in sources]
    if any(ids is None for ids in each):
        return None
    if not sources:
        return []
    written = np.concatenate([written for _, written, *_ in sources])
    alive = _alive(np.concatenate(each), written, deleted, memtable)
    parts = []
    for ids, (_, _, vectors, segment) in zip(each, sources, strict=True):
        mine, alive = alive[: len(ids)], alive[len(ids) :]
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        lengths[lengths == 0] = 1
        parts.append(_Part(ids, vectors, lengths, None if mine.all() else mine, segment))
    return parts


def _nearest(
    part: _Part, field: str, queries: np.ndarray, top_k: int, params: dict | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 and distances float32 of one part, both (q, k); inf where there is none."""
    from milvus_lite.index.brute_force import BruteForceIndex

    # Looked up each time: an index is built after its segment can be searched.
    index = part.segment.indexes.get(field) if part.segment is not None else None
    if index is None or isinstance(index, BruteForceIndex):
        return _exact(part, queries, top_k)
    rows, distances = index.search(queries, top_k, valid_mask=part.alive, params=params)
    return part.ids[rows], np.where(rows < 0, np.inf, distances)


def _exact(part: _Part, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    queries = queries / np.where(lengths == 0, 1, lengths)
    kept = min(top_k, len(part.ids))
    ids = np.empty((len(queries), kept), np.int64)
    distances = np.empty((len(queries), kept), np.float32)
    step = max(1, _AT_ONCE // len(part.ids))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        far = 1 - (part.vectors @ queries[rows].T).T / part.lengths
        if part.alive is not None:
            far[:, ~part.alive] = np.inf
        best = np.argpartition(far, kept - 1, axis=1)[:, :kept]
        ids[rows] = part.ids[best]
        distances[rows] = np.take_along_axis(far, best, axis=1)
    return ids, distances


def _merged(
    found: list[tuple[np.ndarray, np.ndarray]], queries: int, top_k: int
) -> list[list[tuple[int, float]]]:
    """Best of all parts for each query: ids and distances, best first."""
    if not found:
        return [[] for _ in range(queries)]
    ids = np.concatenate([ids for ids, _ in found], axis=1)
    distances = np.concatenate([distances for _, distances in found], axis=1)
    answer = []
    for mine, far in zip(ids, distances, strict=True):
        order = np.lexsort((mine, far))[:top_k]
        order = order[far[order] < np.inf]
        answer.append(list(zip(mine[order].tolist(), far[order].tolist(), strict=True)))
    return answer
