"""Protocols: which images of a dataset are queries and which are searched."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imgsearch import images
from imgsearch.datasets.base import Dataset
from imgsearch.encoders import license_of
from imgsearch.errors import ConfigError, DatasetError, ImageError
from imgsearch.evaluation import scoring
from imgsearch.evaluation.scoring import Task

if TYPE_CHECKING:
    from imgsearch.gallery import Gallery

_REPORT_EVERY = 500  # number of files between two calls of progress


@dataclass(frozen=True)
class Protocol:
    """Which images are queries, and which are searched.

    Attributes
    ----------
    gallery, query : str
        Image sets of the dataset that are searched and that are queries. If both are the
        same, the protocol is leave-one-out: each image in turn is the query, and the others
        are the gallery. A query and its byte-identical copies are never in its own ranking.
    distractors : bool
        Whether to search also the images of the collection that are in no image set. They are
        never relevant, but junk if they are annotated and share a class with the query. Objects
        in them that are not annotated make them count as wrong, so that scores are a lower
        bound.
    """

    gallery: str = "train"
    query: str = "val"
    distractors: bool = False

    @classmethod
    def parse(cls, text: str, *, distractors: bool = False) -> Protocol:
        """Read a protocol from text.

        Parameters
        ----------
        text : str
            ``train -> val`` (gallery, then queries) or ``leave-one-out trainval``.
        distractors : bool
            Whether to search also the images that are in no image set.

        Returns
        -------
        Protocol

        Raises
        ------
        ConfigError
            The text is not a protocol.
        """
        name = "([A-Za-z0-9_-]+)"
        if found := re.fullmatch(rf"leave-one-out[ :]+{name}", text.strip()):
            return cls(found[1], found[1], distractors)
        if found := re.fullmatch(rf"{name}\s*(?:->|→)\s*{name}", text.strip()):
            return cls(found[1], found[2], distractors)
        usage = "use 'train -> val' (gallery, then queries), or 'leave-one-out trainval'"
        raise ConfigError("protocol", f"{text[:60]!r} is not a protocol: {usage}")

    def __str__(self) -> str:
        text = f"{self.gallery} -> {self.query}"
        if self.gallery == self.query:
            text = f"leave-one-out {self.gallery}"
        return text + (", with distractors" if self.distractors else "")


def prepare(
    gallery: Gallery,
    dataset: Dataset,
    protocol: Protocol | str = "train -> val",
    *,
    classes: Sequence[str] = (),
    allow_missing: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Task:
    """Combine the vectors of a collection with the labels of a dataset.

    Images are matched by content, so that the collection may have been imported, or ingested
    from a copy of the dataset.

    Parameters
    ----------
    gallery : Gallery
        The collection.
    dataset : Dataset
        The dataset. Only the images in its image sets have ground truth.
    protocol : Protocol or str
        The protocol, or a text for :meth:`Protocol.parse`.
    classes : sequence of str
        If given, use only the images that show exactly one class, and that one of these.
    allow_missing : bool
        Whether to ignore images that the collection does not contain. They are counted in the
        reports, and are neither queries nor relevant.
    progress : callable, optional
        Called regularly with a line of text while files are read.

    Returns
    -------
    Task

    Raises
    ------
    DatasetError
        The dataset is damaged, or the collection does not contain all its images.
    ConfigError
        The protocol cannot be parsed.
    """
    if isinstance(protocol, str):
        protocol = Protocol.parse(protocol)
    searched, asked = dataset.image_set(protocol.gallery), dataset.image_set(protocol.query)
    wanted = tuple(dict.fromkeys(searched + asked))
    if classes:
        wanted = dataset.single_label(wanted, classes)
    files = dataset.image_files()
    if not protocol.distractors:
        files = {name: files[name] for name in wanted if name in files}
    contents = _image_ids(gallery, files, progress)
    ids, vectors = gallery.embeddings()
    number = {image_id: i for i, image_id in enumerate(ids.tolist())}
    here = [name for name in wanted if contents.get(name) in number]
    if len(here) < len(wanted) and not (here and allow_missing):
        lost = sorted(set(wanted) - set(here))
        without_file = sum(name not in files for name in lost)
        raise DatasetError(
            dataset.root,
            f"{len(lost)} of {len(wanted)} images of {protocol} are not in collection "
            f"{gallery.name!r}, the first is {lost[0]}"
            + (f"; the dataset lacks the files of {without_file} of them" if without_file else "")
            + ": ingest the dataset's image folder"
            + (", or leave out images that are not ingested (allow_missing)" if here else ""),
        )
    present, difficult = dataset.labels(here)
    numbers = [number[contents[name]] for name in here]
    paths = [str(files[name]) for name in here]
    others: list[int] = []
    if protocol.distractors:
        labelled = {name for part in dataset.image_sets() for name in dataset.image_set(part)}
        known = {contents[name] for name in labelled if name in contents}
        others = [i for i, image_id in enumerate(ids.tolist()) if image_id not in known]
        shown = _annotated_classes(dataset, contents, ids[others])
        present = np.concatenate([present, np.zeros_like(shown)])
        difficult = np.concatenate([difficult, shown])
        rows = gallery.metadata.by_id(gallery.name, ids[others].tolist())
        paths += [rows[int(i)][0].path if int(i) in rows else "" for i in ids[others]]
    in_gallery, in_queries = set(searched), set(asked)
    return scoring.task(
        ids[numbers + others],
        vectors[numbers + others],
        present,
        difficult,
        classes=dataset.classes,
        groups=dataset.groups,
        names=here + [f"distractor-{ids[i]}" for i in others],
        paths=paths,
        queries=np.array([n in in_queries for n in here] + [False] * len(others)),
        gallery=np.array([n in in_gallery for n in here] + [True] * len(others)),
        about=described(gallery)
        | {
            "dataset": dataset.root.name,
            "protocol": str(protocol),
            "single_label_classes": list(classes),
            "distractors": len(others),
            "missing_images": len(wanted) - len(here),
        },
    )


def described(gallery: Gallery) -> dict:
    """Return the description of a collection for a report."""
    return {
        "collection": gallery.name,
        "encoder": gallery.row.encoder,
        "license": license_of(gallery.row.encoder),
        "fingerprint": gallery.row.fingerprint,
        "identity": gallery.row.identity,
        "index": str(gallery.row.index),
    }


def _image_ids(
    gallery: Gallery, files: Mapping[str, Path], progress: Callable[[str], None] | None
) -> dict[str, int]:
    """Return the image id of each readable file by name; read only what is new or has changed."""
    rows = gallery.metadata.by_path(gallery.name, [str(path) for path in files.values()])

    def identify(path: Path) -> int | None:
        try:
            row = rows.get(str(path))
            if row is not None and row.state == "ready":
                status = path.stat()
                if (status.st_size, status.st_mtime_ns) == (row.size, row.mtime_ns):
                    return row.image_id
            return images.content_id(path)
        except (OSError, ImageError):
            return None

    found: list[int | None] = []
    paths = list(files.values())
    with ThreadPoolExecutor(4) as pool:
        while len(found) < len(paths):
            if progress is not None:
                progress(f"identified {len(found):,} of {len(paths):,} images by content")
            found += pool.map(identify, paths[len(found) : len(found) + _REPORT_EVERY])
    ids = zip(files, found, strict=True)
    return {name: image_id for name, image_id in ids if image_id is not None}


def _annotated_classes(
    dataset: Dataset, contents: Mapping[str, int], ids: np.ndarray
) -> np.ndarray:
    """Return the annotated classes of images that are in no image set, bool (n, classes)."""
    annotated = dataset.annotated()
    names = {image_id: name for name, image_id in contents.items() if name in annotated}
    shown = np.zeros((len(ids), len(dataset.classes)), bool)
    rows = [row for row, image_id in enumerate(ids.tolist()) if image_id in names]
    if rows:
        present, difficult = dataset.labels([names[int(ids[row])] for row in rows])
        shown[rows] = present | difficult
    return shown
