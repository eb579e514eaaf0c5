"""The interface of labelled datasets."""

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

    Each subclass reads one format. Images are identified by names that are unique in the
    dataset.

    Attributes
    ----------
    root : pathlib.Path
        Folder of the dataset.
    classes : tuple of str
        Names of the classes, in the order of the columns of :meth:`labels`.
    groups : mapping of str to tuple of str
        Groups of classes, by name, for which combined results are reported as well.
    """

    root: Path
    classes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = {}

    @abstractmethod
    def image_sets(self) -> list[str]:
        """Return the names of the image sets, sorted."""

    @abstractmethod
    def image_set(self, name: str) -> tuple[str, ...]:
        """Return the names of the images in a set.

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
        """Return the absolute path of every image file by name, including images in no set."""

    @abstractmethod
    def annotated(self) -> frozenset[str]:
        """Return the names of the images that have labels."""

    @abstractmethod
    def labels(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the classes of images.

        Parameters
        ----------
        names : sequence of str
            Names of n annotated images.

        Returns
        -------
        present : ndarray of bool, shape (n, c)
            Whether the image shows an object of the class that is not difficult.
        difficult : ndarray of bool, shape (n, c)
            Whether it shows only difficult objects of the class.

        Raises
        ------
        DatasetError
            An annotation is missing or damaged.
        """

    def single_label(self, names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
        """Select the images that show exactly one class, and that one of `classes`.

        Parameters
        ----------
        names : sequence of str
            Names of annotated images.
        classes : sequence of str
            Some of :attr:`classes`.

        Returns
        -------
        tuple of str
            In the order of `names`. An object counts as shown even if it is difficult.

        Raises
        ------
        DatasetError
            A class is unknown, or an annotation is missing or damaged.
        """
        for name in classes:
            if name not in self.classes:
                known = ", ".join(self.classes)
                raise DatasetError(self.root, f"has no class {name[:40]!r}; its classes: {known}")
        present, difficult = self.labels(names)
        keep = (present | difficult).sum(axis=1) == 1
        keep &= present[:, [self.classes.index(name) for name in classes]].any(axis=1)
        return tuple(name for name, kept in zip(names, keep, strict=True) if kept)


def list_files(folder: Path) -> list[str]:
    """Return the names of the entries of a folder."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - only the names of its 17,125 files are needed
    except OSError as error:
        raise DatasetError(folder, f"cannot be listed: {error.strerror}") from None


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes, without waiting on a pipe."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DatasetError(path, "is not a regular file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise DatasetError(path, "is missing: the dataset is incomplete") from None
    except OSError as error:
        raise DatasetError(path, f"cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise DatasetError(path, f"is larger than {limit} bytes")
    return data
