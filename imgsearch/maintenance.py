"""Inspect, verify and repair collections.

:func:`verify` compares the two stores with each other and, on request, with the image
files. :func:`repair` restores either store from the other one and from the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imgsearch import config, images
from imgsearch.errors import ImageError, StoreDamaged, StoreError, printable
from imgsearch.gallery import Gallery, checksum, new_row
from imgsearch.images import ImageFile, ImageInfo
from imgsearch.io import absolute
from imgsearch.stores import embedded
from imgsearch.stores.metadata import CollectionRow, ImageRow, MetadataStore, RunRow
from imgsearch.stores.milvus_lite_patches import read_log
from imgsearch.stores.vectors import VectorStore

BATCH = 1_000
"""Vectors read at a time: 8 MB of 2048-d ones."""

ENCODE_BATCH = 32
"""Images read or encoded between two calls of `progress`."""


# ---------------------------------------------------------------- overview


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
        Images, files and half-done rows in the metadata store.
    vectors : int or None
        Vectors in the vector store; None if they cannot be counted. A server may
        include deleted vectors until it has compacted the collection.
    problem : str
        What is wrong and what to do about it; empty if nothing is.
    leftover : bool
        Whether it is a temporary collection of an interrupted index sweep.
    size : int or None
        Bytes of the vectors on disk; None if a server holds them.
    created_at : datetime or None
        UTC; None if the metadata store does not have the collection.
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
    leftover: bool = False
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


def rate(run: RunRow) -> float:
    """Files per second of an ingest run, from its start to its last update."""
    seconds = (run.updated_at - run.started_at).total_seconds()
    return run.done / seconds if seconds > 0 else 0.0


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
        Sorted by name. Includes collections that only the vector store has, which
        :func:`repair` restores, and temporary ones of interrupted index sweeps.

    Raises
    ------
    StoreError
        The metadata store cannot be read. A failure of the vector store is reported as
        the `problem` of each collection.
    """
    settings = settings or config.load_settings()
    with MetadataStore.open(settings) as metadata:
        rows = {row.name: row for row in metadata.collections()}
        try:
            with VectorStore.open(settings) as store:
                names = store.collections()
                counts = {name: _count(name, store, name in rows, settings) for name in names}
                problem = ""
        except StoreError as error:
            counts, problem = {}, str(error)
        found = [_summary(row, metadata, counts, problem, settings) for row in rows.values()]
        found += [
            Overview(name, size=_size(name, settings), **values)
            for name, values in counts.items()
            if name not in rows and values is not None
        ]
    return sorted(found, key=lambda one: one.name)


def _count(name: str, store: VectorStore, known: bool, settings: config.Settings) -> dict | None:
    """Count the vectors of a collection; None if it belongs to another program."""
    problem, leftover = "", False
    try:
        about = store.about(name)
        if about is None and not (known or settings.embedded_vectors):
            return None
        if "sweep" in (about or {}):
            leftover, problem = True, f"temporary collection of an {about['sweep']}: drop it"
        elif not known:
            problem = "missing in the metadata store: `repair` restores it"
        return {"vectors": store.stored_rows(name), "problem": problem, "leftover": leftover}
    except StoreError as error:
        ours = known or settings.embedded_vectors
        return {"vectors": None, "problem": str(error)} if ours else None


