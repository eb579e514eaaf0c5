"""What all routes share: the open collections, the searches under way, the ingests."""

from __future__ import annotations

import gc
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import unquote

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, HTTPException, Request

from imgsearch import errors, images
from imgsearch.config import Settings
from imgsearch.encoders import Encoder, load_encoder
from imgsearch.encoders.registry import resolve
from imgsearch.gallery import Gallery
from imgsearch.hits import Hit, Hits, Image, image_of
from imgsearch.io import absolute, atomic
from imgsearch.server.batching import Batcher
from imgsearch.server.fetching import fetch
from imgsearch.server.jobs import Jobs
from imgsearch.server.observing import Metrics, log
from imgsearch.server.pictures import SIDES, Kept, Size, checked, thumbnail
from imgsearch.stores.metadata import CollectionRow, MetadataStore

T = TypeVar("T")

QUERY_BYTES = 256 * 2**20
"""Bytes of uploaded query pictures that are kept."""

THUMBNAIL_BYTES = 96 * 2**20
"""Bytes of thumbnails that are kept: those of some 2,000 images."""


@dataclass(frozen=True)
class Options:
    """What the command line says. An empty `token` lets everybody do everything."""

    settings: Settings
    token: str
    collection: str
    roots: tuple[Path, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    fetch_urls: bool = False
    rate: float = 50.0


class Plan(NamedTuple):
    """Parameters that the searches of one batch share."""

    collection: str
    top_k: int
    box: images.Box | None = None
    where: str | None = None  # JSON
    exclude: tuple[int, ...] = ()
    text: str | None = None
    like: tuple[int, ...] = ()
    unlike: tuple[int, ...] = ()


class Service:
    """The state of one server."""

    def __init__(self, options: Options, metrics: Metrics):
        self.options, self.settings = options, options.settings
        self.metadata = MetadataStore.open(options.settings)
        self.batcher = Batcher(self._search, metrics.batches.observe)
        self.lookups = Batcher(self._look_up, lambda size: None)
        self.jobs = Jobs(self._ingest_options)
        self.queries, self._thumbnails = Kept(QUERY_BYTES), Kept(THUMBNAIL_BYTES)
        self._decoding = CapacityLimiter(max(2, os.cpu_count() or 2))
        self.problem: str | None = "starting"
        self._galleries: dict[str, Gallery] = {}
        self._encoders: dict[str, Encoder] = {}
        self._opening = threading.Lock()
        threading.Thread(target=self._warm_up, daemon=True, name="imgsearch-warm-up").start()

    def close(self) -> None:
        """End the ingests at the next safe place, and disconnect."""
        self.jobs.close()
        for gallery in self._galleries.values():
            gallery.close()
        self.metadata.close()

    def _warm_up(self) -> None:
        """Load the encoder before the first visitor waits for it."""
        try:
            with suppress(errors.CollectionNotFound):
                blank = np.zeros((64, 64, 3), np.uint8)
                self._search((Plan(self.options.collection, 1), False), [blank])
            # What is loaded stays: each full garbage collection would traverse it for 0.2 s.
            gc.collect()
            gc.freeze()
            self.problem = None
        except Exception as error:
            self.problem = "The collection cannot be searched; the log holds the details."
            log.error("warm-up", exc_info=error)

    # ------------------------------------------------------------ collections

    def gallery(self, name: str) -> Gallery:
        """Return an open collection; opens it again after it was dropped and created anew."""
        try:
            row = self.metadata.collection(name)
        except errors.CollectionNotFound:
            row = None
        with self._opening:
            held = self._galleries.get(name)
            if held is not None and held.row != row:
                self._galleries.pop(name).close()
                held = None
            if row is None:
                raise errors.CollectionNotFound(name, [c.name for c in self.metadata.collections()])
            if held is None:
                encoder = self._encoders.get(row.fingerprint)
                held = Gallery.open(name, encoder=encoder, settings=self.settings)
                self._galleries[name] = held
            return held

    def reads_text(self, row: CollectionRow) -> bool:
        """Return whether a collection can be searched by text, without loading its encoder."""
        loaded = self._encoders.get(row.fingerprint)
        with suppress(errors.EncoderError):
            return (loaded or resolve(row.encoder)[0]).text
        return False

    def image(self, name: str, image_id: int) -> Image:
        """Return one image; the collection is not opened for it. `lookups` batches the same."""
        (found,) = self._look_up(name, [image_id])
        if isinstance(found, errors.ImageNotFound):
            raise found
        return found

    def _look_up(self, name: str, ids: Sequence[int]) -> list[Image | errors.ImageNotFound]:
        found = self.metadata.by_id(name, ids)
        return [image_of(found[i]) if i in found else errors.ImageNotFound(name, i) for i in ids]

    def find(self, wanted: str, name: str | None, *, paths: bool) -> Image:
        """Return the image of an id or, if allowed, of a path, in one collection or in any."""
        if name:
            self.metadata.collection(name)  # another error than for an image that is not there
        number = int(wanted) if re.fullmatch(r"\d{1,19}", wanted, re.A) else None
        with suppress(errors.ConfigError):
            written = [str(absolute(path)) for path in (wanted, unquote(wanted)) if paths]
            for collection in [name] if name else self._names():
                with suppress(errors.CollectionNotFound, errors.ImageNotFound):
                    if number is not None and number < 2**63:
                        return self.image(collection, number)
                    for row in self.metadata.by_path(collection, written).values():
                        if row.state == "ready":
                            return image_of([row])
        how = "" if paths else " Visitors ask for an image by its id."
        raise HTTPException(404, f"No collection contains this image.{how}")

    def _names(self) -> Iterator[str]:
        yield self.options.collection
        yield from (row.name for row in self.metadata.collections())

    async def thumbnail(self, image: Image | Hit, size: Size) -> bytes:
        """Return a JPEG of a stored image."""
        key = f"{image.image_id}-{SIDES[size]}"
        data = self._thumbnails.find(key)
        if data is None:
            data = await self.decode(thumbnail, image, size)
            self._thumbnails.keep(key, data)
        return data

    async def decode(self, make: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread; at most one call per processor runs at a time."""
        return await to_thread.run_sync(make, *arguments, limiter=self._decoding)

    # ------------------------------------------------------------ searches

    async def search(self, plan: Plan, query: Any = None) -> Hits:
        """Search with a picture, a vector, an image_id or nothing but the plan, in a batch."""
        return await self.batcher.submit((plan, query is None), query)

    def _search(
        self, key: tuple[Plan, bool], queries: Sequence
    ) -> Sequence[Hits | errors.ImgSearchError]:
        plan, only_plan = key
        gallery = self.gallery(plan.collection)
        self._encoders.setdefault(gallery.row.fingerprint, gallery.encoder)
        how = plan._asdict() | {"where": None if plan.where is None else json.loads(plan.where)}
        del how["collection"]
        try:
            if only_plan:  # such searches have the same hits
                return [gallery.search(**how)] * len(queries)
            return gallery.search(queries, **how)
        except errors.ImgSearchError as error:
            if len(queries) == 1:
                return [error]
        return [result for query in queries for result in self._search(key, [query])]

    def keep_query(self, data: bytes) -> str:
        """Keep the picture of a visitor, and return its key, which only this visitor knows."""
        key = secrets.token_urlsafe(18)
        self.queries.keep(key, data)
        return key

    def query(self, key: str) -> bytes:
        """Return the picture of a key."""
        data = self.queries.find(key)
        if data is None:
            raise HTTPException(404, "This query picture is no longer kept: upload it again.")
        return data

    async def fetch(self, url: str) -> bytes:
        """Fetch a picture from the Internet, where that is allowed."""
        if not self.options.fetch_urls:
            raise HTTPException(403, "This server does not fetch URLs: upload the picture.")
        return await to_thread.run_sync(fetch, url)

    # ------------------------------------------------------------ ingests

    def loadable(self, folder: str) -> Path:
        """Return the path of a folder; one that is not below a root is refused."""
        path = absolute(folder)
        real = path.resolve()
        if not any(real.is_relative_to(root.resolve()) for root in self.options.roots):
            roots = ", ".join(map(errors.printable, self.options.roots)) or "there is none"
            raise HTTPException(
                403, f"{errors.printable(path)} is not below a folder of --root: {roots}."
            )
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises if the name is too long
            raise HTTPException(400, f"{errors.printable(path)} is not a folder that can be read.")
        return path

    def _ingest_options(self, collection: str) -> dict[str, Any]:
        """Return settings for an ingest, and the encoder of searches if it is loaded or needed."""
        fingerprints = {row.name: row.fingerprint for row in self.metadata.collections()}
        if collection in fingerprints:
            encoder = self._encoders.get(fingerprints[collection])
        else:
            encoder = load_encoder(self.settings.imgsearch_encoder, settings=self.settings)
            encoder = self._encoders.setdefault(encoder.fingerprint, encoder)
        return {"settings": self.settings, "encoder": encoder}

    def upload(self, name: str, filename: str, data: bytes) -> Image:
        """Keep a picture in the folder of uploads and add it to a collection."""
        info = checked(data, filename).info
        stem = re.sub(r"[^\w-]+", "_", Path(filename).stem)[:50] or "image"
        folder = self.settings.upload_path or self.settings.imgsearch_home / "uploads"
        path = absolute(folder / f"{stem}-{info.sha256[:16]}.{info.format.lower()}")
        with atomic(path) as file:
            file.write(data)
        with Gallery.open(name, create=True, **self._ingest_options(name)) as gallery:
            for _, reason in gallery.add(path, progress=False).failures:
                raise errors.ImageError(path, reason)
        return self.image(name, info.image_id)


async def service(request: Request) -> Service:
    """Return the service of the application; async, because a thread would only cost time."""
    return request.app.state.service


Use = Annotated[Service, Depends(service)]
