"""Who is relevant to whom: shared classes, junk, and the counts that metrics divide by.

An item is *relevant* to a query if the two share at least one class of which both
show an object that is not difficult; its *gain* is the number of such classes. It
is *junk*, and out of the ranking, if they share a class but only by difficult
objects of one of them or both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MAX_CLASSES = 31
_NOTHING = np.uint32(1 << 31)  # marks places of a ranking that hold no item


@dataclass(frozen=True)
class Labels:
    """Classes of items as bits of whole numbers.

    Attributes
    ----------
    present : ndarray of uint32, shape (n,)
        Bit ``c``: an object of class ``c`` that is not difficult.
    shown : ndarray of uint32, shape (n,)
        Bit ``c``: an object of class ``c``, difficult or not.
    """

    present: np.ndarray
    shown: np.ndarray

    @classmethod
    def of(cls, present: np.ndarray, difficult: np.ndarray | None = None) -> Labels:
        """Pack class indicators.

        Parameters
        ----------
        present, difficult : ndarray of bool, shape (n, c)
            As :meth:`imgsearch.datasets.voc.Voc.labels` returns them.

        Returns
        -------
        Labels

        Raises
        ------
        ValueError
            More than 31 classes.
        """
        if present.ndim != 2 or present.shape[1] > MAX_CLASSES:
            raise ValueError(f"labels of shape {present.shape}: at most {MAX_CLASSES} classes")
        bits = np.uint32(1) << np.arange(present.shape[1], dtype=np.uint32)
        shown = present if difficult is None else present | difficult
        return cls(*(np.where(x, bits, 0).sum(axis=1, dtype=np.uint32) for x in (present, shown)))

    def __getitem__(self, rows: np.ndarray | slice) -> Labels:
        """Choose some items."""
        return Labels(self.present[rows], self.shown[rows])


class Counts(NamedTuple):
    """What the ground truth says of each query of a view.

    Attributes
    ----------
    relevant : ndarray of int64, shape (q,)
        R: relevant items in the gallery, without the query and its copies.
    candidates : ndarray of int64, shape (q,)
        N: items that can be ranked: the gallery without the query, its copies and junk.
    at_least : ndarray of int64, shape (q, l)
        Items with a gain of at least 1, 2, …, l; l is the highest gain that occurs.
    """

    relevant: np.ndarray
    candidates: np.ndarray
    at_least: np.ndarray


def members(queries: Labels, mask: int) -> np.ndarray:
    """List the queries that show a class of a view by an object that is not difficult.

    Parameters
    ----------
    queries : Labels
        Of q queries.
    mask : int
        The view's classes as bits; only they count.

    Returns
    -------
    ndarray of int64, shape (v,)
        Ascending.
    """
    return np.flatnonzero(queries.present & np.uint32(mask))


def count(queries: Labels, gallery: Labels, skip: np.ndarray, mask: int) -> Counts:
    """Count relevant items and candidates, from the labels alone.

    Parameters
    ----------
    queries, gallery : Labels
        Of q queries and n items.
    skip : ndarray of int, shape (q, 2)
        As in :func:`imgsearch.evaluation.ranking.exact`.
    mask : int
        Classes that count, as bits.

    Returns
    -------
    Counts
    """
    highest = np.arange(1, int(mask).bit_count() + 1)
    kinds, which = np.unique(
        np.stack([queries.present, queries.shown], axis=1) & np.uint32(mask),
        axis=0,
        return_inverse=True,
    )
    # There are far fewer kinds of queries than queries.
    at_least = np.zeros((len(kinds), len(highest)), np.int64)
    junk = np.zeros(len(kinds), np.int64)
    for i, (present, shown) in enumerate(kinds):
        gains, unsure = _judge(gallery.present, gallery.shown, present, shown)
        at_least[i] = np.cumsum(np.bincount(gains, minlength=len(highest) + 1)[:0:-1])[::-1]
        junk[i] = np.count_nonzero(unsure)
    at_least, junk = at_least[which.ravel()], junk[which.ravel()]
    for row in np.flatnonzero(skip[:, 1] > skip[:, 0]):
        own = slice(*skip[row])
        present, shown = queries.present[row] & mask, queries.shown[row] & mask
        gains, unsure = _judge(gallery.present[own], gallery.shown[own], present, shown)
        at_least[row] -= (gains[:, None] >= highest).sum(axis=0)
        junk[row] -= np.count_nonzero(unsure)
    candidates = len(gallery.present) - (skip[:, 1] - skip[:, 0]) - junk
    used = max(1, int(at_least.any(axis=0).sum()))
    return Counts(at_least[:, 0], candidates, at_least[:, :used])


class Judge:
    """Gains and junk of rankings.

    Parameters
    ----------
    gallery : Labels
        Of n items.
    """

    def __init__(self, gallery: Labels):
        self._present = np.append(gallery.present, np.uint32(0))
        self._shown = np.append(gallery.shown, _NOTHING)

    def places(self, order: np.ndarray) -> Labels:
        """Look up what is at each place of some rankings.

        Parameters
        ----------
        order : ndarray of int32, shape (b, depth)
            As in :class:`imgsearch.evaluation.ranking.Block`.

        Returns
        -------
        Labels
            Of shape (b, depth).
        """
        # -1 wraps around to the last entry, which stands for no item.
        return Labels(*(np.take(part, order, mode="wrap") for part in (self._present, self._shown)))

    @staticmethod
    def gains(places: Labels, queries: Labels, mask: int) -> tuple[np.ndarray, np.ndarray]:
        """Judge rankings.

        Parameters
        ----------
        places : Labels, shape (b, depth)
            From :meth:`places`.
        queries : Labels, shape (b,)
            The queries of these rankings.
        mask : int
            Classes that count, as bits.

        Returns
        -------
        gains : ndarray of uint8, shape (b, depth)
            Number of shared classes.
        junk : ndarray of bool, shape (b, depth)
            Places that are out of the ranking, those without an item too.
        """
        present = (queries.present & np.uint32(mask))[:, None]
        shown = (queries.shown & np.uint32(mask) | _NOTHING)[:, None]
        return _judge(places.present, places.shown, present, shown)


def _judge(
    present: np.ndarray, shown: np.ndarray, query_present: np.ndarray, query_shown: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    gains = np.bitwise_count(present & query_present)
    junk = (shown & query_shown) != 0
    junk &= gains == 0
    return gains, junk
