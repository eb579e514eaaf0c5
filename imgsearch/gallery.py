"""What a researcher types: add images, search, look at them, take them out."""

from __future__ import annotations

import difflib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgsearch import config, export, ingestion, sources
from imgsearch.attributes import Labels, Table
from imgsearch.collection import WITHOUT_VECTORS, Collection
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    EncoderMismatch,
    ImageError,
    ImageNotFound,
    ImgSearchError,
    StoreDamaged,
    printable,
)
from imgsearch.filters import FIELDS, names, parse
from imgsearch.hits import Hits, Image, hit_of, image_of, table
from imgsearch.images import Box
from imgsearch.ingestion import IngestReport
from imgsearch.io import absolute
from imgsearch.pipeline import Embedded
from imgsearch.queries import combine
from imgsearch.sources import Source, Stored
from imgsearch.stores.filtered import Answer, Filtered
from imgsearch.stores.metadata import ImageRow, MetadataStore, grouped
from imgsearch.stores.vectors import MAX_TOP_K

if TYPE_CHECKING:
    import pandas as pd

Where = Mapping[str, Any] | None
"""A filter, as docs/filters.md describes it; None and an empty one admit everything."""

CHUNK, AHEAD = 32, 3
"""Pictures of a list that are encoded together, and how many such chunks are under way."""

REPEATED, EXPECTED = 8, 100
"""After so many searches with one picture, so many more are expected: where a faster backend is
worth its start, it is loaded in the background."""

PAGE = 1_000
"""Images that are read together when a gallery is iterated over."""


