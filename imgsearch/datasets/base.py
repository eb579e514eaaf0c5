"""What an evaluation needs to know about a labelled dataset."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imgsearch.errors import DatasetError


class Dataset(ABC):
    """Image files with class labels, in named sets.

    Subclasses read one format. Images have names, which are unique in the dataset;
    everything else about an image is looked up by its name.

    Attributes
    ----------
    root : pathlib.Path
        Folder of the dataset.
    classes : tuple of str
        Names of the classes, in the order of the columns of :meth:`labels`.
    groups : mapping of str to tuple of str
        Classes whose results are also reported together, by the name of the group.
    """

    root: Path
    classes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = {}

    @abstractmethod
    def image_sets(self) -> list[str]:
        """Names of the image sets, sorted."""

    @abstractmethod
    def image_set(self, name: str) -> tuple[str, ...]:
        """Names of the images in a set.

        Parameters
        ----------
        name : str
            One of :meth:`image_sets`.

        Returns
        -------
        tuple of str

        Raises
        ------
        DatasetError
            The set does not exist, or is damaged.
        """

    @abstractmethod
    def image_files(self) -> dict[str, Path]:
        """Absolute path of every image file by its name, whether or not a set contains it."""

    @abstractmethod
    def annotated(self) -> frozenset[str]:
        """Names of the images that have labels."""

    @abstractmethod
    def labels(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Classes of images.

        Parameters
        ----------
        names : sequence of str
            Annotated images, n of them.

        Returns
        -------
        present : ndarray of bool, shape (n, c)
            The image shows an object of the class that is not difficult.
        difficult : ndarray of bool, shape (n, c)
            It shows objects of the class, all of which are difficult.

        Raises
        ------
        DatasetError
            An annotation is missing or damaged.
        """

    def single_label(self, names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
        """Select the images that show exactly one class, which is one of `classes`.

        Parameters
        ----------
        names : sequence of str
            Annotated images.
        classes : sequence of str
            Some of :attr:`classes`.

        Returns
        -------
        tuple of str
            In the order of `names`. Difficult objects count as shown.

        Raises
        ------
        DatasetError
            As :meth:`labels`, or a class is unknown.
        """
        for name in classes:
            if name not in self.classes:
                known = ", ".join(self.classes)
                raise DatasetError(self.root, f"has no class {name[:40]!r}, only {known}")
        present, difficult = self.labels(names)
        keep = (present | difficult).sum(axis=1) == 1
        keep &= present[:, [self.classes.index(name) for name in classes]].any(axis=1)
        return tuple(name for name, kept in zip(names, keep, strict=True) if kept)


def list_files(folder: Path) -> list[str]:
    """Names of the entries of a folder."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - 17,125 Path objects would only be taken apart
    except OSError as error:
        raise DatasetError(folder, f"cannot be listed: {error.strerror}") from None


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes, without waiting on a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise DatasetError(path, "is not a regular file")
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise DatasetError(path, "is missing: the dataset is incomplete") from None
    except OSError as error:
        raise DatasetError(path, f"cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise DatasetError(path, f"is larger than {limit} bytes")
    return data
