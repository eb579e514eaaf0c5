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
        sessions = self._sessions(gallery)
        ids, vectors = gallery.embeddings()
        number, topics = len(ids), len(sessions)
        shape = number + topics, topics
        present, junk = np.zeros(shape, bool), np.zeros(shape, bool)
        unjudged, unpooled = np.ones(shape, bool), np.ones(shape, bool)
        queries, missing = [], {}
        for column, session in enumerate(sessions):
            states = session.pooled()
            relevant = [image_id for image_id, state in states.items() if state]
            judged = [image_id for image_id, state in states.items() if state is not None]
            if lacking := np.setdiff1d(relevant, ids).size:
                missing[session.topic] = lacking
            present[:number, column] = np.isin(ids, relevant)
            unjudged[:number, column] = ~np.isin(ids, judged)
            unpooled[:number, column] = ~np.isin(ids, list(states))
            try:
                vector, examples = query_vector(gallery, session.query)
            except ImgSearchError as error:
                reason = f"the query of {session.topic!r} cannot be searched with: {error}"
                raise ConfigError("topics", reason) from error
            junk[:number, column] = np.isin(ids, list(examples))
            if where := session.query.get("where"):
                found = gallery.metadata.matching(gallery.name, where)
                junk[:number, column] |= ~np.isin(ids, found)
            queries.append(vector)
            present[number + column, column] = True
        if missing and not allow_missing:
            counts = ", ".join(f"{count} of {topic!r}" for topic, count in missing.items())
            raise DatasetError(
                "judged topics",
                f"collection {gallery.name!r} lacks relevant images: {counts}; add them, name "
                "other topics, or ignore them with allow_missing=True",
            )
        is_query = np.arange(shape[0]) >= number
        return scoring.task(
            np.concatenate([ids, np.arange(-topics, 0)]),
            np.concatenate([vectors, np.stack(queries)]),
            present & ~junk,
            junk,
            unjudged=unjudged,
            unpooled=unpooled,
            classes=[session.topic for session in sessions],
            names=[*map(str, ids), *(topic_name(session.topic) for session in sessions)],
            queries=is_query,
            gallery=~is_query,
            about=described(gallery)
            | {
                "dataset": "judged topics",
                "protocol": f"{topics} topics",
                "distractors": 0,
                "missing_images": sum(missing.values()),
            },
        )

    def _sessions(self, gallery: Gallery) -> list[Session]:
        """The sessions to evaluate, by name."""
        store = gallery.metadata.topics
        rows = store.all() if self.names is None else map(store.get, set(self.names))
        sessions = [Session(gallery, row, "") for row in sorted(rows, key=lambda row: row.name)]
        judged = [one for one in sessions if any(one.judgments().values())]
        left = [one.topic for one in sessions if one not in judged and self.names is not None]
        if not judged or left:
            where = f" in {', '.join(map(repr, left))}" if left else ""
            reason = f"no image was judged relevant{where}: judge some in a session first"
            raise ConfigError("topics", reason)
        names = [topic_name(one.topic) for one in judged]
        if again := [one.topic for one in judged if names.count(topic_name(one.topic)) > 1]:
            reason = f"{again} have the same name in files of trec_eval: rename them"
            raise ConfigError("topics", reason)
        if len(judged) > MAX_CLASSES:
            reason = f"there are {len(judged)}: name up to {MAX_CLASSES} of them"
            raise ConfigError("topics", reason)
        return judged
