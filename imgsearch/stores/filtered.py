"""Search among those images of a collection that fulfil a filter.

The embedded store searches exactly. On a server, an approximate index that is told to pass over
most vectors loses hits, and the more, the less the query has in common with what the filter
admits. The way is therefore chosen by the number of images that fulfil the filter, and each
answer says which one was taken:

exact
    The score of every image that fulfils it was computed.
over-fetched
    An ordinary search for more than is wanted found enough of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imgsearch.stores.vectors import MAX_TOP_K, VectorStore

FEW = 1_000
"""Images for which to compute every score costs about as much as an ordinary search."""

FIRST, LAST = 8, 128
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
        found = _exact(vectors, collection, queries[left], top_k, among)
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
    """Answers to those queries near which enough images fulfil the filter.

    Where none of the first hits does, none is near: they would come from the end of a long list,
    where an index is unreliable.
    """
    answers: dict[int, Answer] = {}
    fulfil: dict[int, np.ndarray] = {}
    left, wanted = list(range(len(queries))), FIRST * top_k
    while left and wanted <= min(LAST * top_k, MAX_TOP_K):
        found = vectors.search(
            collection, queries[left], wanted, thorough=True, search_params=search_params
        )
        for i, (ids, scores) in zip(left, found, strict=True):
            fulfil[i] = np.flatnonzero(np.isin(ids, among))[:top_k]
            if len(fulfil[i]) == top_k:
                answers[i] = Answer(ids[fulfil[i]], scores[fulfil[i]], "over-fetched")
        left = [i for i in left if i not in answers and len(fulfil[i])]
        wanted *= 4
    return answers


def _exact(
    vectors: VectorStore, collection: str, queries: np.ndarray, top_k: int, among: np.ndarray
) -> list[Answer]:
    """Ask for the scores of all of them, which leaves an index no choice.

    If it passes over some nevertheless, their vectors are read.
    """
    parts = []
    for start in range(0, len(among), MAX_TOP_K):
        part = among[start : start + MAX_TOP_K]
        found = vectors.search(collection, queries, len(part), among=part, thorough=True)
        if any(len(ids) < len(part) for ids, _ in found):
            ids, stored = vectors.get(collection, part)
            found = [(ids, scores) for scores in _cosines(queries, stored)]
        parts.append(found)
    answers = []
    for of_query in zip(*parts, strict=True):
        ids, scores = map(np.concatenate, zip(*of_query, strict=True))
        best = np.lexsort((ids, -scores))[:top_k]
        answers.append(Answer(ids[best], scores[best], "exact"))
    return answers


def _cosines(queries: np.ndarray, stored: np.ndarray) -> np.ndarray:
    queries, stored = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, stored))
    return queries @ stored.T
