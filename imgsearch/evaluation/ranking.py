"""Exact rankings of a gallery by cosine similarity, identical on every machine.

Sums of floating-point numbers depend on their order, and so on the block size, the number
of threads and the processor: equal vectors in different rows of a matrix may get different
scores, so that ties are broken arbitrarily. Here vectors are first rounded to multiples of
2^-26. Every product and every partial sum of a dot product is then a multiple of 2^-52 that
float64 represents exactly, in any order of summation. The rounding changes a score by about
6e-9, a tenth of the error of float32 scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

BLOCK_BYTES = 48 << 20
"""Memory for the scores of one block of queries, in bytes."""

_BITS = 26  # binary places of a vector component
_GRID = 30  # binary places of a score: scores closer than 2^-30 are equal
_SLACK = 1 << 10  # keeps the sort key of a score slightly above 1 positive
_NOTHING = np.uint64(2**64 - 1)


@dataclass(frozen=True, eq=False)
class Block:
    """Rankings of consecutive queries.

    `start` is the index of the first query. `order`, int32 (b, depth), contains positions in
    the gallery, best first, padded with -1 at the end. `keys`, uint64 (b, depth), contains the
    sort keys from which :meth:`scores` are computed.
    """

    start: int
    order: np.ndarray
    keys: np.ndarray

    def scores(
        self, row: int | slice, places: int | slice | np.ndarray = slice(None)
    ) -> np.ndarray:
        """Return the scores of some queries and ranks; they are undefined where `order` is -1."""
        # Computed on demand, because very few scores are needed.
        keys = self.keys[row, places]
        return (2.0**_GRID + _SLACK - (keys >> np.uint64(32))) * 2.0**-_GRID


def exact(
    queries: np.ndarray,
    gallery: np.ndarray,
    skip: np.ndarray | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Callable[[], Block]]:
    """Rank the whole gallery for each query; yield functions that compute one Block each.

    The functions may be called in parallel threads. Vectors need not be normalised, but must
    not be zero. Equal scores (to 2^-30) rank in the order of the gallery. The ranking of query
    ``i`` omits the gallery from ``skip[i, 0]`` up to ``skip[i, 1]``: the query and its copies.
    `block_bytes` limits the memory of a block and does not affect results.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"shapes of queries {queries.shape} and gallery {gallery.shape} differ")
    transposed = (_fixed_point(gallery) * 2.0 ** (-2 * _BITS)).T
    rows = max(1, block_bytes // (8 * max(1, len(gallery))))

    def block(start: int) -> Block:
        scores = _fixed_point(queries[start : start + rows]) @ transposed
        return by_score(scores, None if skip is None else skip[start : start + rows], start)

    for start in range(0, len(queries), rows):
        yield partial(block, start)


def by_score(scores: np.ndarray, skip: np.ndarray | None = None, start: int = 0) -> Block:
    """Rank by scores from -1 to 1, float64 (b, n), which are overwritten.

    Equal scores (to 2^-30) rank in the order of the columns. `skip` is as in :func:`exact`.
    """
    # The sort key has the score, descending, in its high bits and the column in its low bits.
    # Adding 2^52 rounds to an integer, which is then in the low bits of the float.
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
    """Return the positions of each query and its byte-identical copies in the gallery.

    `gallery_ids` must be ascending. The result, int64 (q, 2), is for the argument `skip` of
    :func:`exact`: the first position, and the one after the last.
    """
    return np.stack(
        [np.searchsorted(gallery_ids, query_ids, side) for side in ("left", "right")], axis=1
    )


def cosine(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return exact scores of some vectors, equal to those of :func:`exact`."""
    return _fixed_point(vectors) @ _fixed_point(query[None])[0] * 2.0 ** (-2 * _BITS)


def _fixed_point(vectors: np.ndarray) -> np.ndarray:
    """Normalise vectors and round them to multiples of 2^-26, scaled to integers in float64."""
    numbers = np.array(vectors, np.float64)
    length = np.sqrt((numbers * numbers).sum(axis=1, keepdims=True))
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError("a vector is not finite, or has length zero")
    numbers /= length
    numbers *= 2.0**_BITS
    return np.rint(numbers, out=numbers)