def _summary(
    row: CollectionRow,
    metadata: MetadataStore,
    counts: dict[str, dict | None],
    problem: str,
    settings: config.Settings,
) -> Overview:
    stored, runs = metadata.count(row.name), metadata.runs(row.name, limit=1)
    unfinished = stored.pending + stored.deleting
    counted = counts.get(row.name) or {"vectors": None if problem else 0, "problem": problem}
    vectors, problem = counted["vectors"], counted["problem"]
    if unfinished and not problem:
        problem = f"{_n(unfinished, 'image')} half done: an ingest is running, or was interrupted"
    elif vectors is not None and not problem:
        # Servers count deleted vectors of a collection that is not loaded until they compact it.
        differ = vectors != stored.images if settings.embedded_vectors else vectors < stored.images
        if differ:
            problem = f"{_n(stored.images, 'image')}, but {_n(vectors, 'vector')}: run `verify`"
    return Overview(
        **{name: getattr(row, name) for name in ("name", "encoder", "fingerprint", "index", "dim")},
        images=stored.images,
        paths=stored.paths,
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
    for file in (settings.imgsearch_home / embedded.STORE / "collections" / name).rglob("*"):
        with contextlib.suppress(OSError):  # compaction removes files at any moment
            total += file.stat().st_size if file.is_file() else 0
    return total


def _n(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _counted(*parts: tuple[int, str, str]) -> list[str]:
    return [f"{_n(count, noun)} {what}" for count, noun, what in parts if count]


def drop(collection: str, *, settings: config.Settings | None = None) -> None:
    """Delete a collection, also one that only the vector store has. Image files stay."""
    settings = settings or config.load_settings()
    with MetadataStore.open(settings) as metadata:
        known = collection in [row.name for row in metadata.collections()]
    if known:
        with Gallery.open(collection, settings=settings) as gallery:
            gallery.drop()
        return
    with VectorStore.open(settings) as store:
        if collection in store.collections() and not _count(collection, store, False, settings):
            raise StoreError(store.where, f"collection {collection!r} is not one of imgsearch")
        store.drop(collection)


# ---------------------------------------------------------------- verify


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify`.

    Attributes
    ----------
    collection : str
        The collection.
    images, paths : int
        Images and paths that are ready to be found.
    missing_vectors : tuple of int
        Ids of images without a vector, which searches cannot find.
    wrong_vectors : tuple of int
        Ids of images whose stored vector differs from the one that was written.
    orphan_vectors : tuple of int
        Ids of vectors without an image, which searches never return.
    unfinished : int
        Rows that an interrupted ingest or deletion left half done.
    lost_files, changed_files : tuple of str
        Paths where there is no file, or a file of other content; empty unless files
        were verified.
    damage : str or None
        Why the vectors cannot be read.
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
    def sound(self) -> bool:
        """Whether nothing is damaged, missing, half done or changed."""
        return not self._findings()

    def _findings(self) -> list[str]:
        damage = [f"the vectors cannot be read: {self.damage}"] if self.damage else []
        return damage + _counted(
            (len(self.missing_vectors), "image", "without a vector"),
            (len(self.wrong_vectors), "image", "with a damaged vector"),
            (len(self.orphan_vectors), "vector", "without an image"),
            (self.unfinished, "image", "half done"),
            (len(self.lost_files), "file", "missing"),
            (len(self.changed_files), "file", "changed"),
        )

    def to_dict(self) -> dict:
        """Convert to plain values for JSON; ids are strings, as JavaScript rounds integers."""
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

    def __str__(self) -> str:
        counts = f"{_n(self.images, 'image')} under {_n(self.paths, 'path')}"
        return f"{self.collection}: " + (", ".join(self._findings()) or f"sound, {counts}")


def verify(
    gallery: Gallery,
    *,
    files: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compare the two stores with each other and, on request, with the image files.

    Every vector is compared with the checksum of the vector that was written. Nothing is
    changed.

    Parameters
    ----------
    gallery : Gallery
        The collection.
    files : bool
        Whether to look for every image file, and to hash those whose size or modification
        time has changed.
    progress : callable, optional
        Called regularly with the number of files or vectors verified so far and in total.
        An exception that it raises stops the verification.

    Returns
    -------
    Verification

    Raises
    ------
    StoreError
        A store cannot be reached or failed. Corrupted vectors are not raised but reported.
    """
    metadata, name = gallery.metadata, gallery.name
    progress = progress or (lambda _, __: None)
    counts = metadata.count(name)
    lost, changed = _verify_files(gallery, progress) if files else ((), ())
    report = Verification(
        collection=name,
        images=counts.images,
        paths=counts.paths,
        unfinished=counts.pending + counts.deleting,
        lost_files=lost,
        changed_files=changed,
    )
    crcs = metadata.checksums(name)
    wrong: list[int] = []
    try:
        stored = _vector_ids(gallery)
        for start in range(0, len(stored), BATCH):
            progress(start, len(stored))
            ids, vectors = gallery.vectors.get(name, stored[start : start + BATCH])
            sums = zip(ids.tolist(), map(checksum, vectors), strict=True)
            wrong += [i for i, crc in sums if crcs.get(i, crc) != crc]
    except StoreDamaged as error:
        return replace(report, damage=error.reason)
    return replace(
        report,
        missing_vectors=tuple(np.setdiff1d(np.fromiter(crcs, np.int64), stored).tolist()),
        wrong_vectors=tuple(sorted(wrong)),
        orphan_vectors=tuple(np.setdiff1d(stored, metadata.ids(name, state=None)).tolist()),
    )


def _vector_ids(gallery: Gallery) -> np.ndarray:
    if gallery.name not in gallery.vectors.collections():
        return np.empty(0, np.int64)
    # The index can be missing although every vector is there.
    dim = gallery.vectors.describe(gallery.name).dim
    if dim != gallery.row.dim:
        reason = f"the vectors have dimension {dim} instead of {gallery.row.dim}"
        raise StoreDamaged(gallery.vectors.where, reason)
    return gallery.vectors.ids(gallery.name)


def _verify_files(
    gallery: Gallery, progress: Callable[[int, int], None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    lost, changed = [], []
    known = gallery.metadata.known(gallery.name)
    for n, (path, state) in enumerate(sorted(known.items())):
        if n % ENCODE_BATCH == 0:
            progress(n, len(known))
        if state.state != "ready":
            continue
        try:
            now = Path(path).stat()
            touched = (now.st_size, now.st_mtime_ns) != (state.size, state.mtime_ns)
            if touched and _content_id(path) != state.image_id:
                changed.append(path)
        except (OSError, ImageError):
            lost.append(path)
    return tuple(lost), tuple(changed)


def _content_id(path: str | Path) -> int:
    return images.image_id(hashlib.sha256(images.read(path)).hexdigest())


# ---------------------------------------------------------------- repair


@dataclass
class Repair:
    """What :func:`repair` did or, with ``dry_run=True``, would do.

    Attributes
    ----------
    collection : str
        The collection.
    dry_run : bool
        Whether nothing was changed.
    damage : str or None
        Why the vectors could not be read at first.
    set_aside : str or None
        Folder to which the files of the unreadable vectors were moved.
    index_rebuilt : bool
        Whether a missing index was built again.
    metadata_rebuilt : bool
        Whether the entry of the collection in the metadata store was created again.
    recovered : int
        Half-done rows that were completed or rolled back.
    restored : int
        Vectors that were read back from files that were set aside.
    encoded : int
        Vectors that were computed again from image files.
    rows_added : int
        Rows that were added for files whose content has a vector.
    orphans_removed : int
        Vectors without an image that were deleted on request.
    orphans_left : int
        Vectors without an image that stay. Searches never return them.
    lost : list of tuple of str
        ``(path, reason)`` of each path whose vector is missing or damaged and could not be
        computed again. The rows stay: a later repair completes them once a file with their
        content exists.
    """

    collection: str
    dry_run: bool = False
    damage: str | None = None
    set_aside: str | None = None
    index_rebuilt: bool = False
    metadata_rebuilt: bool = False
    recovered: int = 0
    restored: int = 0
    encoded: int = 0
    rows_added: int = 0
    orphans_removed: int = 0
    orphans_left: int = 0
    lost: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Convert to plain values for JSON."""
        lost = [{"path": printable(path), "reason": reason} for path, reason in self.lost]
        return asdict(self) | {"lost": lost, "summary": str(self)}

    def __str__(self) -> str:
        will = "will be " if self.dry_run else ""
        steps = []
        if self.damage and self.dry_run:
            steps = [
                f"the vectors cannot be read ({self.damage}): an embedded server will be "
                "restarted, the index rebuilt and, if that does not help, its files moved aside"
            ]
        if self.set_aside:
            steps.append(f"the unreadable vectors were moved to {self.set_aside}")
        if self.index_rebuilt:
            steps.append("the index was rebuilt")
        if self.metadata_rebuilt:
            steps.append(f"the entry in the metadata store {will or 'was '}rebuilt")
        steps += _counted(
            (self.recovered, "half-done row", f"{will}completed or rolled back"),
            (self.restored, "vector", f"{will}restored from files that were set aside"),
            (self.encoded, "vector", f"{will}computed again from image files"),
            (self.rows_added, "path", f"{will}added for vectors without an image"),
            (self.orphans_removed, "vector", f"without an image {will}removed"),
            (self.orphans_left, "vector", "left without an image"),
            (len(self.lost), "path", "left without a vector until a file with its content exists"),
        )
        return f"{self.collection}: {'; '.join(steps) or 'nothing to repair'}"


def repair(
    collection: str | None = None,
    *,
    image_dirs: Iterable[str | Path] = (),
    remove_orphans: bool = False,
    dry_run: bool = False,
    progress: Callable[[Repair], None] | None = None,
    settings: config.Settings | None = None,
    **how: str,
) -> Repair:
    """Restore a collection from what is left of its stores and from the image files.

    Corrupted vectors of the embedded store are moved aside, never deleted, and only after a
    fresh server could not read them either; every vector that can be read from their files
    is kept. Missing vectors are computed again from the image files. Vectors without an image
    get rows for the files with their content in `image_dirs` and in every folder that was
    ever ingested. No row is removed because its file is missing.

    Parameters
    ----------
    collection : str, optional
        By default ``DEFAULT_TABLE``.
    image_dirs : iterable of path
        More folders in which to look for image files.
    remove_orphans : bool
        Whether to delete vectors for which no file was found.
    dry_run : bool
        Whether to report what would be done without changing anything.
    progress : callable, optional
        Called regularly with the report so far. An exception that it raises stops the
        repair; repeating it continues the work.
    settings : Settings, optional
        By default read from the environment.
    **how : str
        Passed on to :meth:`imgsearch.gallery.Gallery.open`: device, precision, backend.

    Returns
    -------
    Repair

    Raises
    ------
    CollectionNotFound
        Neither store has the collection.
    EncoderMismatch
        Vectors must be computed, and the encoder of the collection is not available.
    StoreDamaged
        The vectors of a server are corrupted, which only the server's own tools can repair.
    StoreError
        A store cannot be reached or failed. Nothing is set aside then.
    """
    settings = settings or config.load_settings()
    name = config.collection_name(collection or settings.default_table)
    report = Repair(name, dry_run=dry_run)
    folders = [absolute(folder) for folder in image_dirs]

    def tick(*_: object) -> None:
        if progress is not None:
            progress(report)

    orphans = _rebuild_metadata(report, settings)
    if orphans is not None and dry_run:
        found = {info.image_id for _, info in _scan(folders, {}, orphans, tick)}
        report.rows_added, report.orphans_left = len(found), len(orphans - found)
        return report
    with Gallery.open(name, settings=settings, **how) as gallery:
        folders += [Path(folder) for folder in gallery.metadata.folders(name)]
        found = verify(gallery, progress=tick)
        report.damage = found.damage
        if found.damage and not dry_run:
            found = _make_readable(gallery, report, tick)
        broken = {*found.missing_vectors, *found.wrong_vectors}
        if found.damage:
            broken = {*gallery.metadata.ids(name).tolist()}
        broken = _restore(gallery, broken, report, tick)
        report.recovered = found.unfinished if dry_run else gallery.recover()
        lost = _encode(gallery, broken, report, tick)
        orphans = {*found.orphan_vectors}
        _find_files(gallery, folders, lost, orphans, report, tick)
        if remove_orphans:
            report.orphans_removed = _remove(gallery, orphans, dry_run)
            orphans = set()
        report.orphans_left = len(orphans)
        for known in gallery.metadata.by_id(name, lost).values():
            report.lost += [(row.path, lost[row.image_id]) for row in known]
        if not dry_run:
            gallery.flush()
    return report


def _rebuild_metadata(report: Repair, settings: config.Settings) -> set[int] | None:
    """Create the entry of a collection again from its vectors; their ids if that is needed."""
    name = report.collection
    with MetadataStore.open(settings) as metadata:
        if name in [row.name for row in metadata.collections()]:
            return None
        with VectorStore.open(settings) as store:
            if name not in store.collections():
                metadata.collection(name)  # raises CollectionNotFound with the known names
            about, info = store.about(name), store.describe(name)
            if about is None or "fingerprint" not in about:
                raise StoreDamaged(
                    store.where,
                    f"collection {name!r} does not state which encoder made it: ingest its folder "
                    "into a new collection",
                )
            ids = {*store.ids(name).tolist()}
        report.metadata_rebuilt = True
        if not report.dry_run:
            about = {key: about[key] for key in ("encoder", "identity", "fingerprint")}
            row = CollectionRow(name=name, dim=info.dim, index=str(info.index), **about)
            metadata.create_collection(row)
        return ids


def _make_readable(gallery: Gallery, report: Repair, tick: Callable[..., None]) -> Verification:
    """Set the vectors aside, after everything that loses nothing was tried."""
    if gallery.settings.embedded_vectors:
        gallery.vectors.restart()
    found = verify(gallery, progress=tick)
    if found.damage and not _has_other_dimension(gallery):
        with contextlib.suppress(StoreDamaged), gallery.exclusive():
            gallery.ensure_vectors()
        found = verify(gallery, progress=tick)
        report.index_rebuilt = not found.damage
    if found.damage:
        report.set_aside = str(gallery.vectors.set_aside(gallery.name))
        found = verify(gallery, progress=tick)
    if found.damage:
        raise StoreDamaged(gallery.vectors.where, found.damage)
    return found


def _has_other_dimension(gallery: Gallery) -> bool:
    try:
        return gallery.vectors.describe(gallery.name).dim != gallery.row.dim
    except StoreDamaged:
        return False


def _restore(
    gallery: Gallery, ids: set[int], report: Repair, tick: Callable[..., None]
) -> list[int]:
    """Write vectors back from files of the embedded store; gives the ids that are left."""
    home, name = gallery.settings.imgsearch_home, gallery.name
    if not ids or not gallery.settings.embedded_vectors:
        return sorted(ids)
    folders = [*home.glob(f"damaged/{name}-*"), *home.glob(f"damaged/*/collections/{name}")]
    if report.dry_run and report.damage:
        folders.append(home / embedded.STORE / "collections" / name)
    wanted = {i: crc for i, crc in gallery.metadata.checksums(name).items() if i in ids}
    for found, vectors in itertools.chain.from_iterable(map(_read_files, folders)):
        tick()
        pairs = zip(found.tolist(), vectors, strict=True)
        intact = {i: v for i, v in pairs if i in wanted and checksum(v) == wanted[i]}
        if intact and not report.dry_run:
            known = gallery.metadata.by_id(name, intact)
            gallery.replace([row for rows in known.values() for row in rows], intact)
        report.restored += len(intact)
        for image_id in intact:
            del wanted[image_id]
    return sorted(wanted)


def _read_files(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read ids and vectors from the files of a Milvus Lite collection, as far as possible."""
    for path in sorted([*folder.rglob("*.parquet"), *folder.rglob("wal_data_*.arrow")]):
        try:
            if path.suffix == ".arrow":
                batches = iter(read_log(str(path)))
            else:
                batches = pq.ParquetFile(path).iter_batches(BATCH, columns=["id", "vector"])
            for batch in batches:
                ids, vectors = batch["id"].to_numpy(), batch["vector"].flatten().to_numpy()
                yield ids, vectors.reshape(len(ids), -1)
        except (OSError, ValueError, KeyError, pa.ArrowNotImplementedError) as error:
            if getattr(error, "errno", None):  # of the system, not of the content
                raise


def _encode(
    gallery: Gallery, ids: Sequence[int], report: Repair, tick: Callable[..., None]
) -> dict[int, str]:
    """Compute vectors again from the files; gives the reason for each id that has no file."""
    lost: dict[int, str] = {}
    for start in range(0, len(ids), ENCODE_BATCH):
        tick()
        rows = gallery.metadata.by_id(gallery.name, ids[start : start + ENCODE_BATCH])
        files: dict[int, Path] = {}
        for image_id, known in rows.items():
            reasons = [_unusable(row) for row in known]
            if None in reasons:
                files[image_id] = Path(known[reasons.index(None)].path)
            else:
                lost[image_id] = reasons[0]
        if files and not (report.encoded or report.dry_run):
            gallery.pipeline.optimize_for(len(ids) - start)
        lost |= _write_again(gallery, files, rows, report)
    return lost


def _unusable(row: ImageRow) -> str | None:
    """Why a file cannot replace a lost vector; None if it has the content of the row."""
    try:
        return None if _content_id(row.path) == row.image_id else "file has changed"
    except ImageError as error:
        return error.reason


def _write_again(
    gallery: Gallery, files: dict[int, Path], rows: dict[int, list[ImageRow]], report: Repair
) -> dict[int, str]:
    """Encode files and write their vectors; gives the reason for each that failed."""
    failed: dict[int, str] = {}
    if files and not report.dry_run:
        vectors = {}
        for image_id, made in zip(files, gallery.pipeline([*files.values()]), strict=True):
            if isinstance(made, ImageError):
                failed[image_id] = made.reason
            elif made.info.image_id != image_id:
                failed[image_id] = "file has changed"
            else:
                vectors[image_id] = made.vector
        gallery.replace([row for i in vectors for row in rows[i]], vectors)
    report.encoded += len(files) - len(failed)
    return failed


def _find_files(
    gallery: Gallery,
    folders: Sequence[Path],
    lost: dict[int, str],
    orphans: set[int],
    report: Repair,
    tick: Callable[..., None],
) -> None:
    """Add rows for files with the content of `lost` or `orphans`, and take those out of both."""
    if not lost and not orphans:
        return
    name, known = gallery.name, gallery.metadata.known(gallery.name)
    matches = _scan(folders, known, lost.keys() | orphans, tick)
    while part := list(itertools.islice(matches, ENCODE_BATCH)):
        files = {info.image_id: file.path for file, info in part if info.image_id in lost}
        failed = _write_again(gallery, files, gallery.metadata.by_id(name, files), report)
        for image_id in files.keys() - failed.keys():
            del lost[image_id]
        rows = [new_row(file, info) for file, info in part if info.image_id not in failed]
        if not report.dry_run:
            ids, vectors = gallery.vectors.get(name, [row.image_id for row in rows])
            gallery.add(rows, dict(zip(ids.tolist(), vectors, strict=True)))
        report.rows_added += len(rows)
        orphans -= {row.image_id for row in rows}


def _scan(
    folders: Iterable[Path],
    known: Container[str],
    wanted: Container[int],
    tick: Callable[..., None],
) -> Iterator[tuple[ImageFile, ImageInfo]]:
    """Find files at unknown paths whose content is wanted."""
    seen: set[str] = set()
    for folder in folders:
        files: Iterable[ImageFile] = ()
        with contextlib.suppress(ImageError):  # a folder that was ingested may be gone
            files = images.find(folder, on_error=lambda _: None)
        for n, file in enumerate(files):
            if n % ENCODE_BATCH == 0:
                tick()
            path = str(file.path)
            if path in known or path in seen:
                continue
            seen.add(path)
            with contextlib.suppress(ImageError):
                if (
                    images.is_candidate(path)
                    and (info := images.load(path).info).image_id in wanted
                ):
                    yield file, info


def _remove(gallery: Gallery, orphans: set[int], dry_run: bool) -> int:
    if not orphans or dry_run:
        return len(orphans)
    with gallery.exclusive():
        rows = gallery.metadata.ids(gallery.name, state=None)  # an ingest may have added some
        unneeded = np.setdiff1d(np.array(sorted(orphans), np.int64), rows)
        gallery.vectors.delete(gallery.name, unneeded)
    return len(unneeded)
