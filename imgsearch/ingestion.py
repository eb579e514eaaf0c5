"""Bring a folder of images into a collection.

A few threads read, decode and embed chunks of files in advance; the calling thread takes
the chunks in order and writes them. Reading, decoding, encoding and writing overlap, and
the bytes of the files that are in memory at a time are bounded.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgsearch import images
from imgsearch.attributes import Labels
from imgsearch.collection import Collection, new_row
from imgsearch.errors import (
    ConfigError,
    ImageError,
    ImgSearchError,
    StoreUnavailable,
    printable,
)
from imgsearch.images import ImageFile, ImageInfo, LoadedImage
from imgsearch.io import absolute
from imgsearch.pipeline import Pipeline
from imgsearch.stores.metadata import ImageRow

if TYPE_CHECKING:
    import pandas as pd

AHEAD = 3
"""Chunks under way beside the one being written: one is read, one decoded, one encoded."""

BYTES_AHEAD = 192 * 2**20
"""Bytes of files that are in memory at a time, in all chunks under way."""

CHUNK_BYTES = 64 * 2**20
"""Bytes of the files of one chunk, unless it is a single file."""

FLUSH_EVERY = 5_000
"""New vectors after which a long ingest has the index built: searches over more unindexed
vectors become slow, and each flush makes a segment of its own."""

NOTE_EVERY = 1.0
"""Seconds after which the counts of a running ingest are stored again, for others to see."""

WORTH_A_FLUSH = 100
"""New files from which on adding them ends with a flush, which takes a server seconds."""

SHOWN = 10
"""Failures that a notebook shows."""


@dataclass(repr=False)
class IngestReport:
    """Progress and result of an ingest.

    Attributes
    ----------
    collection, folder : str
        The collection, and the folder with the images, or the first of several paths.
    state : str
        ``running``; at the end ``done``, or ``stopped`` if the ingest was asked to stop.
    encoder : dict
        Name, dimension and fingerprint of the encoder; if it was used, also its device,
        precision and backend.
    index : str
        Index of the collection.
    shard : str or None
        Part of the folder, such as ``"0/4"``.
    total : int
        Number of files, images or not.
    done : int
        Files that were processed; the sum of the five counts that follow.
    encoded : int
        Embedded and stored.
    linked : int
        Stored without encoding, since their content was known under another path.
    unchanged : int
        Skipped without being read, since their size and modification time are unchanged.
    failed : int
        Images that could not be stored, each with a reason.
    ignored : int
        Files that are not images, neither by name nor by content.
    seconds : float
        Time since the start.
    recovered_rows : int
        Rows that an earlier, interrupted process had left unfinished.
    missing : tuple of str
        Paths of this folder in the collection whose files are gone; they stay there unless
        `prune` is set. Empty for an ingest of a part of the folder.
    pruned : int
        Paths that were removed because their files are gone.
    failures : list of tuple of str
        ``(path, reason)`` of each failed image.
    ignored_files : list of tuple of str
        ``(path, reason)`` of each ignored file.
    images, paths : int
        Size of the whole collection, by content and by path.
    run_id : int
        Number of the ingest in the metadata store.
    """

    collection: str
    folder: str
    index: str
    shard: str | None = None
    state: str = "running"
    encoder: dict = field(default_factory=dict)
    total: int = 0
    encoded: int = 0
    linked: int = 0
    unchanged: int = 0
    seconds: float = 0.0
    recovered_rows: int = 0
    missing: tuple[str, ...] = ()
    pruned: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    ignored_files: list[tuple[str, str]] = field(default_factory=list)
    images: int = 0
    paths: int = 0
    run_id: int = 0

    @property
    def failed(self) -> int:
        """Number of images that could not be stored."""
        return len(self.failures)

    @property
    def ignored(self) -> int:
        """Number of files that are not images."""
        return len(self.ignored_files)

    @property
    def done(self) -> int:
        """Number of files that were processed."""
        return self.encoded + self.linked + self.unchanged + self.failed + self.ignored

    @property
    def rate(self) -> float:
        """Files per second, without those that are unchanged."""
        return (self.done - self.unchanged) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Remaining seconds at the rate so far; None before there is one."""
        return (self.total - self.done) / self.rate if self.rate else None

    def to_dict(self) -> dict:
        """Everything as plain values for JSON, with the rate.

        Returns
        -------
        dict
            Undecodable bytes of paths are shown as backslash escapes.
        """
        return asdict(self) | {
            "folder": printable(self.folder),
            "failed": self.failed,
            "ignored": self.ignored,
            "done": self.done,
            "images_per_second": self.rate,
            "missing": [printable(path) for path in self.missing],
            **{
                name: [{"path": printable(p), "reason": r} for p, r in getattr(self, name)]
                for name in ("failures", "ignored_files")
            },
        }

    def __repr__(self) -> str:
        failures = [f"failed: {printable(path)}: {why}" for path, why in self.failures[:SHOWN]]
        more = [f"and {self.failed - SHOWN} more"] if self.failed > SHOWN else []
        return "\n".join([str(self), *failures, *more])

    def __str__(self) -> str:
        parts = [
            f"{self.encoded} encoded ({self.rate:.1f}/s)",
            f"{self.linked} known under another path",
            f"{self.unchanged} unchanged",
            f"{self.failed} failed",
            f"{self.ignored} not images",
            f"{self.pruned} removed",
        ]
        what = ", ".join(part for part in parts if not part.startswith("0 "))
        return (
            f"{self.collection}: {self.state}, {self.total} files in {self.seconds:.1f} s: "
            f"{what or 'nothing to do'}; the collection holds {self.images} images"
        )


