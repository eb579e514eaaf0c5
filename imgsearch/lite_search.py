"""Search of the embedded store without what Milvus Lite spends on each row.

At every search Milvus Lite asks each row, in Python, whether it is alive, and reads back
all fields of every hit: at 17,125 rows of 2,048 numbers that costs ten times what the
index itself needs, and it grows with the rows. Here the living rows are found once after
each write, with numpy, and only ids and scores leave the index. Requests of any other
kind than those of :class:`imgsearch.vectors.VectorStore` are left to Milvus Lite.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from milvus_lite.exceptions import MilvusLiteError
from milvus_lite.index.brute_force import BruteForceIndex
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

if TYPE_CHECKING:
    from milvus_lite.engine.collection import Collection

_FLOAT_VECTOR = 101  # common.proto, PlaceholderType
_MINE = {"topk", "round_decimal", "ignore_growing", "metric_type", "anns_field", "params"}
_AT_ONCE = 2**24  # scores in memory: 64 MiB


class _Part(NamedTuple):
    """A segment, or the memory table, and which of its rows are alive (None: all)."""

    ids: np.ndarray
    vectors: np.ndarray
    lengths: np.ndarray
    alive: np.ndarray | None
    segment: Any | None


class LiteSearch:
    """Answers searches; one for a server, used by all its threads."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[Any, tuple, list[_Part]]] = {}
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Note that something was written: what is alive must be found anew."""
        with self._lock:
            self._parts.clear()

    def answer(self, collection: Collection, request: Any) -> Any | None:
        """Answer a request, while nobody writes to the collection.

        Parameters
        ----------
        collection : milvus_lite.engine.collection.Collection
        request : pymilvus.grpc_gen.milvus_pb2.SearchRequest

        Returns
        -------
        pymilvus.grpc_gen.milvus_pb2.SearchResults or None
            None where Milvus Lite should answer itself.
        """
        asked = _asked(request)
        if asked is None:
            return None
        queries, top_k, params = asked
        try:
            collection._require_loaded()
            parts = self._living(collection)
        except (MilvusLiteError, _Foreign):
            return None
        if any(part.vectors.shape[1] != queries.shape[1] for part in parts):
            return None  # Milvus Lite has the words for it
        found = [_nearest(part, queries, top_k, params) for part in parts]
        ids, scores = _merged(found, len(queries), top_k)
        return milvus_pb2.SearchResults(
            status=common_pb2.Status(),
            collection_name=request.collection_name,
            results=schema_pb2.SearchResultData(
                num_queries=len(queries),
                top_k=top_k,
                topks=[len(each) for each in ids],
                ids=schema_pb2.IDs(int_id=schema_pb2.LongArray(data=np.concatenate(ids))),
                scores=np.concatenate(scores),
                primary_field_name="id",
            ),
        )

    def _living(self, collection: Collection) -> list[_Part]:
        segments, deleted = collection._read_snapshot()
        with self._lock:
            known = self._parts.get(id(collection))
        # Compaction replaces segments without a request.
        if known and known[0] is collection and known[1] == segments:
            return known[2]
        parts = _parts(collection, segments, deleted)
        with self._lock:
            self._parts[id(collection)] = collection, segments, parts
        return parts


class _Foreign(Exception):
    """A collection that is not made of ids and one vector each."""


def _asked(request: Any) -> tuple[np.ndarray, int, dict] | None:
    """Queries, number of hits and index parameters of a plain search."""
    given = {pair.key: pair.value for pair in request.search_params}
    if (
        request.dsl
        or request.partition_names
        or list(request.output_fields) != ["id"]
        or set(given) - _MINE
        or given.get("anns_field") != "vector"
        or given.get("metric_type") != "COSINE"
    ):
        return None
    params = json.loads(given.get("params") or "{}")
    if set(params) - {"ef", "nprobe", "metric_type"}:
        return None
    group = common_pb2.PlaceholderGroup.FromString(request.placeholder_group)
    if len(group.placeholders) != 1 or group.placeholders[0].type != _FLOAT_VECTOR:
        return None
    values = group.placeholders[0].values
    if not values or len({len(value) for value in values}) != 1 or len(values[0]) % 4:
        return None
    queries = np.frombuffer(b"".join(values), "<f4").reshape(len(values), -1)
    return queries, int(given["topk"]), params


def _parts(collection: Collection, segments: tuple, deleted: Any) -> list[_Part]:
    memory = collection._memtable
    ids, seqs, vectors, _, _ = memory.to_search_snapshot(vector_field="vector")
    gone = memory.delete_index_snapshot()
    sources = [(s.pks, s.seqs, s.vectors, s) for s in segments if s.num_rows]
    if len(ids):
        sources.append((ids, seqs, vectors, None))
    columns = {field.name for field in collection.schema.fields}
    if columns != {"id", "vector"} or any(s.vector_null_mask is not None for s in segments):
        raise _Foreign
    if not sources:
        return []
    every = np.concatenate([np.asarray(ids, np.int64) for ids, *_ in sources])
    when = np.concatenate([np.asarray(seqs, np.uint64) for _, seqs, *_ in sources])
    # Of rows with the same id, the one written last counts.
    order = np.lexsort((when, every))
    alive = np.zeros(len(every), bool)
    alive[order[np.append(every[order[1:]] != every[order[:-1]], True)]] = True
    if len(deleted) or gone:
        for row in np.flatnonzero(alive).tolist():
            number, written = int(every[row]), int(when[row])
            later = gone.get(number)
            if deleted.is_deleted(number, written) or (later and later[0] > written):
                alive[row] = False
    parts, start = [], 0
    for ids, _, vectors, segment in sources:
        rows = slice(start, start + len(ids))
        mine, start = alive[rows], rows.stop
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        lengths[lengths == 0] = 1
        parts.append(_Part(every[rows], vectors, lengths, None if mine.all() else mine, segment))
    return parts


def _nearest(
    part: _Part, queries: np.ndarray, top_k: int, params: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 (q, k) and cosines float32 (q, k) of one part; -inf where there is none."""
    index = part.segment.indexes.get("vector") if part.segment is not None else None
    if index is None or isinstance(index, BruteForceIndex):
        return _exact(part, queries, top_k)
    rows, distances = index.search(queries, top_k, valid_mask=part.alive, params=params)
    scores = np.where(rows < 0, -np.inf, 1 - distances).astype(np.float32)
    return part.ids[rows], scores


