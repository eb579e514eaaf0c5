"""The searchable set: vectors and metadata as one.

Metadata announces, vectors follow, metadata confirms; deletion goes the other
way. So a ``ready`` row always has a vector, and whatever a crash leaves half
done is known without a scan and made whole by :meth:`Gallery.recover`, with
which every ingest begins.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imgsearch import config
from imgsearch.encoders.base import Encoder, load_encoder
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    EncoderMismatch,
    ImageError,
    ImageNotFound,
    ImgSearchError,
    StoreDamaged,
    StoreError,
)
from imgsearch.images import Box, ImageFile, ImageInfo, Source
from imgsearch.pipeline import Pipeline
from imgsearch.stores.metadata import CollectionRow, Counts, ImageRow, MetadataStore
from imgsearch.stores.vectors import MAX_TOP_K, IndexSpec, VectorStore


class Hit(NamedTuple):
    """One result.

    Attributes
    ----------
    rank : int
        From 1, best first.
    score : float
        Cosine similarity with the query, from -1 to 1.
    image_id : int
        Identity of the content, 63 bit.
    path : str
        First path, in byte order, under which the content is known.
    paths : tuple of str
        All of them.
    width, height : int
        Size of the upright picture, pixels.
    """

    rank: int
    score: float
    image_id: int
    path: str
    paths: tuple[str, ...]
    width: int
    height: int


@dataclass(frozen=True)
class Hits(Sequence):
    """Results of one search, best first.

    Attributes
    ----------
    hits : tuple of Hit
        Best first; equal scores are in the order of ``image_id``.
    collection, index_spec : str
        What was searched, and through which index.
    encoder : dict
        What made the vectors: name, dimension and fingerprint, and where it
        ran if the query was encoded for this search.
    seconds : dict of str to float
        Where the time went: ``encode``, ``vectors``, ``metadata``, ``total``.
    """

    hits: tuple[Hit, ...]
    collection: str
    index_spec: str
    encoder: dict
    seconds: dict[str, float]

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, item):
        return self.hits[item]

    def to_dict(self) -> dict:
        """Everything as plain values for JSON.

        Returns
        -------
        dict
            Ids are strings, since JavaScript loses 63-bit integers.
        """
        return {
            "collection": self.collection,
            "index": self.index_spec,
            "encoder": self.encoder,
            "seconds": self.seconds,
            "hits": [
                {**hit._asdict(), "image_id": str(hit.image_id), "paths": list(hit.paths)}
                for hit in self.hits
            ],
        }


class Gallery:
    """A collection, opened by :meth:`open`; a context manager.

    Attributes
    ----------
    row : CollectionRow
        Name, encoder, identity and fingerprint, dimension, index, age.
    metadata : MetadataStore
        Paths and facts.
    settings : Settings
        What it was opened with.
    """

    def __init__(
        self,
        row: CollectionRow,
        metadata: MetadataStore,
        settings: config.Settings,
        encoder: Encoder | None = None,
        how: Mapping[str, str] | None = None,
    ):
        self.row, self.metadata, self.settings = row, metadata, settings
        self._how = dict(how or {})
        self._ensured = self._closed = False
        self._vectors: VectorStore | None = None
        self._opening = threading.Lock()
        if encoder is not None:
            self.encoder = encoder

    @classmethod
    def open(
        cls,
        collection: str | None = None,
        *,
        encoder: str | Encoder | None = None,
        weights: str | Path | None = None,
        create: bool = False,
        index: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
        settings: config.Settings | None = None,
    ) -> Gallery:
        """Open a collection, or make it.

        Parameters
        ----------
        collection : str, optional
            Its name; ``DEFAULT_TABLE`` if left out.
        encoder : str or Encoder, optional
            Left out, a collection that is there brings its own, and a new one
            takes ``IMGSEARCH_ENCODER``.
        weights : path, optional
            File with the encoder's weights.
        create : bool
            Make the collection if it is not there.
        index : str, optional
            Index of a new collection, as ``"HNSW:M=16,efConstruction=200"``;
            ``IMGSEARCH_INDEX`` if left out.
        device, precision, backend : str, optional
            How the encoder runs; the settings decide if left out.
        settings : Settings, optional
            Read from the environment if left out.

        Returns
        -------
        Gallery

        Raises
        ------
        CollectionNotFound
            It is not there and `create` is False.
        EncoderMismatch
            It was made with another encoder than the one that was named.
        ConfigError
            A name, an index or a dimension that cannot be used.
        StoreError
            A store cannot be reached or read.
        """
        settings = settings or config.load_settings()
        name = config.collection_name(collection or settings.default_table)
        how = {
            "device": device or "auto",
            "precision": precision or "auto",
            "backend": backend or "auto",
        }
        metadata = MetadataStore.open(settings)
        try:
            try:
                row = metadata.collection(name)
            except CollectionNotFound:
                if not create:
                    raise
                row = None
            given = encoder
            if isinstance(encoder, str) or (row is None and encoder is None):
                given = load_encoder(
                    encoder or settings.imgsearch_encoder, weights=weights, settings=settings, **how
                )
            if row is None:
                row = cls._create(
                    name, given, index or settings.imgsearch_index, metadata, settings
                )
            if given is not None and given.fingerprint != row.fingerprint:
                raise EncoderMismatch(
                    name,
                    f"{row.encoder} ({row.fingerprint})",
                    f"{given.name} ({given.fingerprint})",
                )
            return cls(row, metadata, settings, given, how)
        except BaseException:
            metadata.close()
            raise

    @staticmethod
    def _create(
        name: str, encoder: Encoder, index: str, metadata: MetadataStore, settings: config.Settings
    ) -> CollectionRow:
        row = CollectionRow(
            name=name,
            encoder=encoder.name,
            identity=encoder.identity,
            fingerprint=encoder.fingerprint,
            dim=encoder.dim,
            index=str(IndexSpec.parse(index)),
            created_at=datetime.now(UTC),
        )
        metadata.create_collection(row)
        # Another process may have made it in the meantime: what is stored counts.
        return metadata.collection(name)

    @property
    def name(self) -> str:
        """Name of the collection."""
        return self.row.name

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that made the vectors, loaded when first asked for.

        Raises
        ------
        EncoderMismatch
            What the stored name loads now is not what made the vectors.
        """
        # Whoever encodes goes to the vectors next: their server starts while torch is imported.
        threading.Thread(target=self._open_ahead, name="imgsearch-open", daemon=True).start()
        encoder = load_encoder(self.row.encoder, settings=self.settings, **self._how)
        if encoder.fingerprint != self.row.fingerprint:
            raise EncoderMismatch(
                self.name,
                f"{self.row.encoder} ({self.row.fingerprint})",
                f"{encoder.name} ({encoder.fingerprint})",
            )
        return encoder

    @cached_property
    def pipeline(self) -> Pipeline:
        """The Towhee pipeline that embeds gallery and queries alike."""
        return Pipeline(self.encoder)

    @property
    def vectors(self) -> VectorStore:
        """The vector store, opened when first asked for."""
        with self._opening:
            if self._vectors is None:
                self._vectors = VectorStore.open(self.settings)
            return self._vectors

    def _open_ahead(self) -> None:
        with self._opening:
            if self._vectors is None and not self._closed:
                with suppress(ImgSearchError):  # whoever needs the store meets the error again
                    self._vectors = VectorStore.open(self.settings)

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the collection for one writing step, against every other process.

        Announce, upsert and confirm happen under it as a unit: any row that is
        ``pending`` while it is held was left by a crash. Re-entrant in a thread.

        Returns
        -------
        context manager
        """
        return self.metadata.exclusive(self.name)

    def ensure_vectors(self) -> None:
        """Make the collection in the vector store, where it is not there or has no index.

        It says there which encoder it belongs to, for `repair`.

        Raises
        ------
        StoreDamaged
            It is there, and cannot be used.
        StoreError
            It is there with vectors of another length, or the store failed.
        """
        about = {
            "encoder": self.row.encoder,
            "identity": self.row.identity,
            "fingerprint": self.row.fingerprint,
        }
        self.vectors.create(
            self.name, self.row.dim, IndexSpec.parse(self.row.index), description=json.dumps(about)
        )
        self._ensured = True

    def add(self, rows: Sequence[ImageRow], vectors: Mapping[int, np.ndarray]) -> list[ImageRow]:
        """Store images, so that a crash at any moment loses and doubles nothing.

        Parameters
        ----------
        rows : sequence of ImageRow
            One for each path; a path that is known is replaced.
        vectors : mapping of int to numpy.ndarray
            By image_id: float32, shape ``(dim,)``, L2-normalised. May lack ids
            that the collection holds already.

        Returns
        -------
        list of ImageRow
            Rows that were not stored, since neither `vectors` nor the collection
            has a vector for them.

        Raises
        ------
        CollectionNotFound
            The collection was dropped in the meantime.
        StoreError
            A store failed; what was stored before stays.
        """
        with self.exclusive():
            self._still_mine()
            ids = {row.image_id for row in rows}
            stored = {
                i: known[0].vector_crc for i, known in self.metadata.by_id(self.name, ids).items()
            }
            left = [row for row in rows if row.image_id not in vectors.keys() | stored.keys()]
            rows = [row for row in rows if row.image_id in vectors.keys() | stored.keys()]
            old = self.metadata.by_path(self.name, [row.path for row in rows])
            self._delete(
                [r.path for r in rows if r.path in old and old[r.path].image_id != r.image_id]
            )
            new = {i: vectors[i] for i in (ids & vectors.keys()) - stored.keys()}
            self._prepare_rows(rows, new, stored)
            self._upsert(new)
            self.metadata.commit(self.name, [row.path for row in rows])
        return left

    def replace(self, rows: Sequence[ImageRow], vectors: Mapping[int, np.ndarray]) -> None:
        """Write the vectors of stored images anew.

        The rows stay as they are until the vectors are there, so that a crash leaves
        images that :func:`imgsearch.maintenance.verify` still names, and loses none.

        Parameters
        ----------
        rows : sequence of ImageRow
            All rows of the images; those that were deleted meanwhile are passed over.
        vectors : mapping of int to numpy.ndarray
            By image_id: float32, shape ``(dim,)``, L2-normalised.

        Raises
        ------
        StoreError
            A store failed.
        """
        with self.exclusive():
            self._still_mine()
            now = self.metadata.by_path(self.name, [row.path for row in rows])
            rows = [r for r in rows if r.path in now and now[r.path].image_id == r.image_id]
            self._upsert({row.image_id: vectors[row.image_id] for row in rows})
            self._prepare_rows(rows, vectors, {})
            self.metadata.commit(self.name, [row.path for row in rows])

    def _prepare_rows(
        self, rows: Sequence[ImageRow], vectors: Mapping[int, np.ndarray], crcs: Mapping[int, int]
    ) -> None:
        """Announce rows with their checksums. `crcs` are of vectors that are stored already."""
        crcs = {i: checksum(vector) for i, vector in vectors.items()} | crcs
        self.metadata.prepare(
            self.name, [row._replace(vector_crc=crcs[row.image_id]) for row in rows]
        )

    def _upsert(self, vectors: Mapping[int, np.ndarray]) -> None:
        if vectors:
            ids = sorted(vectors)
            stacked = np.stack([vectors[i] for i in ids])
            if not self._ensured:  # once: it costs more than the writing does
                self.ensure_vectors()
            try:
                self.vectors.upsert(self.name, np.array(ids, np.int64), stacked)
            except CollectionNotFound:  # dropped by another process meanwhile
                self.ensure_vectors()
                self.vectors.upsert(self.name, np.array(ids, np.int64), stacked)

    def _still_mine(self) -> None:
        """Refuse to write into a collection that was dropped or made anew meanwhile."""
        now = self.metadata.collection(self.name)
        if now.created_at != self.row.created_at and now.fingerprint == self.row.fingerprint:
            raise StoreError(
                self.metadata.where,
                f"collection {self.name!r} was dropped and made anew meanwhile: open it again",
            )
        if now.fingerprint != self.row.fingerprint:
            raise EncoderMismatch(
                self.name,
                f"{now.encoder} ({now.fingerprint})",
                f"{self.row.encoder} ({self.row.fingerprint})",
            )

    def delete(self, paths: Iterable[str | Path]) -> int:
        """Take paths out of the collection; the files themselves are left alone.

        A vector goes with the last path of its content.

        Parameters
        ----------
        paths : iterable of path
            Unknown ones are passed over.

        Returns
        -------
        int
            How many paths were taken out.

        Raises
        ------
        StoreError
            A store failed; doing it again finishes the work.
        """
        with self.exclusive():
            known = self.metadata.by_path(self.name, [str(path) for path in paths])
            self._delete(list(known))
            return len(known)

    def _delete(self, paths: Sequence[str]) -> None:
        if not paths:
            return
        ids = {row.image_id for row in self.metadata.by_path(self.name, paths).values()}
        self.metadata.mark_deleting(self.name, paths)
        self._delete_vectors(ids)
        self.metadata.remove(self.name, paths)

    def _delete_vectors(self, ids: Collection[int]) -> None:
        """Delete the vectors of those ids that no row needs any more."""
        needed = self.metadata.by_id(self.name, ids, states=("ready", "pending"))
        unneeded = sorted(set(ids) - needed.keys())
        if unneeded and self.name in self.vectors.collections():
            self.vectors.delete(self.name, np.array(unneeded, np.int64))

    def recover(self) -> int:
        """Finish or withdraw what an interrupted process left half done.

        Returns
        -------
        int
            How many rows were half done.

        Raises
        ------
        StoreError
            A store failed; doing it again finishes the work.
        """
        with self.exclusive():
            rows = self.metadata.unfinished(self.name)
            self._delete([row.path for row in rows if row.state == "deleting"])
            pending = [row for row in rows if row.state == "pending"]
            if pending:
                intact = self.intact(pending)
                whole = [row.path for row in pending if row.image_id in intact]
                self.metadata.commit(self.name, whole)
                # The others' vectors never came: the next ingest of their folder makes them.
                self._delete([row.path for row in pending if row.image_id not in intact])
            return len(rows)

    def intact(self, rows: Iterable[ImageRow]) -> set[int]:
        """Ids of the rows whose stored vector is the one that was written.

        Parameters
        ----------
        rows : iterable of ImageRow
            Rows of this collection.

        Returns
        -------
        set of int

        Raises
        ------
        StoreError
            The vectors cannot be read.
        """
        wanted = {row.image_id: row.vector_crc for row in rows}
        if not wanted or self.name not in self.vectors.collections():
            return set()
        ids, vectors = self.vectors.get(self.name, np.array(sorted(wanted), np.int64))
        return {int(i) for i, v in zip(ids, vectors, strict=True) if checksum(v) == wanted[int(i)]}

    def search(
        self,
        query: Source | ImageRow,
        top_k: int = 10,
        *,
        box: Box | None = None,
        exclude: Collection[int] = (),
        search_params: Mapping[str, int] | None = None,
    ) -> Hits:
        """Find the images most similar to a query.

        Parameters
        ----------
        query : path, bytes, PIL.Image.Image, numpy.ndarray or ImageRow
            A picture; or a vector, float32 of shape ``(dim,)``; or a stored
            image, as :meth:`get` returns it, whose vector is then used.
        top_k : int
            How many hits at most.
        box : tuple of int, optional
            Left, upper, right, lower in pixels of the upright picture: search
            with this part of it.
        exclude : collection of int
            Ids that must not be among the hits, such as the query's own.
        search_params : mapping, optional
            Parameters of the index for this search, such as ``{"ef": 64}``.

        Returns
        -------
        Hits
            Best first; fewer than `top_k` only where the collection has no more.

        Raises
        ------
        ImageError
            The query is no readable picture.
        ConfigError
            `top_k` is below 1, or a vector has another dimension.
        StoreError
            A store failed.
        """
        if top_k < 1:
            raise ConfigError("top_k", f"is {top_k}; ask for at least 1")
        start = time.perf_counter()
        vector, encoder = self._embed(query, box)
        encoded = time.perf_counter()
        lost, hits, spent = set(exclude), [], 0.0
        # Rows that are not ready hide their vectors: ask for more until there are enough.
        wanted = top_k + len(lost)
        while True:
            ids, scores = self._search_vectors(vector, wanted, search_params)
            before = time.perf_counter()
            rows = self.metadata.by_id(self.name, set(map(int, ids)) - lost)
            spent += time.perf_counter() - before
            found = [(int(i), float(s)) for i, s in zip(ids, scores, strict=True) if int(i) in rows]
            if len(found) >= top_k or len(ids) < wanted or wanted >= MAX_TOP_K:
                break
            wanted = min(2 * wanted, MAX_TOP_K)
        for rank, (image_id, score) in enumerate(found[:top_k], 1):
            known = rows[image_id]
            paths = tuple(row.path for row in known)
            hits.append(
                Hit(rank, score, image_id, paths[0], paths, known[0].width, known[0].height)
            )
        end = time.perf_counter()
        seconds = {
            "encode": encoded - start,
            "vectors": end - encoded - spent,
            "metadata": spent,
            "total": end - start,
        }
        return Hits(tuple(hits), self.name, self.row.index, encoder, seconds)

    def _embed(self, query: Source | ImageRow, box: Box | None) -> tuple[np.ndarray, dict]:
        about = {
            "name": self.row.encoder,
            "dim": self.row.dim,
            "fingerprint": self.row.fingerprint,
        }
        if isinstance(query, ImageRow) and box is None:
            ids, vectors = self.vectors.get(self.name, np.array([query.image_id], np.int64))
            if not len(ids):
                raise StoreDamaged(
                    self.vectors.where,
                    f"the vector of {query.path} is missing from {self.name!r}; run repair",
                )
            return vectors[0], about
        if isinstance(query, ImageRow):
            query = query.path
        if isinstance(query, np.ndarray) and query.ndim == 1:
            if query.shape != (self.row.dim,) or box is not None:
                raise ConfigError(
                    "query", f"a vector must have shape ({self.row.dim},) and goes without a box"
                )
            return query.astype(np.float32), about
        result = self.pipeline([query], box=box)[0]
        if isinstance(result, ImageError):
            raise result
        return result.vector, self.encoder.describe()

    def _search_vectors(
        self, vector: np.ndarray, top_k: int, params: Mapping[str, int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self.vectors.search(self.name, vector[None], top_k, search_params=params)[0]
        except CollectionNotFound:
            if self.metadata.count(self.name).images:
                raise StoreDamaged(
                    self.vectors.where,
                    f"the vectors of collection {self.name!r} are gone; run repair",
                ) from None
            return np.empty(0, np.int64), np.empty(0, np.float32)

    def get(self, wanted: int | str | Path) -> ImageRow:
        """Facts of one stored image.

        Parameters
        ----------
        wanted : int, str or path
            Its image_id, or a path of it.

        Returns
        -------
        ImageRow
            Of its first path, in byte order, if asked by id.

        Raises
        ------
        ImageNotFound
            The collection does not hold it, or not yet.
        """
        if isinstance(wanted, int):
            rows = self.metadata.by_id(self.name, [wanted]).get(wanted, [])
        else:
            row = self.metadata.by_path(self.name, [str(wanted)]).get(str(wanted))
            rows = [row] if row is not None and row.state == "ready" else []
        if not rows:
            raise ImageNotFound(self.name, wanted)
        return rows[0]

    def embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """Every ready image's vector.

        Returns
        -------
        image_ids : numpy.ndarray
            int64, shape ``(n,)``, ascending.
        vectors : numpy.ndarray
            float32, shape ``(n, dim)``, L2-normalised.

        Raises
        ------
        StoreDamaged
            A ready image has no vector.
        """
        ids = self.metadata.ids(self.name)
        if not len(ids):
            return ids, np.empty((0, self.row.dim), np.float32)
        found, vectors = self.vectors.get(self.name, ids)
        if len(found) != len(ids):
            raise StoreDamaged(
                self.vectors.where,
                f"{len(ids) - len(found)} images of {self.name!r} have no vector; run repair",
            )
        return ids, vectors

    def count(self) -> Counts:
        """How much the collection holds.

        Returns
        -------
        Counts
            Images by content, paths, and rows half done.
        """
        return self.metadata.count(self.name)

    def flush(self, *, wait: bool = True) -> None:
        """Make everything that was added durable and indexed.

        Parameters
        ----------
        wait : bool
            Whether to wait for the index; until it is there, searches are slower.

        Raises
        ------
        StoreError
            The vector store failed.
        """
        if self.name in self.vectors.collections():
            self.vectors.flush(self.name, wait=wait)

    def drop(self) -> None:
        """Delete the collection from both stores; image files are left alone.

        Raises
        ------
        StoreError
            A store failed; doing it again finishes the work.
        """
        with self.exclusive():
            self.metadata.mark_deleting(self.name)
            if self.name in self.vectors.collections():
                self.vectors.drop(self.name)
            self.metadata.drop_collection(self.name)

    def close(self) -> None:
        """Leave both stores."""
        self._closed = True
        with self._opening:
            if self._vectors is not None:
                self._vectors.close()
        self.metadata.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_row(file: ImageFile, facts: ImageInfo) -> ImageRow:
    """Row of a file that was read.

    Parameters
    ----------
    file : ImageFile
        As it was listed: a change since then shows at the next ingest.
    facts : ImageInfo
        What was read.

    Returns
    -------
    ImageRow
        Not stored yet; :meth:`Gallery.add` does that.
    """
    return ImageRow(
        path=str(file.path),
        image_id=facts.image_id,
        sha256=facts.sha256,
        size=file.size,
        width=facts.width,
        height=facts.height,
        format=facts.format,
        mtime_ns=file.mtime_ns,
        state="pending",
        added_at=datetime.now(UTC),
        vector_crc=0,
    )


def checksum(vector: np.ndarray) -> int:
    """CRC-32 of a vector, kept with its row so that a changed vector is noticed.

    Parameters
    ----------
    vector : numpy.ndarray
        float32, shape ``(dim,)``.

    Returns
    -------
    int
        From 0 to 2**32 - 1.
    """
    return zlib.crc32(np.ascontiguousarray(vector, dtype="<f4").tobytes())
