"""Errors of imgsearch.

The message of each error names the object, the reason and what to do about it. The same
facts are attributes, so that notebooks and reports need not parse messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class ImgSearchError(Exception):
    """Base class of the errors of imgsearch."""


class ConfigError(ImgSearchError, ValueError):
    """A setting or a parameter has an invalid value.

    Attributes
    ----------
    name : str
        The setting or parameter.
    reason : str
        What is wrong with its value. It never contains a secret.
    """

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


class FilterError(ConfigError):
    """A filter or an attribute is invalid.

    `name` locates the invalid part, such as ``where["or"][1]["width"]``.
    """


class ImageError(ImgSearchError):
    """An image cannot be read, decoded or cropped.

    Attributes
    ----------
    path : str
        The file, or a description of the source where there is no file.
    reason : str
        One short clause that fits into a table of failures.
    """

    def __init__(self, path: str | Path, reason: str):
        self.path, self.reason = str(path), reason
        super().__init__(f"{printable(path)}: {reason}")


class WeightsError(ImgSearchError):
    """The weights of an encoder are missing, are corrupted or do not fit the network.

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
    """An encoder is unknown, or cannot run as requested.

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
    """A collection was created with another encoder than the one it is opened with.

    Attributes
    ----------
    collection : str
        The collection.
    stored, given : str
        The encoder of the collection and the encoder it was opened with, each as
        ``name (fingerprint)``.
    """

    def __init__(self, collection: str, stored: str, given: str):
        self.collection, self.stored, self.given = collection, stored, given
        super().__init__(
            given,
            f"collection {collection!r} was created with {stored}; vectors of different encoders "
            "cannot be compared. Open it without naming an encoder, or ingest into another "
            "collection",
        )


class CollectionNotFound(ImgSearchError, LookupError):
    """No collection has this name.

    Attributes
    ----------
    collection : str
        The requested name.
    known : tuple of str
        The existing names.
    """

    def __init__(self, collection: str, known: Iterable[str] = ()):
        self.collection, self.known = collection, tuple(known)
        if self.known:
            hint = f"existing collections: {', '.join(self.known)}"
        else:
            hint = "there are no collections yet: run an ingest first"
        super().__init__(f"collection {collection!r} does not exist ({hint})")


class ImageNotFound(ImgSearchError, LookupError):
    """A collection does not contain this image.

    Attributes
    ----------
    collection : str
        The collection.
    wanted : str
        The requested path or id.
    """

    def __init__(self, collection: str, wanted: object):
        self.collection, self.wanted = collection, str(wanted)
        super().__init__(f"collection {collection!r} does not contain image {printable(wanted)}")


class StoreError(ImgSearchError):
    """An operation of a store failed.

    Attributes
    ----------
    where : str
        The store, with its host and port or its folder, without credentials.
    reason : str
        What happened, and what to check.
    """

    def __init__(self, where: str, reason: str):
        self.where, self.reason = where, reason
        super().__init__(f"{where}: {reason}")


class StoreUnavailable(StoreError):
    """A store cannot be reached or did not answer in time."""


class StoreBusy(StoreError):
    """Another process holds a lock that this one needs.

    Attributes
    ----------
    holder : str
        The process that holds it: program, process id, host, and since when.
    """

    def __init__(self, where: str, holder: str, reason: str):
        self.holder = holder
        super().__init__(where, f"{reason}; held by {holder}")


class StoreDamaged(StoreError):
    """The content of a store is corrupted; ``repair`` rebuilds it."""


class SchemaError(StoreError):
    """The metadata schema was written by a newer version of imgsearch."""


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


def printable(thing: object) -> str:
    """Return the text of a path or id with undecodable bytes and control characters escaped."""
    text = str(thing).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
