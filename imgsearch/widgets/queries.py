"""What the search panel searches with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imgsearch import sources
from imgsearch.errors import printable
from imgsearch.gallery import Gallery
from imgsearch.images import Box
from imgsearch.sessions import keep, parts_of
from imgsearch.sources import Described, Source, Stored

Examples = tuple[tuple[Stored, bool], ...]
"""Images, and whether the results should be like each of them."""


@dataclass
class Topic:
    """The session in which the judgments of a query are saved; without a name until the first."""

    name: str = ""


@dataclass(frozen=True)
class Query:
    """A picture or a part of it, words, and examples. Its copies share one topic."""

    picture: Described | None = None
    text: str | None = None
    box: Box | None = None
    examples: Examples = ()
    weights: Mapping[str, float] | None = None
    topic: Topic = field(default_factory=Topic, compare=False)

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        words = f"“{printable(self.text)}”" if self.text else ""
        picture = self.picture.name if self.picture else ""
        return " and ".join(filter(None, (picture, words))) or "examples"

    @property
    def file(self) -> object:
        """What the picture can be decoded from, if there is one."""
        source = self.picture.source if self.picture else None
        return Path(source.path) if self.is_stored else source

    @property
    def image_id(self) -> int | None:
        """Id of the picture, if it has a file."""
        return self.picture.image_id if self.picture else None

    @property
    def is_stored(self) -> bool:
        return self.picture is not None and isinstance(self.picture.source, Stored)

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory."""
        source = self.picture.source if self.picture else None
        return len(source) if isinstance(source, bytes) else 0

    def arguments(self, judged: Examples = ()) -> dict:
        """Arguments of `Gallery.search`, with what was judged as examples."""
        examples = (*self.examples, *judged)
        return {
            "query": self.picture.source if self.picture else None,
            "text": self.text,
            "box": self.box,
            "weights": self.weights,
            "like": [image for image, liked in examples if liked],
            "unlike": [image for image, liked in examples if not liked],
        }

    def saved(self, gallery: Gallery) -> dict:
        """Arguments of `Session.open`; an upload is stored under the home."""
        parts = self.arguments()
        if isinstance(parts["query"], bytes):
            stem = Path(self.picture.name).stem[:40].lstrip(".")
            parts["query"] = keep(gallery, parts["query"], f"{stem}-{self.picture.image_id:016x}")
        return parts


def query_of(gallery: Gallery, source: Source, name: str | None = None) -> Query:
    """Make a query of anything that is an image."""
    if sources.stored_id(source) is not None and not isinstance(source, Stored):
        source = gallery.get(source)
    return Query(sources.describe(source, name))


def query_of_session(gallery: Gallery, name: str) -> tuple[Query, dict]:
    """Make the query that a session saved, and return it with the filter."""
    parts = parts_of(gallery, gallery.metadata.topics.get(name).query)
    where = parts.pop("where", {})
    picture = sources.describe(parts["query"]) if "query" in parts else None
    liked = [(image, True) for image in parts["like"]]
    examples = (*liked, *((image, False) for image in parts["unlike"]))
    box = tuple(parts["box"]) if "box" in parts else None
    return (
        Query(picture, parts.get("text"), box, examples, parts.get("weights"), Topic(name)),
        where,
    )
