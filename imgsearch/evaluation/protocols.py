"""Collections on PASCAL VOC: protocols, rankings exact and as served, quality of indexes.

Two things are measured and never mixed: how good the *embedding* is (figures of a
ranking against labels, :func:`exact` and :func:`as_served`), and how much of the
exact ranking an *index* finds (:func:`imgsearch.evaluation.index_sweep.sweep`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imgsearch.datasets.voc import CLASSES, Voc
from imgsearch.errors import ConfigError, DatasetError
from imgsearch.evaluation import ranking, scoring
from imgsearch.evaluation.scoring import Evaluation, Task

if TYPE_CHECKING:
    from imgsearch.gallery import Gallery

_LEAVE_ONE_OUT = "leave-one-out"


@dataclass(frozen=True)
class Protocol:
    """Which images are queries, and which are searched.

    Attributes
    ----------
    gallery, query : str
        Image sets of ``ImageSets/Main``. The same set twice is leave-one-out: each
        image in turn is the query, and the others the gallery. In either case
        a query's own id is never in its ranking, nor so a byte-identical copy.
    distractors : bool
        Whether images of the collection that are in no set of ``Main`` are
        searched too. They are never relevant; where their own annotation (of
        another task, and not complete) shares a class with the query they are
        junk. What is not annotated in them counts against the ranking, so
        figures are a lower bound.
    """

    gallery: str = "train"
    query: str = "val"
    distractors: bool = False

    @classmethod
    def parse(cls, text: str, *, distractors: bool = False) -> Protocol:
        """Read ``train -> val`` (gallery, then queries) or ``leave-one-out trainval``.

        Parameters
        ----------
        text : str
        distractors : bool

        Returns
        -------
        Protocol

        Raises
        ------
        ConfigError
            The text has another form.
        """
        name = "([A-Za-z0-9_-]+)"
        if found := re.fullmatch(rf"{_LEAVE_ONE_OUT}[ :]+{name}", text.strip()):
            return cls(found[1], found[1], distractors)
        if found := re.fullmatch(rf"{name}\s*(?:->|→)\s*{name}", text.strip()):
            return cls(found[1], found[2], distractors)
        raise ConfigError(
            "protocol", f"{text[:60]!r} is none: 'train -> val' (gallery, then queries), or "
            f"'{_LEAVE_ONE_OUT} trainval'"
        )  # fmt: skip

    def __str__(self) -> str:
        text = (
            f"{_LEAVE_ONE_OUT} {self.gallery}"
            if self.gallery == self.query
            else f"{self.gallery} -> {self.query}"
        )
        return text + (", with distractors" if self.distractors else "")


def prepare(
    gallery: Gallery,
    voc: Voc,
    protocol: Protocol | str = "train -> val",
    *,
    classes: Sequence[str] = (),
    allow_missing: bool = False,
) -> Task:
    """Bring a collection and a dataset together.

    Parameters
    ----------
    gallery : Gallery
        An image of it is a VOC image if its path is in the dataset's ``JPEGImages``.
    voc : Voc
        Only sets of ``ImageSets/Main`` are ground truth.
    protocol : Protocol or str
        As :meth:`Protocol.parse` takes it.
    classes : sequence of str
        If given, only images count all of whose objects are of one class, and of
        one of these.
    allow_missing : bool
        Go on without the images that the collection does not hold. They are then
        counted in the reports, and are neither queries nor relevant.

    Returns
    -------
    Task

    Raises
    ------
    DatasetError
        The dataset is damaged, or the collection does not hold all its images.
    ConfigError
        The protocol is unknown.
    """
    if isinstance(protocol, str):
        protocol = Protocol.parse(protocol)
    searched, asked = voc.image_set(protocol.gallery), voc.image_set(protocol.query)
    wanted = tuple(dict.fromkeys(searched + asked))
    if classes:
        wanted = voc.single_label(wanted, classes)
    ids, vectors = gallery.embeddings()
    rows = gallery.metadata.by_id(gallery.name, ids.tolist())
    paths = [[row.path for row in rows.get(i, [])] for i in ids.tolist()]
    where = {
        name: (number, path)
        for number, some in enumerate(paths)
        for path in some
        if (name := voc.name_of(path)) is not None
    }
    here = [name for name in wanted if name in where]
    if not here or (len(here) < len(wanted) and not allow_missing):
        lost = [name for name in wanted if name not in where]
        raise DatasetError(
            voc.root / "JPEGImages",
            f"{len(lost)} of {len(wanted)} images of {protocol} are not in collection "
            f"{gallery.name!r} under this folder, the first is {lost[0] if lost else '(none)'}: "
            "ingest the folder"
            + (", or go on without them by allow_missing" if here else ", under this very path"),
        )
    present, difficult = voc.labels(here)
    numbers = [where[name][0] for name in here]
    files = [where[name][1] for name in here]
    others: list[int] = []
    if protocol.distractors:
        main = {name for part in voc.image_sets() for name in voc.image_set(part)}
        known = {number for name, (number, _) in where.items() if name in main}
        others = [number for number in range(len(ids)) if number not in known]
        shown = _shown(voc, [[voc.name_of(path) for path in paths[i]] for i in others])
        present = np.concatenate([present, np.zeros_like(shown)])
        difficult = np.concatenate([difficult, shown])
    in_gallery, in_queries = set(searched), set(asked)
    row = gallery.row
    return scoring.task(
        ids[numbers + others],
        vectors[numbers + others],
        present,
        difficult,
        names=here + [f"distractor-{ids[i]}" for i in others],
        paths=files + [paths[i][0] if paths[i] else "" for i in others],
        queries=np.array([n in in_queries for n in here] + [False] * len(others)),
        gallery=np.array([n in in_gallery for n in here] + [True] * len(others)),
        about={
            "collection": gallery.name,
            "encoder": row.encoder,
            "fingerprint": row.fingerprint,
            "identity": row.identity,
            "index": str(row.index),
            "dataset": voc.root.name,
            "protocol": str(protocol),
            "single_label_classes": list(classes),
            "distractors": len(others),
            "missing_images": len(wanted) - len(here),
        },
    )


def _shown(voc: Voc, names: list[list[str | None]]) -> np.ndarray:
    """Classes that annotations outside ``Main`` mention, bool (n, 20)."""
    annotated = {path.stem for path in (voc.root / "Annotations").glob("*.xml")}
    first = [next((n for n in some if n in annotated), None) for some in names]
    shown = np.zeros((len(names), len(CLASSES)), bool)
    rows = [i for i, name in enumerate(first) if name is not None]
    if rows:
        present, difficult = voc.labels([first[i] for i in rows])
        shown[rows] = present | difficult
    return shown


def exact(task: Task, *, ks: Sequence[int] = scoring.KS, seed: int = 0) -> Evaluation:
    """Evaluate the exact ranking of the whole gallery: the quality of the embedding.

    Parameters
    ----------
    task : Task
    ks : sequence of int
        Depths of P@k, R@k and nDCG@k.
    seed : int
        Of the intervals.

    Returns
    -------
    Evaluation
    """
    return scoring.evaluate(task, ks=ks, seed=seed, about={"ranking": "exact, full depth"})


def as_served(
    gallery: Gallery,
    task: Task,
    top_k: int = 100,
    *,
    search_params: dict | None = None,
    ks: Sequence[int] = scoring.KS,
    seed: int = 0,
) -> Evaluation:
    """Evaluate what the vector store answers: embedding, index and cut together.

    Parameters
    ----------
    gallery : Gallery
        That the task was prepared from.
    task : Task
    top_k : int
        How many hits are asked for. Hits that are not in the protocol's gallery
        are out of the ranking, so that fewer may remain; relevant items beyond
        count as missed.
    search_params : dict, optional
        Of the index, such as ``{"ef": 64}``.
    ks, seed
        As in :func:`exact`.

    Returns
    -------
    Evaluation

    Raises
    ------
    StoreError
        The store failed.
    """
    answers = gallery.vectors.search(
        gallery.name, task.vectors[task.queries], top_k, search_params=search_params
    )
    block = ranking.served(answers, task.ids[task.queries], task.ids[task.gallery])
    depth = float((block.order >= 0).sum(axis=1).mean())
    return scoring.evaluate(
        task,
        [block],
        ks=ks,
        seed=seed,
        about={
            "ranking": f"as served by {gallery.row.index}, to top_k {top_k}",
            "top_k": top_k,
            "search_params": search_params or {},
            "mean_depth": depth,
        },
    )
