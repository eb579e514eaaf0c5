"""Searches with judgments: a session refines its query by what the user judges."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgsearch import config, sources
from imgsearch.errors import ConfigError, ImageNotFound
from imgsearch.evaluation.trec import write_judgments
from imgsearch.filters import parse
from imgsearch.gallery import Gallery
from imgsearch.hits import Hit, Hits, Image, image_of
from imgsearch.images import Box
from imgsearch.io import absolute, atomic, csv_text
from imgsearch.stores.metadata import MetadataStore, user_name
from imgsearch.stores.topics import Judgment, TopicRow

if TYPE_CHECKING:
    import numpy as np

GRADES = {True: 1, False: 0, None: -1}
"""Numbers of qrels: relevant, not relevant, pooled but not judged."""

COLUMNS = (
    "topic", "image_id", "relevance", "path", "depth", "collection", "who", "judged_at",
)  # fmt: skip


class Session:
    """A named topic that is searched and judged. Opened by :meth:`open`.

    Query, filter and judgments are saved in the metadata store at once, so that another
    kernel can resume the session by its name.

    Attributes
    ----------
    gallery : Gallery
        What is searched.
    topic : str
        The name.
    who : str
        Who judges; the name of the user if not given.
    """

    def __init__(self, gallery: Gallery, row: TopicRow, who: str):
        self.gallery, self.topic, self.who = gallery, row.name, who
        self._row, self._topics = row, gallery.metadata.topics

    @classmethod
    def open(
        cls,
        gallery: Gallery,
        topic: str,
        query: object = None,
        *,
        text: str | None = None,
        like: Iterable = (),
        unlike: Iterable = (),
        weights: Mapping[str, float] | None = None,
        where: Mapping | None = None,
        box: Box | None = None,
        who: str | None = None,
        new: bool = False,
    ) -> Session:
        """Start a session, or resume the one of this name.

        Parameters
        ----------
        gallery : Gallery
            What is searched.
        topic : str
            Name of the session, 1 to 190 characters.
        query, text, like, unlike, weights, where, box
            As for :meth:`Gallery.search`. If any is given, they replace the saved query; the
            judgments stay. A picture that has no file and is not stored is kept under the home.
        who : str, optional
            Who judges; the name of the user if left out.
        new : bool
            Whether the name must be free, so that no saved query is replaced.

        Returns
        -------
        Session

        Raises
        ------
        ConfigError
            The name cannot be used, there is neither a query nor a saved session, or the query
            cannot be searched with. A query that is refused does not replace the saved one.
        ImageError, ImageNotFound, EncoderError
            As for :meth:`Gallery.search`.
        """
        given = {
            "query": None if query is None else _reference(gallery, query),
            "text": text,
            "like": [_reference(gallery, one) for one in sources.listed(like)],
            "unlike": [_reference(gallery, one) for one in sources.listed(unlike)],
            "weights": weights,
            "where": where,
            "box": None if box is None else list(box),
        }
        given = {name: value for name, value in given.items() if value not in (None, [], {})}
        store = gallery.metadata.topics
        if given:
            parse(where)
            query_vector(gallery, given)
        row = store.save(topic, gallery.name, given, new=new) if given else store.get(topic)
        return cls(gallery, row, who or user_name())

    def __repr__(self) -> str:
        values = self.judgments().values()
        return (
            f"<Session {self.topic!r} in {self.gallery.name!r}, {sum(values)} relevant and "
            f"{len(values) - sum(values)} not>"
        )

    @property
    def query(self) -> dict:
        """The saved parts of the query and its filter, fit for JSON."""
        return self._row.query

    def search(self, top_k: int = 20, *, include_judged: bool = False) -> Hits:
        """Search with the query and all judgments, by Rocchio's formula.

        Images judged relevant count as examples, the others as counter-examples; see
        :meth:`Gallery.search`. The picture of the query, its examples and what was judged are
        left out of the hits.

        Parameters
        ----------
        top_k : int
            Maximum number of hits.
        include_judged : bool
            Whether they may be among the hits nevertheless.

        Returns
        -------
        Hits
        """
        parts = parts_of(self.gallery, self.query)
        for image, relevant in self.examples():
            parts["like" if relevant else "unlike"].append(image)
        if include_judged:
            parts["exclude"] = ()
        return self.gallery.search(top_k=top_k, include_examples=include_judged, **parts)

    def examples(self) -> list[tuple[Image, bool]]:
        """Judged images that the collection holds, and whether each is relevant.

        Returns
        -------
        list of (Image, bool)
            In the order in which they were first judged.
        """
        judged = self.judgments()
        rows = self.gallery.metadata.by_id(self.gallery.name, judged)
        return [(image_of(rows[i]), relevant) for i, relevant in judged.items() if i in rows]

    def judge(self, image: object, relevant: bool = True) -> None:
        """Judge an image. When this returns, the judgment is kept.

        Parameters
        ----------
        image : Hit, Image, int or path
            A result, or a stored image, its id or its path.
        relevant : bool
            Whether it is what is looked for. A later judgment replaces an earlier one.

        Raises
        ------
        ImageNotFound
            The collection does not hold it.
        ConfigError
            `relevant` is neither true nor false, or the session was deleted.
        StoreError
            The metadata store failed; the judgment was not kept.
        """
        if relevant not in (True, False):
            raise ConfigError("relevant", f"is {relevant!r}: give True or False")
        stored = image if isinstance(image, Hit) else self.gallery.get(image)
        depth = stored.rank if isinstance(stored, Hit) else None
        value = (stored.image_id, 1 if relevant else -1, depth)
        self._topics.judge(self._row.topic_id, [value], collection=self.gallery.name, who=self.who)

    def undo(self) -> Judgment | None:
        """Take back the last judgment of this user.

        Returns
        -------
        Judgment or None
            What was taken back; None if there was nothing.
        """
        return self._topics.undo(self._row.topic_id, self.who)

    def withdraw(self, image: object) -> int:
        """Withdraw all judgments of an image by this user.

        Parameters
        ----------
        image : Hit, Image, int or path
            As for :meth:`judge`.

        Returns
        -------
        int
            How many judgments there were.
        """
        image_id = sources.stored_id(image)
        image_id = self.gallery.get(image).image_id if image_id is None else image_id
        return self._topics.withdraw(self._row.topic_id, self.who, image_id)

    def rename(self, topic: str) -> None:
        """Give the session another name.

        Parameters
        ----------
        topic : str
            The name, 1 to 190 characters.

        Raises
        ------
        ConfigError
            The name cannot be used, or another session has it.
        """
        self._row = self._topics.rename(self._row.topic_id, topic)
        self.topic = topic

    def delete(self) -> None:
        """Remove the session and its judgments."""
        self._topics.delete(self._row.topic_id)

    def judgments(self) -> dict[int, bool]:
        """Whether each judged image is relevant, by image_id.

        Returns
        -------
        dict of int to bool
            In the order in which they were first judged.
        """
        return {i: relevant for i, relevant in self.pooled().items() if relevant is not None}

    def pooled(self) -> dict[int, bool | None]:
        """Whether each image that was judged or pooled is relevant, by image_id.

        Returns
        -------
        dict of int to bool or None
            None for an image that was pooled and not judged.
        """
        found: dict[int, bool | None] = {}
        for one in self._topics.judgments(self._row.topic_id):
            found[one.image_id] = one.relevant if one.value else found.get(one.image_id)
        return found

    def pool(self, galleries: Gallery | Sequence[Gallery] = (), depth: int = 20) -> list[Hit]:
        """Pool the first results of several collections for judging.

        A comparison of encoders is fair if the results of each were judged to the same
        depth: judge everything that this returns. What is pooled and not judged is kept as
        such, and counts in inferred average precision.

        Parameters
        ----------
        galleries : Gallery or sequence of Gallery
            Other collections of the same images, made with other encoders.
        depth : int
            How many results of each are pooled; those of the saved query, without judgments.

        Returns
        -------
        list of Hit
            What is still to be judged, the best ranks first.
        """
        before, found = self.pooled(), []
        others = [galleries] if isinstance(galleries, Gallery) else galleries
        for gallery in (self.gallery, *others):
            hits = gallery.search(top_k=depth, **parts_of(gallery, self.query))
            new = [(hit.image_id, 0, hit.rank) for hit in hits if hit.image_id not in before]
            topic_id = self._row.topic_id
            self._topics.judge(topic_id, new, collection=gallery.name, who=self.who)
            found += hits
        best = {hit.image_id: hit for hit in sorted(found, key=lambda hit: -hit.rank)}
        left = [hit for hit in best.values() if before.get(hit.image_id) is None]
        return sorted(left, key=lambda hit: (hit.rank, hit.image_id))

    def write_qrels(self, path: str | Path) -> Path:
        """Write the judgments for trec_eval: 1 relevant, 0 not, -1 pooled but not judged.

        Parameters
        ----------
        path : path
            The file; images are named by their ids.

        Returns
        -------
        pathlib.Path
        """
        pooled = {image_id: GRADES[value] for image_id, value in self.pooled().items()}
        return write_judgments(path, {self.topic: pooled})

    def write_csv(self, path: str | Path) -> Path:
        """Write every judgment with who made it, when, and at which rank it was seen.

        The column ``relevance`` has the numbers of :meth:`write_qrels`. ``path`` is empty if the
        collection does not hold the image any more.

        Parameters
        ----------
        path : path
            The file.

        Returns
        -------
        pathlib.Path
        """
        made = self._topics.judgments(self._row.topic_id)
        stored = self.gallery.metadata.by_id(self.gallery.name, {one.image_id for one in made})
        rows = [
            {
                "topic": self.topic,
                "relevance": GRADES[one.relevant],
                "path": stored[one.image_id][0].path if one.image_id in stored else "",
                "judged_at": one.judged_at.isoformat(),
            }
            | {name: getattr(one, name) for name in ("image_id", "depth", "collection", "who")}
            for one in made
        ]
        with atomic(path, "w") as file:
            file.write(csv_text(rows, COLUMNS))
        return absolute(path)


def list_sessions(settings: config.Settings | None = None) -> list[TopicRow]:
    """List the saved sessions, those that were changed last first.

    Parameters
    ----------
    settings : Settings, optional
        Read from the environment if left out.

    Returns
    -------
    list of TopicRow
        Name, query, collection, times, and how many images were judged.
    """
    with MetadataStore.open(settings or config.load_settings()) as store:
        return store.topics.all()


def parts_of(gallery: Gallery, query: Mapping) -> dict:
    """Return the arguments of :meth:`Gallery.search` for a saved query, without its own picture."""
    parts = {"like": [], "unlike": []} | dict(query)
    for name in ("like", "unlike"):
        parts[name] = [_resolved(gallery, one) for one in parts[name]]
    if "query" in parts:
        parts["query"] = _resolved(gallery, parts["query"])
        parts["exclude"] = [sources.describe(parts["query"]).image_id]
    return parts


def query_vector(gallery: Gallery, query: Mapping) -> tuple[np.ndarray, set[int]]:
    """Return the vector of a saved query, and the ids of the images that it is made of."""
    parts = parts_of(gallery, query)
    parts.pop("where", None)
    excluded = parts.pop("exclude", [])
    pictures = [parts.pop("query")] if "query" in parts else None
    (vector,), examples = gallery.query_vectors(pictures, **parts)
    return vector, examples.union(excluded)


def keep(gallery: Gallery, picture: object, name: str | None = None) -> Path:
    """Store a picture that has no file in a folder that outlives the collection."""
    return sources.keep(gallery, picture, name, gallery.settings.imgsearch_home / "sessions")


def _reference(gallery: Gallery, picture: object) -> dict[str, str]:
    """What is saved of a picture: the id of a stored image, or the path of a file."""
    image_id = sources.stored_id(picture)
    if isinstance(picture, sources.Stored) and image_id not in gallery:
        picture = picture.path
    elif image_id is not None:
        return {"image_id": str(gallery.get(image_id).image_id)}
    if sources.is_vector(picture):
        raise ConfigError("query", "a session keeps pictures and texts, and no vectors")
    sources.check_picture(picture)
    if not isinstance(picture, str | os.PathLike):
        picture = keep(gallery, picture)
    return {"path": str(absolute(picture))}


def _resolved(gallery: Gallery, reference: Mapping[str, str]) -> object:
    if "path" in reference:
        return reference["path"]
    try:
        return gallery.get(int(reference["image_id"]))
    except ImageNotFound as error:
        raise ConfigError(
            "query", f"was saved with an image that is missing: {error}. Add the image again, or "
            "save another query under the name of the session"
        ) from None  # fmt: skip
