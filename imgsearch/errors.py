"""Every error that imgsearch raises on purpose.

Each one names the thing that is wrong, the reason and the way out, and carries
the same facts as attributes, so that a notebook panel or a batch report can
show them without taking a message apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class ImgSearchError(Exception):
    """Base of every error that imgsearch raises on purpose."""


class ConfigError(ImgSearchError, ValueError):
    """A setting or a parameter has a value that cannot be used.

    Attributes
    ----------
    name : str
        The setting or parameter.
    reason : str
        What is wrong with its value. Secrets are never part of it.
    """

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


class ImageError(ImgSearchError):
    """An image cannot be read, decoded or cropped.

    Attributes
    ----------
    path : str
        The file, or a description of the source when there is no file.
    reason : str
        One short clause, fit for a table of failures.
    """

    def __init__(self, path: str | Path, reason: str):
        self.path, self.reason = str(path), reason
        super().__init__(f"{printable(path)}: {reason}")


class WeightsError(ImgSearchError):
    """The weights of an encoder are missing, damaged or of another shape.

    Attributes
    ----------
    name : str
        The encoder or the file.
    reason : str
        What is wrong, and what to do.
    """

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason
        super().__init__(f"weights of {name}: {reason}")


class EncoderError(ImgSearchError):
    """An encoder is unknown, or cannot run as it was asked to.

    Attributes
    ----------
    name : str
        The encoder.
    reason : str
        What is wrong, and what to do.
    """

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason
        super().__init__(f"encoder {name}: {reason}")


class EncoderMismatch(EncoderError):
    """A collection was made with another encoder than the one it is opened with.

    Attributes
    ----------
    collection : str
        The collection.
    stored, given : str
        What the collection was made with, and what it was opened with, each as
        ``name (fingerprint)``.
    """

    def __init__(self, collection: str, stored: str, given: str):
        self.collection, self.stored, self.given = collection, stored, given
        super().__init__(
            given,
            f"collection {collection!r} was made with {stored}; vectors of two encoders "
            "cannot be compared. Open it without naming an encoder, or ingest into "
            "another collection",
        )


class CollectionNotFound(ImgSearchError, LookupError):
    """No collection has this name.

    Attributes
    ----------
    collection : str
        The name that was asked for.
    known : tuple of str
        The names there are.
    """

    def __init__(self, collection: str, known: Iterable[str] = ()):
        self.collection, self.known = collection, tuple(known)
        there = ", ".join(self.known) if self.known else "none yet: run an ingest first"
        super().__init__(f"no collection {collection!r} (there are: {there})")


class ImageNotFound(ImgSearchError, LookupError):
    """A collection holds no such image.

    Attributes
    ----------
    collection : str
        The collection.
    wanted : str
        The path or id that was asked for.
    """

    def __init__(self, collection: str, wanted: object):
        self.collection, self.wanted = collection, str(wanted)
        super().__init__(f"collection {collection!r} holds no image {printable(wanted)}")


class StoreError(ImgSearchError):
    """A store refused or failed an operation.

    Attributes
    ----------
    where : str
        Which store, with host and port or folder, never with credentials.
    reason : str
        What happened, and what to check.
    """

    def __init__(self, where: str, reason: str):
        self.where, self.reason = where, reason
        super().__init__(f"{where}: {reason}")


class StoreUnavailable(StoreError):
    """A store cannot be reached, or did not answer in time."""


class StoreBusy(StoreError):
    """Another process holds what this one needs.

    Attributes
    ----------
    holder : str
        Who holds it: program, process id, host, and since when.
    """

    def __init__(self, where: str, holder: str, reason: str):
        self.holder = holder
        super().__init__(where, f"{reason}; held by {holder}")


class StoreDamaged(StoreError):
    """What lies in a store cannot be read; ``verify`` and ``repair`` can help."""


class SchemaError(StoreError):
    """The metadata schema was written by another version of imgsearch."""


class DatasetError(ImgSearchError):
    """A labelled dataset, a qrels or a run file cannot be used.

    Attributes
    ----------
    path : str
        The file or folder.
    reason : str
        What is wrong, with the line where there is one.
    """

    def __init__(self, path: str | Path, reason: str):
        self.path, self.reason = str(path), reason
        super().__init__(f"{printable(path)}: {reason}")


class IngestError(ImgSearchError):
    """An ingest could not go on. What it had stored stays stored.

    Attributes
    ----------
    folder : str
        The folder that was being ingested.
    reason : str
        What happened, and how to go on.
    """

    def __init__(self, folder: str | Path, reason: str):
        self.folder, self.reason = str(folder), reason
        super().__init__(f"ingest of {printable(folder)}: {reason}")


def printable(thing: object) -> str:
    """Text of a path or id that any terminal, log or JSON file can take.

    Parameters
    ----------
    thing : object
        Mostly a path. Bytes that are no UTF-8 arrive here as surrogate escapes.

    Returns
    -------
    str
        The same text with undecodable bytes and control characters shown as
        backslash escapes.
    """
    text = str(thing).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
