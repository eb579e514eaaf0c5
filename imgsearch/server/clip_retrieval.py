"""The routes of clip-retrieval, so that its client and its web page work.

Its client sends JSON without a Content-Type. Fields that choose what it does beyond searching
(safety, aesthetics, deduplication) are accepted and have no effect.
"""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, Field

from imgsearch.errors import printable
from imgsearch.hits import Hit
from imgsearch.server.schemas import ImageId, body_of, parsed
from imgsearch.server.service import Plan, Use
from imgsearch.stores.metadata import ImageRow
from imgsearch.stores.vectors import MAX_TOP_K

router = APIRouter(tags=["routes of clip-retrieval"])

LARGEST = np.finfo(np.float32).max
INLINE = 100
"""Results that hold their picture; the others have its address only."""


class KnnRequest(BaseModel):
    """A query; the first of `text`, `image`, `image_url`, `embedding_input` that is given."""

    text: str | None = None
    image: str | None = Field(None, description="file in base64")
    image_url: str | None = None
    embedding_input: list[float] | None = Field(None, max_length=32_768)
    modality: Literal["image"]
    num_images: int = Field(ge=1, le=MAX_TOP_K)
    indice_name: str | None = Field(description="collection; null for the default one")
    num_result_ids: int | None = Field(None, ge=1, le=MAX_TOP_K)


class MetadataRequest(BaseModel):
    """Images whose metadata are wanted."""

    ids: list[ImageId] = Field(max_length=10_000)
    indice_name: str | None


@router.get("/indices-list")
def indices(service: Use) -> list[str]:
    """List the collections, the default one first."""
    names = [row.name for row in service.metadata.collections()]
    return sorted(names, key=lambda name: (name != service.options.collection, name))


@router.post("/knn-service", openapi_extra=body_of(KnnRequest))
async def knn(request: Request, service: Use) -> list[dict[str, Any]]:
    """Find similar images, the most similar first; `similarity` is the cosine."""
    asked = parsed(KnnRequest, await request.body())
    name = asked.indice_name or service.options.collection
    plan = Plan(name, max(asked.num_images, asked.num_result_ids or 0))
    query: Any = None
    if asked.text:
        plan = plan._replace(text=asked.text)
    elif asked.image:
        try:
            query = base64.b64decode("".join(asked.image.split()), validate=True)
        except ValueError:
            text = "image: not a file in base64; send no prefix such as 'data:image/png;base64,'."
            raise HTTPException(400, text) from None
    elif asked.image_url:
        query = await service.fetch(asked.image_url)
    elif asked.embedding_input:
        query = np.asarray(asked.embedding_input)
        if not (np.abs(query) <= LARGEST).all():  # nor is NaN
            raise HTTPException(400, "embedding_input: a number is NaN or too large for float32.")
    else:
        raise HTTPException(400, "Give one of text, image, image_url and embedding_input.")
    hits = await service.search(plan, query)
    found = [{"id": hit.image_id, "similarity": hit.score} for hit in hits]
    for place, (hit, item) in enumerate(zip(hits[: asked.num_images], found, strict=False)):
        item |= _metadata(request, name, hit)
        if place < INLINE:
            with suppress(HTTPException):  # its file is gone
                data = await service.thumbnail(hit, "medium")
                item["image"] = base64.b64encode(data).decode()
    return found


@router.post("/metadata", openapi_extra=body_of(MetadataRequest))
async def metadata(request: Request, service: Use) -> list[dict[str, Any]]:
    """Describe images; those that the collection does not hold are left out."""
    asked = parsed(MetadataRequest, await request.body())
    name = asked.indice_name or service.options.collection
    found = await to_thread.run_sync(service.metadata.by_id, name, asked.ids)
    return [
        {"id": image_id, "metadata": _metadata(request, name, found[image_id][0])}
        for image_id in asked.ids
        if image_id in found
    ]


def _metadata(request: Request, name: str, row: ImageRow | Hit) -> dict[str, str]:
    address = f"{request.base_url}api/v1/collections/{name}/images/{row.image_id}/original"
    path = {"image_path": printable(row.path)} if request.state.admin else {}
    return {"url": address, "caption": printable(Path(row.path).name)} | path
