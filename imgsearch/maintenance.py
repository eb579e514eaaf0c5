"""Does a collection still hold what it promised, and if not: make it whole.

:func:`verify` compares the two stores with each other, and on request with the
image files. :func:`repair` rebuilds either store from the other and the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from imgsearch import config, images
from imgsearch.errors import (
    CollectionNotFound,
    ImageError,
    StoreDamaged,
    StoreError,
    printable,
)
from imgsearch.gallery import Gallery, checksum, new_row
from imgsearch.images import ImageFile
from imgsearch.stores import embedded
from imgsearch.stores.metadata import CollectionRow, ImageRow, MetadataStore, RunRow
from imgsearch.stores.vectors import VectorStore

BATCH = 1_000
"""Vectors read at a time: 8 MB of 2048-d ones."""

ENCODE_BATCH = 32
"""Images encoded at a time."""


@dataclass(frozen=True)
class Overview:
    """One collection at a glance, as both stores see it.

    Attributes
    ----------
    name, encoder, fingerprint, index : str
        What it is called, what made its vectors, and how they are indexed.
    dim : int
        Length of its vectors.
    images, paths, unfinished : int
        What the metadata store counts: contents, files, and rows half done.
    vectors : int or None
        What the vector store counts; None where it cannot say.
    problem : str
        Why it cannot, or what does not agree; empty where all is well.
    size : int or None
        Bytes of its vectors on disk; None where a server holds them.
    created_at : datetime or None
        UTC; None where the metadata do not know it.
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
        """Everything as plain values for JSON.

        Returns
        -------
        dict
            Times are in ISO 8601, UTC.
        """
        run = self.last_run
        return asdict(self) | {
            "created_at": self.created_at and self.created_at.isoformat(),
            "last_run": None if run is None else run_to_dict(run),
        }


def run_to_dict(run: RunRow) -> dict:
    """Describe an ingest in plain values for JSON.

    Parameters
    ----------
    run : RunRow
        The ingest.

    Returns
    -------
    dict
        Times are in ISO 8601, UTC.
    """
    times = ("started_at", "updated_at", "finished_at")
    return run._asdict() | {
        "folder": printable(run.folder),
        **{name: value and value.isoformat() for name in times for value in [getattr(run, name)]},
    }


def rate(run: RunRow) -> float:
    """How quick an ingest of any process is.

    Parameters
    ----------
    run : RunRow
        The ingest.

    Returns
    -------
    float
        Files a second from its beginning to its last sign of life.
    """
    seconds = (run.updated_at - run.started_at).total_seconds()
    return run.done / seconds if seconds > 0 else 0.0


def overview(settings: config.Settings | None = None) -> list[Overview]:
    """Look at every collection in both stores. Nothing is changed.

    Parameters
    ----------
    settings : Settings, optional
        Read from the environment if left out.

    Returns
    -------
    list of Overview
        By name. Collections that only the vector store knows are among them,
        with no encoder: :func:`repair` brings them back.

    Raises
    ------
    StoreError
        The metadata store cannot be read. Of the vector store this is told, not raised.
    """
    settings = settings or config.load_settings()
    with MetadataStore.open(settings) as metadata:
        rows = metadata.collections()
        counted, trouble = _vector_counts(settings)
        found = [_overview_of(row, metadata, counted, trouble, settings) for row in rows]
        for name in counted.keys() - {row.name for row in rows}:
            vectors = counted[name] if isinstance(counted[name], int) else None
            problem = "the metadata do not know it: repair brings it back"
            found.append(
                Overview(name, vectors=vectors, problem=problem, size=_size(name, settings))
            )
    return sorted(found, key=lambda one: one.name)


def _vector_counts(settings: config.Settings) -> tuple[dict[str, int | str], str]:
    """Vectors by collection, or why they cannot be counted; and why none can."""
    try:
        with VectorStore.open(settings) as store:
            counted: dict[str, int | str] = {}
            for name in store.collections():
                try:
                    counted[name] = store.count(name)
                except StoreError as error:
                    counted[name] = str(error)
            return counted, ""
    except StoreError as error:
        return {}, str(error)


