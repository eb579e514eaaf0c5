"""What Milvus Lite is made to keep to in the server of an embedded home.

Milvus Lite goes on after a write that failed half way, and so loses rows that it
acknowledges afterwards: its log is replayed up to the first torn record only, and
the next flush that succeeds deletes the log of one that failed. It writes an index
in place and reads it back unchecked: what a kill or a full disk leaves of one
cannot be opened any more, and a flipped bit spoils searches while every vector
that is read back looks sound.

So the server ends at the first write that fails, and what it acknowledged is
replayed by the next one. Indexes appear whole or not at all, carry a checksum of
themselves and of the vectors they were made of, and are built again where it does
not match. And of their HNSW graphs every vector can be found: see :func:`connect`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_MARK = b"imgsearch"  # before the four bytes of the checksum, at the end of an index file
_TAIL = len(_MARK) + 4
_BLOCK = 1 << 20
_DRAFT = ".draft"  # of an index that is being written

_log = logging.getLogger(__name__)


def harden(failed: Callable[[BaseException], None]) -> None:
    """Change the Milvus Lite of this process, which must serve nothing but one home.

    Parameters
    ----------
    failed : callable
        Is called, in the thread that writes, when the log, a segment or the
        manifest could not be written; nothing may be acknowledged after that.
    """
    from milvus_lite.engine.collection import Collection
    from milvus_lite.engine.compaction import CompactionManager
    from milvus_lite.storage.segment import Segment
    from milvus_lite.storage.wal import WAL

    mine = threading.local()

    def begins(write: Callable[..., Any]) -> Any:
        @functools.wraps(write)
        def noted(*args: object, **kwargs: object) -> Any:
            mine.begun = True
            return write(*args, **kwargs)

        return noted

    def telling(work: Callable[..., Any], begun: bool) -> Any:
        @functools.wraps(work)
        def told(*args: object, **kwargs: object) -> Any:
            mine.begun = begun
            try:
                return work(*args, **kwargs)
            except BaseException as error:
                if mine.begun:
                    failed(error)
                raise

        return told

    # What is refused before it reaches the log harms nothing.
    for name in ("write_insert", "write_delete"):
        setattr(WAL, name, begins(getattr(WAL, name)))
    for owner, name, begun in (
        (Collection, "insert", False),
        (Collection, "delete", False),
        (Collection, "flush", True),
        (Collection, "close", True),
        (CompactionManager, "maybe_compact", True),
    ):
        setattr(owner, name, telling(getattr(owner, name), begun))
    Segment.build_or_load_index = _build_or_load_index


def remove_drafts(store: Path) -> None:
    """Remove what a process that died left of indexes it was writing.

    Parameters
    ----------
    store : Path
        Folder of the store, which no server has open.
    """
    for draft in store.rglob(f"*{_DRAFT}"):
        draft.unlink(missing_ok=True)


def _build_or_load_index(segment: Any, spec: Any, index_dir: str) -> None:
    """Attach the index of a segment: the one on disk if it is sound, else a new one."""
    from milvus_lite.index.factory import load_index_from_spec

    name = spec.field_name
    if name in segment.indexes or segment.num_rows == 0:
        return
    path = Path(segment.index_file_path(index_dir, spec.index_type, name))
    vectors, _ = segment.vector_data(name)
    index = None
    if _sound(path, vectors):
        try:
            index = load_index_from_spec(spec, str(path), vectors.shape[1])
        except Exception:  # FAISS raises bare RuntimeErrors
            _log.exception("cannot read %s", path)
    if index is None:
        if path.exists():
            _log.warning("%s is damaged: building it again", path)
        index = _built(spec, vectors)
        try:
            _save(index, path, vectors)
        except Exception:  # it serves from memory as well; the next server builds it again
            _log.exception("cannot write %s", path)
    segment.attach_index(index, field_name=name)


def _built(spec: Any, vectors: np.ndarray) -> Any:
    from milvus_lite.index.factory import build_index_from_spec

    if (spec.index_type, spec.metric_type) != ("HNSW", "COSINE"):
        return build_index_from_spec(spec, vectors)
    import faiss
    from milvus_lite.index.faiss_hnsw import FaissHnswIndex

    # Built here as there, because an index does not hand out its graph.
    count, dim = vectors.shape
    params = {"M": 16, "efConstruction": 200} | dict(spec.build_params)
    graph = faiss.IndexHNSWFlat(dim, int(params["M"]), faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = int(params["efConstruction"])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    graph.add(vectors / np.where(lengths == 0, 1, lengths))
    connect(graph, vectors)
    return FaissHnswIndex(graph, spec.metric_type, count, dim)


def connect(graph: Any, vectors: np.ndarray) -> int:
    """Lead a way to every vector of an HNSW graph.

    Where too many vectors are neighbours, building prunes edges, now and then the last
    one that leads to a vector: no search finds it after that, whatever its ``ef``. Such
    a vector becomes a neighbour of the most similar one that has room for it.

    Parameters
    ----------
    graph : faiss.IndexHNSW
        Is changed.
    vectors : ndarray of float32, shape (n, dim)
        What it was built of.

    Returns
    -------
    int
        How many vectors could not be reached.
    """
    import faiss

    hnsw = graph.hnsw
    if not graph.ntotal:
        return 0
    width = hnsw.nb_neighbors(0)
    edges = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    # Edges of the lowest layer, which holds all vectors; free places, at the end, are -1.
    starts = faiss.vector_to_array(hnsw.offsets)[:-1].astype(np.int64)
    reached = np.zeros(graph.ntotal, bool)
    _follow(edges, starts, width, hnsw.entry_point, reached)
    lost = np.flatnonzero(~reached)
    lengths = np.linalg.norm(vectors, axis=1) if len(lost) else ()
    for row in lost:
        if reached[row]:  # through another one that was lost
            continue
        roomy = reached & (edges[starts + width - 1] < 0)
        if not roomy.any():
            break
        best = np.argmax(np.where(roomy, vectors @ vectors[row] / lengths, -np.inf))
        place = starts[best] + np.argmax(edges[starts[best] : starts[best] + width] < 0)
        edges[place] = row
        _follow(edges, starts, width, row, reached)
    return len(lost)


def _follow(
    edges: np.ndarray, starts: np.ndarray, width: int, row: int, reached: np.ndarray
) -> None:
    """Mark in `reached` a row, and whatever edges lead to from there."""
    front = np.array([row])
    while len(front):
        reached[front] = True
        near = edges[starts[front][:, None] + np.arange(width)]
        near = np.unique(near[near >= 0])
        front = near[~reached[near]]


def _save(index: Any, path: Path, vectors: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.urandom(4).hex()}{_DRAFT}")
    try:
        index.save(str(draft))
        check = _checksum(draft, draft.stat().st_size, vectors)
        with draft.open("ab") as file:
            file.write(_MARK + check.to_bytes(4))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()


def _sound(path: Path, vectors: np.ndarray) -> bool:
    try:
        size = path.stat().st_size - _TAIL
        if size < 0:
            return False
        with path.open("rb") as file:
            file.seek(size)
            tail = file.read()
        return tail == _MARK + _checksum(path, size, vectors).to_bytes(4)
    except OSError:
        return False


def _checksum(path: Path, size: int, vectors: np.ndarray) -> int:
    """CRC-32 of the vectors and the first `size` bytes of a file."""
    check = zlib.crc32(np.ascontiguousarray(vectors))
    with path.open("rb") as file:
        while size and (block := file.read(min(size, _BLOCK))):
            check = zlib.crc32(block, check)
            size -= len(block)
    return check