def ingest(
    image_dir: str | Path,
    collection: str | None = None,
    *,
    recursive: bool = True,
    limit: int | None = None,
    shard: str | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    prune: bool = False,
    progress: bool | Callable[[IngestReport], None] | None = None,
    stop: threading.Event | None = None,
    attributes: Mapping[str, Any] | pd.DataFrame | str | Path | None = None,
    from_folders: bool = False,
    **how,
) -> IngestReport:
    """Bring a folder of images into a collection, or bring the collection up to date.

    Files that are stored and unchanged are skipped without being read, so that an
    interrupted ingest is resumed by starting it again. The encoder is loaded only if an
    image is new.

    Parameters
    ----------
    image_dir : path
        Folder with images.
    collection : str, optional
        Created if it does not exist; ``DEFAULT_TABLE`` if left out.
    recursive : bool
        Whether to descend into subfolders.
    limit : int, optional
        Look at the first `limit` files only.
    shard : str, optional
        ``"i/n"``: only the files whose path hashes to part `i` of `n`, from 0,
        so that `n` processes ingest one folder together.
    batch_size : int
        Images that are encoded together; fewer if their files are large.
    workers : int, optional
        Threads that decode; the number of processors if left out.
    prune : bool
        Remove paths of this folder from the collection if their files are gone.
    progress : bool or callable, optional
        Whether to show a progress bar, which is shown in interactive sessions if left out; or a
        function that is called with the unfinished report after each chunk, in this thread.
    stop : threading.Event, optional
        Once set, the ingest ends after the current chunk.
    attributes : dict, pandas.DataFrame or path of a CSV file, optional
        A dict is given to every file; a table names the files in a column ``path``, ``name`` or
        ``image_id``. Files that are unchanged get them, too.
    from_folders : bool
        Set the attribute ``label`` of each file to the name of its folder.
    **how
        Passed on to :meth:`imgsearch.gallery.Gallery.open`: encoder, weights,
        index, device, precision, backend, settings.

    Returns
    -------
    IngestReport

    Raises
    ------
    ImageError
        `image_dir` is not a folder that can be read.
    ConfigError
        A parameter has a value that cannot be used.
    EncoderMismatch
        The collection was made with another encoder.
    StoreError
        A store failed. Everything that was reported as stored stays stored.
    """
    part = parse_shard(shard)
    for name, value in (("batch_size", batch_size), ("limit", limit), ("workers", workers)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(name, f"is {value!r}; a whole number from 1 is needed")
    whole = part is None and limit is None and recursive
    if prune and not whole:
        raise ConfigError("prune", "needs the whole folder: leave out shard, limit and recursive")
    folder = absolute(image_dir)
    labels = Labels.read(attributes, from_folders)
    files = _list_files(folder, recursive, part, limit)
    with Collection.open(collection, create=True, workers=workers, **how) as opened:
        return _run(
            opened,
            folder,
            *files,
            labels,
            progress,
            whole=whole,
            prune=prune,
            shard=shard,
            batch_size=batch_size,
            stop=stop,
        )


def ingest_paths(
    collection: Collection,
    paths: Sequence[Path],
    labels: Labels,
    *,
    progress: bool | Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Bring files and folders into an open collection."""
    folders = [path for path in dict.fromkeys(paths) if path.is_dir()]
    found, unreadable = {}, []
    for folder in folders:
        found |= {file.path: file for file in images.find(folder, on_error=unreadable.append)}
    for path in paths:
        if path not in folders:
            status = path.stat()
            found[path] = ImageFile(path, status.st_size, status.st_mtime_ns)
    first = paths[0] if paths else collection.pictures
    whole = folders == [*paths]
    return _run(
        *(collection, first, list(found.values()), unreadable, labels, progress),
        whole=whole and len(folders) == 1,
        flush=whole or len(found) >= WORTH_A_FLUSH,
    )


def _run(
    collection: Collection,
    folder: Path,
    found: Sequence[ImageFile],
    unreadable: Sequence[ImageError],
    labels: Labels,
    progress: bool | Callable[[IngestReport], None] | None,
    *,
    whole: bool,
    prune: bool = False,
    shard: str | None = None,
    batch_size: int = 32,
    stop: threading.Event | None = None,
    flush: bool = True,
) -> IngestReport:
    report = IngestReport(
        collection=collection.name,
        folder=str(folder),
        index=collection.row.index,
        shard=shard,
        total=len(found) + len(unreadable),
        failures=[(error.path, error.reason) for error in unreadable],
    )
    with _progress_bar(progress) as advance:
        job = _Ingest(
            *(collection, report, labels, batch_size, flush), stop or threading.Event(), advance
        )
        return job.run(found, whole, prune)


@contextmanager
def _progress_bar(
    wanted: bool | Callable[[IngestReport], None] | None,
) -> Iterator[Callable[[IngestReport], None]]:
    if wanted is None:
        wanted = hasattr(sys, "ps1") or sys.stderr.isatty()  # notebooks have ps1, too
    if not isinstance(wanted, bool):
        yield wanted
    elif not wanted:
        yield lambda _: None
    else:
        from tqdm.auto import tqdm

        with tqdm(unit=" files", delay=0.5) as bar:

            def advance(report: IngestReport) -> None:
                bar.total = report.total
                bar.update(report.done - bar.n)

            yield advance


def parse_shard(shard: str | None) -> tuple[int, int] | None:
    """Read ``"i/n"``.

    Examples
    --------
    >>> parse_shard("0/4")
    (0, 4)
    """
    if not shard:
        return None
    try:
        i, n = map(int, shard.split("/"))
    except (ValueError, AttributeError):
        i, n = 0, 0
    if not 0 <= i < n:
        raise ConfigError("shard", f"is {shard!r}; 'i/n' with 0 <= i < n is needed, as in '0/4'")
    return i, n


def _list_files(
    folder: Path, recursive: bool, part: tuple[int, int] | None, limit: int | None
) -> tuple[list[ImageFile], list[ImageError]]:
    unreadable: list[ImageError] = []
    files = images.find(folder, recursive=recursive, on_error=unreadable.append)
    if part:
        i, n = part
        files = (f for f in files if _part(f.path.relative_to(folder), n) == i)
    return list(islice(files, limit)), unreadable


def _part(relative: Path, n: int) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(relative)).digest()[:8]) % n


def _is_gone(path: str) -> bool:
    """Whether there is no such file any more; one that cannot be looked at may exist."""
    try:
        return not stat.S_ISREG(Path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # ValueError: a NUL character, from an older import
        return False


@dataclass
class _EmbeddedChunk:
    """Some files, read and embedded, ready to be stored."""

    rows: list[ImageRow] = field(default_factory=list)
    vectors: dict[int, np.ndarray] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Ingest:
    """An ingest that is running."""

    collection: Collection
    report: IngestReport
    labels: Labels
    batch_size: int
    flush: bool
    stop: threading.Event
    progress: Callable[[IngestReport], None]
    start: float = field(default_factory=time.perf_counter)
    unflushed: int = 0
    noted: float = -NOTE_EVERY
    pipeline_wanted: Future[None] = field(default_factory=Future)
    pipeline: Future[Pipeline] = field(default_factory=Future)

    def run(self, found: Sequence[ImageFile], whole: bool, prune: bool) -> IngestReport:
        collection, report = self.collection, self.report
        last = collection.metadata.runs(collection.name, 1)
        report.run_id = collection.metadata.start_run(collection.name, report.folder, report.total)
        try:
            report.recovered_rows = collection.recover()
            new = self._skip_unchanged(found, whole, prune)
            self._report_progress()
            for chunk in self._chunks(new):
                self._store(chunk)
                self._report_progress()
            if self.labels.table is not None:
                self.labels.table.set(collection)
            # A run that was interrupted may have left vectors that are not indexed.
            interrupted = last and last[0].state != "done"
            changed = report.encoded or report.pruned or report.recovered_rows
            if interrupted or (changed and self.flush):
                collection.flush()
            stopped = self.stop.is_set() and report.done < report.total
            report.state = "stopped" if stopped else "done"
            counts = collection.count()
            report.images, report.paths = counts.images, counts.paths
            report.seconds = time.perf_counter() - self.start
            collection.metadata.finish_run(report.run_id, report.state, **self._counts())
        except BaseException as error:
            asked = self.stop.is_set() and not isinstance(error, ImgSearchError)
            stopped = asked or isinstance(error, KeyboardInterrupt)
            report.state = "stopped" if stopped else "failed"
            if isinstance(error, StoreUnavailable) and error.where == collection.metadata.where:
                raise  # its row cannot be written either, and will show as stale
            try:
                collection.metadata.finish_run(
                    report.run_id, report.state, error=_reason(error), **self._counts()
                )
            except ImgSearchError as second:
                error.add_note(f"the run could not be marked as {report.state}: {second}")
            raise
        return report

    def _skip_unchanged(
        self, found: Sequence[ImageFile], whole: bool, prune: bool
    ) -> list[ImageFile]:
        collection, report = self.collection, self.report
        if whole:
            inside = report.folder.rstrip(os.sep) + os.sep
            known = collection.metadata.known(collection.name, inside)
        else:
            paths = (str(file.path) for file in found)
            known = collection.metadata.by_path(collection.name, paths)
        new, known_files = [], []
        for file in found:
            stored = known.pop(str(file.path), None)
            # A row that is not ready belongs to another process, which may die.
            unchanged = stored and (stored.size, stored.mtime_ns) == (file.size, file.mtime_ns)
            # Earlier versions did not read Exif data.
            if unchanged and stored.state == "ready" and stored.has_gps is not None:
                known_files.append(str(file.path))
            else:
                new.append(file)
        report.unchanged = len(known_files)
        given = {path: self.labels.of(path) for path in known_files}
        if any(given.values()):
            collection.metadata.set_attributes(collection.name, given)
        if whole:  # else the other files were not looked for
            gone = sorted(filter(_is_gone, known))
            if prune:
                report.pruned = collection.delete(gone)
            else:
                report.missing = tuple(gone)
        return new

    def _chunks(self, files: Sequence[ImageFile]) -> Iterator[_EmbeddedChunk]:
        """Yield chunks in the order of the files, made in advance by threads."""
        parts = self._parts(files)
        part, size = next(parts, (None, 0))
        ahead: deque[tuple[Future[_EmbeddedChunk], int]] = deque()
        with ThreadPoolExecutor(AHEAD, "imgsearch-ingest") as pool:
            try:
                while not self.stop.is_set() and (ahead or part):
                    while part and len(ahead) <= AHEAD:
                        held = sum(n for future, n in ahead if not future.done())
                        if held and held + size > BYTES_AHEAD:
                            break
                        ahead.append((pool.submit(self._embed, part), size))
                        part, size = next(parts, (None, 0))
                    self._load_pipeline_if_wanted(ahead[0][0], len(files))
                    yield ahead.popleft()[0].result()
            finally:
                self.pipeline.cancel()  # for threads that wait for it
                for future, _ in ahead:
                    future.cancel()

    def _parts(self, files: Sequence[ImageFile]) -> Iterator[tuple[list[ImageFile], int]]:
        """Split files into chunks of `batch_size`, or of `CHUNK_BYTES` if that is less."""
        part: list[ImageFile] = []
        total = 0
        for file in files:
            size = file.size if file.size <= images.MAX_BYTES else 0  # larger ones are not read
            if part and (len(part) == self.batch_size or total + size > CHUNK_BYTES):
                yield part, total
                part, total = [], 0
            part.append(file)
            total += size
        if part:
            yield part, total

    def _load_pipeline_if_wanted(self, chunk: Future[_EmbeddedChunk], count: int) -> None:
        """Wait for a chunk, or until one needs the encoder, which is then loaded.

        It is loaded in the calling thread, where an interrupt ends a download of weights.
        """
        if not self.pipeline.done():
            wait((chunk, self.pipeline_wanted), return_when=FIRST_COMPLETED)
            if self.pipeline_wanted.done():
                pipeline = self.collection.pipeline
                pipeline.optimize_for(count)
                self.pipeline.set_result(pipeline)

    def _embed(self, files: Sequence[ImageFile]) -> _EmbeddedChunk:
        """Read some files, and embed those whose content is new."""
        chunk = _EmbeddedChunk()
        read: list[tuple[ImageFile, ImageInfo]] = []
        loaded: dict[int, LoadedImage] = {}
        for file in files:
            if not images.is_candidate(file.path):
                chunk.ignored.append((str(file.path), "neither named like an image nor one"))
                continue
            try:
                image = images.load(file.path)
            except ImageError as error:
                chunk.failures.append((str(file.path), error.reason))
                continue
            read.append((file, image.info))
            loaded[image.info.image_id] = image
        known = self.collection.metadata.by_id(self.collection.name, loaded) if loaded else {}
        new = {i: image for i, image in loaded.items() if i not in known}
        del loaded
        made = {}
        if new:
            with suppress(InvalidStateError):
                self.pipeline_wanted.set_result(None)
            pipeline = self.pipeline.result()
            made = dict(zip(new, pipeline(list(new.values())), strict=True))
        for file, info in read:
            result = made.get(info.image_id)
            if isinstance(result, ImageError):
                chunk.failures.append((str(file.path), result.reason))
                continue
            if result is not None:
                chunk.vectors[info.image_id] = result.vector
            labels = self.labels.of(str(file.path))
            chunk.rows.append(new_row(file, info)._replace(attributes=labels))
        return chunk

    def _store(self, chunk: _EmbeddedChunk) -> None:
        report = self.report
        left = self.collection.store(chunk.rows, chunk.vectors) if chunk.rows else []
        encoded = len({row.image_id for row in chunk.rows} & chunk.vectors.keys())
        report.encoded += encoded
        report.linked += len(chunk.rows) - encoded - len(left)
        report.failures += chunk.failures
        reason = "was deleted from the collection meanwhile; ingest again"
        report.failures += [(row.path, reason) for row in left]
        report.ignored_files += chunk.ignored
        self.unflushed += len(chunk.vectors)
        if self.unflushed >= FLUSH_EVERY:
            self.collection.flush(wait=False)  # the encoder goes on meanwhile
            self.unflushed = 0

    def _counts(self) -> dict[str, int]:
        report = self.report
        return {
            "done": report.done,
            "encoded": report.encoded + report.linked,
            "skipped": report.unchanged + report.ignored,
            "failed": report.failed,
        }

    def _report_progress(self) -> None:
        report = self.report
        report.seconds = time.perf_counter() - self.start
        report.encoder = self.collection.describe_encoder()
        if report.seconds >= self.noted + NOTE_EVERY:
            self.noted = report.seconds
            self.collection.metadata.update_run(report.run_id, **self._counts())
        self.progress(report)


def _reason(error: BaseException) -> str:
    """Text for the run's row. The text of an error of another library can hold secrets."""
    return str(error) if isinstance(error, ImgSearchError) else type(error).__name__
