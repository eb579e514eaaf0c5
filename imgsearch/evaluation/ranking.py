"""Exact rankings of a gallery by cosine similarity, the same on every machine.

Sums of floating point numbers depend on their order, and so on the block size,
the number of threads and the processor; two equal vectors at different places of
a matrix may then get different scores, and ties break by accident. Here vectors
are rounded to multiples of 2^-26 first: every product and every partial sum of a
scalar product is then a whole number of at most 53 bits, which float64 adds
without error in any order. The rounding moves a score by some 6e-9, a tenth of what
float32 scores err by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

BLOCK_BYTES = 48 << 20
"""Memory for the scores of one block of queries, bytes."""

_BITS = 26  # of a vector's number after the point
_GRID = 30  # of a score after the point: scores closer than 2^-30 are equal
_SLACK = 1 << 10  # keeps the key of a score of just over 1 positive
_NOTHING = np.uint64(2**64 - 1)


@dataclass(frozen=True, eq=False)
class Block:
    """Rankings of consecutive queries.

    Attributes
    ----------
    start : int
        Number of the first query.
    order : ndarray of int32, shape (b, depth)
        Positions in the gallery, best first; -1 stands for nothing, at the end.
    keys : ndarray, shape (b, depth)
        What :meth:`scores` are made of.
    """

    start: int
    order: np.ndarray
    keys: np.ndarray

    def scores(self, row: int, places: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Give the cosine similarity of one query to what is at some places.

        Parameters
        ----------
        row : int
            Number of the query in this block.
        places : ndarray of int, shape (p,), or slice
            Where `order` is -1, the score has no meaning.

        Returns
        -------
        ndarray of float64, shape (p,)
        """
        keys = self.keys[row, places]
        if keys.dtype != np.uint64:
            return keys.astype(np.float64)
        # Not made for all places at once: hardly any score is looked at.
        return (2.0**_GRID + _SLACK - (keys >> np.uint64(32))) * 2.0**-_GRID


def exact(
    queries: np.ndarray,
    gallery: np.ndarray,
    skip: np.ndarray | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Callable[[], Block]]:
    """Rank the whole gallery for each query, block by block.

    Parameters
    ----------
    queries : ndarray of float, shape (q, d)
        Vectors of any length but zero.
    gallery : ndarray of float, shape (n, d)
        The same. Equal scores (to 2^-30) rank in the order of the gallery, so
        let it be sorted by image_id.
    skip : ndarray of int, shape (q, 2), optional
        Query ``i`` leaves out the gallery from ``skip[i, 0]`` up to ``skip[i, 1]``:
        itself and its copies.
    block_bytes : int
        Memory for the scores of one block; decides nothing else.

    Yields
    ------
    callable
        That returns the next :class:`Block`, of full depth n; several may be
        called at once, in threads.

    Raises
    ------
    ValueError
        Shapes do not fit, or a vector is not finite or has length zero.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} do not fit")
    across = (_fixed(gallery) * 2.0 ** (-2 * _BITS)).T
    rows = max(1, block_bytes // (8 * max(1, len(gallery))))

    def block(start: int) -> Block:
        scores = _fixed(queries[start : start + rows]) @ across
        return by_score(scores, None if skip is None else skip[start : start + rows], start)

    for start in range(0, len(queries), rows):
        yield partial(block, start)


def by_score(scores: np.ndarray, skip: np.ndarray | None = None, start: int = 0) -> Block:
    """Rank by given scores, to full depth.

    Parameters
    ----------
    scores : ndarray of float64, shape (b, n)
        From -1 to 1; overwritten. Equal ones (to 2^-30) rank in the order of the columns.
    skip : ndarray of int, shape (b, 2), optional
        As in :func:`exact`.
    start : int
        Number of the first query.

    Returns
    -------
    Block
    """
    # One number to sort by: the score, descending, above; the column below. Adding
    # 2^52 rounds to a whole number, and leaves it in the low bits of the float.
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


def same(query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """Find each query itself, and its byte-identical copies, in the gallery.

    Parameters
    ----------
    query_ids : ndarray of int64, shape (q,)
        An id stands for the content of a file.
    gallery_ids : ndarray of int64, shape (n,)
        Ascending.

    Returns
    -------
    ndarray of int64, shape (q, 2)
        For :func:`exact`: first position, and the one after the last.
    """
    return np.stack(
        [np.searchsorted(gallery_ids, query_ids, side) for side in ("left", "right")], axis=1
    )


def served(
    answers: list[tuple[np.ndarray, np.ndarray]], query_ids: np.ndarray, gallery_ids: np.ndarray
) -> Block:
    """Take the rankings that a vector store served.

    Parameters
    ----------
    answers : list of (ids, scores)
        For each query arrays of int64 and float32, shape (k,), best first, as
        ``VectorStore.search`` returns them.
    query_ids : ndarray of int64, shape (q,)
        A query itself is left out, and so are ids that are not in the gallery.
    gallery_ids : ndarray of int64, shape (n,)
        Ascending; an id that is there twice gets two places.

    Returns
    -------
    Block
        As deep as the longest ranking.
    """
    rankings = []
    for (ids, scores), own in zip(answers, query_ids, strict=True):
        first, last = same(ids, gallery_ids).T
        copies = np.where(ids == own, 0, last - first)
        within = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
        rankings.append((np.repeat(first, copies) + within, np.repeat(scores, copies)))
    depth = max((len(order) for order, _ in rankings), default=0)
    order = np.full((len(rankings), depth), -1, np.int32)
    scores = np.zeros((len(rankings), depth))
    for row, (places, values) in enumerate(rankings):
        order[row, : len(places)] = places
        scores[row, : len(places)] = values
    return Block(0, order, scores)


def cosine(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Give exact scores of some vectors, on the scale of :func:`exact`.

    Parameters
    ----------
    query : ndarray of float, shape (d,)
    vectors : ndarray of float, shape (n, d)

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    return _fixed(vectors) @ _fixed(query[None])[0] * 2.0 ** (-2 * _BITS)


def _fixed(vectors: np.ndarray) -> np.ndarray:
    """Round unit vectors to whole multiples of 2^-26, float64."""
    numbers = np.array(vectors, np.float64)
    length = np.sqrt((numbers * numbers).sum(axis=1, keepdims=True))
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError("a vector is not finite, or has length zero")
    numbers /= length
    numbers *= 2.0**_BITS
    return np.rint(numbers, out=numbers)
