"""Images of a collection, and the results of a search."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imgsearch import images
from imgsearch.errors import ImageError, printable
from imgsearch.io import absolute

if TYPE_CHECKING:
    import pandas as pd

    from imgsearch.stores.metadata import ImageRow

# As Python's own texts: those of pandas cannot hold the bytes of a path that is not UTF-8.
_PARTS = {"path": str, "name": os.path.basename, "folder": os.path.dirname}

SHOWN, SIDE = 50, 160
"""Hits that a notebook shows, and the longest side of their thumbnails in pixels."""


class Image(NamedTuple):
    """A stored image, as a gallery returns it.

    Attributes
    ----------
    image_id : int
        Identity of the content, 63 bits.
    path : str
        The path that was asked for; otherwise the first one, in byte order.
    paths : tuple of str
        All paths of files with this content.
    size : int
        Bytes of the file.
    width, height : int
        Size of the upright picture, pixels.
    format : str
        Format of the file, such as ``JPEG``.
    added_at : datetime
        When the path was added, UTC.
    date_taken : datetime or None
        Local time, as the camera noted it.
    camera : str or None
        Make and model.
    orientation : int or None
        Exif orientation, 1 to 8; the size is that of the upright picture nevertheless.
    has_gps : bool or None
        Whether the file tells where it was taken.
    attributes : dict
        What was set for the path, and where that lacks a name, for the other paths.
    """

    image_id: int
    path: str
    paths: tuple[str, ...]
    size: int
    width: int
    height: int
    format: str
    added_at: datetime
    date_taken: datetime | None
    camera: str | None
    orientation: int | None
    has_gps: bool | None
    attributes: dict[str, Any]


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
    attributes : dict
        What was set for the path, and where that lacks a name, for the other paths.
    """

    rank: int
    score: float
    image_id: int
    path: str
    paths: tuple[str, ...]
    width: int
    height: int
    attributes: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


def image_of(rows: Sequence[ImageRow], row: ImageRow | None = None) -> Image:
    """Make an image from all its rows, with the path of one of them."""
    row = row or rows[0]
    values = {name: value for name, value in row._asdict().items() if name in Image._fields}
    own = {"paths": tuple(one.path for one in rows), "attributes": _attributes([row, *rows])}
    return Image(**values | own)


def hit_of(rank: int, score: float, rows: Sequence[ImageRow]) -> Hit:
    """Make a hit from the rows of an image."""
    first, paths = rows[0], tuple(row.path for row in rows)
    size = first.width, first.height
    return Hit(rank, score, first.image_id, first.path, paths, *size, _attributes(rows))


def _attributes(rows: Sequence[ImageRow]) -> dict[str, Any]:
    """Attributes of an image; where its rows disagree, those of the first one."""
    if len(rows) == 1:
        return rows[0].attributes
    return {name: value for row in reversed(rows) for name, value in row.attributes.items()}


