"""Both stores and the encoder of a collection as one object.

To add an image, the metadata store prepares its row, the vector store stores its vector,
and the metadata store commits the row; to delete one, the steps are taken in reverse. So
a ``ready`` row always has a vector, and what a crash leaves unfinished is found without a
scan. :meth:`Collection.recover`, with which every ingest starts, completes or undoes it.
"""

from __future__ import annotations

import json
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Self

import numpy as np

from imgsearch import config
from imgsearch.encoders import Encoder, load_encoder
from imgsearch.errors import (
    CollectionNotFound,
    EncoderMismatch,
    ImgSearchError,
    StoreError,
)
from imgsearch.images import ImageFile, ImageInfo
from imgsearch.io import absolute
from imgsearch.pipeline import Pipeline
from imgsearch.stores.metadata import CollectionRow, Counts, ImageRow, MetadataStore
from imgsearch.stores.vectors import IndexSpec, VectorStore

WITHOUT_VECTORS = (
    "run `repair`; delete the images that it cannot complete, because their files are gone too, "
    "with `Gallery.delete` or `ingest(prune=True)`"
)
"""What to do where images have no vector."""


class Collection:
    """Both stores and the encoder; :class:`imgsearch.gallery.Gallery` adds what users type."""

    row: CollectionRow

    def __init__(self, settings: config.Settings, options: Mapping[str, str], workers: int | None):
        self.settings, self._options, self._workers = settings, options, workers
        self.vectors = VectorStore(settings)
        self.metadata = MetadataStore.open(settings)
        self._encoder: Encoder | None = None
        self._pipeline: Pipeline | None = None
        self._loading = threading.RLock()
        self._connecting: threading.Thread | None = None
        self._vectors_created = False

    @classmethod
    def open(
        cls,
        collection: str | None = None,
        *,
        encoder: str | Path | Callable | Encoder | None = None,
        weights: str | Path | None = None,
        create: bool = False,
        index: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        backend: str | None = None,
        workers: int | None = None,
        settings: config.Settings | None = None,
    ) -> Self:
        """Open a collection, or create it.

        Parameters
        ----------
        collection : str, optional
            Its name; ``DEFAULT_TABLE`` if left out.
        encoder : str, Path, callable or Encoder, optional
            What :func:`load_encoder` takes: a name, an ONNX file, or a function of a list of
            pictures. If left out, an existing collection uses its own, and a new one takes
            ``IMGSEARCH_ENCODER``.
        weights : path, optional
            File with the encoder's weights.
        create : bool
            Create the collection if it does not exist.
        index : str, optional
            Index of a new collection, such as ``"HNSW:M=16,efConstruction=200"``;
            ``IMGSEARCH_INDEX`` if left out.
        device, precision, backend : str, optional
            How the encoder runs; the settings decide if left out.
        workers : int, optional
            Threads that decode images; the number of processors if left out.
        settings : Settings, optional
            Read from the environment if left out.

        Returns
        -------
        Gallery

        Raises
        ------
        CollectionNotFound
            It does not exist and `create` is False.
        EncoderMismatch
            It was made with another encoder than the one given. Where the names are the
            same, the weights are compared when :attr:`encoder` is first used.
        ConfigError
            A name, an index or a dimension that cannot be used.
        StoreError
            A store cannot be reached or read.
        """
        settings = settings or config.load_settings()
        name = config.collection_name(collection or settings.default_table)
        options = {"device": device, "precision": precision, "backend": backend}
        options = {name: value or "auto" for name, value in options.items()}
        opened = cls(settings, options, workers)
        try:
            try:
                row = opened.metadata.collection(name)
            except CollectionNotFound:
                if not create:
                    raise
                row, encoder = None, encoder or settings.imgsearch_encoder
            if row is not None and encoder == row.encoder and weights is None:
                encoder = None  # loaded and compared when it is needed
            if encoder is not None and not isinstance(encoder, Encoder):
                encoder = opened._load_encoder(encoder, weights)
            opened.row = row or opened._create(name, encoder, index or settings.imgsearch_index)
            if encoder is not None:
                _check_encoder(opened.row, encoder.name, encoder.fingerprint)
            opened._encoder = encoder
            return opened
        except BaseException:
            opened.close()
            raise

    def _create(self, name: str, encoder: Encoder, index: str) -> CollectionRow:
        self.metadata.create_collection(
            CollectionRow(
                name=name,
                encoder=encoder.name,
                identity=encoder.identity,
                fingerprint=encoder.fingerprint,
                dim=encoder.dim,
                index=str(IndexSpec.parse(index, embedded=self.settings.embedded_vectors)),
            )
        )
        # Another process may have created it in the meantime: what is stored counts.
        return self.metadata.collection(name)

    def _load_encoder(
        self, name: str | Path | Callable, weights: str | Path | None = None
    ) -> Encoder:
        # Who encodes uses the vectors next: connect to them while torch is imported.
        self._connecting = threading.Thread(target=self._connect, name="imgsearch-connect")
        self._connecting.daemon = True
        self._connecting.start()
        return load_encoder(name, weights=weights, settings=self.settings, **self._options)

    def _connect(self) -> None:
        with suppress(ImgSearchError):  # the next use of the store raises it again
            self.vectors.collections()

    @property
    def name(self) -> str:
        """Name of the collection."""
        return self.row.name

    @property
    def pictures(self) -> Path:
        """Folder of the pictures that were added without a file."""
        return self.settings.imgsearch_home / "pictures" / self.name

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the vectors, loaded when it is first used.

        Raises
        ------
        EncoderMismatch
            The encoder of this name is not the one that made the vectors.
        """
        with self._loading:
            if self._encoder is None:
                encoder = self._load_encoder(self.row.encoder)
                _check_encoder(self.row, encoder.name, encoder.fingerprint)
                self._encoder = encoder
            return self._encoder

    @property
    def pipeline(self) -> Pipeline:
        """The Towhee pipeline that embeds images and queries alike."""
        with self._loading:
            if self._pipeline is None:
                self._pipeline = Pipeline(self.encoder, workers=self._workers)
            return self._pipeline

    def exclusive(self) -> AbstractContextManager[None]:
        """Exclude other writers; while it is held, a crash left every ``pending`` row."""
        return self.metadata.exclusive(self.name)

    def ensure_vectors(self) -> None:
        """Create the collection in the vector store, or its index, where either is missing."""
        about = {key: getattr(self.row, key) for key in ("encoder", "identity", "fingerprint")}
        self.vectors.create(
            self.name, self.row.dim, IndexSpec.parse(self.row.index), description=json.dumps(about)
        )
        self._vectors_created = True

    def store(self, rows: Sequence[ImageRow], vectors: Mapping[int, np.ndarray]) -> list[ImageRow]:
        """Store images, one row for each path; return the rows that have a vector nowhere.

        Ids that are stored already need no vector. A crash at any moment neither loses nor
        duplicates an image.
        """
        ids = {row.image_id for row in rows}
        with self.exclusive():
            stored = self._lookup(ids, [row.path for row in rows])
            crcs = {row.image_id: row.vector_crc for row in stored if row.state == "ready"}
            new = {i: vectors[i] for i in (ids & vectors.keys()) - crcs.keys()}
            crcs |= {i: checksum(vector) for i, vector in new.items()}
            left = [row for row in rows if row.image_id not in crcs]
            rows = [row for row in rows if row.image_id in crcs]
            content = {row.path: row.image_id for row in rows}
            # The new rows overwrite these, so that a crash leaves no vector without a row.
            old = [row for row in stored if content.get(row.path, row.image_id) != row.image_id]
            self._hide(old, "replaced", keep=ids)
            self._prepare(rows, crcs)
            self._upsert(new)
            self.metadata.commit(self.row.id, content)
        return left

    def replace(self, vectors: Mapping[int, np.ndarray]) -> None:
        """Write the vectors of stored images again; ids that are not stored are passed over.

        The rows change after the vectors, so that a crash loses no image.
        """
        with self.exclusive():
            rows = [row for row in self._lookup(vectors, ()) if row.state == "ready"]
            self._upsert({row.image_id: vectors[row.image_id] for row in rows})
            crcs = {row.image_id: checksum(vectors[row.image_id]) for row in rows}
            self._prepare(rows, crcs)
            self.metadata.commit(self.row.id, [row.path for row in rows])

    def _prepare(self, rows: Iterable[ImageRow], crcs: Mapping[int, int]) -> None:
        rows = [row._replace(vector_crc=crcs[row.image_id]) for row in rows]
        self.metadata.prepare(self.row.id, rows)

    def _lookup(self, image_ids: Iterable[int], paths: Iterable[str]) -> list[ImageRow]:
        """Rows by id or path; refuses a collection that was dropped or created again."""
        now, rows = self.metadata.lookup(self.name, image_ids=image_ids, paths=paths)
        _check_encoder(now, self.row.encoder, self.row.fingerprint)
        if (now.id, now.created_at) != (self.row.id, self.row.created_at):
            reason = "was dropped and created again meanwhile: open it again"
            raise StoreError(self.metadata.where, f"collection {self.name!r} {reason}")
        return rows

    def _upsert(self, vectors: Mapping[int, np.ndarray]) -> None:
        if not vectors:
            return
        ids = np.array(sorted(vectors), np.int64)
        stacked = np.stack([vectors[i] for i in ids.tolist()])
        if not self._vectors_created:  # once: it costs more than the writing does
            self.ensure_vectors()
        try:
            self.vectors.upsert(self.name, ids, stacked)
        except CollectionNotFound:  # dropped by another process meanwhile
            self.ensure_vectors()
            self.vectors.upsert(self.name, ids, stacked)

    def delete(self, paths: Iterable[str | Path]) -> int:
        """Remove paths, and each vector with the last path of its content; return how many."""
        with self.exclusive():
            rows = self._lookup((), {str(absolute(path)) for path in paths})
            self._delete(rows)
        return len(rows)

    def _delete(self, rows: Sequence[ImageRow]) -> None:
        if rows:
            self._hide(rows, "deleting")
            self.metadata.remove(self.row.id, [row.path for row in rows])

    def _hide(self, rows: Sequence[ImageRow], state: str, keep: Iterable[int] = ()) -> None:
        """Hide rows in a state, and delete their vectors unless other rows need them."""
        if not rows:
            return
        self.metadata.hide(self.row.id, state, [row.path for row in rows])
        ids = {row.image_id for row in rows} - set(keep)
        needed = self.metadata.by_id(self.name, ids, states=("ready", "pending")) if ids else {}
        unneeded = sorted(ids - needed.keys())
        if unneeded and self.name in self.vectors.collections():
            self.vectors.delete(self.name, np.array(unneeded, np.int64))

    def recover(self) -> int:
        """Complete or undo what an interrupted process left; return the number of such rows."""
        with self.exclusive():
            rows = self.metadata.unfinished(self.name)
            self._delete([row for row in rows if row.state == "deleting"])
            pending = [row for row in rows if row.state == "pending"]
            intact = self.intact(pending)
            stored = [row.path for row in pending if row.image_id in intact]
            self.metadata.commit(self.row.id, stored)
            # The vectors of the others were never stored: the next ingest makes them.
            lost = [row for row in pending if row.image_id not in intact]
            lost += [row for row in rows if row.state == "replaced"]
            self._delete([row for row in lost if not row.attributes])
            if kept := [row for row in lost if row.attributes]:
                self._hide(kept, "replaced")
                self.metadata.hide(self.row.id, "lost", [row.path for row in kept])
            return len(rows)

    def intact(self, rows: Iterable[ImageRow]) -> set[int]:
        """Ids of the rows whose stored vector is the one that was written."""
        wanted = {row.image_id: row.vector_crc for row in rows}
        if not wanted or self.name not in self.vectors.collections():
            return set()
        ids, vectors = self.vectors.get(self.name, np.array(sorted(wanted), np.int64))
        return {int(i) for i, v in zip(ids, vectors, strict=True) if checksum(v) == wanted[int(i)]}

    def describe_encoder(self) -> dict:
        """Name, dimension and fingerprint of the encoder; once it is used, how it runs too.

        Returns
        -------
        dict
            As :meth:`imgsearch.encoders.Encoder.describe`; the encoder is not loaded for it.
        """
        encoder = self._pipeline.encoder if self._pipeline else self._encoder
        if encoder is not None:
            return encoder.describe()
        row = self.row
        return {"name": row.encoder, "dim": row.dim, "fingerprint": row.fingerprint}

    def count(self) -> Counts:
        """Count images and paths.

        Returns
        -------
        Counts
            Images by content, paths, and unfinished rows.
        """
        return self.metadata.count(self.name)

    def flush(self, *, wait: bool = True) -> None:
        """Write everything that was added to disk, and index it.

        Parameters
        ----------
        wait : bool
            Whether to wait for the index; until it is complete, searches are slower.
        """
        if self.name in self.vectors.collections():
            self.vectors.flush(self.name, wait=wait)

    def drop(self) -> None:
        """Delete the collection from both stores, with the pictures that have no other file.

        If a store fails, calling it again completes the work.
        """
        with self.exclusive():
            self.metadata.hide(self.name, "deleting")
            if self.name in self.vectors.collections():
                self.vectors.drop(self.name)
            self.metadata.drop_collection(self.name)
            shutil.rmtree(self.pictures, ignore_errors=True)

    def close(self) -> None:
        """Disconnect from both stores."""
        if self._connecting is not None:
            self._connecting.join()
        self.vectors.close()
        self.metadata.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_encoder(row: CollectionRow, name: str, fingerprint: str) -> None:
    if fingerprint != row.fingerprint:
        stored = f"{row.encoder} ({row.fingerprint})"
        raise EncoderMismatch(row.name, stored, f"{name} ({fingerprint})")


def new_row(file: ImageFile, info: ImageInfo) -> ImageRow:
    """Row of a file that was read, for :meth:`Collection.store`.

    Size and time are those of the listing: a change since then shows at the next ingest.
    """
    values = {"path": str(file.path), "size": file.size, "mtime_ns": file.mtime_ns}
    return ImageRow(**info._asdict() | values)


def checksum(vector: np.ndarray) -> int:
    """CRC-32 of a vector, kept with its row so that a changed vector is noticed."""
    return zlib.crc32(np.ascontiguousarray(vector, dtype="<f4").tobytes())
