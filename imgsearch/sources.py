"""What users may give as an image: a picture, a stored image, or a vector."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from imgsearch import images
from imgsearch.collection import Collection
from imgsearch.errors import ConfigError, ImageError, ImageNotFound, printable
from imgsearch.hits import Hit, Image
from imgsearch.images import LoadedImage
from imgsearch.io import absolute, atomic
from imgsearch.stores.metadata import ImageRow

Stored = Hit | Image | ImageRow
Source = images.Source | Stored | int
"""What an image may be given as. An array of floats in one dimension is a vector."""

ACCEPTED = (
    "give a path, bytes, a binary file, a PIL image, a numpy array of uint8 (height, width[, 3]), "
    "a hit, an image of a gallery, an image_id, or a vector: float of shape (dim,)"
)
_ENDINGS = {
    "PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif",
    "TIFF": ".tif", "AVIF": ".avif", "HEIC": ".heic",
}  # fmt: skip
_LONGEST = 255
"""Bytes of the name of a file, which all file systems in use limit."""


def several(given: object) -> list | None:
    """The sources of a list or another iterable; None for a single source."""
    if isinstance(given, np.ndarray):
        vector = given.ndim == 1 and given.dtype.kind == "f"
        matrix = given.ndim == 2 and given.dtype.kind == "f"
        return list(given) if matrix or (given.ndim == 1 and not vector) else None
    single = str | os.PathLike | bytes | bytearray | memoryview | Mapping | Stored
    if isinstance(given, single | PIL.Image.Image | LoadedImage) or hasattr(given, "read"):
        return None
    return list(given) if isinstance(given, Iterable) else None


def listed(given: object) -> list:
    """Sources as a list, also a single one."""
    found = several(given)
    return [given] if found is None else found


def stored_id(source: object) -> int | None:
    """Id of a stored image; None for any other source."""
    if isinstance(source, Stored):
        return source.image_id
    whole = isinstance(source, Integral) and not isinstance(source, bool)
    return int(source) if whole else None


def is_vector(source: object) -> bool:
    """Whether this is a vector: a float array in one dimension."""
    return isinstance(source, np.ndarray) and source.ndim == 1 and source.dtype.kind == "f"


def check_picture(source: object) -> None:
    """Refuse what is no picture, and text that is not the path of a file, with a fitting error."""
    if not isinstance(source, images.Source) and not hasattr(source, "read"):
        raise ImageError(type(source).__name__, f"is not an image: {ACCEPTED}")
    words = isinstance(source, str) and os.sep not in source and not Path(source).suffix
    if words and not absolute(source).exists():
        raise ImageError(source, "no such file; to search with words, give them as `text`")


class Described(NamedTuple):
    """A picture or stored image that can be read again, with its size in pixels.

    `image_id` is None for a picture that has no file.
    """

    source: Stored | Path | bytes | PIL.Image.Image
    name: str
    image_id: int | None
    width: int
    height: int


def describe(source: Source, name: str | None = None) -> Described:
    """Check a picture or a stored image; `name` is that of a picture that has no path."""
    if isinstance(source, Stored):
        file = printable(Path(source.path).name)
        return Described(source, file, source.image_id, source.width, source.height)
    check_picture(source)
    if isinstance(source, str | os.PathLike):
        source = absolute(source)
    elif hasattr(source, "read"):
        source = images.read(source)
    image = images.load(source, name=name)
    image_id = image.info.image_id if image.info else None
    kept = source if image.info else image.decode()
    return Described(kept, printable(Path(image.name).name), image_id, image.width, image.height)


def stored_paths(collection: Collection, path: object) -> list[str]:
    """Paths that a user may mean: the path itself, or a picture that was added under this name."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            "image",
            f"is of type {type(path).__name__}: give a path, an image_id, "
            "a hit or an image of a gallery",
        )
    paths = [absolute(path)]
    if os.sep not in os.fspath(path):
        paths += [collection.pictures / f"{path}{ending}" for ending in ("", *_ENDINGS.values())]
    return [str(path) for path in paths]


