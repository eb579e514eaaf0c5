"""What a researcher holds: a collection that can be searched."""

from __future__ import annotations

import time
from collections.abc import Collection as Container
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path

import numpy as np

from imgsearch.collection import WITHOUT_VECTORS, Collection
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    ImageError,
    ImageNotFound,
    StoreDamaged,
    printable,
)
from imgsearch.hits import Hit, Hits
from imgsearch.images import Box, Source
from imgsearch.io import absolute
from imgsearch.stores.metadata import ImageRow
from imgsearch.stores.vectors import MAX_TOP_K


class Gallery(Collection):
    """A collection that can be searched. Opened by :meth:`open`; a context manager.

    Attributes
    ----------
    row : CollectionRow
        Name, encoder, identity and fingerprint, dimension, index, time of creation.
    metadata : MetadataStore
        Paths and properties of the files.
    vectors : VectorStore
        The vectors; it connects when it is first used.
    settings : Settings
        The settings that it was opened with.
    """

    def search(
        self,
        query: Source | ImageRow,
        top_k: int = 10,
        *,
        box: Box | None = None,
        exclude: Container[int] = (),
        search_params: Mapping[str, int] | None = None,
    ) -> Hits:
        """Find the images most similar to a query.

        Parameters
        ----------
        query : path, bytes, PIL.Image.Image, numpy.ndarray or ImageRow
            An image; or a vector, float32 of shape ``(dim,)``; or a stored
            image, as :meth:`get` returns it, whose vector is then used.
        top_k : int
            Maximum number of hits.
        box : tuple of int, optional
            Left, upper, right, lower in pixels of the upright image: search
            with this part of it.
        exclude : collection of int
            Ids that are left out of the hits, such as the query's own.
        search_params : mapping, optional
            Parameters of the index for this search, such as ``{"ef": 64}``.

        Returns
        -------
        Hits
            Best first; fewer than `top_k` only where the collection has no more.

        Raises
        ------
        ImageError
            The query is not a readable image.
        ConfigError
            `top_k` is below 1, or exceeds 16,384 together with `exclude`; or a vector
            has another dimension.
        StoreError
            A store failed.
        """
        excluded = set(exclude)
        most = max(0, MAX_TOP_K - len(excluded))
        if not 1 <= top_k <= most:
            also = f" besides {len(excluded)} excluded images" if excluded else ""
            raise ConfigError("top_k", f"is {top_k}; ask for at least 1 and at most {most}{also}")
        wanted = top_k + len(excluded)
        start = time.perf_counter()
        vector = self._embed(query, box)
        encoded = time.perf_counter()
        spent = 0.0
        # Vectors whose rows are not ready are no hits: ask for more until there are enough.
        while True:
            ids, scores = self._search_vectors(vector, wanted, search_params)
            before = time.perf_counter()
            stored = self.metadata.by_id(self.name, set(map(int, ids)) - excluded)
            spent += time.perf_counter() - before
            if len(stored) >= top_k or len(ids) < wanted or wanted >= MAX_TOP_K:
                break
            wanted = min(2 * wanted, MAX_TOP_K)
        hits = []
        for image_id, score in zip(ids.tolist(), scores.tolist(), strict=True):
            if image_id in stored and len(hits) < top_k:
                first = stored[image_id][0]
                paths = tuple(row.path for row in stored[image_id])
                size = first.width, first.height
                hits.append(Hit(len(hits) + 1, score, image_id, first.path, paths, *size))
        end = time.perf_counter()
        seconds = {
            "encode": encoded - start,
            "vectors": end - encoded - spent,
            "metadata": spent,
            "total": end - start,
        }
        return Hits(tuple(hits), self.name, self.row.index, self.describe_encoder(), seconds)

    def _embed(self, query: Source | ImageRow, box: Box | None) -> np.ndarray:
        if isinstance(query, ImageRow):
            if box is None:
                ids, vectors = self.vectors.get(self.name, np.array([query.image_id], np.int64))
                if not len(ids):
                    raise self._damaged(f"the vector of {printable(query.path)} is missing")
                return vectors[0]
            query = query.path
        if isinstance(query, np.ndarray) and query.ndim == 1:
            if query.shape != (self.row.dim,) or box is not None:
                raise ConfigError(
                    "query", f"a vector must have shape ({self.row.dim},) and goes without a box"
                )
            return query.astype(np.float32)
        result = self.pipeline([query], box=box)[0]
        if isinstance(result, ImageError):
            raise result
        return result.vector

    def _search_vectors(
        self, vector: np.ndarray, top_k: int, params: Mapping[str, int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self.vectors.search(self.name, vector[None], top_k, search_params=params)[0]
        except CollectionNotFound:
            if self.metadata.count(self.name).images:
                raise self._damaged("all vectors are missing") from None
            return np.empty(0, np.int64), np.empty(0, np.float32)

    def get(self, wanted: int | str | Path) -> ImageRow:
        """Return the row of one stored image.

        Parameters
        ----------
        wanted : int or path
            Its image_id, or one of its paths; a relative path starts in the working folder.

        Returns
        -------
        ImageRow
            For an id, the row of its first path in byte order.

        Raises
        ------
        ImageNotFound
            The collection does not hold it, or not yet.
        """
        if isinstance(wanted, Integral):
            for rows in self.metadata.by_id(self.name, [int(wanted)]).values():
                return rows[0]
        else:
            for row in self.metadata.by_path(self.name, [str(absolute(wanted))]).values():
                if row.state == "ready":
                    return row
        raise ImageNotFound(self.name, wanted)

    def embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of all images.

        Returns
        -------
        image_ids : numpy.ndarray
            int64, shape ``(n,)``, ascending.
        vectors : numpy.ndarray
            float32, shape ``(n, dim)``, L2-normalised.

        Raises
        ------
        StoreDamaged
            An image has no vector.
        """
        ids = self.metadata.ids(self.name)
        if not len(ids):
            return ids, np.empty((0, self.row.dim), np.float32)
        found, vectors = self.vectors.get(self.name, ids)
        if len(found) != len(ids):
            raise StoreDamaged(
                self.vectors.where,
                f"{len(ids) - len(found)} images of {self.name!r} have no vector: "
                f"{WITHOUT_VECTORS}",
            )
        return ids, vectors

    def _damaged(self, what: str) -> StoreDamaged:
        return StoreDamaged(self.vectors.where, f"collection {self.name!r}: {what}; run repair")
