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
    """Topics and what was judged relevant to them, in place of a labelled dataset.

    The query of each topic is the saved one, without its judgments. What was not judged
    counts as not relevant, except in bpref and infAP.

    Parameters
    ----------
    names : sequence of str
        Names of sessions; all that have a relevant image if left out.
    """

    def __init__(self, names: Sequence[str] = ()):
        self.names = tuple(names)

    def task(self, gallery: Gallery, *, allow_missing: bool = False) -> Task:
        """Combine the vectors of a collection with the judgments.

        Parameters
        ----------
        gallery : Gallery
            The collection; all its images are ranked for each topic, except those that the
            topic's filter or examples exclude.
        allow_missing : bool
            Go on without the relevant images that the collection does not contain.

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
            raise ConfigError("topics", "nothing was judged relevant: judge in a session first")
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
                "or go on without them with allow_missing",
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