def _exact(part: _Part, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    queries = queries / np.where(lengths == 0, 1, lengths)
    kept = min(top_k, len(part.ids))
    ids = np.empty((len(queries), kept), np.int64)
    scores = np.empty((len(queries), kept), np.float32)
    step = max(1, _AT_ONCE // len(part.ids))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        product = (part.vectors @ queries[rows].T).T / part.lengths
        if part.alive is not None:
            product[:, ~part.alive] = -np.inf
        best = np.argpartition(product, -kept, axis=1)[:, -kept:]
        ids[rows] = part.ids[best]
        scores[rows] = np.take_along_axis(product, best, axis=1)
    return ids, scores


def _merged(
    found: list[tuple[np.ndarray, np.ndarray]], queries: int, top_k: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Best of all parts for each query, best first."""
    if not found:
        return [np.empty(0, np.int64)] * queries, [np.empty(0, np.float32)] * queries
    ids = np.concatenate([ids for ids, _ in found], axis=1)
    scores = np.concatenate([scores for _, scores in found], axis=1)
    answer: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for mine, points in zip(ids, scores, strict=True):
        order = np.lexsort((mine, -points))[:top_k]
        order = order[points[order] > -np.inf]
        answer[0].append(mine[order])
        answer[1].append(points[order])
    return answer
