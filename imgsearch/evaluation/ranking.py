"""Exact rankings of a gallery by cosine similarity, the same on every machine.

Sums of floating-point numbers depend on their order, and so on the block size, the number
of threads and the processor: two equal vectors at different places of a matrix may get
different scores, and ties break by accident. Here vectors are rounded to multiples of 2^-26
first. Every product and every partial sum of a scalar product is then a whole number of at
most 53 bits, which float64 adds without error in any order. The rounding changes a score by
about 6e-9, a tenth of the error of float32 scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

BLOCK_BYTES = 48 << 20
"""Memory for the scores of one block of queries, bytes."""

_BITS = 26  # of a vector component after the point
_GRID = 30  # of a score after the point: scores closer than 2^-30 are equal
_SLACK = 1 << 10  # keeps the key of a score slightly above 1 positive
_NOTHING = np.uint64(2**64 - 1)


@dataclass(frozen=True, eq=False)
class Block:
    """Rankings of consecutive queries.

    `start` is the number of the first query. `order`, int32 (b, depth), are positions in the
    gallery, best first; -1 stands for nothing, at the end. `keys`, uint64 (b, depth), are the
    sort keys from which :meth:`scores` are computed.
    """

    start: int
    order: np.ndarray
    keys: np.ndarray

    def scores(self, row: int, places: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Cosine similarities of one query at some places; meaningless where `order` is -1."""
        # Not computed for all places at once: hardly any score is looked at.
        keys = self.keys[row, places]
        return (2.0**_GRID + _SLACK - (keys >> np.uint64(32))) * 2.0**-_GRID


def exact(
    queries: np.ndarray,
    gallery: np.ndarray,
    skip: np.ndarray | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Callable[[], Block]]:
    """Rank the whole gallery for each query; yields functions that return the next Block.

    Several of the functions may be called at once, in threads. Vectors may have any length
    but zero. Equal scores (to 2^-30) rank in the order of the gallery. Query ``i`` leaves
    out the gallery from ``skip[i, 0]`` up to ``skip[i, 1]``: itself and its copies.
    `block_bytes` bounds the memory of a block and changes no result.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} do not fit")
    transposed = (_fixed_point(gallery) * 2.0 ** (-2 * _BITS)).T
    rows = max(1, block_bytes // (8 * max(1, len(gallery))))

    def block(start: int) -> Block:
        scores = _fixed_point(queries[start : start + rows]) @ transposed
        return by_score(scores, None if skip is None else skip[start : start + rows], start)

    for start in range(0, len(queries), rows):
        yield partial(block, start)


def by_score(scores: np.ndarray, skip: np.ndarray | None = None, start: int = 0) -> Block:
    """Rank by given scores, float64 (b, n) from -1 to 1, which are overwritten.

    Equal scores (to 2^-30) rank in the order of the columns. `skip` is as in :func:`exact`.
    """
    # One number to sort by: the score, descending, in the high bits; the column in the low.
    # Adding 2^52 rounds to a whole number, and leaves it in the low bits of the float.
    scores *= -(2.0**_GRID)
    scores += 2.0**52 + 2.0**_GRID + _SLACK
    keys = scores.view(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(scores.shape[1], dtype=np.uint64)
    if skip is not None:
        for row, (first, last) in enumerate(skip.tolist()):
            keys[row, first:last] = _NOTHING
    keys.sort(axis=1)
    return Block(start, keys.astype(np.uint32).view(np.int32), keys)


def copies(query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """Where each query and its byte-identical copies are in a gallery with ascending ids.

    Returns int64 (q, 2) for the argument `skip` of :func:`exact`: the first position, and
    the one after the last.
    """
    return np.stack(
        [np.searchsorted(gallery_ids, query_ids, side) for side in ("left", "right")], axis=1
    )


def cosine(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Exact scores of some vectors, on the scale of :func:`exact`."""
    return _fixed_point(vectors) @ _fixed_point(query[None])[0] * 2.0 ** (-2 * _BITS)


def _fixed_point(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors as whole multiples of 2^-26, float64."""
    numbers = np.array(vectors, np.float64)
    length = np.sqrt((numbers * numbers).sum(axis=1, keepdims=True))
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError("a vector is not finite, or has length zero")
    numbers /= length
    numbers *= 2.0**_BITS
    return np.rint(numbers, out=numbers)
