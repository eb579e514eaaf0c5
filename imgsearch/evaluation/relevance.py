"""Relevance by shared classes, junk, and the counts that metrics divide by.

An item is *relevant* to a query if they share at least one class of which both show an
object that is not difficult; its *gain* is the number of such classes. It is *junk*, and
left out of the ranking, if every class they share rests on difficult objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imgsearch.errors import ConfigError
from imgsearch.evaluation.metrics import Counts

MAX_CLASSES = 63


@dataclass(frozen=True)
class Labels:
    """Classes of items as bits of unsigned integers, uint32 or uint64 (n,).

    Bit ``c`` of `present` is set for an object of class ``c`` that is not difficult, of
    `shown` for any object of the class. The highest bit is not used.
    """

    present: np.ndarray
    shown: np.ndarray

    @classmethod
    def of(cls, present: np.ndarray, difficult: np.ndarray | None = None) -> Labels:
        """Pack class indicators, bool of shape (n, classes)."""
        classes = present.shape[1]
        if classes > MAX_CLASSES:
            raise ConfigError(
                "classes", f"there are {classes}, and an evaluation takes at most {MAX_CLASSES}"
            )
        kind = np.uint32 if classes < 32 else np.uint64
        bits = kind(1) << np.arange(classes, dtype=kind)
        shown = present if difficult is None else present | difficult
        return cls(*(np.where(x, bits, kind(0)).sum(axis=1, dtype=kind) for x in (present, shown)))

    def __getitem__(self, rows: np.ndarray | slice) -> Labels:
        """Labels of some items."""
        return Labels(self.present[rows], self.shown[rows])

    def among(self, mask: int) -> Labels:
        """Only the classes of a mask."""
        bits = self.present.dtype.type(mask)
        return Labels(self.present & bits, self.shown & bits)


def members(queries: Labels, mask: int) -> np.ndarray:
    """Indices of the queries that show a class of `mask` by an object that is not difficult."""
    return np.flatnonzero(queries.among(mask).present)


def count(queries: Labels, gallery: Labels, skip: np.ndarray, mask: int) -> Counts:
    """Relevant items and candidates of each query, from the labels alone.

    `skip` is what each query leaves out, as in :func:`imgsearch.evaluation.ranking.exact`.
    """
    queries = queries.among(mask)
    highest = np.arange(1, int(mask).bit_count() + 1)
    # There are far fewer combinations of classes than queries.
    combinations, which = np.unique(
        np.stack([queries.present, queries.shown], axis=1), axis=0, return_inverse=True
    )
    at_least = np.zeros((len(combinations), len(highest)), np.int64)
    junk = np.zeros(len(combinations), np.int64)
    for i, (present, shown) in enumerate(combinations):
        gains, unsure = _judge(gallery, present, shown)
        at_least[i] = np.cumsum(np.bincount(gains, minlength=len(highest) + 1)[:0:-1])[::-1]
        junk[i] = np.count_nonzero(unsure)
    at_least, junk = at_least[which.ravel()], junk[which.ravel()]
    for row in np.flatnonzero(skip[:, 1] > skip[:, 0]):
        own = gallery[slice(*skip[row])]
        gains, unsure = _judge(own, queries.present[row], queries.shown[row])
        at_least[row] -= (gains[:, None] >= highest).sum(axis=0)
        junk[row] -= np.count_nonzero(unsure)
    candidates = len(gallery.present) - (skip[:, 1] - skip[:, 0]) - junk
    used = max(1, int(at_least.any(axis=0).sum()))
    return Counts(at_least[:, 0], candidates, at_least[:, :used])


class Judge:
    """Gains and junk of rankings of one gallery."""

    def __init__(self, gallery: Labels):
        kind = gallery.present.dtype.type
        # The highest bit marks places of a ranking that hold no item.
        self._nothing = kind(1) << kind(8 * gallery.present.itemsize - 1)
        self._labels = Labels(
            np.append(gallery.present, kind(0)), np.append(gallery.shown, self._nothing)
        )

    def places(self, order: np.ndarray) -> Labels:
        """Labels of what is at each place of some rankings, of shape (b, depth)."""
        return self._labels[order]  # -1 is the last entry, which stands for no item

    def gains(self, places: Labels, queries: Labels, mask: int) -> tuple[np.ndarray, np.ndarray]:
        """Number of shared classes, and junk, at the places of each query's ranking.

        Both have the shape (b, depth). Places without an item are junk.
        """
        own = queries.among(mask)
        return _judge(places, own.present[:, None], (own.shown | self._nothing)[:, None])


def _judge(
    items: Labels, query_present: np.ndarray, query_shown: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    gains = np.bitwise_count(items.present & query_present)
    junk = (items.shown & query_shown) != 0
    junk &= gains == 0
    return gains, junk
