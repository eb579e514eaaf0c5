"""PASCAL VOC: image sets and annotations of VOC2007 and VOC2012.

Only ``ImageSets/Main`` is ground truth: the other images of ``JPEGImages`` come
from the action and segmentation tasks, and not everything in them is annotated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from imgsearch.errors import DatasetError, printable
from imgsearch.io import atomic

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes in the official order."""

MAX_ANNOTATION = 1 << 20  # bytes; the largest official one has 14,142
MAX_SET = 1 << 24  # bytes; the largest official one has some 300,000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.[A-Za-z0-9_-]{1,50})*")
_CACHE_VERSION = 1


class Object(NamedTuple):
    """One annotated object.

    Attributes
    ----------
    name : str
        Its class, one of :data:`CLASSES`.
    box : tuple of float
        ``xmin, ymin, xmax, ymax`` as annotated: pixels counted from 1, both ends included.
    difficult : bool
        Official evaluation leaves it out.
    truncated : bool
        It reaches beyond the box. False where the annotation does not say.
    pose : str
        ``Left``, ``Right``, ``Frontal``, ``Rear`` or ``Unspecified``.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool
    pose: str


class Annotation(NamedTuple):
    """What is annotated for one image.

    Attributes
    ----------
    width, height : int
        Of the image, pixels.
    objects : tuple of Object
        In the order of the file.
    """

    width: int
    height: int
    objects: tuple[Object, ...]


class Voc:
    """A VOC dataset on disk.

    Parameters
    ----------
    root : path
        ``…/VOCdevkit/VOC2012``, any folder that holds ``Annotations`` and
        ``ImageSets``, or with `year` a folder that holds ``VOC2012`` or
        ``VOCdevkit/VOC2012``.
    year : int or str, optional
        Needed where `root` holds several years.
    cache : path, optional
        Folder for parsed annotations. A file of it is used only for annotations
        whose size and times of change are the same as when they were parsed; a
        damaged one is made anew.

    Attributes
    ----------
    root : pathlib.Path
        The folder that holds ``Annotations`` and ``ImageSets``.

    Raises
    ------
    DatasetError
        There is no VOC dataset at `root`, or there are several and no `year`.
    """

    def __init__(
        self, root: str | Path, year: int | str | None = None, *, cache: str | Path | None = None
    ):
        self.root = _locate(Path(root).expanduser().absolute(), year)
        self._cache = None if cache is None else Path(cache).expanduser().absolute()
        self._folders: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"Voc({str(self.root)!r})"

    def image_sets(self) -> list[str]:
        """Names of the sets in ``ImageSets/Main`` that are not of one class, sorted."""
        prefixes = tuple(f"{name}_" for name in CLASSES)
        return sorted(
            p.stem
            for p in (self.root / "ImageSets" / "Main").glob("*.txt")
            if not p.stem.startswith(prefixes)
        )

    def image_set(self, name: str) -> tuple[str, ...]:
        """Names of the images in a set.

        Parameters
        ----------
        name : str
            ``train``, ``val``, ``trainval`` or, for 2007, ``test``.

        Returns
        -------
        tuple of str
            In the order of the file, without ``.jpg``.

        Raises
        ------
        DatasetError
            There is no such set, it is empty, an entry is no image's name, stands
            twice or has no annotation; with the line.
        """
        path = self._set_path(name)
        lines: dict[str, int] = {}
        for number, (image, *rest) in _set_lines(path):
            if rest:
                raise DatasetError(path, f"line {number}: one image's name is all it should hold")
            if image in lines:
                raise DatasetError(path, f"line {number}: {image} is in line {lines[image]} too")
            lines[image] = number
        if not lines:
            raise DatasetError(path, "names no image")
        there = {entry.name for entry in _entries(self.root / "Annotations")}
        for image, number in lines.items():
            if f"{image}.xml" not in there:
                raise DatasetError(
                    path,
                    f"line {number}: names {image}, and Annotations/{image}.xml is missing: "
                    "the dataset is incomplete, unpack it again",
                )
        return tuple(lines)

    def class_set(self, class_name: str, name: str) -> dict[str, int]:
        """Read what the official file of one class says of each image in a set.

        Parameters
        ----------
        class_name : str
            One of :data:`CLASSES`.
        name : str
            As in :meth:`image_set`.

        Returns
        -------
        dict of str to int
            1 present, -1 absent, 0 difficult objects only.

        Raises
        ------
        DatasetError
            The file is missing or has another form; with the line.
        """
        _class(class_name)
        path = self._set_path(f"{class_name}_{name}")
        found = {}
        for number, (image, *rest) in _set_lines(path):
            if len(rest) != 1 or rest[0] not in ("1", "-1", "0") or image in found:
                raise DatasetError(path, f"line {number}: expected an image once, and 1, -1 or 0")
            found[image] = int(rest[0])
        return found

    def annotations(self, names: Iterable[str] | None = None) -> dict[str, Annotation]:
        """Read annotations, from the cache where their files have not changed.

        Parameters
        ----------
        names : iterable of str, optional
            Images; all that have an annotation if left out.

        Returns
        -------
        dict of str to Annotation
            In the order of `names`, or sorted by name.

        Raises
        ------
        DatasetError
            An annotation is missing, too large, no well-formed XML, declares a
            document type (and so perhaps entities), or lacks what it must have.
        """
        folder = self.root / "Annotations"
        there = {e.name[:-4]: _stamp(e.stat()) for e in _entries(folder) if e.name.endswith(".xml")}
        wanted = sorted(there) if names is None else list(names)
        cached = self._load()
        found, fresh = {}, False
        for name in wanted:
            if name not in there:
                _image_name(name, folder)
                raise DatasetError(folder / f"{name}.xml", "is missing: the dataset is incomplete")
            known = cached.get(name)
            if known is None or known[0] != there[name]:
                path = folder / f"{name}.xml"
                known = cached[name] = (there[name], parse(_read(path, MAX_ANNOTATION), path))
                fresh = True
            found[name] = known[1]
        if fresh:
            self._save({name: entry for name, entry in cached.items() if name in there})
        return found

    def labels(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Classes of images.

        Parameters
        ----------
        names : sequence of str
            Images, n of them.

        Returns
        -------
        present : ndarray of bool, shape (n, 20)
            The image shows an object of the class that is not difficult.
        difficult : ndarray of bool, shape (n, 20)
            It shows objects of the class, all of them difficult.

        Raises
        ------
        DatasetError
            As :meth:`annotations`.
        """
        annotations = self.annotations(names)
        present = np.zeros((len(names), len(CLASSES)), bool)
        shown = np.zeros_like(present)
        column = {name: i for i, name in enumerate(CLASSES)}
        for row, name in enumerate(names):
            for thing in annotations[name].objects:
                shown[row, column[thing.name]] = True
                present[row, column[thing.name]] |= not thing.difficult
        return present, shown & ~present

    def single_label(self, names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
        """Images all of whose objects, difficult ones too, are of one of some classes.

        Parameters
        ----------
        names : sequence of str
            Images to choose from.
        classes : sequence of str
            Some of :data:`CLASSES`.

        Returns
        -------
        tuple of str
            Those that show exactly one class, and one of `classes`; in the order of `names`.

        Raises
        ------
        DatasetError
            As :meth:`annotations`, or a class is unknown.
        """
        columns = [_class(name) for name in classes]
        present, difficult = self.labels(names)
        keep = (present | difficult).sum(axis=1) == 1
        keep &= present[:, columns].any(axis=1)
        return tuple(name for name, kept in zip(names, keep, strict=True) if kept)

    def disagreements(self, name: str) -> list[str]:
        """Compare the annotations with the official file of each class.

        Parameters
        ----------
        name : str
            As in :meth:`image_set`.

        Returns
        -------
        list of str
            One sentence for each image and class on which they differ; empty is good.

        Raises
        ------
        DatasetError
            As :meth:`image_set`, :meth:`class_set` and :meth:`annotations`.
        """
        names = self.image_set(name)
        present, difficult = self.labels(names)
        values = present.astype(int) * 2 + difficult - 1
        found = []
        for column, class_name in enumerate(CLASSES):
            official = self.class_set(class_name, name)
            for row, image in enumerate(names):
                if official.get(image) != values[row, column]:
                    found.append(
                        f"{class_name} in {image}: {values[row, column]} by its annotation, "
                        f"{official.get(image, 'nothing')} in {class_name}_{name}.txt"
                    )
        return found

    def image_path(self, name: str) -> Path:
        """Path of an image, whether or not it is there.

        Parameters
        ----------
        name : str
            Of the image, without ``.jpg``.

        Returns
        -------
        pathlib.Path

        Raises
        ------
        DatasetError
            It is no image's name.
        """
        folder = self.root / "JPEGImages"
        return folder / f"{_image_name(name, folder)}.jpg"

    def missing_images(self, names: Iterable[str]) -> list[str]:
        """List those images whose files are not in ``JPEGImages``.

        Parameters
        ----------
        names : iterable of str
            Of images, without ``.jpg``.

        Returns
        -------
        list of str
            In the order of `names`.

        Raises
        ------
        DatasetError
            There is no folder ``JPEGImages``.
        """
        there = {entry.name for entry in _entries(self.root / "JPEGImages")}
        return [name for name in names if not {f"{name}.jpg", f"{name}.png"} & there]

    def name_of(self, path: str | Path) -> str | None:
        """Name of the image with this path.

        Parameters
        ----------
        path : path
            Absolute.

        Returns
        -------
        str or None
            The file's name without ``.jpg`` or ``.png`` where its folder is this dataset's
            ``JPEGImages`` (links followed), None for any other file.
        """
        folder, _, file = str(path).rpartition("/")
        if folder not in self._folders:
            # Links are followed once for each folder: a collection has thousands of paths.
            mine = os.path.realpath(self.root / "JPEGImages")
            self._folders[folder] = bool(folder) and os.path.realpath(folder) == mine
        # The official images are JPEG; other datasets in this layout hold PNG as well.
        return file[:-4] if self._folders[folder] and file.endswith((".jpg", ".png")) else None

    def _set_path(self, name: str) -> Path:
        folder = self.root / "ImageSets" / "Main"
        if not _NAME.fullmatch(name):
            raise DatasetError(folder, f"{name[:80]!r} is no name for an image set")
        path = folder / f"{name}.txt"
        if not path.is_file():
            raise DatasetError(
                path, f"is missing; there are the sets {', '.join(self.image_sets()) or '(none)'}"
            )
        return path

    def _cache_file(self) -> Path:
        key = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return self._cache / f"voc-{key}.json"

    def _load(self) -> dict[str, tuple[list[int], Annotation]]:
        if self._cache is None:
            return {}
        try:
            content = json.loads(self._cache_file().read_bytes())
            if content["version"] != _CACHE_VERSION or content["root"] != printable(self.root):
                return {}
            return {
                name: (
                    stamp,
                    Annotation(
                        width,
                        height,
                        tuple(
                            Object(n, tuple(box), bool(d), bool(t), pose)
                            for n, box, d, t, pose in objects
                        ),
                    ),
                )
                for name, (stamp, (width, height, objects)) in content["annotations"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # absent or damaged: everything is parsed, and the file made anew

    def _save(self, entries: dict[str, tuple[list[int], Annotation]]) -> None:
        if self._cache is not None:
            content = {
                "version": _CACHE_VERSION,
                "root": printable(self.root),
                "annotations": entries,
            }
            with atomic(self._cache_file(), "w") as file:
                file.write(json.dumps(content, separators=(",", ":")))


def parse(data: bytes, path: str | Path) -> Annotation:
    """Read one annotation.

    Parameters
    ----------
    data : bytes
        The XML. A document type declaration is refused, and with it every
        declaration of an entity, internal or external.
    path : path
        For messages.

    Returns
    -------
    Annotation

    Raises
    ------
    DatasetError
        Names the line where there is one.
    """
    reader = _Reader(path)
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DatasetError(path, f"line {error.lineno}: {expat.ErrorString(error.code)}") from None
    except (ValueError, LookupError) as error:  # expat's word for encodings it does not know
        raise DatasetError(path, f"cannot be decoded: {error}") from None
    if reader.size is None:
        raise DatasetError(path, "lacks <size>: no VOC annotation")
    return Annotation(*reader.size, tuple(reader.objects))


class _Reader:
    """Collects one annotation from expat's events; keeps the text of elements it knows."""

    def __init__(self, path: str | Path):
        self.path = path
        self.size: tuple[int, int] | None = None
        self.objects: list[Object] = []
        self._trail: list[str] = []
        self._values: dict[str, str] = {}
        self._text: list[str] = []
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text.append

    def _fail(self, reason: str) -> None:
        raise DatasetError(self.path, f"line {self.parser.CurrentLineNumber}: {reason}")

    def _doctype(self, *_: object) -> None:
        self._fail("declares a document type; VOC annotations have none, and it is not read")

    def _start(self, tag: str, _: dict) -> None:
        if not self._trail and tag != "annotation":
            self._fail(f"begins with <{printable(tag[:40])}>: no VOC annotation")
        if len(self._trail) > 16:
            self._fail("is nested too deeply")
        self._trail.append(tag)
        self._text.clear()
        if len(self._trail) == 2:
            self._values = {}

    def _end(self, tag: str) -> None:
        trail = self._trail
        text = "".join(self._text).strip()
        self._text.clear()
        if len(trail) == 3 or (len(trail) == 4 and trail[2] == "bndbox"):
            # Parts of a person have boxes too, one level further down.
            self._values[tag] = text
        elif trail == ["annotation", "object"]:
            self.objects.append(self._object())
        elif trail == ["annotation", "size"]:
            self.size = (self._whole("width"), self._whole("height"))
        trail.pop()

    def _object(self) -> Object:
        name = self._values.get("name", "")
        if name not in _COLUMNS:
            self._fail(f"the class {printable(name[:40])!r} is none of VOC's twenty")
        box = tuple(self._number(side) for side in ("xmin", "ymin", "xmax", "ymax"))
        if box[0] > box[2] or box[1] > box[3]:
            self._fail(f"the box {box} of a {name} is inside out")
        difficult, truncated = self._flag("difficult"), self._flag("truncated")
        return Object(name, box, difficult, truncated, self._values.get("pose") or "Unspecified")

    def _number(self, tag: str) -> float:
        text = self._values.get(tag, "")
        if not re.fullmatch(r"-?[0-9]{1,7}(\.[0-9]{1,20})?", text):
            self._fail(f"<{tag}> should be a number, not {printable(text[:40])!r}")
        return float(text)

    def _whole(self, tag: str) -> int:
        text = self._values.get(tag, "")
        if not re.fullmatch(r"[0-9]{1,7}", text):
            self._fail(f"<{tag}> should be a whole number, not {printable(text[:40])!r}")
        return int(text)

    def _flag(self, tag: str) -> bool:
        text = self._values.get(tag, "0")
        if text not in ("0", "1"):
            self._fail(f"<{tag}> should be 0 or 1, not {printable(text[:40])!r}")
        return text == "1"


_COLUMNS = {name: column for column, name in enumerate(CLASSES)}


def _class(name: str) -> int:
    if name not in _COLUMNS:
        raise DatasetError("VOC classes", f"{str(name)[:40]!r} is none of {', '.join(CLASSES)}")
    return _COLUMNS[name]


def _image_name(name: str, where: Path) -> str:
    if not _NAME.fullmatch(name):
        raise DatasetError(where, f"{printable(name[:80])!r} is no name for an image")
    return name


def _locate(root: Path, year: int | str | None) -> Path:
    if year is not None and not re.fullmatch(r"(VOC)?[0-9]{4}", str(year)):
        raise DatasetError(root, f"{str(year)[:40]!r} is no year of VOC, such as 2012")
    if not root.is_dir():
        raise DatasetError(root, "is no folder")
    tail = "VOC[0-9][0-9][0-9][0-9]" if year is None else f"VOC{str(year)[-4:]}"
    if _is_voc(root):
        if year is not None and re.fullmatch(r"VOC[0-9]{4}", root.name) and root.name != tail:
            raise DatasetError(root, f"is not {tail}: name another folder or another year")
        return root
    found = [p for parent in ("", "VOCdevkit/") for p in sorted(root.glob(parent + tail))]
    found = [p for p in found if _is_voc(p)]
    if len(found) == 1:
        return found[0]
    if found:
        years = ", ".join(p.name for p in found)
        raise DatasetError(root, f"holds several years ({years}): say which, as year=2012")
    raise DatasetError(
        root,
        f"holds neither Annotations and ImageSets/Main nor {tail.replace('[0-9]', '?')} with "
        "them: name the folder VOC2012 of an unpacked VOCdevkit",
    )


def _is_voc(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "ImageSets" / "Main").is_dir()


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DatasetError(folder, f"cannot be listed: {error.strerror}") from None


def _stamp(status: os.stat_result) -> list[int]:
    # The inode's own time changes even where a tool puts the old mtime back.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; never waits on a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise DatasetError(path, "is no regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise DatasetError(path, f"cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise DatasetError(path, f"is larger than {limit} bytes")
    return data


def _set_lines(path: Path) -> Iterable[tuple[int, list[str]]]:
    """Yield number and words of each line that is not blank; the first word names an image."""
    try:
        text = _read(path, MAX_SET).decode("ascii")
    except UnicodeDecodeError as error:
        raise DatasetError(path, f"byte {error.start} is no ASCII: no image set") from None
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.split():
            if not _NAME.fullmatch(words[0]):
                raise DatasetError(
                    path, f"line {number}: {printable(words[0][:80])!r} is no name for an image"
                )
            yield number, words
