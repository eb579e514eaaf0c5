"""From a folder of images to a gallery.

Chunks are read, decoded and embedded by a few threads that run ahead; the
calling thread takes them in order and writes. So decoding, encoding and writing
overlap, and memory holds a handful of chunks whatever the size of the folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from imgsearch import images
from imgsearch.errors import (
    ConfigError,
    ImageError,
    ImgSearchError,
    StoreUnavailable,
    printable,
)
from imgsearch.gallery import Gallery, new_row
from imgsearch.images import ImageFile, ImageInfo
from imgsearch.pipeline import Pipeline
from imgsearch.stores.metadata import ImageRow

AHEAD = 3
"""Chunks in work beside the one being written: one read, one decoded, one encoded."""

FLUSH_EVERY = 5_000
"""New vectors after which the index is built in the middle of a long ingest: searches
over more unindexed vectors become slow, and each flush makes a segment of its own."""


@dataclass
class Progress:
    """How far an ingest is, as its callback and the ``runs`` table see it.

    Attributes
    ----------
    total : int
        Files to look at, images or not.
    done : int
        Files looked at; the sum of the five counts that follow.
    encoded : int
        Embedded and stored.
    linked : int
        Stored without encoding, since their content was known under another path.
    unchanged : int
        Passed over by size and time of change, without being read.
    failed : int
        Images that could not be stored, each with a reason.
    ignored : int
        No images, neither by content nor by name.
    seconds : float
        Since the beginning.
    """

    total: int = 0
    encoded: int = 0
    linked: int = 0
    unchanged: int = 0
    failed: int = 0
    ignored: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Files looked at."""
        return self.encoded + self.linked + self.unchanged + self.failed + self.ignored

    @property
    def rate(self) -> float:
        """Files a second, those passed over as unchanged left out."""
        return (self.done - self.unchanged) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the rate so far, in seconds; None before there is one."""
        return (self.total - self.done) / self.rate if self.rate else None


@dataclass
class IngestReport(Progress):
    """What an ingest did.

    Attributes
    ----------
    collection, folder : str
        Where to, and where from.
    state : str
        ``done``, or ``stopped`` when it was asked to.
    encoder : dict
        What :meth:`imgsearch.encoders.base.Encoder.describe` says.
    index : str
        Index of the collection.
    shard : str or None
        Part of the folder, as ``"0/4"``.
    settled : int
        Rows that an earlier, interrupted process had left half done.
    missing : tuple of str
        Paths of this folder in the collection whose files are gone; they stay
        in the collection unless `prune` is asked for.
    pruned : int
        How many of those were taken out.
    failures : list of tuple of str
        ``(path, reason)``.
    images, paths : int
        What the whole collection holds now, by content and by path.
    run_id : int
        Row of the ``runs`` table.
    """

    collection: str = ""
    folder: str = ""
    state: str = "running"
    encoder: dict = field(default_factory=dict)
    index: str = ""
    shard: str | None = None
    settled: int = 0
    missing: tuple[str, ...] = ()
    pruned: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    images: int = 0
    paths: int = 0
    run_id: int = 0

    def to_dict(self) -> dict:
        """Everything as plain values for JSON, with the rate.

        Returns
        -------
        dict
            Undecodable bytes of paths are shown as backslash escapes.
        """
        return asdict(self) | {
            "folder": printable(self.folder),
            "done": self.done,
            "images_per_second": self.rate,
            "missing": [printable(path) for path in self.missing],
            "failures": [{"path": printable(p), "reason": r} for p, r in self.failures],
        }

    def __str__(self) -> str:
        parts = [
            f"{self.encoded} encoded ({self.rate:.1f}/s)",
            f"{self.linked} known under another path",
            f"{self.unchanged} unchanged",
            f"{self.failed} failed",
            f"{self.ignored} no images",
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
    progress: Callable[[IngestReport], None] | None = None,
    stop: threading.Event | None = None,
    **open_gallery,
) -> IngestReport:
    """Bring a folder of images into a collection, or up to date with it.

    What is there and unchanged is passed over, so that an ingest which was
    stopped, or died, is resumed by starting it again.

    Parameters
    ----------
    image_dir : path
        Folder with images.
    collection : str, optional
        Made if it is not there; ``DEFAULT_TABLE`` if left out.
    recursive : bool
        Whether to descend into sub-folders.
    limit : int, optional
        Look at the first so many files only.
    shard : str, optional
        ``"i/n"``: only the files whose path hashes to part `i` of `n`, from 0,
        so that `n` processes ingest one folder together.
    batch_size : int
        Images that are encoded together.
    workers : int, optional
        Threads that decode; the number of processors if left out.
    prune : bool
        Take paths of this folder out of the collection when their files are gone.
    progress : callable, optional
        Is called with the unfinished report after each chunk, in this thread.
    stop : threading.Event, optional
        Once set, the ingest ends after the chunk in hand.
    **open_gallery
        Passed on to :meth:`imgsearch.gallery.Gallery.open`: encoder, weights,
        index, device, precision, backend, settings.

    Returns
    -------
    IngestReport

    Raises
    ------
    ImageError
        `image_dir` is no folder that can be read.
    ConfigError
        A parameter has a value that cannot be used.
    EncoderMismatch
        The collection was made with another encoder.
    StoreError
        A store failed. Everything that was reported as stored stays so.
    """
    part = parse_shard(shard)
    for name, value in (("batch_size", batch_size), ("limit", limit), ("workers", workers)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(name, f"is {value!r}; a whole number from 1 is needed")
    folder = Path(image_dir).expanduser().absolute()
    found, unreadable = _listed(folder, recursive, part, limit)
    with Gallery.open(collection, create=True, **open_gallery) as gallery:
        report = IngestReport(
            collection=gallery.name,
            folder=str(folder),
            index=gallery.row.index,
            shard=shard,
            total=len(found) + len(unreadable),
            failed=len(unreadable),
            failures=[(error.path, error.reason) for error in unreadable],
        )
        job = _Ingest(gallery, report, workers, batch_size, progress, stop or threading.Event())
        return job.run(found, prune and part is None and limit is None and recursive)


def parse_shard(shard: str | None) -> tuple[int, int] | None:
    """Read ``"i/n"``.

    Parameters
    ----------
    shard : str or None
        Part `i` of `n`, counted from 0.

    Returns
    -------
    tuple of int or None

    Raises
    ------
    ConfigError
        It has another form, or `i` is not below `n`.

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


