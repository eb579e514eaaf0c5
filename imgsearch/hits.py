"""Results of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Hit(NamedTuple):
    """One result.

    Attributes
    ----------
    rank : int
        From 1, best first.
    score : float
        Cosine similarity with the query, from -1 to 1.
    image_id : int
        Identity of the content, 63 bits.
    path : str
        First path of the content, in byte order.
    paths : tuple of str
        All its paths.
    width, height : int
        Size of the upright picture, pixels.
    """

    rank: int
    score: float
    image_id: int
    path: str
    paths: tuple[str, ...]
    width: int
    height: int


@dataclass(frozen=True)
class Hits(Sequence):
    """Results of one search, best first.

    Attributes
    ----------
    hits : tuple of Hit
        Best first; equal scores are in the order of ``image_id``.
    collection, index_spec : str
        The collection, and the index that was searched.
    encoder : dict
        Name, dimension and fingerprint of the encoder; once it is loaded, its device,
        precision and backend too.
    seconds : dict of str to float
        Time spent, by step: ``encode``, ``vectors``, ``metadata``, ``total``.
    """

    hits: tuple[Hit, ...]
    collection: str
    index_spec: str
    encoder: dict
    seconds: dict[str, float]

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, item):
        return self.hits[item]

    def to_dict(self) -> dict:
        """Everything as plain values for JSON.

        Returns
        -------
        dict
            Ids are strings, since JavaScript loses 63-bit integers.
        """
        return {
            "collection": self.collection,
            "index": self.index_spec,
            "encoder": self.encoder,
            "seconds": self.seconds,
            "hits": [
                {**hit._asdict(), "image_id": str(hit.image_id), "paths": list(hit.paths)}
                for hit in self.hits
            ],
        }
