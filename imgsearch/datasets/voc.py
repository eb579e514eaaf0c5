"""PASCAL VOC: image sets and annotations of VOC2007 and VOC2012.

Only the image sets in ``ImageSets/Main`` are completely annotated. The other images in
``JPEGImages`` belong to the action and segmentation tasks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException, DTDForbidden
from defusedxml.ElementTree import fromstring

from imgsearch.datasets.base import Dataset, list_files, read_bounded
from imgsearch.errors import DatasetError, printable
from imgsearch.io import absolute

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes in the official order."""

GROUPS = {"without person": tuple(name for name in CLASSES if name != "person")}
"""A third of all images show a person, so that this class dominates every mean."""

MAX_ANNOTATION = 1 << 20  # bytes; the largest official one has 14,142
MAX_SET = 1 << 24  # bytes; the largest official one has about 300,000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.[A-Za-z0-9_-]{1,50})*")


class Voc(Dataset):
    """A VOC dataset on disk.

    Parameters
    ----------
    root : path
        ``…/VOCdevkit/VOC2012``, any other folder that contains ``Annotations`` and
        ``ImageSets``, or a folder that contains ``VOC2012`` or ``VOCdevkit/VOC2012``.
    year : int or str, optional
        Required if `root` contains several years.

    Raises
    ------
    DatasetError
        There is no VOC dataset at `root`, or there are several and `year` is not given.
    """

    classes = CLASSES
    groups = GROUPS

    def __init__(self, root: str | Path, year: int | str | None = None):
        self.root = _locate(absolute(root), year)

    def __repr__(self) -> str:
        return f"Voc({str(self.root)!r})"

    def image_sets(self) -> list[str]:
        """Return the names of the sets in ``ImageSets/Main``, except those of single classes."""
        per_class = tuple(f"{name}_" for name in CLASSES)
        paths = (self.root / "ImageSets" / "Main").glob("*.txt")
        return sorted(path.stem for path in paths if not path.stem.startswith(per_class))

    def image_set(self, name: str) -> tuple[str, ...]:
        """Return the names of the images in a set such as ``trainval``, in file order."""
        folder = self.root / "ImageSets" / "Main"
        path = folder / f"{_checked_name(name, folder, 'an image set')}.txt"
        if not path.is_file():
            known = ", ".join(self.image_sets()) or "(none)"
            raise DatasetError(path, f"is missing; the sets of this dataset are {known}")
        text = read_bounded(path, MAX_SET).decode("utf-8", "replace")
        annotated = self.annotated()
        lines: dict[str, int] = {}
        for number, image in enumerate(map(str.strip, text.splitlines()), 1):
            if not image:
                continue
            where = f"line {number}"
            if not _NAME.fullmatch(image):
                raise DatasetError(path, f"{where}: {_shorten(image)!r} is not an image name")
            if image in lines:
                raise DatasetError(path, f"{where}: {image} is also in line {lines[image]}")
            if image not in annotated:
                missing = f"{where}: Annotations/{image}.xml is missing"
                raise DatasetError(path, f"{missing}: the dataset is incomplete, unpack it again")
            lines[image] = number
        if not lines:
            raise DatasetError(path, "lists no images")
        return tuple(lines)

    def image_files(self) -> dict[str, Path]:
        """Return every image file in ``JPEGImages``, by its name without the suffix."""
        folder = self.root / "JPEGImages"
        # The official images are JPEG; other datasets in this layout contain PNG as well.
        return {
            file[:-4]: folder / file
            for file in sorted(list_files(folder))
            if file.endswith((".jpg", ".png"))
        }

    def annotated(self) -> frozenset[str]:
        """Return the names of the images that have a file in ``Annotations``."""
        files = list_files(self.root / "Annotations")
        return frozenset(file[:-4] for file in files if file.endswith(".xml"))

    def labels(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the classes of images, bool (n, 20): present, and only as difficult objects."""
        folder = self.root / "Annotations"
        present = np.zeros((len(names), len(CLASSES)), bool)
        shown = np.zeros_like(present)
        for row, name in enumerate(names):
            path = folder / f"{_checked_name(name, folder, 'an image')}.xml"
            for column, difficult in _objects(read_bounded(path, MAX_ANNOTATION), path):
                shown[row, column] = True
                present[row, column] |= not difficult
        return present, shown & ~present


def _objects(data: bytes, path: Path) -> Iterator[tuple[int, bool]]:
    """Yield the class and difficulty of each object in an annotation."""
    try:
        root: Element = fromstring(data, forbid_dtd=True)
    except DTDForbidden:
        raise DatasetError(path, "declares a document type, which is not allowed") from None
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise DatasetError(path, f"is not well-formed XML: {error}") from None
    if root.tag != "annotation":
        raise DatasetError(path, f"is not a VOC annotation: it begins with <{_shorten(root.tag)}>")
    for number, element in enumerate(root.findall("object"), 1):
        where = f"object {number}"
        name = (element.findtext("name") or "").strip()
        if name not in CLASSES:
            raise DatasetError(path, f"{where}: {_shorten(name)!r} is not a VOC class")
        difficult = (element.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            reason = f"{where}: <difficult> must be 0 or 1, not {_shorten(difficult)!r}"
            raise DatasetError(path, reason)
        yield CLASSES.index(name), difficult == "1"


def _shorten(text: str) -> str:
    return printable(text[:40])


def _checked_name(name: str, where: Path, kind: str) -> str:
    """Return a name unchanged, or raise an error if it could lead out of the dataset's folder."""
    if not _NAME.fullmatch(name):
        raise DatasetError(where, f"{_shorten(name)!r} is not a valid name for {kind}")
    return name


def _locate(root: Path, year: int | str | None) -> Path:
    """Find the folder of one year in the given folder or below it."""
    if year is not None and not re.fullmatch(r"(VOC)?[0-9]{4}", str(year)):
        raise DatasetError(root, f"{_shorten(str(year))!r} is not a year, such as 2012")
    if not root.is_dir():
        raise DatasetError(root, "is not a folder")
    folder = "VOC[0-9][0-9][0-9][0-9]" if year is None else f"VOC{str(year)[-4:]}"
    if _is_voc(root):
        if year is not None and re.fullmatch(r"VOC[0-9]{4}", root.name) and root.name != folder:
            raise DatasetError(root, f"is not {folder}: choose another folder or another year")
        return root
    below = [*sorted(root.glob(folder)), *sorted(root.glob(f"VOCdevkit/{folder}"))]
    found = [path for path in below if _is_voc(path)]
    if len(found) == 1:
        return found[0]
    if found:
        years = ", ".join(p.name for p in found)
        raise DatasetError(root, f"contains several years ({years}): choose one, as in year=2012")
    raise DatasetError(
        root,
        f"contains neither Annotations and ImageSets/Main nor a folder "
        f"{folder.replace('[0-9]', '?')} with them: choose the folder VOC2012 of an unpacked "
        "VOCdevkit",
    )


def _is_voc(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "ImageSets" / "Main").is_dir()