def _overview_of(
    row: CollectionRow,
    metadata: MetadataStore,
    counted: dict[str, int | str],
    trouble: str,
    settings: config.Settings,
) -> Overview:
    counts = metadata.count(row.name)
    vectors = None if trouble else counted.get(row.name, 0)
    unfinished = counts.pending + counts.deleting
    problem = trouble
    if isinstance(vectors, str):
        problem, vectors = vectors, None
    elif not trouble and vectors != counts.images and not unfinished:
        problem = f"{counts.images} images and {vectors} vectors: verify it"
    elif unfinished:
        problem = f"{unfinished} images half done: an ingest runs, or was cut off; ingest again"
    runs = metadata.runs(row.name, limit=1)
    return Overview(
        name=row.name,
        encoder=row.encoder,
        fingerprint=row.fingerprint,
        index=row.index,
        dim=row.dim,
        images=counts.images,
        paths=counts.paths,
        unfinished=unfinished,
        vectors=vectors,
        problem=problem,
        size=_size(row.name, settings),
        created_at=row.created_at,
        last_run=runs[0] if runs else None,
    )


def _size(name: str, settings: config.Settings) -> int | None:
    if not settings.embedded_vectors:
        return None
    total = 0
    for folder, _, files in os.walk(
        settings.imgsearch_home / embedded.STORE / "collections" / name
    ):
        for file in files:
            with contextlib.suppress(OSError):  # compaction removes files at any moment
                total += (Path(folder) / file).stat().st_size
    return total


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found. All empty means that the stores agree.

    Attributes
    ----------
    collection : str
        The collection.
    images, paths : int
        Ready contents and ready paths.
    missing_vectors : tuple of int
        Ids with a ready row and no vector: searches cannot find them.
    wrong_vectors : tuple of int
        Ids whose stored vector is not the one that was written.
    orphan_vectors : tuple of int
        Ids with a vector and no row: searches never show them.
    unfinished : int
        Rows that an interrupted ingest or deletion left half done.
    lost_files, changed_files : tuple of str
        Ready paths where no file is any more, or one of another content; only
        looked for on request.
    damage : str or None
        Why the vectors cannot be read at all.
    """

    collection: str
    images: int
    paths: int
    missing_vectors: tuple[int, ...] = ()
    wrong_vectors: tuple[int, ...] = ()
    orphan_vectors: tuple[int, ...] = ()
    unfinished: int = 0
    lost_files: tuple[str, ...] = ()
    changed_files: tuple[str, ...] = ()
    damage: str | None = None

    @property
    def _findings(self) -> list[str]:
        counts = (
            (len(self.missing_vectors), "images without a vector"),
            (len(self.wrong_vectors), "images with a damaged vector"),
            (len(self.orphan_vectors), "vectors without an image"),
            (self.unfinished, "images half done"),
            (len(self.lost_files), "files gone"),
            (len(self.changed_files), "files changed"),
        )
        found = [f"{n} {what}" for n, what in counts if n]
        return ([f"vectors cannot be read: {self.damage}"] if self.damage else []) + found

    def to_dict(self) -> dict:
        """Everything as plain values for JSON.

        Returns
        -------
        dict
            Ids are strings, since JavaScript loses 63-bit integers.
        """
        ids = ("missing_vectors", "wrong_vectors", "orphan_vectors")
        return asdict(self) | {
            "sound": self.sound,
            "summary": str(self),
            **{name: [str(i) for i in getattr(self, name)] for name in ids},
            **{
                name: [printable(path) for path in getattr(self, name)]
                for name in ("lost_files", "changed_files")
            },
        }

    @property
    def sound(self) -> bool:
        """Whether both stores agree, with nothing half done, lost or changed."""
        return not self._findings

    def __str__(self) -> str:
        if self.sound:
            return f"{self.collection}: sound, {self.images} images under {self.paths} paths"
        return f"{self.collection}: " + ", ".join(self._findings)


@dataclass
class Repair:
    """What :func:`repair` did.

    Attributes
    ----------
    collection : str
        The collection.
    set_aside : str or None
        Where an unreadable vector store was moved to.
    indexed : bool
        Whether there was no index, and one was built.
    recovered : bool
        Whether the metadata had forgotten the collection.
    settled : int
        Half-done rows that were finished or withdrawn.
    encoded : int
        Vectors made again from the image files.
    linked : int
        Rows made again for vectors that had none.
    removed : int
        Vectors without a row that were deleted, on request.
    unmatched : int
        Vectors without a row for which no file was found; they stay, unseen.
    lost : list of tuple of str
        ``(path, reason)`` of each row that had to go, since its vector was lost
        and its file cannot be read or has changed.
    """

    collection: str
    set_aside: str | None = None
    indexed: bool = False
    recovered: bool = False
    settled: int = 0
    encoded: int = 0
    linked: int = 0
    removed: int = 0
    unmatched: int = 0
    lost: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Everything as plain values for JSON.

        Returns
        -------
        dict
        """
        lost = [{"path": printable(path), "reason": reason} for path, reason in self.lost]
        return asdict(self) | {"lost": lost}

    def __str__(self) -> str:
        done = [
            f"the unreadable vectors were moved to {self.set_aside}" if self.set_aside else "",
            "its index was built anew" if self.indexed else "",
            "its metadata was made anew" if self.recovered else "",
            f"{self.settled} half-done images settled" if self.settled else "",
            f"{self.encoded} vectors made again from the files" if self.encoded else "",
            f"{self.linked} paths found again for vectors without one" if self.linked else "",
            f"{self.removed} vectors without an image removed" if self.removed else "",
            f"{self.unmatched} vectors still without an image" if self.unmatched else "",
            f"{len(self.lost)} images lost, whose files are gone or changed" if self.lost else "",
        ]
        return f"{self.collection}: " + ("; ".join(filter(None, done)) or "nothing to repair")


