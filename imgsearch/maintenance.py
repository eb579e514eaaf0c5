"""Verify and repair collections.

:func:`verify` compares the two stores with each other and, on request, with the image
files. :func:`repair` restores either store from the other one and from the files.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imgsearch import config, images
from imgsearch.collection import checksum, new_row
from imgsearch.errors import ImageError, StoreDamaged, printable
from imgsearch.gallery import Gallery
from imgsearch.images import ImageFile, ImageInfo
from imgsearch.io import absolute
from imgsearch.overview import counted
from imgsearch.stores import embedded
from imgsearch.stores.metadata import WITH_VECTOR, CollectionRow, ImageRow, MetadataStore
from imgsearch.stores.milvus_lite_patches import read_log
from imgsearch.stores.vectors import VectorStore

BATCH = 1_000
"""Number of vectors that are read at a time: 8 MB if they have 2048 dimensions."""

ENCODE_BATCH = 32
"""Number of images that are read or encoded between two calls of `progress`."""


# ---------------------------------------------------------------- verify


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify`.

    Attributes
    ----------
    collection : str
        The collection.
    images, paths : int
        Number of images and paths that are ready to be found.
    missing_vectors : tuple of int
        Ids of images without a vector, which searches cannot find.
    wrong_vectors : tuple of int
        Ids of images whose stored vector differs from the one that was written.
    orphan_vectors : tuple of int
        Ids of vectors without an image, which searches never return.
    unfinished : int
        Number of rows that an interrupted ingest or deletion left unfinished.
    lost_files, changed_files : tuple of str
        Paths whose file is missing or has changed; empty unless files were verified.
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
        """Whether nothing is damaged, missing, unfinished or changed."""
        return not self._findings()

    def _findings(self) -> list[str]:
        damage = [f"the vectors cannot be read: {self.damage}"] if self.damage else []
        return damage + _counted(
            (len(self.missing_vectors), "image", "without a vector"),
            (len(self.wrong_vectors), "image", "with a damaged vector"),
            (len(self.orphan_vectors), "vector", "without an image"),
            (self.unfinished, "image", "unfinished"),
            (len(self.lost_files), "file", "missing"),
            (len(self.changed_files), "file", "changed"),
        )

    def to_dict(self) -> dict:
        """Convert to plain values for JSON; ids are strings, as JavaScript rounds integers."""
        values = asdict(self) | {"sound": self.sound, "summary": str(self)}
        for name in ("missing_vectors", "wrong_vectors", "orphan_vectors"):
            values[name] = [str(image_id) for image_id in values[name]]
        for name in ("lost_files", "changed_files"):
            values[name] = [printable(path) for path in values[name]]
        return values

    def __str__(self) -> str:
        counts = f"{counted(self.images, 'image')} under {counted(self.paths, 'path')}"
        return f"{self.collection}: " + (
            ", ".join(self._findings()) or f"no problems found in {counts}"
        )


def _counted(*parts: tuple[int, str, str]) -> list[str]:
    return [f"{counted(count, noun)} {what}" for count, noun, what in parts if count]


def verify(
    gallery: Gallery,
    *,
    files: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compare the two stores with each other and, on request, with the image files.

    Every vector is compared with the checksum of the one that was written. Nothing is changed.

    Parameters
    ----------
    gallery : Gallery
        The collection.
    files : bool
        Whether to check that every image file exists, and to hash those whose size or
        modification time has changed.
    progress : callable, optional
        Called regularly with the number of files or vectors verified so far and in total.
        If it raises an exception, the verification stops.

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
        orphan_vectors=tuple(np.setdiff1d(stored, metadata.ids(name, WITH_VECTOR)).tolist()),
    )


def _vector_ids(gallery: Gallery) -> np.ndarray:
    if gallery.name not in gallery.vectors.collections():
        return np.empty(0, np.int64)
    # The index can be missing although every vector is stored.
    dim = gallery.vectors.describe(gallery.name).dim
    if dim != gallery.row.dim:
        reason = f"the dimension of the vectors is {dim} instead of {gallery.row.dim}"
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
            if touched and images.content_id(path) != state.image_id:
                changed.append(path)
        except (OSError, ImageError):
            lost.append(path)
    return tuple(lost), tuple(changed)


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
        Number of unfinished rows that were completed or rolled back.
    restored : int
        Number of vectors that were read back from files that were set aside.
    encoded : int
        Number of vectors that were computed again from image files.
    rows_added : int
        Number of rows that were added for files whose content has a vector.
    orphans_removed : int
        Number of vectors without an image that were deleted on request.
    orphans_left : int
        Number of vectors without an image that remain. Searches never return them.
    lost : list of tuple of str
        ``(path, reason)`` of each path whose vector is missing or damaged and could not be
        computed again. The rows are kept: a later repair completes them once a file with
        their content exists.
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
                f"the vectors cannot be read ({self.damage}): the embedded server will be "
                "restarted, the index rebuilt and, if that does not help, the files moved aside"
            ]
        if self.set_aside:
            steps.append(f"the unreadable vectors were moved to {self.set_aside}")
        if self.index_rebuilt:
            steps.append("the index was rebuilt")
        if self.metadata_rebuilt:
            steps.append(f"the entry in the metadata store {will or 'was '}rebuilt")
        steps += _counted(
            (self.recovered, "unfinished row", f"{will}completed or rolled back"),
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
    """Restore a collection from what is left in its stores and from the image files.

    Corrupted vectors of the embedded store are moved aside, never deleted, and only if a
    restarted server cannot read them either; every vector that can be read from their files
    is kept. Missing vectors are computed again from the image files. For vectors without an
    image, files with their content are searched for in `image_dirs` and in every folder that
    was ever ingested, and added. No row is removed because its file is missing.

    Parameters
    ----------
    collection : str, optional
        By default ``DEFAULT_TABLE``.
    image_dirs : iterable of path
        Additional folders to search for image files.
    remove_orphans : bool
        Whether to delete vectors for which no file was found.
    dry_run : bool
        Whether to report what would be done without changing anything.
    progress : callable, optional
        Called regularly with the report so far. If it raises an exception, the repair stops;
        calling `repair` again continues it.
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
        Vectors must be computed, but the encoder of the collection is not available.
    StoreDamaged
        The vectors on a server are corrupted, which only the server's own tools can repair.
    StoreError
        A store cannot be reached or failed. Nothing is set aside in this case.
    """
    settings = settings or config.load_settings()
    name = config.collection_name(collection or settings.default_table)
    report = Repair(name, dry_run=dry_run)
    folders = [absolute(folder) for folder in image_dirs]

    def tick() -> None:
        if progress is not None:
            progress(report)

    orphans = _rebuild_metadata(report, settings)
    if orphans is not None and dry_run:
        found = {info.image_id for _, info in _scan(folders, {}, orphans, tick)}
        report.rows_added, report.orphans_left = len(found), len(orphans - found)
        return report
    with Gallery.open(name, settings=settings, **how) as gallery:
        folders += [gallery.pictures, *map(Path, gallery.metadata.folders(name))]
        _Repairer(gallery, report, folders, tick).run(remove_orphans)
    return report


def _rebuild_metadata(report: Repair, settings: config.Settings) -> set[int] | None:
    """Recreate a missing metadata entry from the vectors; return their ids, None if it exists."""
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
                    f"the encoder of collection {name!r} is unknown: ingest its folder into a new "
                    "collection",
                )
            ids = {*store.ids(name).tolist()}
        report.metadata_rebuilt = True
        if not report.dry_run:
            about = {key: about[key] for key in ("encoder", "identity", "fingerprint")}
            row = CollectionRow(name=name, dim=info.dim, index=str(info.index), **about)
            metadata.create_collection(row)
        return ids


class _Repairer:
    """The steps of a repair, which update its report."""

    def __init__(
        self, gallery: Gallery, report: Repair, folders: list[Path], tick: Callable[[], None]
    ):
        self.gallery, self.name = gallery, gallery.name
        self.report, self.folders, self.tick = report, folders, tick

    def run(self, remove_orphans: bool) -> None:
        gallery, report = self.gallery, self.report
        found = self.verify()
        report.damage = found.damage
        if found.damage and not report.dry_run:
            found = self.make_readable()
        broken = {*found.missing_vectors, *found.wrong_vectors}
        if found.damage:
            broken = {*gallery.metadata.ids(self.name).tolist()}
        broken = self.restore(broken)
        report.recovered = found.unfinished if report.dry_run else gallery.recover()
        lost, orphans = self.encode(broken), {*found.orphan_vectors}
        if lost or orphans:
            self.find_files(lost, orphans)
        if remove_orphans and orphans:
            report.orphans_removed = self.remove(orphans)
            orphans = set()
        report.orphans_left = len(orphans)
        for known in gallery.metadata.by_id(self.name, lost).values():
            report.lost += [(row.path, lost[row.image_id]) for row in known]
        if not report.dry_run:
            gallery.flush()

    def verify(self) -> Verification:
        return verify(self.gallery, progress=lambda *_: self.tick())

    def make_readable(self) -> Verification:
        """Try everything that loses nothing, and set the vectors aside if that does not help."""
        gallery, report = self.gallery, self.report
        if gallery.settings.embedded_vectors:
            gallery.vectors.restart()
        found = self.verify()
        if found.damage and not _has_other_dimension(gallery):
            with contextlib.suppress(StoreDamaged), gallery.exclusive():
                gallery.ensure_vectors()
            found = self.verify()
            report.index_rebuilt = not found.damage
        if found.damage:
            report.set_aside = str(gallery.vectors.set_aside(self.name))
            found = self.verify()
        if found.damage:
            raise StoreDamaged(gallery.vectors.where, found.damage)
        return found

    def restore(self, ids: set[int]) -> list[int]:
        """Restore vectors from files of the embedded store; return the ids not found there."""
        home, report = self.gallery.settings.imgsearch_home, self.report
        if not ids or not self.gallery.settings.embedded_vectors:
            return sorted(ids)
        folders = [*home.glob(f"damaged/{self.name}-*")]
        folders += home.glob(f"damaged/*/collections/{self.name}")
        if report.dry_run and report.damage:
            folders.append(home / embedded.STORE / "collections" / self.name)
        crcs = self.gallery.metadata.checksums(self.name)
        wanted = {image_id: crcs[image_id] for image_id in ids & crcs.keys()}
        for found, vectors in itertools.chain.from_iterable(map(_read_files, folders)):
            self.tick()
            pairs = zip(found.tolist(), vectors, strict=True)
            intact = {i: v for i, v in pairs if i in wanted and checksum(v) == wanted[i]}
            if intact and not report.dry_run:
                self.gallery.replace(intact)
            report.restored += len(intact)
            for image_id in intact:
                del wanted[image_id]
        return sorted(wanted)

    def encode(self, ids: Sequence[int]) -> dict[int, str]:
        """Compute vectors again from the files; return the reason for each id that failed."""
        lost: dict[int, str] = {}
        for start in range(0, len(ids), ENCODE_BATCH):
            self.tick()
            rows = self.gallery.metadata.by_id(self.name, ids[start : start + ENCODE_BATCH])
            files: dict[int, Path] = {}
            for image_id, known in rows.items():
                reasons = [_unusable(row) for row in known]
                if None in reasons:
                    files[image_id] = Path(known[reasons.index(None)].path)
                else:
                    lost[image_id] = reasons[0]
            if files and not (self.report.encoded or self.report.dry_run):
                self.gallery.pipeline.optimize_for(len(ids) - start)
            lost |= self.encode_files(files)
        return lost

    def encode_files(self, files: dict[int, Path]) -> dict[int, str]:
        """Encode files and write their vectors; return the reason for each id that failed."""
        failed: dict[int, str] = {}
        if files and not self.report.dry_run:
            vectors = {}
            results = self.gallery.pipeline([*files.values()])
            for image_id, result in zip(files, results, strict=True):
                if isinstance(result, ImageError):
                    failed[image_id] = result.reason
                elif result.info.image_id != image_id:
                    failed[image_id] = "file has changed"
                else:
                    vectors[image_id] = result.vector
            self.gallery.replace(vectors)
        self.report.encoded += len(files) - len(failed)
        return failed

    def find_files(self, lost: dict[int, str], orphans: set[int]) -> None:
        """Add rows for files with the content of `lost` or `orphans`, and remove it from these."""
        gallery, report = self.gallery, self.report
        stored = gallery.metadata.known(self.name).items()
        known = {path for path, file in stored if file.state in WITH_VECTOR}
        matches = _scan(self.folders, known, lost.keys() | orphans, self.tick)
        while part := list(itertools.islice(matches, ENCODE_BATCH)):
            files = {info.image_id: file.path for file, info in part if info.image_id in lost}
            failed = self.encode_files(files)
            for image_id in files.keys() - failed.keys():
                del lost[image_id]
            rows = [new_row(file, info) for file, info in part if info.image_id not in failed]
            if not report.dry_run:
                ids, vectors = gallery.vectors.get(self.name, [row.image_id for row in rows])
                gallery.store(rows, dict(zip(ids.tolist(), vectors, strict=True)))
            report.rows_added += len(rows)
            orphans -= {row.image_id for row in rows}

    def remove(self, orphans: set[int]) -> int:
        if self.report.dry_run:
            return len(orphans)
        with self.gallery.exclusive():
            # An ingest may have added rows for some of them.
            rows = self.gallery.metadata.ids(self.name, WITH_VECTOR)
            unneeded = np.setdiff1d(np.array(sorted(orphans), np.int64), rows)
            self.gallery.vectors.delete(self.name, unneeded)
        return len(unneeded)


def _has_other_dimension(gallery: Gallery) -> bool:
    try:
        return gallery.vectors.describe(gallery.name).dim != gallery.row.dim
    except StoreDamaged:
        return False


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
            if getattr(error, "errno", None):  # an I/O error, not one of the content
                raise


def _unusable(row: ImageRow) -> str | None:
    """Return why a lost vector cannot be computed from a row's file; None if it can."""
    try:
        return None if images.content_id(row.path) == row.image_id else "file has changed"
    except ImageError as error:
        return error.reason


def _scan(
    folders: Iterable[Path],
    known: Container[str],
    wanted: Container[int],
    tick: Callable[[], None],
) -> Iterator[tuple[ImageFile, ImageInfo]]:
    """Find files at unknown paths that have wanted content."""
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
                info = images.load(path).info if images.is_candidate(path) else None
                if info is not None and info.image_id in wanted:
                    yield file, info
