"""Judged topics as the ground truth of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imgsearch.errors import ConfigError, DatasetError
from imgsearch.evaluation import scoring
from imgsearch.evaluation.protocols import described
from imgsearch.evaluation.scoring import Task
from imgsearch.evaluation.trec import topic_name
from imgsearch.gallery import Gallery
from imgsearch.sessions import Session, parts_of


class JudgedTopics:
    """Topics and their relevance judgments, as an alternative to a labelled dataset.

    The query of a topic is the saved one, without its judgments. Images that were not judged
    count as not relevant, except in bpref and infAP.

    Parameters
    ----------
    names : sequence of str
        Names of topics; by default all topics that have a relevant image.
    """

    def __init__(self, names: Sequence[str] = ()):
        self.names = tuple(names)

    def task(self, gallery: Gallery, *, allow_missing: bool = False) -> Task:
        """Combine the vectors of a collection with the judgments.

        Parameters
        ----------
        gallery : Gallery
            The collection. All its images are ranked for each topic, except for the topic's
            examples and those that its filter excludes.
        allow_missing : bool
            Whether to ignore relevant images that the collection does not contain.

        Returns
        -------
        Task

        Raises
        ------
        ConfigError
            A topic is unknown, or none has a relevant image.
        DatasetError
            The collection lacks relevant images.
        """
        store = gallery.metadata.topics
        rows = [store.get(name) for name in self.names] or store.all()
        sessions = [Session(gallery, row, "") for row in sorted(rows, key=lambda row: row.name)]
        sessions = [one for one in sessions if any(one.judgments().values())]
        if not sessions:
            reason = "no image was judged relevant: judge some in a session first"
            raise ConfigError("topics", reason)
        ids, vectors = gallery.embeddings()
        number, topics = len(ids), len(sessions)
        shape = number + topics, topics
        present, junk = np.zeros(shape, bool), np.zeros(shape, bool)
        unjudged, unpooled = np.ones(shape, bool), np.ones(shape, bool)
        queries, missing, stored = [], 0, set(ids.tolist())
        for column, session in enumerate(sessions):
            states = session.pooled()
            relevant = [image_id for image_id, state in states.items() if state]
            judged = [image_id for image_id, state in states.items() if state is not None]
            missing += len(set(relevant) - stored)
            present[:number, column] = np.isin(ids, relevant)
            unjudged[:number, column] = ~np.isin(ids, judged)
            unpooled[:number, column] = ~np.isin(ids, list(states))
            parts = parts_of(gallery, session.query)
            if where := parts.pop("where", None):
                junk[:number, column] = ~np.isin(
                    ids, gallery.metadata.matching(gallery.name, where)
                )
            pictures = [parts.pop("query")] if "query" in parts else None
            made, examples = gallery.query_vectors(pictures, **parts)
            junk[:number, column] |= np.isin(ids, list(examples))
            queries.append(made[0])
            present[number + column, column] = True
        if missing and not allow_missing:
            raise DatasetError(
                "judged topics",
                f"{missing} relevant images are not in collection {gallery.name!r}: ingest them, "
                "or ignore them with allow_missing",
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
                "missing_images": missing,
            },
        )
