"""Relevance by shared classes, junk, and the denominators of metrics.

An item is *relevant* to a query if both show an object of the same class that is not
difficult; its *gain* is the number of such classes. It is *junk*, and removed from the
ranking, if they share classes, but every one of them through a difficult object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from imgsearch.errors import ConfigError
from imgsearch.evaluation.metrics import Counts

MAX_CLASSES = 63


@dataclass(frozen=True)
class Labels:
    """Classes of items as bits of unsigned integers, uint32 or uint64 (n,).

    Bit ``c`` of `present` is set if an item shows an object of class ``c`` that is not
    difficult, bit ``c`` of `shown` if it shows any object of the class. If judgments are
    incomplete, bit ``c`` of `unjudged` is set if an item was not judged for the class, and bit
    ``c`` of `unpooled` if it was not in the pool either. The highest bit is not used.
    """

    present: np.ndarray
    shown: np.ndarray
    unjudged: np.ndarray | None = None
    unpooled: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        present: np.ndarray,
        difficult: np.ndarray | None = None,
        unjudged: np.ndarray | None = None,
        unpooled: np.ndarray | None = None,
    ) -> Labels:
        """Pack class indicators, bool of shape (n, classes)."""
        classes = present.shape[1]
        if classes > MAX_CLASSES:
            raise ConfigError(
                "classes", f"there are {classes}, but an evaluation supports at most {MAX_CLASSES}"
            )
        kind = np.uint32 if classes < 32 else np.uint64
        bits = kind(1) << np.arange(classes, dtype=kind)
        shown = present if difficult is None else present | difficult
        return cls(present, shown, unjudged, unpooled)._each(
            lambda some: np.where(some, bits, kind(0)).sum(axis=1, dtype=kind)
        )

    def __getitem__(self, rows: np.ndarray | slice) -> Labels:
        """Return the labels of some items."""
        return self._each(lambda some: some[rows])

    def among(self, mask: int) -> Labels:
        """Return the labels without the classes that are not in a mask."""
        bits = self.present.dtype.type(mask)
        return self._each(lambda some: some & bits)

    def _each(self, change: Callable[[np.ndarray], np.ndarray]) -> Labels:
        parts = (self.present, self.shown, self.unjudged, self.unpooled)
        return Labels(*(None if part is None else change(part) for part in parts))


def members(queries: Labels, mask: int) -> np.ndarray:
    """Return the indices of the queries with an object, not difficult, of a class in `mask`."""
    return np.flatnonzero(queries.among(mask).present)


def count(queries: Labels, gallery: Labels, skip: np.ndarray, mask: int) -> Counts:
    """Count relevant items and candidates of each query, using the labels only.

    `skip` is the part of the gallery that each query omits, as in
    :func:`imgsearch.evaluation.ranking.exact`.
    """
    queries = queries.among(mask)
    highest = np.arange(1, int(mask).bit_count() + 1)
    # Count once per combination of classes, of which there are far fewer than queries.
    combinations, which = np.unique(
        np.stack([queries.present, queries.shown], axis=1), axis=0, return_inverse=True
    )
    at_least = np.zeros((len(combinations), len(highest)), np.int64)
    others = np.zeros((len(combinations), 3), np.int64)  # junk, unjudged, unpooled

    def judged(items: Labels, present: np.integer, shown: np.integer) -> tuple[np.ndarray, list]:
        gains, junk, *missing = _judge(items, present, shown)
        return gains, [junk.sum(), *(0 if x is None else (x & ~junk).sum() for x in missing)]

    for i, (present, shown) in enumerate(combinations):
        gains, others[i] = judged(gallery, present, shown)
        at_least[i] = np.cumsum(np.bincount(gains, minlength=len(highest) + 1)[:0:-1])[::-1]
    at_least, others = at_least[which.ravel()], others[which.ravel()]
    for row in np.flatnonzero(skip[:, 1] > skip[:, 0]):
        own = gallery[slice(*skip[row])]
        gains, less = judged(own, queries.present[row], queries.shown[row])
        at_least[row] -= (gains[:, None] >= highest).sum(axis=0)
        others[row] -= less
    junk, unjudged, unpooled = others.T
    candidates = len(gallery.present) - (skip[:, 1] - skip[:, 0]) - junk
    used, relevant = max(1, int(at_least.any(axis=0).sum())), at_least[:, 0]
    return Counts(
        relevant,
        candidates,
        at_least[:, :used],
        candidates - relevant - unjudged,
        candidates - unpooled,
    )


class Verdicts(NamedTuple):
    """What items are to a query: arrays of one shape, the arguments of :func:`metrics.ranks`."""

    gains: np.ndarray  # number of shared classes
    junk: np.ndarray
    unjudged: np.ndarray | None  # None if everything was judged
    unpooled: np.ndarray | None


class Judge:
    """Compares rankings of one gallery with their queries."""

    def __init__(self, gallery: Labels):
        kind = gallery.present.dtype.type
        # The highest bit marks the ranks without an item.
        self._nothing = kind(1) << kind(8 * gallery.present.itemsize - 1)
        self._labels = gallery._each(lambda some: np.append(some, kind(0)))
        self._labels.shown[-1] = self._nothing

    def places(self, order: np.ndarray) -> Labels:
        """Return the labels of the items at each rank of some rankings, of shape (b, depth)."""
        return self._labels[order]  # -1 selects the last entry, which stands for no item

    def verdicts(self, places: Labels, queries: Labels, mask: int) -> Verdicts:
        """Judge the ranked items for each query; ranks without an item are junk."""
        own = queries.among(mask)
        return _judge(places, own.present[:, None], (own.shown | self._nothing)[:, None])


def _judge(items: Labels, query_present: np.ndarray, query_shown: np.ndarray) -> Verdicts:
    gains = np.bitwise_count(items.present & query_present)
    irrelevant = gains == 0
    junk = (items.shown & query_shown) != 0
    junk &= irrelevant
    missing = (
        None if part is None else irrelevant & ((part & query_present) != 0)
        for part in (items.unjudged, items.unpooled)
    )
    return Verdicts(gains, junk, *missing)