class Gallery(Collection):
    """A collection of images that can be searched. Opened by :meth:`open`; a context manager.

    ``len(gallery)`` is the number of images, ``gallery[path]`` or ``gallery[image_id]`` is one of
    them, ``path in gallery`` says whether it is stored, and iterating yields every
    :class:`Image` once, in the order of :meth:`embeddings`.

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

    def __init__(self, settings: config.Settings, options: Mapping[str, str], workers: int | None):
        super().__init__(settings, options, workers)
        self._searches, self._filtered = count(1), Filtered(self.vectors)

    def close(self) -> None:
        """Disconnect from both stores."""
        self._filtered.close()
        super().close()

    def __repr__(self) -> str:
        encoder = f"encoder {printable(self.row.encoder)}, {self.row.dim} dimensions"
        try:
            images = f"{len(self):,} images"
        except ImgSearchError:  # dropped meanwhile, for instance; a traceback shows this text too
            images = "cannot be read"
        return f"<Gallery {self.name!r}: {images}, {encoder}>"

    # ------------------------------------------------------------ a container of images

    def __len__(self) -> int:
        return self.count().images

    def __bool__(self) -> bool:
        return True  # also without images: it is an open collection

    def __getitem__(self, wanted: int | str | Path) -> Image:
        return self.get(wanted)

    def __contains__(self, wanted: object) -> bool:
        try:
            self.get(wanted)
        except ImageNotFound:
            return False
        return True

    def __iter__(self) -> Iterator[Image]:
        ids = self.metadata.ids(self.name).tolist()
        for start in range(0, len(ids), PAGE):
            stored = self.metadata.by_id(self.name, ids[start : start + PAGE])
            yield from (image_of(stored[i]) for i in ids[start : start + PAGE] if i in stored)

    def get(self, wanted: Stored | int | str | Path) -> Image:
        """Return one stored image.

        Parameters
        ----------
        wanted : int, path, Hit or Image
            Its image_id; one of its paths, of which a relative one starts in the working
            folder; the name of a picture that was added without a file; or a result.

        Returns
        -------
        Image

        Raises
        ------
        ImageNotFound
            The collection does not hold it, or not yet.
        """
        image_id, row = sources.stored_id(wanted), None
        if image_id is None:
            (row,) = self._rows([wanted])
            image_id = row.image_id if row and row.state == "ready" else None
        rows = self.metadata.by_id(self.name, [image_id]) if image_id is not None else {}
        if image_id not in rows:
            named = row or wanted
            raise ImageNotFound(self.name, named.path if isinstance(named, Stored) else named)
        return image_of(rows[image_id], row)

    def _rows(self, paths: Sequence[str | Path]) -> list[ImageRow | None]:
        """Row of each path in any state, None where there is none."""
        choices = [sources.stored_paths(self, path) for path in paths]
        rows = self.metadata.by_path(self.name, set(chain.from_iterable(choices)))
        return [next((rows[path] for path in each if path in rows), None) for each in choices]

    def _id(self, image: Stored | int | str | Path) -> int:
        known = sources.stored_id(image)
        return self.get(image).image_id if known is None else known

    def browse(
        self, offset: int = 0, limit: int = 100, *, where: Where = None, like: str | None = None
    ) -> list[Image]:
        """Return a page of the files, sorted by path.

        Parameters
        ----------
        offset, limit : int
            How many files to pass over, and how many to return at most.
        where : dict, optional
            Only files that fulfil this filter, as in :meth:`search`.
        like : str, optional
            Only files with this in their path, in which case matters.

        Returns
        -------
        list of Image
            One for each file: an image with two paths is in it twice.

        Raises
        ------
        ConfigError
            `offset` or `limit` is no whole number from 0, or the filter cannot be used.
        """
        for what, number in (("offset", offset), ("limit", limit)):
            if not isinstance(number, Integral) or number < 0:
                raise ConfigError(what, f"is {number!r}; give a whole number from 0")
        how = {"offset": int(offset), "limit": int(limit), "like": like, "where": where}
        page = self.metadata.browse(self.name, **how)
        stored = self.metadata.by_id(self.name, {row.image_id for row in page})
        return [image_of(stored[row.image_id], row) for row in page if row.image_id in stored]

    def to_pandas(self, *, where: Where = None) -> pd.DataFrame:
        """Convert to a table.

        Parameters
        ----------
        where : dict, optional
            Only files that fulfil this filter, as in :meth:`search`.

        Returns
        -------
        pandas.DataFrame
            A row for each file, sorted by path: image_id, path, name, folder, size (bytes),
            width and height (pixels), format, added_at (UTC), date_taken (local time), camera,
            orientation, has_gps, and a column for each attribute.
        """
        rows = self.metadata.browse(self.name, limit=sys.maxsize, where=where)
        return table(rows, ["image_id", *FIELDS])

    # ------------------------------------------------------------ changes

    def add(
        self,
        images: Source | Iterable[Source],
        *,
        name: str | Sequence[str] | None = None,
        attributes: Mapping[str, Any] | pd.DataFrame | str | Path | None = None,
        from_folders: bool = False,
        progress: bool | Callable[[IngestReport], None] | None = None,
    ) -> IngestReport:
        """Add images. What is stored and unchanged is not read again.

        Parameters
        ----------
        images : folder, path, bytes, binary file, PIL.Image.Image, numpy.ndarray, Hit or Image
            One, or a list or another iterable of them. A folder is searched with its subfolders.
            A picture without a file is stored under ``IMGSEARCH_HOME``: the content of a file as
            it is, other pictures as PNG.
        name : str or sequence of str, optional
            Name of a picture without a file, or of each of them; made from its content if left
            out. The gallery finds the picture by it: ``gallery["scan-17"]``.
        attributes : dict, pandas.DataFrame or path of a CSV file, optional
            A dict is given to every image; a table is as in :meth:`set_attributes`. Images that
            are stored already get them, too.
        from_folders : bool
            Set the attribute ``label`` of each image to the name of its folder.
        progress : bool or callable, optional
            Whether to show a progress bar, which is shown in interactive sessions if left out;
            or a function that is called with the unfinished report after each chunk.

        Returns
        -------
        IngestReport
            With the images that could not be read, and why.

        Raises
        ------
        ImageError
            A path does not exist, or something is no image. Nothing was added then.
        ConfigError
            A name is not the name of a file, or is taken by another picture; or an attribute
            cannot be used.
        EncoderMismatch
            The encoder of the collection is not available.
        StoreError
            A store failed. Everything that was reported as stored stays stored.
        """
        names = [name] if isinstance(name, str) else name
        paths = sources.files(self, sources.listed(images), names)
        labels = Labels.read(attributes, from_folders)
        return ingestion.ingest_paths(self, paths, labels, progress=progress)

    def set_attributes(
        self,
        attributes: Mapping | pd.DataFrame | str | Path,
        *,
        key: str | None = None,
        replace: bool = False,
    ) -> int:
        """Set labels, tags or anything else that JSON can hold, for files of the gallery.

        Parameters
        ----------
        attributes : dict of dict, pandas.DataFrame or path of a CSV file
            What names a file, and its attributes: texts, numbers, truth values, or lists of
            these; dates become texts in ISO format. In a dict, None removes an attribute; in a
            table, an empty cell changes nothing, and the columns that :meth:`to_pandas` fills
            itself are passed over if all of them are there. A CSV file is in UTF-8 and separated
            by commas. A column of it holds numbers or truth values if every text in it is one;
            whole numbers of 16 digits or more, or with leading zeros, stay texts.
        key : {"path", "name", "image_id"}, optional
            What names a file: its path, of which a relative one starts in the working folder;
            its name, with or without the ending, which means every file with this name; or its
            image_id. If left out, the first of them that is a column of the table; for a dict,
            ``image_id`` if its keys are integers, otherwise ``path``.
        replace : bool
            Remove the other attributes of these files.

        Returns
        -------
        int
            Number of files that were found. Others are passed over.

        Raises
        ------
        ConfigError
            The table lacks the key or cannot be read, an attribute cannot be used, a file has
            two values of one, or no file was found. Nothing was changed then.
        StoreError
            The metadata store failed.
        """
        return Table.read(attributes, key).set(self, replace=replace)

    def delete(
        self, images: Source | Iterable[Source] = (), *, where: Mapping[str, Any] | None = None
    ) -> int:
        """Remove images from the collection.

        Files are not touched, except for pictures that were added without a file.

        Parameters
        ----------
        images : path, int, Hit or Image
            One, or a list or another iterable of them. A path is removed alone; an image_id or
            a result stands for all paths of the image, and its vector goes with the last path.
            What the collection does not hold is passed over.
        where : dict, optional
            Also remove the files that fulfil this filter, as in :meth:`search`.

        Returns
        -------
        int
            How many paths were removed.

        Raises
        ------
        ConfigError
            The filter is empty or cannot be used, or tests an attribute that no file has; or
            a folder is given, whose images are found by ``{"path": {"prefix": "/folder/"}}``.
        StoreError
            A store failed; calling it again completes the work.
        """
        if where is not None and parse(where) is None:
            raise ConfigError("where", "is empty: use drop to delete the whole collection")
        given = sources.listed(images)
        ids = [i for i in map(sources.stored_id, given) if i is not None]
        with self.exclusive():
            named = [one for one in given if sources.stored_id(one) is None]
            rows = dict(zip(named, self._rows(named), strict=True))
            for path in (absolute(one) for one, row in rows.items() if row is None):
                if path.is_dir():
                    hint = f'where={{"path": {{"prefix": "{printable(path)}/"}}}}'
                    raise ConfigError("images", f"{printable(path)} is a folder: use {hint}")
            paths = {row.path for row in rows.values() if row}
            for same in self.metadata.by_id(self.name, ids).values():
                paths |= {row.path for row in same}
            if where is not None:
                found = self.metadata.browse(self.name, limit=sys.maxsize, where=where)
                self._check_known(where, found)
                paths |= {row.path for row in found}
            removed = super().delete(paths)
            for path in paths:
                if Path(path).parent == self.pictures:
                    Path(path).unlink(missing_ok=True)
        return removed

    def _check_known(self, where: Mapping[str, Any], found: Sequence[ImageRow]) -> None:
        """Refuse to delete files only because they lack an attribute that no file has."""
        tested = names(parse(where), but="exists") - FIELDS.keys() if found else set()
        known = self.metadata.attribute_values(self.name, most=1) if tested else {}
        for name in sorted(tested - known.keys()):
            near = difflib.get_close_matches(name, [*known, *FIELDS], 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                "where", f"no file has the attribute {printable(name)!r}, so nothing was deleted: "
                f'{hint}{{"exists": False}} finds files without an attribute'
            )  # fmt: skip

    def export(
        self, path: str | Path, *, progress: Callable[[int, int], None] | None = None
    ) -> Path:
        """Write the collection with its vectors to a Parquet file.

        Parameters
        ----------
        path : path
            The file. An existing file is replaced at the end.
        progress : callable, optional
            Called with the number of images written so far and in total.

        Returns
        -------
        pathlib.Path
            The absolute path.

        Raises
        ------
        StoreDamaged
            The vector of an image is missing or damaged.
        StoreError
            A store failed.
        OSError
            The file cannot be written.
        """
        return export.export_collection(self, path, progress=progress)

    # ------------------------------------------------------------ search

    def search(
        self,
        query: Source | Iterable[Source] | None = None,
        top_k: int = 10,
        *,
        text: str | None = None,
        like: Source | Iterable[Source] = (),
        unlike: Source | Iterable[Source] = (),
        weights: Mapping[str, float] | None = None,
        where: Where = None,
        include_examples: bool = False,
        box: Box | None = None,
        exclude: Stored | int | str | Path | Iterable[Stored | int | str | Path] = (),
        search_params: Mapping[str, int] | None = None,
    ) -> Hits | list[Hits]:
        """Find the images most similar to a query, or to each query of a list.

        Parameters
        ----------
        query : path, bytes, binary file, PIL.Image.Image, numpy.ndarray, int, Hit or Image
            A picture; or a stored image (its image_id, a result, an :class:`Image`, or the name
            of a picture without a file), whose vector is then used; or a vector, float of shape
            ``(dim,)``. A list or another iterable of queries is encoded and searched in one go,
            which is faster than one after the other. May be left out where there is a text or
            something to be like.
        top_k : int
            Maximum number of hits.
        text : str, optional
            Words, for an encoder with a text tower.
        like, unlike : as `query`
            Examples of what is looked for, and counter-examples.
        weights : mapping of str to float, optional
            Weights of ``"query"`` and ``"text"`` (1), ``"like"`` (0.75) and ``"unlike"``
            (0.15); see :meth:`query_vectors`.
        where : dict, optional
            Only images of which a file fulfils this filter, such as
            ``{"label": ["cat", "dog"], "width": {">=": 800}}``; ``docs/filters.md`` describes
            filters.
        include_examples : bool
            Whether examples and counter-examples may be among the hits.
        box : tuple of int, optional
            Left, upper, right, lower in pixels of the upright image: search
            with this part of it.
        exclude : int, path, Hit, Image, or an iterable of them
            Images that are left out of the hits, such as the query's own.
        search_params : mapping, optional
            Parameters of the index for this search, such as ``{"ef": 64}``.

        Returns
        -------
        Hits or list of Hits
            Best first; fewer than `top_k` only where the collection has no more. A list for
            several queries, in their order.

        Raises
        ------
        ImageError
            A query is not a readable image.
        ImageNotFound
            The collection does not hold an image_id, or an image to exclude.
        ConfigError
            `top_k` is below 1, or exceeds 16,384 together with what is left out; a vector has
            another dimension; the text is empty; the filter or the weights cannot be used; or
            there is no query.
        EncoderError
            The encoder has no text tower, or does not know a word.
        EncoderMismatch
            The collection was deleted and created again with another encoder.
        StoreError
            A store failed.
        """
        excluded = {self._id(one) for one in sources.listed(exclude)}
        queries = sources.several(query)
        like, unlike = sources.listed(like), sources.listed(unlike)
        left_out = len(excluded) + (0 if include_examples else len(like) + len(unlike))
        most = max(0, MAX_TOP_K - left_out)
        if not (isinstance(top_k, Integral) and 1 <= top_k <= most):
            also = f" besides {left_out} excluded images" if left_out else ""
            reason = f"is {top_k!r}; give a whole number from 1 to {most}{also}"
            raise ConfigError("top_k", reason)
        top_k = int(top_k)  # the stores take no other integers
        every, start = parse(where) is None, time.perf_counter()
        with ThreadPoolExecutor(1, "imgsearch-filter") as pool:  # while the query is encoded
            matching = None if every else pool.submit(self.metadata.matching, self.name, where)
            vectors, examples = self.query_vectors(
                [query] if queries is None and query is not None else queries,
                text=text, like=like, unlike=unlike, weights=weights, box=box,
            )  # fmt: skip
            encoded = time.perf_counter()
            among = None if matching is None else matching.result()
        excluded |= set() if include_examples else examples
        found = self._search(vectors, top_k, excluded, among, search_params, start, encoded)
        return found[0] if queries is None else found

    def query_vectors(
        self,
        queries: Sequence[Source] | None = None,
        *,
        text: str | None = None,
        like: Source | Iterable[Source] = (),
        unlike: Source | Iterable[Source] = (),
        weights: Mapping[str, float] | None = None,
        box: Box | None = None,
    ) -> tuple[np.ndarray, set[int]]:
        r"""Make the vectors that :meth:`search` searches with.

        A query of several parts is a weighted sum of unit vectors, by Rocchio's formula with
        the picture :math:`q_0`, the text :math:`t`, examples L and counter-examples U:

        .. math:: q = \alpha\,(q_0 + t) + \frac{\beta}{|L|} \sum_{v \in L} v
                  - \frac{\gamma}{|U|} \sum_{v \in U} v

        See Rocchio: Relevance feedback in information retrieval, in Salton (ed.): The SMART
        Retrieval System, 1971; the weights 1, 0.75 and 0.15 are those of Manning, Raghavan,
        Schütze: Introduction to Information Retrieval, 2008, section 9.1.1.

        Parameters
        ----------
        queries : sequence, optional
            Pictures, stored images or vectors, each a query that has the other parts as well.
        text, like, unlike, weights, box
            As for :meth:`search`.

        Returns
        -------
        vectors : numpy.ndarray
            float32, shape ``(n, dim)``, one for each of `queries`, or one if there are none.
        examples : set of int
            Ids of the examples and counter-examples.

        Raises
        ------
        ImageError, ImageNotFound, EncoderError, StoreError
            As for :meth:`search`.
        ConfigError
            As for :meth:`search`, or there is a box without a picture.
        """
        like, unlike = sources.listed(like), sources.listed(unlike)
        if box is not None and queries is None:
            raise ConfigError("box", "is a part of the query's picture, and there is none")
        if text is not None and not (isinstance(text, str) and text.strip()):
            raise ConfigError("text", f"is {text!r}: give words, as one str")
        given, _ = self._embed(_places(query=queries or ()), box)
        if text is None and not like and not unlike and weights is None and queries is not None:
            return given, set()
        examples, ids = self._embed(_places(like=like, unlike=unlike), None)
        parts = {
            "text": () if text is None else self.encoder.encode_text([text]),
            "like": examples[: len(like)],
            "unlike": examples[len(like) :],
        }
        pictures = [()] if queries is None else given[:, None]
        combined = [combine({"query": one, **parts}, weights) for one in pictures]
        return np.array(combined, np.float32).reshape(-1, self.row.dim), ids

    def _search(
        self,
        vectors: np.ndarray,
        top_k: int,
        excluded: set[int],
        among: np.ndarray | None,
        params: Mapping[str, int] | None,
        start: float,
        encoded: float,
    ) -> list[Hits]:
        spent = time.perf_counter() - encoded  # until the filter was answered
        wanted, todo = top_k + len(excluded), list(range(len(vectors)))
        answers: dict[int, list[tuple[int, float]]] = {}
        ways: dict[int, str | None] = {}
        stored: dict[int, list[ImageRow]] = {}
        # Vectors whose rows are not ready are no hits: ask for more until there are enough.
        while todo:
            found = self._search_vectors(vectors[todo], wanted, among, params)
            before = time.perf_counter()
            ids = {int(i) for answer in found for i in answer.ids}
            stored |= self._current(ids - excluded - stored.keys())
            spent += time.perf_counter() - before
            for number, (ids, scores, ways[number]) in zip(todo, found, strict=True):
                pairs = zip(ids.tolist(), scores.tolist(), strict=True)
                answers[number] = [pair for pair in pairs if pair[0] in stored]
            more = [len(answer.ids) == wanted < MAX_TOP_K for answer in found]
            todo = [n for n, m in zip(todo, more, strict=True) if m and len(answers[n]) < top_k]
            wanted = min(2 * wanted, MAX_TOP_K)
        end = time.perf_counter()
        times = {
            "encode": encoded - start,
            "vectors": end - encoded - spent,
            "metadata": spent,
            "total": end - start,
        }
        seconds = {step: time / max(1, len(vectors)) for step, time in times.items()}
        encoder = self.describe_encoder()
        return [
            Hits(
                tuple(
                    hit_of(rank, score, stored[image_id])
                    for rank, (image_id, score) in enumerate(answers[number][:top_k], 1)
                ),
                self.name,
                self.row.index,
                encoder,
                seconds,
                None if among is None else len(among),
                ways[number],
            )
            for number in range(len(vectors))
        ]

    def _embed(
        self, given: Sequence[tuple[str, Source]], box: Box | None
    ) -> tuple[np.ndarray, set[int]]:
        """Vectors of queries of any kind, float32 (n, dim), and the ids that they have."""
        places, queries = [place for place, _ in given], [query for _, query in given]
        vectors = np.zeros((len(queries), self.row.dim), np.float32)
        pictures: dict[int, Source] = {}
        stored: dict[int, int] = {}
        for number, query in enumerate(queries):
            image_id = sources.stored_id(query)
            if image_id is None:
                image_id = sources.stored_name(self, query)
            if sources.is_vector(query):
                if query.shape != (self.row.dim,) or box is not None:
                    shape = f"a vector has shape ({self.row.dim},), and goes without a box"
                    raise ConfigError(
                        places[number], f"is a vector of {len(query)} numbers; {shape}"
                    )
                vectors[number] = query
            elif image_id is None:
                with sources.at(places[number], query):
                    sources.check_picture(query)
                pictures[number] = query
            elif box is None:
                stored[number] = image_id
            else:
                known = isinstance(query, Stored)
                pictures[number] = query.path if known else self.get(image_id).path
        found = self._stored_vectors(stored.values())
        for number, image_id in stored.items():
            if image_id in found:
                vectors[number] = found[image_id]
            elif image_id in self:
                path = printable(self.get(image_id).path)
                raise self._damaged(f"the vector of {path} is missing")
            elif isinstance(queries[number], Stored):  # of another gallery
                pictures[number] = queries[number].path
            else:
                raise ImageNotFound(self.name, image_id)
        ids = set(stored.values())
        encoded = self._encode(list(pictures.values()), box)
        for number, one in zip(pictures, encoded, strict=True):
            with sources.at(places[number], queries[number]):
                if isinstance(one, ImageError):
                    raise one
            vectors[number] = one.vector
            ids |= {one.info.image_id} if one.info else set()
        return vectors, ids

    def _stored_vectors(self, ids: Iterable[int]) -> dict[int, np.ndarray]:
        ids = sorted(set(ids))
        try:
            found, vectors = self.vectors.get(self.name, ids) if ids else ((), ())
        except CollectionNotFound:
            return {}
        if len(found) and vectors.shape[1] != self.row.dim:
            self._current(())  # raises: the collection was created again
        return dict(zip(map(int, found), vectors, strict=True))

    def _current(self, ids: Iterable[int]) -> dict[int, list[ImageRow]]:
        """Rows of images, if the collection still has the encoder that it was opened with."""
        now, rows = self.metadata.lookup(self.name, image_ids=ids)
        given, stored = (f"{row.encoder} ({row.fingerprint})" for row in (self.row, now))
        if given != stored:
            raise EncoderMismatch(self.name, stored, given)
        return grouped(rows)

    def _encode(self, pictures: list[Source], box: Box | None) -> list[Embedded | ImageError]:
        if not pictures:
            return []
        pipeline = self.pipeline
        if len(pictures) == 1:
            if next(self._searches) == REPEATED:
                threading.Thread(target=pipeline.optimize_for, args=(EXPECTED,)).start()
            results = pipeline(pictures, box=box)
        else:
            pipeline.optimize_for(len(pictures))
            chunks = [pictures[at : at + CHUNK] for at in range(0, len(pictures), CHUNK)]
            with ThreadPoolExecutor(AHEAD, "imgsearch-query") as pool:
                parts = pool.map(lambda chunk: pipeline(chunk, box=box), chunks)
                results = list(chain.from_iterable(parts))
        return results

    def _search_vectors(
        self,
        vectors: np.ndarray,
        top_k: int,
        among: np.ndarray | None,
        params: Mapping[str, int] | None,
    ) -> list[Answer]:
        try:
            if among is not None:
                return self._filtered.search(self.name, vectors, top_k, among, search_params=params)
            found = self.vectors.search(self.name, vectors, top_k, search_params=params)
            return [Answer(*answer, None) for answer in found]
        except CollectionNotFound:
            if self.metadata.count(self.name).images:
                raise self._damaged("all vectors are missing") from None
            return [Answer(np.empty(0, np.int64), np.empty(0, np.float32), None)] * len(vectors)

    def embeddings(self, *, where: Where = None) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of all images, or of those that fulfil a filter.

        Parameters
        ----------
        where : dict, optional
            Only images of which a file fulfils this filter, as in :meth:`search`.

        Returns
        -------
        image_ids : numpy.ndarray
            int64, shape ``(n,)``, ascending.
        vectors : numpy.ndarray
            float32, shape ``(n, dim)``, L2-normalised.

        Raises
        ------
        EncoderMismatch
            The collection was deleted and created again with another encoder.
        StoreDamaged
            An image has no vector.
        """
        every = parse(where) is None
        self._current(())
        ids = self.metadata.ids(self.name) if every else self.metadata.matching(self.name, where)
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


def _places(**given: Sequence[Source]) -> list[tuple[str, Source]]:
    """Sources of each argument, with what names them in errors, such as ``query[3]``."""
    return [
        (name if len(sources) == 1 else f"{name}[{number}]", source)
        for name, sources in given.items()
        for number, source in enumerate(sources)
    ]


def list_galleries(settings: config.Settings | None = None) -> list[str]:
    """Return the names of all collections, sorted.

    Parameters
    ----------
    settings : Settings, optional
        Read from the environment if left out.

    Returns
    -------
    list of str
        What :meth:`Gallery.open` takes.

    Raises
    ------
    StoreError
        The metadata store cannot be read.
    """
    with MetadataStore.open(settings or config.load_settings()) as metadata:
        return [row.name for row in metadata.collections()]