def stored_name(collection: Collection, source: object) -> int | None:
    """Id of a picture that was added under this name; None for any other source."""
    if not isinstance(source, str) or os.sep in source or not source or absolute(source).exists():
        return None
    paths = stored_paths(collection, source)[1:]
    rows = collection.metadata.by_path(collection.name, paths)
    return next((row.image_id for row in rows.values() if row.state == "ready"), None)


@contextmanager
def at(place: str, source: object) -> Iterator[None]:
    """Give an error of one source of a list its place there, unless a path names it."""
    try:
        yield
    except ImageError as error:
        if "[" not in place or isinstance(source, str | os.PathLike | Stored):
            raise
        raise ImageError(f"{place} ({error.path})", error.reason) from None


def files(collection: Collection, given: Sequence, names: Iterable[str] | None) -> list[Path]:
    """Files and folders to ingest; pictures without a file are stored under the home first.

    Whatever cannot be a source raises before anything is ingested.
    """
    if not isinstance(names, Iterable | None):
        raise ConfigError("name", f"is {names!r}; give a text, or a list with one for each image")
    names = [None] * len(given) if names is None else list(names)
    if len(names) != len(given):
        raise ConfigError("name", f"{len(names)} names for {len(given)} images")
    paths: list[Path] = []
    for number, (source, name) in enumerate(zip(given, names, strict=True)):
        with at(f"images[{number}]" if len(given) > 1 else "image", source):
            paths.append(_file(collection, source, name, paths))
    return paths


def _file(collection: Collection, source: object, name: str | None, others: list[Path]) -> Path:
    if isinstance(source, Stored):
        source = source.path
    elif (image_id := stored_id(source)) is not None:
        rows = collection.metadata.by_id(collection.name, [image_id])
        if not rows:
            raise ImageNotFound(collection.name, image_id)
        source = rows[image_id][0].path
    check_picture(source)
    if is_vector(source):
        raise ImageError("vector", "has no picture that could be added")
    if not isinstance(source, str | os.PathLike):
        return keep(collection, source, name, others=others)
    if name is not None:
        raise ConfigError("name", "is for a picture without a file; a file keeps its name")
    path = absolute(source)
    if not path.exists():
        images.read(source)  # raises the fitting error
    return path


def keep(
    collection: Collection,
    source: object,
    name: str | None = None,
    folder: Path | None = None,
    others: Sequence[Path] = (),
) -> Path:
    """Store a picture that has no file, with those of the collection or in another folder.

    The same picture gives the same file again. `others` are files that are about to be ingested.
    """
    if hasattr(source, "read"):
        source = images.read(source)
    image = images.load(source, name=name)
    if image.info is not None:
        data, ending = bytes(source), _ENDINGS[image.info.format]
    else:
        buffer = io.BytesIO()
        image.decode().save(buffer, "PNG")
        data, ending = buffer.getvalue(), ".png"
    name = name if name is not None else hashlib.sha256(data).hexdigest()[:16]
    if not isinstance(name, str) or not name or name != Path(name).name or name[0] in ".~":
        raise ConfigError("name", f"{printable(name)!r} is not the name of a file")
    path = absolute((folder or collection.pictures) / (name.removesuffix(ending) + ending))
    if len(os.fsencode(path.name)) > _LONGEST:
        reason = f"{printable(name)[:40]!r}... is longer than the name of a file may be"
        raise ConfigError("name", reason)
    if path.exists() and path.read_bytes() == data:
        return path
    if path in others or collection.metadata.by_path(collection.name, [str(path)]):
        raise ConfigError(
            "name", f"{printable(name)!r} is taken by another picture: delete it, or choose another"
        )
    with atomic(path) as file:
        file.write(data)
    return path
