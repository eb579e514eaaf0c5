"""Summarize and delete collections, including those that exist in only one of the two stores."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from imgsearch import config
from imgsearch.errors import CollectionNotFound, StoreError, printable
from imgsearch.gallery import Gallery
from imgsearch.stores import embedded
from imgsearch.stores.metadata import CollectionRow, MetadataStore, RunRow
from imgsearch.stores.vectors import VectorStore


@dataclass(frozen=True)
class Overview:
    """Summary of one collection, as returned by :func:`overview`.

    Attributes
    ----------
    name, encoder, fingerprint, index : str
        The collection, the encoder of its vectors, and their index.
    dim : int
        Dimension of the vectors.
    images, paths, unfinished : int
        Number of images, files and unfinished rows in the metadata store.
    vectors : int or None
        Number of vectors in the vector store; None if they cannot be counted. A server may
        include deleted vectors until it has compacted the collection.
    problem : str
        What is wrong and what to do about it; empty if there is no problem.
    size : int or None
        Size of the vectors on disk in bytes; None if they are on a server.
    created_at : datetime or None
        UTC; None if the collection is missing in the metadata store.
    last_run : RunRow or None
        The latest ingest.
    """

    name: str
    encoder: str = ""
    fingerprint: str = ""
    index: str = ""
    dim: int = 0
    images: int = 0
    paths: int = 0
    unfinished: int = 0
    vectors: int | None = None
    problem: str = ""
    size: int | None = None
    created_at: datetime | None = None
    last_run: RunRow | None = None

    def to_dict(self) -> dict:
        """Convert to plain values for JSON; times are in ISO 8601, UTC."""
        run = self.last_run
        return asdict(self) | {
            "created_at": self.created_at and self.created_at.isoformat(),
            "last_run": None if run is None else run_to_dict(run),
        }


def run_to_dict(run: RunRow) -> dict:
    """Convert an ingest run to plain values for JSON; times are in ISO 8601, UTC."""
    times = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in run._asdict().items()
    }
    return times | {"folder": printable(run.folder)}


def overview(settings: config.Settings | None = None) -> list[Overview]:
    """Summarize every collection of imgsearch in both stores.

    Nothing is changed, and no collection is loaded into the memory of a server.
    Collections of other programs are not listed.

    Parameters
    ----------
    settings : Settings, optional
        By default read from the environment.

    Returns
    -------
    list of Overview
        Sorted by name. Includes collections that exist only in the vector store, which
        :func:`~imgsearch.maintenance.repair` restores, and those of interrupted sweeps.

    Raises
    ------
    StoreError
        The metadata store cannot be read. A failure of the vector store is not raised, but
        is the `problem` of each collection.
    """
    settings = settings or config.load_settings()
    unreachable, found = "", {}
    with MetadataStore.open(settings) as metadata:
        rows = {row.name: row for row in metadata.collections()}
        try:
            with VectorStore.open(settings) as store:
                for name in store.collections():
                    with contextlib.suppress(CollectionNotFound):  # dropped in the meantime
                        ours = settings.embedded_vectors or name in rows
                        if ours or _is_ours(store, name):
                            found[name] = _stored(store, name, name in rows)
        except StoreError as error:
            unreachable, found = str(error), {}
        for name, row in rows.items():
            without = Overview(name, vectors=None if unreachable else 0, problem=unreachable)
            try:
                found[name] = _complete(found.get(name, without), row, metadata, settings)
            except CollectionNotFound:  # dropped in the meantime
                found.pop(name, None)
    return [replace(found[name], size=_size(name, settings)) for name in sorted(found)]


def _is_ours(store: VectorStore, name: str) -> bool:
    """Whether imgsearch created a collection that exists only in the vector store."""
    try:
        return store.about(name) is not None
    except StoreError:
        return False


def _stored(store: VectorStore, name: str, known: bool) -> Overview:
    """Summarize what the vector store knows about a collection."""
    try:
        about, vectors, problem = store.about(name) or {}, store.stored_rows(name), ""
    except StoreError as error:
        return Overview(name, problem=str(error))
    if "sweep" in about:
        problem = f"temporary collection of an {about['sweep']}: drop it"
    elif not known:
        problem = "missing in the metadata store: `repair` restores it"
    return Overview(name, vectors=vectors, problem=problem)


def _complete(
    one: Overview, row: CollectionRow, metadata: MetadataStore, settings: config.Settings
) -> Overview:
    """Add what the metadata store knows about a collection, and compare the two stores."""
    stored, runs = metadata.count(row.name), metadata.runs(row.name, limit=1)
    unfinished, problem = stored.pending + stored.deleting, one.problem
    if unfinished and not problem:
        problem = (
            f"{counted(unfinished, 'image')} unfinished: an ingest is running or was interrupted"
        )
    elif one.vectors is not None and not problem:
        # For collections that are not loaded, servers count deleted vectors until they compact.
        missing = one.vectors < stored.images
        if missing or (settings.embedded_vectors and one.vectors > stored.images):
            images, vectors = counted(stored.images, "image"), counted(one.vectors, "vector")
            problem = f"{images}, but {vectors}: run `verify`"
    return replace(
        one,
        **{name: getattr(row, name) for name in ("encoder", "fingerprint", "index", "dim")},
        images=stored.images,
        paths=stored.paths,
        unfinished=unfinished,
        problem=problem,
        created_at=row.created_at,
        last_run=runs[0] if runs else None,
    )


def _size(name: str, settings: config.Settings) -> int | None:
    if not settings.embedded_vectors:
        return None
    total = 0
    # Files and folders may vanish at any time: they are compacted, or the collection is deleted.
    for folder, _, files in os.walk(
        settings.imgsearch_home / embedded.STORE / "collections" / name
    ):
        for file in files:
            with contextlib.suppress(OSError):
                total += Path(folder, file).stat().st_size
    return total


def drop(collection: str, *, settings: config.Settings | None = None) -> None:
    """Delete a collection, even if only the vector store has it. Image files are kept."""
    settings = settings or config.load_settings()
    try:
        with Gallery.open(collection, settings=settings) as gallery:
            gallery.drop()
    except CollectionNotFound:
        with VectorStore.open(settings) as store:
            if collection in store.collections() and not (
                settings.embedded_vectors or _is_ours(store, collection)
            ):
                reason = f"collection {collection!r} was not created by imgsearch"
                raise StoreError(store.where, reason) from None
            store.drop(collection)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 image``, ``2,000 images``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
