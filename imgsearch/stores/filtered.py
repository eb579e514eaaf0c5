"""Search among those images of a collection that fulfil a filter.

The embedded store searches exactly. On a server, an approximate index that is told to pass over
most vectors loses hits, and the more, the less the query has in common with what the filter
admits. The way is therefore chosen by the number of images that fulfil the filter, and each
answer says which one was taken:

exact
    The score of every image that fulfils it was computed.
over-fetched
    An ordinary search for more than is wanted found enough of them.
filtered
    The index searched among them, with far more candidates than usual.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imgsearch.stores.vectors import MAX_TOP_K, VectorStore

FEW = 1_000
"""Images for which to compute every score costs about as much as an ordinary search."""

FIRST, LAST = 8, 200
"""How many hits are fetched at first for each one that is wanted, and at most."""


class Answer(NamedTuple):
    """Hits of one query, best first, and the way they were found."""

    ids: np.ndarray
    scores: np.ndarray
    way: str


def search(
    vectors: VectorStore,
    collection: str,
    queries: np.ndarray,
    top_k: int,
    among: np.ndarray,
    *,
    search_params: dict[str, int] | None = None,
) -> list[Answer]:
    """Nearest vectors to each query among some ids, which are ascending."""
    if vectors.embedded or not len(among):
        found = vectors.search(collection, queries, top_k, among=among)
        return [Answer(*hits, "exact") for hits in found]
    answers: dict[int, Answer] = {}
    if len(among) > FEW:
        answers = _over_fetched(vectors, collection, queries, top_k, among, search_params)
    left = [i for i in range(len(queries)) if i not in answers]
    if left:
        way = _exact if len(among) <= MAX_TOP_K else _filtered
        found = way(vectors, collection, queries[left], top_k, among)
        answers |= zip(left, found, strict=True)
    return [answers[i] for i in range(len(queries))]


def _over_fetched(
    vectors: VectorStore,
    collection: str,
    queries: np.ndarray,
    top_k: int,
    among: np.ndarray,
    search_params: dict[str, int] | None,
) -> dict[int, Answer]:
    """Answers to those queries near which enough images fulfil the filter."""
    answers: dict[int, Answer] = {}
    left, wanted = list(range(len(queries))), FIRST * top_k
    while left and wanted <= min(LAST * top_k, MAX_TOP_K):
        found = vectors.search(
            collection, queries[left], wanted, thorough=True, search_params=search_params
        )
        for i, (ids, scores) in zip(left, found, strict=True):
            fulfil = np.flatnonzero(np.isin(ids, among))[:top_k]
            if len(fulfil) == top_k:
                answers[i] = Answer(ids[fulfil], scores[fulfil], "over-fetched")
        left = [i for i in left if i not in answers]
        wanted *= 4
    return answers


def _exact(
    vectors: VectorStore, collection: str, queries: np.ndarray, top_k: int, among: np.ndarray
) -> list[Answer]:
    """Ask for the scores of all of them, which leaves an index no choice.

    If it passes over some nevertheless, their vectors are read.
    """
    found = vectors.search(collection, queries, len(among), among=among, thorough=True)
    if any(len(ids) < len(among) for ids, _ in found):
        found = _products(queries, *vectors.get(collection, among))
    return [Answer(ids[:top_k], scores[:top_k], "exact") for ids, scores in found]


def _products(
    queries: np.ndarray, ids: np.ndarray, stored: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    queries, stored = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, stored))
    scores = queries @ stored.T
    orders = (np.lexsort((ids, -row)) for row in scores)
    return [(ids[order], row[order]) for order, row in zip(orders, scores, strict=True)]


def _filtered(
    vectors: VectorStore, collection: str, queries: np.ndarray, top_k: int, among: np.ndarray
) -> list[Answer]:
    """Ask the index for as many as it can give, so that it does not stop early."""
    found = vectors.search(collection, queries, MAX_TOP_K, among=among, thorough=True)
    return [Answer(ids[:top_k], scores[:top_k], "filtered") for ids, scores in found]
