"""Search among those images of a collection that fulfil a filter.

The embedded store searches exactly. On a server, an approximate index that is told to pass over
most vectors loses hits, and the more, the less the query has in common with what the filter
admits. The way is therefore chosen by the number of images that fulfil the filter, and each
answer says which one was taken:

exact
    The score of every image that fulfils it was computed: by the server, or here from vectors
    that are kept since a search before needed all of them.
over-fetched
    An ordinary search for more than is wanted found enough of them.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from imgsearch.errors import ImgSearchError
from imgsearch.stores import exact
from imgsearch.stores.exact import Part
from imgsearch.stores.vectors import MAX_TOP_K, VectorStore, checked

FEW = 1_000
"""Images for which to compute every score costs about as much as an ordinary search."""

FIRST, LAST = 8, 128
"""How many hits are fetched at first for each one that is wanted, and at most."""

MOST = 256 * 2**20
"""Bytes of a server's vectors that are kept."""

PIECE = 5_000
"""Vectors that are read together."""


class Answer(NamedTuple):
    """Hits of one query, best first, and the way they were found."""

    ids: np.ndarray
    scores: np.ndarray
    way: str


class Filtered:
    """Searches among some images of one collection; keeps the vectors that they need."""

    def __init__(self, vectors: VectorStore):
        self._vectors = vectors
        self._kept: tuple[Part | None, np.ndarray | None] = None, None  # for which ids read last
        self._reading: threading.Thread | None = None
        self._stopped = threading.Event()

    def close(self) -> None:
        """End the reading of vectors."""
        self._stopped.set()
        self.wait()
        self._stopped.clear()

    def wait(self) -> None:
        """Wait until the vectors are kept that searches so far needed."""
        if self._reading is not None:
            self._reading.join()

    def search(
        self,
        collection: str,
        queries: np.ndarray,
        top_k: int,
        among: np.ndarray,
        *,
        search_params: dict[str, int] | None = None,
    ) -> list[Answer]:
        """Nearest vectors to each query among some ids, which are ascending."""
        if self._vectors.embedded or not len(among):
            found = self._vectors.search(collection, queries, top_k, among=among)
            return [Answer(*hits, "exact") for hits in found]
        parts = self._parts(among)
        if parts is not None:
            queries = checked(queries, parts[0].vectors.shape[1])
            return [Answer(i, 1 - far, "exact") for i, far in exact.nearest(parts, queries, top_k)]
        answers: dict[int, Answer] = {}
        if len(among) > FEW:
            answers = _over_fetched(self._vectors, collection, queries, top_k, among, search_params)
        left = [i for i in range(len(queries)) if i not in answers]
        if left:
            found = _exact(self._vectors, collection, queries[left], top_k, among)
            answers |= zip(left, found, strict=True)
            self._keep(collection, among, queries.shape[1])
        return [answers[i] for i in range(len(queries))]

    def _parts(self, among: np.ndarray) -> list[Part] | None:
        """The vectors of these ids where all that there are were read."""
        kept, read = self._kept
        if kept is None:
            return None
        part = exact.among(kept, among)
        there = len(part.ids) if part.alive is None else np.count_nonzero(part.alive)
        # After a change of the collection, an equal filter has another array.
        complete = there == len(among) or among is read
        return [part] if there and complete else None

    def _keep(self, collection: str, among: np.ndarray, dim: int) -> None:
        """Begin to read vectors, for the searches to come, unless they are too many."""
        busy = self._reading is not None and self._reading.is_alive()
        if not busy and len(among) * dim * 4 <= MOST:
            read = threading.Thread(target=self._read, args=(collection, among, dim))
            self._reading = read
            read.start()

    def _read(self, collection: str, among: np.ndarray, dim: int) -> None:
        kept, _ = self._kept
        have = np.empty(0, np.int64) if kept is None else kept.ids
        missing = np.setdiff1d(among, have, assume_unique=True)
        if (len(have) + len(missing)) * dim * 4 > MOST:
            kept, missing = None, among
        found = [] if kept is None else [(kept.ids, kept.vectors)]
        with suppress(ImgSearchError):  # of which the next search tells
            for start in range(0, len(missing), PIECE):
                if self._stopped.is_set():
                    return
                found.append(self._vectors.get(collection, missing[start : start + PIECE]))
            ids, vectors = map(np.concatenate, zip(*found, strict=True))
            order = np.argsort(ids)
            ids, vectors = ids[order], vectors[order]
            self._kept = Part(ids, vectors, np.linalg.norm(vectors, axis=1), None), among


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
            read = Part(ids, stored, np.linalg.norm(stored, axis=1), None)
            near = exact.nearest([read], queries, top_k)
            found = [(ids, 1 - far) for ids, far in near]
        parts.append(found)
    answers = []
    for of_query in zip(*parts, strict=True):
        ids, scores = map(np.concatenate, zip(*of_query, strict=True))
        best = np.lexsort((ids, -scores))[:top_k]
        answers.append(Answer(ids[best], scores[best], "exact"))
    return answers
