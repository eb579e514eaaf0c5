"""Judged topics as the ground truth of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imgsearch.errors import ConfigError, DatasetError, ImgSearchError
from imgsearch.evaluation import scoring
from imgsearch.evaluation.protocols import described
from imgsearch.evaluation.relevance import MAX_CLASSES
from imgsearch.evaluation.scoring import Task
from imgsearch.evaluation.trec import topic_name
from imgsearch.gallery import Gallery
from imgsearch.sessions import Session, query_vector


class JudgedTopics:
    """Topics and their relevance judgments, as an alternative to a labelled dataset.

    The query of a topic is the saved one, without its judgments. Images that were not judged
    count as not relevant, except in bpref and infAP.

    Parameters
    ----------
    names : str or sequence of str, optional
        Names of topics, up to 63; if left out, all topics that have a relevant image.
    """

    def __init__(self, names: str | Sequence[str] | None = None):
        self.names = (names,) if isinstance(names, str) else names

    def task(self, gallery: Gallery, *, allow_missing: bool = False) -> Task:
        """Combine the vectors of a collection with the judgments.

        Parameters
        ----------
        gallery : Gallery
            The collection. All its images are ranked for each topic, except for the picture and
            the examples of its query and those that its filter excludes.
        allow_missing : bool
            Whether to ignore relevant images that the collection does not contain.

        Returns
        -------
        Task

        Raises
        ------
        ConfigError
            A topic is unknown, one that was named has no relevant image or none has, the query
            of a topic cannot be searched with, or there are more than 63 topics.
        DatasetError
            The collection lacks relevant images.
        """
        ids, vectors = gallery.embeddings()
        topics, queries, columns, missing, left = [], [], [], {}, []
        for session in self._sessions(gallery):
            states = session.pooled()
            relevant = [image_id for image_id, state in states.items() if state]
            judged = [image_id for image_id, state in states.items() if state is not None]
            if lacking := np.setdiff1d(relevant, ids).size:
                missing[session.topic] = lacking
            vector, junk = _query(gallery, session, ids)
            present = np.isin(ids, relevant) & ~junk
            if not present.any():
                left.append(session.topic)
                continue
            topics.append(session.topic)
            queries.append(vector)
            unknown = ~np.isin(ids, judged), ~np.isin(ids, list(states))
            columns.append((present, junk, *unknown))
        if missing and not allow_missing:
            counts = ", ".join(f"{count} of {topic!r}" for topic, count in missing.items())
            raise DatasetError(
                "judged topics",
                f"collection {gallery.name!r} lacks relevant images: {counts}; add them, name "
                "other topics, or ignore them with allow_missing=True",
            )
        self._check(topics, left)
        number, own = len(topics), np.eye(len(topics), dtype=bool)
        present, junk, unjudged, unpooled = (
            np.stack(part, axis=1) for part in zip(*columns, strict=True)
        )
        is_query = np.arange(len(ids) + number) >= len(ids)
        return scoring.task(
            np.concatenate([ids, np.arange(-number, 0)]),
            np.concatenate([vectors, np.stack(queries)]),
            np.concatenate([present, own]),
            np.concatenate([junk, np.zeros_like(own)]),
            unjudged=np.concatenate([unjudged, np.ones_like(own)]),
            unpooled=np.concatenate([unpooled, np.ones_like(own)]),
            classes=topics,
            names=[*map(str, ids), *map(topic_name, topics)],
            queries=is_query,
            gallery=~is_query,
            about=described(gallery)
            | {
                "dataset": "judged topics",
                "protocol": f"{number} topics",
                "distractors": 0,
                "missing_images": sum(missing.values()),
            },
        )

    def _sessions(self, gallery: Gallery) -> list[Session]:
        """The sessions of the topics, by name."""
        store = gallery.metadata.topics
        rows = store.all() if self.names is None else map(store.get, set(self.names))
        sessions = [Session(gallery, row, "") for row in sorted(rows, key=lambda row: row.name)]
        some = [one for one in sessions if any(one.judgments().values())]
        return some if self.names is None else sessions

    def _check(self, topics: list[str], left: list[str]) -> None:
        """Refuse topics that cannot be evaluated; those in `left` have no image to find."""
        if not topics or (left and self.names is not None):
            where = f" in {', '.join(map(repr, left))}" if left else ""
            reason = f"no image to be found was judged relevant{where}: judge some in a session"
            raise ConfigError("topics", reason)
        names = [topic_name(topic) for topic in topics]
        if again := [topic for topic in topics if names.count(topic_name(topic)) > 1]:
            reason = f"{again} have the same name in files of trec_eval: rename them"
            raise ConfigError("topics", reason)
        if len(topics) > MAX_CLASSES:
            reason = f"there are {len(topics)}: name up to {MAX_CLASSES} of them"
            raise ConfigError("topics", reason)


def _query(gallery: Gallery, session: Session, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vector of a topic, and which images cannot be among its results."""
    try:
        vector, examples = query_vector(gallery, session.query)
    except ImgSearchError as error:
        reason = f"the query of {session.topic!r} cannot be searched with: {error}"
        raise ConfigError("topics", reason) from error
    out = np.isin(ids, list(examples))
    if where := session.query.get("where"):
        out |= ~np.isin(ids, gallery.metadata.matching(gallery.name, where))
    return vector, out