@dataclass(frozen=True, repr=False)
class Hits(Sequence):
    """Results of one search, best first. A notebook shows them as thumbnails.

    A slice of them is a :class:`Hits`, too.

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
        Time spent, by step: ``encode``, ``vectors``, ``metadata``, ``total``. For a list of
        queries, the time of all of them divided by their number.
    matched : int or None
        Number of images that fulfil the filter; None without one.
    way : str or None
        How they were searched: ``exact`` or ``over-fetched``, as in
        :mod:`imgsearch.stores.filtered`; None without a filter.
    """

    hits: tuple[Hit, ...]
    collection: str
    index_spec: str
    encoder: dict
    seconds: dict[str, float]
    matched: int | None = None
    way: str | None = None

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, item):
        return replace(self, hits=self.hits[item]) if isinstance(item, slice) else self.hits[item]

    def __repr__(self) -> str:
        lines = [f"{hit.rank:4}  {hit.score:.3f}  {printable(hit.path)}" for hit in self.hits]
        return "\n".join([f"<Hits: {len(self)} in {self.collection!r}{self._filter()}>", *lines])

    def _filter(self) -> str:
        return "" if self.matched is None else f", of {self.matched:,} that fulfil the filter"

    def _repr_html_(self) -> str:
        """Thumbnails, scores and names, in a document that needs no other file."""
        tiles = "".join(map(_tile, self.hits[:SHOWN]))
        more = f"<p>and {len(self) - SHOWN} more</p>" if len(self) > SHOWN else ""
        text = f"{len(self)} results in {html.escape(self.collection)}{self._filter()}"
        return f"<p>{text}</p><div style='display:flex;flex-wrap:wrap;gap:10px'>{tiles}</div>{more}"

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
            "matched": self.matched,
            "way": self.way,
            "hits": [
                {**hit._asdict(), "image_id": str(hit.image_id), "paths": list(hit.paths)}
                for hit in self.hits
            ],
        }

    def to_pandas(self) -> pd.DataFrame:
        """Convert to a table.

        Returns
        -------
        pandas.DataFrame
            A row for each hit: rank, score, image_id, path, width, height (pixels), and a
            column for each attribute, of which ``rank`` is called ``rank_attribute``, and so on.
        """
        return table(self.hits, Hit._fields)

    def copy_files(self, folder: str | Path) -> list[Path]:
        """Copy the image files into a folder.

        No file is overwritten: where a name is taken by another content, the copy gets a
        number. A file that is there already is not copied again.

        Parameters
        ----------
        folder : path
            Created if it does not exist.

        Returns
        -------
        list of pathlib.Path
            The copies, in the order of the hits.

        Raises
        ------
        ImageError
            A file is missing or cannot be read.
        OSError
            The folder cannot be written.
        """
        return copy_files(self.hits, folder)


def table(images: Sequence[Hit | Image | ImageRow], fields: Iterable[str]) -> pd.DataFrame:
    """Return a row for each image, with a column for each field and for each attribute.

    An attribute with the name of a field gets ``_attribute`` at its end.
    """
    import pandas as pd

    def column(field: str) -> pd.Series:
        if part := _PARTS.get(field):
            return pd.Series([part(image.path) for image in images], dtype=object)
        return pd.Series([getattr(image, field) for image in images])

    found = {name: column(name) for name in fields if name not in ("paths", "attributes")}
    more = pd.DataFrame.from_records([one.attributes for one in images], index=range(len(images)))
    taken = {name: f"{name}_attribute" for name in found}
    return pd.DataFrame(found).join(more.rename(columns=taken))


def copy_files(images: Sequence[Hit | Image], folder: str | Path) -> list[Path]:
    """Copy image files into a folder, as :meth:`Hits.copy_files`."""
    target = absolute(folder)
    target.mkdir(parents=True, exist_ok=True)
    return [_copy(Path(image.path), target) for image in images]


def _tile(hit: Hit) -> str:
    name = html.escape(printable(Path(hit.path).name))
    size = f"width:{SIDE}px;height:{SIDE}px"
    try:
        data = base64.b64encode(images.jpeg(Path(hit.path), SIDE)).decode()
        shown = (
            f"<img src='data:image/jpeg;base64,{data}' alt='{name}' "
            f"style='{size};object-fit:contain'>"
        )
    except ImageError as error:
        shown = f"<div style='{size};border:1px dashed'>{html.escape(error.reason)}</div>"
    return (
        f"<figure style='margin:0;width:{SIDE}px' title='{html.escape(printable(hit.path))}'>"
        f"{shown}<figcaption style='overflow-wrap:anywhere'>"
        f"{hit.rank} · {hit.score:.3f}<br>{name}</figcaption></figure>"
    )


def _copy(source: Path, folder: Path) -> Path:
    data = images.read(source)
    for number in count(1):
        ending = "" if number == 1 else f"-{number}"
        target = folder / f"{source.stem}{ending}{source.suffix}"
        try:
            file = target.open("xb")
        except FileExistsError:
            if target.is_file() and target.read_bytes() == data:
                return target
            continue
        with file:
            file.write(data)
        return target