def _listed(
    folder: Path, recursive: bool, part: tuple[int, int] | None, limit: int | None
) -> tuple[list[ImageFile], list[ImageError]]:
    unreadable: list[ImageError] = []
    files: Iterable[ImageFile] = images.find(
        folder, recursive=recursive, on_error=unreadable.append
    )
    if part:
        i, n = part
        files = (f for f in files if _part(f.path.relative_to(folder), n) == i)
    return list(islice(files, limit)), unreadable


def _gone(path: str) -> bool:
    """Whether no file is there any more; what cannot be looked at may well be."""
    try:
        return not stat.S_ISREG(Path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def _part(relative: Path, n: int) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(relative)).digest()[:8]) % n


@dataclass
class _Chunk:
    """What the threads made of some files."""

    rows: list[ImageRow] = field(default_factory=list)
    vectors: dict[int, np.ndarray] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0


class _Ingest:
    """One ingest under way."""

    def __init__(
        self,
        gallery: Gallery,
        report: IngestReport,
        workers: int | None,
        batch_size: int,
        progress: Callable[[IngestReport], None] | None,
        stop: threading.Event,
    ):
        self.gallery, self.report, self.batch_size = gallery, report, batch_size
        self.progress, self.stop = progress, stop
        self.pipeline = Pipeline(gallery.encoder, workers=workers)
        self.start = time.perf_counter()
        self.unflushed = 0

    def run(self, found: Sequence[ImageFile], prune: bool) -> IngestReport:
        gallery, report = self.gallery, self.report
        report.run_id = gallery.metadata.start_run(gallery.name, report.folder, report.total)
        try:
            report.settled = gallery.recover()
            new = self._pass_over_known(found, prune)
            self.pipeline.optimize_for(len(new))
            report.encoder = self.pipeline.encoder.describe()
            self._tell()
            for chunk in self._chunks(new):
                self._store(chunk)
                self._tell()
            gallery.flush()
            report.state = (
                "stopped" if self.stop.is_set() and report.done < report.total else "done"
            )
            counts = gallery.count()
            report.images, report.paths = counts.images, counts.paths
            report.seconds = time.perf_counter() - self.start
            gallery.metadata.finish_run(report.run_id, report.state, **self._counts())
        except BaseException as error:
            report.state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            if isinstance(error, StoreUnavailable) and error.where == gallery.metadata.where:
                raise  # it would be as silent for the run's row, which shows as stale soon
            try:
                gallery.metadata.finish_run(
                    report.run_id, report.state, error=_reason(error), **self._counts()
                )
            except ImgSearchError as second:
                # The store that failed may be the one that holds the run: it then
                # shows as stale, and the first error is the one to raise.
                error.add_note(f"the run could not be marked as {report.state}: {second}")
            raise
        return report

    def _pass_over_known(self, found: Sequence[ImageFile], prune: bool) -> list[ImageFile]:
        gallery, report = self.gallery, self.report
        known = gallery.metadata.known(gallery.name, report.folder + os.sep)
        new = []
        for file in found:
            at = known.pop(str(file.path), None)
            # A row that is not ready is in the hands of another process, which may die.
            if at is not None and at == (file.size, file.mtime_ns, at.image_id, "ready"):
                report.unchanged += 1
            else:
                new.append(file)
        if prune:
            report.pruned = gallery.delete(filter(_gone, known))
            known = {}
        report.missing = tuple(sorted(filter(_gone, known)))
        return new

    def _chunks(self, files: Sequence[ImageFile]) -> Iterator[_Chunk]:
        """Chunks in the order of the files, made by threads that run ahead."""
        parts = iter(
            [files[i : i + self.batch_size] for i in range(0, len(files), self.batch_size)]
        )
        under_way: deque[Future[_Chunk]] = deque()
        with ThreadPoolExecutor(AHEAD, "imgsearch-ingest") as pool:
            try:
                while not self.stop.is_set():
                    while len(under_way) <= AHEAD:
                        part = next(parts, None)
                        if part is None:
                            break
                        under_way.append(pool.submit(self._make, part))
                    if not under_way:
                        return
                    yield under_way.popleft().result()
            finally:
                for future in under_way:
                    future.cancel()

    def _make(self, files: Sequence[ImageFile]) -> _Chunk:
        """Read, hash and, where the content is new, embed some files."""
        chunk, data, read = _Chunk(), {}, []
        for file in files:
            if not images.is_candidate(file.path):
                chunk.ignored += 1
                continue
            try:
                content = images.read(file.path)
            except ImageError as error:
                chunk.failures.append((str(file.path), error.reason))
                continue
            digest = hashlib.sha256(content).hexdigest()
            data[images.image_id(digest)] = content
            read.append((file, digest))
        known = self.gallery.metadata.by_id(self.gallery.name, data.keys())
        new = [image_id for image_id in data if image_id not in known]
        made = dict(zip(new, self.pipeline([data[i] for i in new]), strict=True)) if new else {}
        for file, digest in read:
            image_id = images.image_id(digest)
            if image_id in known:
                twin = known[image_id][0]
                facts = ImageInfo(image_id, digest, file.size, twin.width, twin.height, twin.format)
                chunk.rows.append(new_row(file, facts))
                continue
            result = made[image_id]
            if isinstance(result, ImageError):
                chunk.failures.append((str(file.path), result.reason))
                continue
            chunk.vectors[image_id] = result.vector
            chunk.rows.append(new_row(file, result.info))
        return chunk

    def _store(self, chunk: _Chunk) -> None:
        report = self.report
        left = self.gallery.add(chunk.rows, chunk.vectors)
        encoded = len({row.image_id for row in chunk.rows} & chunk.vectors.keys())
        report.encoded += encoded
        report.linked += len(chunk.rows) - encoded - len(left)
        for row in left:
            chunk.failures.append(
                (row.path, "was deleted from the collection meanwhile; run again")
            )
        report.failures += chunk.failures
        report.failed += len(chunk.failures)
        report.ignored += chunk.ignored
        self.unflushed += len(chunk.vectors)
        if self.unflushed >= FLUSH_EVERY:
            self.gallery.flush(wait=False)  # the encoder has more to do meanwhile
            self.unflushed = 0

    def _counts(self) -> dict[str, int]:
        report = self.report
        return {
            "done": report.done,
            "encoded": report.encoded + report.linked,
            "skipped": report.unchanged + report.ignored,
            "failed": report.failed,
        }

    def _tell(self) -> None:
        self.report.seconds = time.perf_counter() - self.start
        self.gallery.metadata.update_run(self.report.run_id, **self._counts())
        if self.progress is not None:
            self.progress(self.report)


def _reason(error: BaseException) -> str:
    """Say what went wrong in the ``runs`` table; texts of foreign errors can hold secrets."""
    return str(error) if isinstance(error, ImgSearchError) else type(error).__name__