def verify(
    gallery: Gallery,
    *,
    files: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compare the two stores with each other, and the files with both.

    Every vector is read and held against the checksum that was kept when it was
    written, because the embedded store takes some damage for data.

    Parameters
    ----------
    gallery : Gallery
        The collection. Nothing is changed.
    files : bool
        Also look at every image file: whether it is there, and whether one that
        was touched since still has the content that was ingested.
    progress : callable, optional
        Is called now and then with the number of files or vectors looked at, and of
        all of them. What it raises ends the work, which changes nothing.

    Returns
    -------
    Verification

    Raises
    ------
    StoreUnavailable
        A store cannot be reached. Damage is not raised but returned.
    """
    metadata, name = gallery.metadata, gallery.name
    counts = metadata.count(name)
    tell = progress or (lambda _, __: None)
    lost, changed = _file_findings(gallery, tell) if files else ((), ())
    found = {
        "collection": name,
        "images": counts.images,
        "paths": counts.paths,
        "unfinished": counts.pending + counts.deleting,
        "lost_files": lost,
        "changed_files": changed,
    }
    crcs = metadata.checksums(name)
    try:
        there = _vector_ids(gallery)
        missing = np.setdiff1d(np.fromiter(crcs, np.int64, len(crcs)), there)
        wrong = [i for i, crc in _stored_checksums(gallery, there, tell) if crcs.get(i, crc) != crc]
    except StoreDamaged as error:
        return Verification(**found, damage=error.reason)
    orphans = np.setdiff1d(there, metadata.ids(name, state=None))
    return Verification(
        **found,
        missing_vectors=tuple(missing.tolist()),
        wrong_vectors=tuple(sorted(wrong)),
        orphan_vectors=tuple(orphans.tolist()),
    )


def _vector_ids(gallery: Gallery) -> np.ndarray:
    if gallery.name not in gallery.vectors.collections():
        return np.empty(0, np.int64)
    gallery.vectors.describe(gallery.name)  # its index may be lost while every vector is there
    return gallery.vectors.ids(gallery.name)


def _stored_checksums(
    gallery: Gallery, ids: np.ndarray, tell: Callable[[int, int], None]
) -> Iterator[tuple[int, int]]:
    for start in range(0, len(ids), BATCH):
        tell(start, len(ids))
        found, vectors = gallery.vectors.get(gallery.name, ids[start : start + BATCH])
        yield from ((int(i), checksum(v)) for i, v in zip(found, vectors, strict=True))


def _file_findings(
    gallery: Gallery, tell: Callable[[int, int], None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    lost, changed = [], []
    known = gallery.metadata.known(gallery.name)
    for n, (path, (size, mtime_ns, image_id, state)) in enumerate(known.items()):
        if n % BATCH == 0:
            tell(n, len(known))
        if state != "ready":
            continue
        try:
            at = Path(path).stat()
            touched = (at.st_size, at.st_mtime_ns) != (size, mtime_ns)
            if touched and _content_id(path) != image_id:
                changed.append(path)
        except (OSError, ImageError):
            lost.append(path)
    return tuple(sorted(lost)), tuple(sorted(changed))


def _content_id(path: str | Path) -> int:
    return images.image_id(hashlib.sha256(images.read(path)).hexdigest())


def repair(
    collection: str | None = None,
    *,
    image_dirs: Iterable[str | Path] = (),
    remove_orphans: bool = False,
    progress: Callable[[Repair], None] | None = None,
    settings: config.Settings | None = None,
    **how: str,
) -> Repair:
    """Make a collection whole from what is left of its stores and from its files.

    An embedded vector store that cannot be read is moved aside, never deleted.
    Vectors that are missing or damaged are made again from the image files. Rows
    that are missing are made again for the files in `image_dirs`, and in the
    folders that were ever ingested, whose content has a vector.

    Parameters
    ----------
    collection : str, optional
        ``DEFAULT_TABLE`` if left out.
    image_dirs : iterable of path
        Where to look for the files of vectors that have no row.
    remove_orphans : bool
        Delete vectors for which no file was found.
    progress : callable, optional
        Is called with the unfinished account after each batch.
    settings : Settings, optional
        Read from the environment if left out.
    **how : str
        Passed on to :meth:`imgsearch.gallery.Gallery.open`: device, precision,
        backend.

    Returns
    -------
    Repair

    Raises
    ------
    CollectionNotFound
        Neither store knows the collection.
    EncoderMismatch
        Vectors must be made again, and the encoder that made them is not at hand.
    StoreError
        A store cannot be reached, or a server's store is damaged.
    """
    settings = settings or config.load_settings()
    account = Repair(config.collection_name(collection or settings.default_table))
    tell = progress or (lambda _: None)
    account.recovered = _recover_row(account.collection, settings)
    with Gallery.open(account.collection, settings=settings, **how) as gallery:
        before = verify(gallery)
        if before.damage and _index_again(gallery):
            before = verify(gallery)
            account.indexed = not before.damage
        if before.damage:
            account.set_aside = str(gallery.vectors.set_aside(gallery.name))
        account.settled = gallery.recover()
        before = verify(gallery)
        tell(account)
        _encode_again(gallery, before.missing_vectors + before.wrong_vectors, account, tell)
        orphans = set(before.orphan_vectors)
        if orphans:
            folders = [Path(d).expanduser().absolute() for d in image_dirs]
            folders += [Path(run.folder) for run in gallery.metadata.runs(gallery.name)]
            orphans = _link_again(gallery, orphans, list(dict.fromkeys(folders)), account, tell)
        if orphans and remove_orphans:
            with gallery.exclusive():
                gallery.vectors.delete(gallery.name, np.array(sorted(orphans), np.int64))
            account.removed, orphans = len(orphans), set()
        account.unmatched = len(orphans)
        gallery.flush()
    return account


def _recover_row(name: str, settings: config.Settings) -> bool:
    """Make the collection's own row again from what its vectors say of themselves."""
    with MetadataStore.open(settings) as metadata:
        try:
            metadata.collection(name)
        except CollectionNotFound:
            with VectorStore.open(settings) as store:
                if name not in store.collections():
                    raise
                info = store.describe(name)
            try:
                about = json.loads(info.description)
                encoder, identity = about["encoder"], about["identity"]
            except (ValueError, KeyError, TypeError):
                raise StoreDamaged(
                    settings.milvus_address or "embedded store",
                    f"collection {name!r} does not say which encoder made it; ingest its "
                    "folder into a new collection",
                ) from None
            metadata.create_collection(
                CollectionRow(
                    name=name,
                    encoder=encoder,
                    identity=identity,
                    fingerprint=about["fingerprint"],
                    dim=info.dim,
                    index=str(info.index),
                    created_at=datetime.now(UTC),
                )
            )
            return True
    return False


def _index_again(gallery: Gallery) -> bool:
    """Build an index that is missing. Whether the collection has one that can be used."""
    try:
        with gallery.exclusive():
            gallery.ensure_vectors()
        gallery.vectors.describe(gallery.name)
    except StoreError:  # what is there is of no use
        return False
    return True


def _encode_again(
    gallery: Gallery, ids: Sequence[int], account: Repair, tell: Callable[[Repair], None]
) -> None:
    if ids:
        gallery.pipeline.optimize_for(len(ids))
    for start in range(0, len(ids), ENCODE_BATCH):
        rows = gallery.metadata.by_id(gallery.name, ids[start : start + ENCODE_BATCH])
        files = {i: _surviving(known) for i, known in rows.items()}
        there = [i for i, data in files.items() if isinstance(data, bytes)]
        made = dict(zip(there, gallery.pipeline([files[i] for i in there]), strict=True))
        vectors = {i: e.vector for i, e in made.items() if not isinstance(e, ImageError)}
        if vectors:
            gallery.replace([row for i in vectors for row in rows[i]], vectors)
        account.encoded += len(vectors)
        for i in rows.keys() - vectors.keys():
            reason = made[i].reason if i in made else files[i]
            account.lost += [(row.path, reason) for row in rows[i]]
            gallery.delete([row.path for row in rows[i]])
        tell(account)


def _surviving(rows: Sequence[ImageRow]) -> bytes | str:
    """Content of the first path that still has it, else why none has."""
    reason = ""
    for row in rows:
        try:
            data = images.read(row.path)
        except ImageError as error:
            reason = reason or error.reason
            continue
        if hashlib.sha256(data).hexdigest() == row.sha256:
            return data
        reason = reason or "file has changed"
    return reason


def _link_again(
    gallery: Gallery,
    orphans: set[int],
    folders: Sequence[Path],
    account: Repair,
    tell: Callable[[Repair], None],
) -> set[int]:
    known = gallery.metadata.known(gallery.name)
    left = set(orphans)
    for folder in folders:
        rows = []
        for file in _files(folder):
            if str(file.path) in known:
                continue
            try:
                facts = images.probe(images.read(file.path))
            except ImageError:
                continue
            if facts.image_id in orphans:
                rows.append(new_row(file, facts))
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            ids = np.array(sorted({row.image_id for row in part}), np.int64)
            found, vectors = gallery.vectors.get(gallery.name, ids)
            gallery.add(part, dict(zip(found.tolist(), vectors, strict=True)))
            account.linked += len(part)
            left -= set(found.tolist())
            tell(account)
    return left


def _files(folder: Path) -> list[ImageFile]:
    try:
        return list(images.find(folder, on_error=lambda _: None))
    except ImageError:  # a folder that was ingested once may be gone by now
        return []
