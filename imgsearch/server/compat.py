"""The routes of the original demo, so that its clients and scripts work unchanged.

Parameters are accepted in the query and in the form, whichever a client uses.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

from anyio import to_thread
from fastapi import (
    APIRouter,
    Depends,
    File,
    Form,
    HTTPException,
    Query,
    Request,
    Response,
    UploadFile,
)
from pydantic import AliasChoices, BaseModel, Field

from imgsearch.config import collection_name
from imgsearch.errors import CollectionNotFound
from imgsearch.server import pictures
from imgsearch.server.schemas import AnyObject, body_of, parsed
from imgsearch.server.security import admin_only
from imgsearch.server.service import Plan, Use
from imgsearch.stores.vectors import MAX_TOP_K

router = APIRouter(tags=["routes of the original demo"])
ADMIN = [Depends(admin_only)]


async def _table(
    request: Request,
    service: Use,
    table_name: str | None = None,
    in_form: Annotated[str | None, Form(alias="table_name")] = None,
) -> str:
    if "json" in request.headers.get("content-type", ""):
        raise HTTPException(415, "Send parameters in the query or as a form, not as JSON.")
    return table_name or in_form or service.options.collection


async def _top_k(
    service: Use,
    topk: Annotated[int | None, Query(ge=1, le=MAX_TOP_K)] = None,
    in_form: Annotated[int | None, Form(alias="topk", ge=1, le=MAX_TOP_K)] = None,
) -> int:
    return in_form or topk or service.settings.top_k


Table = Annotated[str, Depends(_table)]
TopK = Annotated[int, Depends(_top_k)]


class Load(BaseModel):
    """Body of ``POST /img/load``."""

    File: str = Field(min_length=1, description="folder on the server")
    Table: str | None = Field(None, validation_alias=AliasChoices("Table", "table_name"))


@router.get("/data", response_class=Response)
async def data(
    request: Request, service: Use, image_path: str, table_name: str | None = None
) -> Response:
    """Return the file of a stored image, by path or id; visitors by id only."""
    found = await to_thread.run_sync(
        lambda: service.find(image_path, table_name, paths=request.state.admin)
    )
    make = partial(service.decode, pictures.original, found)
    return await pictures.answer(request, str(found.image_id), make)


@router.get("/progress")
def progress(service: Use) -> str:
    """Report the progress of the newest ingest; both numbers are the same when it has ended."""
    jobs = service.jobs.all()
    if jobs and not jobs[0].ended and jobs[0].report is None:
        return "current: 0, total: 1"  # equal numbers would mean that it has ended
    for run in service.metadata.runs(limit=1):
        current = run.done if run.state == "running" else run.total
        return f"current: {current}, total: {run.total}"
    return "current: 0, total: 0"


async def _load_request(request: Request) -> Load:
    """Read the folder from the query, and from a form or a JSON body."""
    given = dict(request.query_params)
    if "form" in request.headers.get("content-type", ""):
        given |= dict(await request.form())
    elif body := await request.body():
        given |= parsed(AnyObject, body).root
    return parsed(Load, given)


@router.post("/img/load", dependencies=ADMIN, openapi_extra=body_of(Load))
async def load(service: Use, asked: Annotated[Load, Depends(_load_request)]) -> str:
    """Load a folder, and answer when it is done; other requests go on meanwhile."""
    name = collection_name(asked.Table or service.options.collection)
    job = service.jobs.start(name, await to_thread.run_sync(service.loadable, asked.File))
    await asyncio.shield(asyncio.wrap_future(job.future))
    if job.error is not None:
        raise job.error
    if job.state != "done":
        raise HTTPException(503, "The load was stopped; load the folder again to continue.")
    if not job.report.encoded + job.report.linked + job.report.unchanged:
        raise HTTPException(400, "The folder holds no image that can be read.")
    return "Successfully loaded data!"


@router.post("/img/upload", dependencies=ADMIN)
async def upload(
    service: Use,
    table: Table,
    image: Annotated[UploadFile | None, File()] = None,
    url: str | None = None,
    url_in_form: Annotated[str | None, Form(alias="url")] = None,
) -> str:
    """Add an uploaded picture, or one that is fetched from an address."""
    url = url or url_in_form
    if image is not None:
        name, content = image.filename or "", await image.read()
    elif url:
        name = PurePosixPath(urlsplit(url).path).name
        content = await service.fetch(url)
    else:
        raise HTTPException(400, "Image and url are required")
    row = await to_thread.run_sync(service.upload, table, name, content)
    return f"Successfully loaded data: {row.image_id}"


@router.post("/img/search")
async def search(
    request: Request,
    service: Use,
    image: Annotated[UploadFile, File()],
    top_k: TopK,
    table: Table,
) -> list[tuple[str, float]]:
    """Find similar images: path (for visitors: id) and squared Euclidean distance, ascending."""
    hits = await service.search(Plan(table, top_k), await image.read())
    shown = [pictures.written(h) if request.state.admin else str(h.image_id) for h in hits]
    distances = [max(0.0, 2 - 2 * hit.score) for hit in hits]
    return list(zip(shown, distances, strict=True))


@router.post("/img/count")
def count(service: Use, table: Table) -> int | None:
    """Count the images; null where the collection does not exist."""
    try:
        return service.gallery(table).count().images
    except CollectionNotFound:
        return None


@router.post("/img/drop", dependencies=ADMIN)
def drop(service: Use, table: Table) -> str:
    """Delete a collection; its image files are not touched."""
    try:
        service.gallery(table).drop()
    except CollectionNotFound:
        return f"Milvus doesn't have a collection named {table}"
    return "ok"
