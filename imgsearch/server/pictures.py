"""Stored pictures for a browser: thumbnails in three sizes, and originals."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from fastapi import HTTPException, Request, Response

from imgsearch import images
from imgsearch.errors import ImageError
from imgsearch.hits import Hit, Image

Size = Literal["small", "medium", "large"]
SIDES: dict[Size, int] = {"small": 160, "medium": 480, "large": 1280}
"""Longest side of a thumbnail, pixels."""

Make = Callable[[], Awaitable[tuple[bytes, str]]]
"""Makes a picture, and gives its media type."""


class Kept:
    """A cache of pictures of at most `most` bytes; the least recently used ones are dropped."""

    def __init__(self, most: int):
        self.most = most
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def keep(self, key: str, data: bytes) -> None:
        self._size += len(data) - len(self._pictures.pop(key, b""))
        self._pictures[key] = data
        while self._size > self.most:
            self._size -= len(self._pictures.popitem(last=False)[1])

    def find(self, key: str) -> bytes | None:
        """Return a picture, if it is still kept."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)


def checked(data: bytes, filename: str) -> images.LoadedImage:
    """Return an uploaded picture; an ImageError says why it cannot be decoded."""
    name = Path(filename).name
    images.load(data, name=name).decode(draft=SIDES["small"] // 2)
    return images.load(data, name=name)


def thumbnail(image: Image | Hit, size: Size) -> bytes:
    """Return a JPEG of a stored image."""
    return images.jpeg(_read(image.image_id, image.paths), SIDES[size])


def original(image: Image, convert: bool = False) -> tuple[bytes, str]:
    """Return the file of a stored image and its media type, as JPEG where browsers need it."""
    kind, data = image.format, _read(image.image_id, image.paths)
    if convert and kind not in images.SHOWN_BY_BROWSERS:
        kind, data = "JPEG", images.jpeg(data)
    return data, f"image/{kind.lower()}"


def _read(image_id: int, paths: Sequence[str]) -> bytes:
    """Read the first path that still holds the image itself: a file may have been exchanged."""
    for path in paths:
        try:
            data = images.read(Path(path))
            if images.probe(data).image_id == image_id:
                return data
        except ImageError:
            continue
    raise HTTPException(404, "The file of this image is gone, or has changed since it was stored.")


async def answer(request: Request, etag: str, make: Make) -> Response:
    """Answer with a picture that never changes, or with status 304 where the client has it."""
    headers = {"ETag": f'"{etag}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    data, kind = await make()
    return Response(data, headers=headers, media_type=kind)


def written(hit: Hit) -> str:
    """Return a path, or an id if necessary, for clients that paste it into a URL unescaped."""
    try:
        hit.path.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8
        return str(hit.image_id)
    return quote(hit.path) if re.search(r"[&#+%\x00-\x1f]", hit.path) else hit.path
