"""The API below ``/api/v1``. `docs/server.md` shows its use; ``/openapi.json`` describes it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, File, HTTPException, Query, Request, Response, UploadFile
from fastapi import Path as InPath
from fastapi.sse import EventSourceResponse

from imgsearch import images
from imgsearch.config import COLLECTION_NAME, collection_name
from imgsearch.errors import ImgSearchError, printable
from imgsearch.gallery import Gallery
from imgsearch.hits import Hit, Image
from imgsearch.ingestion import IngestReport
from imgsearch.io import versions
from imgsearch.server import pictures, schemas
from imgsearch.server.jobs import Job
from imgsearch.server.limits import MAX_BODY
from imgsearch.server.security import admin_only
from imgsearch.server.service import Plan, Service, Use

router = APIRouter(prefix="/api/v1", tags=["imgsearch"])
ADMIN = [Depends(admin_only)]
POLL = 0.25
"""Seconds between two looks at an ingest."""

Name = Annotated[str, InPath(pattern=f"^{COLLECTION_NAME.pattern}$", examples=["photos"])]
Id = Annotated[schemas.ImageId, InPath()]
Offset = Annotated[int, Query(ge=0, le=10**9)]
Where = Annotated[str | None, Query(max_length=10_000, examples=['{"label": "cat"}'])]


# ------------------------------------------------------------ pictures
# Routes are tried in this order, and these are asked for most.


@router.get("/collections/{name}/images/{image_id}/thumbnail", response_class=Response)
async def thumbnail(
    request: Request, name: Name, image_id: Id, service: Use, size: pictures.Size = "medium"
) -> Response:
    """Return a JPEG of 160, 480 or 1,280 pixels at most."""

    async def make() -> tuple[bytes, str]:
        image = await service.lookups.submit(name, image_id)
        return await service.thumbnail(image, size), "image/jpeg"

    return await pictures.answer(request, f"{image_id}-{pictures.SIDES[size]}", make)


@router.get("/collections/{name}/images/{image_id}/original", response_class=Response)
async def original(request: Request, name: Name, image_id: Id, service: Use) -> Response:
    """Return the file of an image; as JPEG where browsers do not show its format."""

    async def make() -> tuple[bytes, str]:
        image = await service.lookups.submit(name, image_id)
        return await service.decode(pictures.original, image, True)

    return await pictures.answer(request, f"{image_id}", make)


# ------------------------------------------------------------ the server and its collections


@router.get("")
def about(request: Request, service: Use) -> schemas.About:
    """Describe the server, and what this client may do."""
    options, admin = service.options, request.state.admin
    return schemas.About(
        version=versions()["imgsearch"],
        scope="admin" if admin else "visitor",
        collection=options.collection,
        formats=list(images.FORMATS),
        max_bytes=MAX_BODY,
        fetches_urls=options.fetch_urls,
        roots=[printable(root) for root in options.roots] if admin else [],
    )


@router.get("/collections")
def collections(service: Use) -> list[schemas.CollectionInfo]:
    """List the collections."""
    rows = service.metadata.collections()
    return [_collection(service, service.gallery(row.name)) for row in rows]


@router.get("/collections/{name}")
def collection(name: Name, service: Use) -> schemas.CollectionInfo:
    """Describe a collection."""
    return _collection(service, service.gallery(name))


@router.delete("/collections/{name}", status_code=204, dependencies=ADMIN)
def drop(name: Name, service: Use) -> None:
    """Delete a collection; its image files are not touched."""
    service.gallery(name).drop()


def _collection(service: Service, gallery: Gallery) -> schemas.CollectionInfo:
    row, counts = gallery.row, gallery.count()
    return schemas.CollectionInfo(
        name=row.name,
        images=counts.images,
        paths=counts.paths,
        encoder=Path(row.encoder).name,
        dim=row.dim,
        text=service.reads_text(row),
        index=row.index,
        created_at=row.created_at,
    )


@router.get("/collections/{name}/attributes")
def attributes(name: Name, service: Use) -> dict[str, list[schemas.Value]]:
    """List the values of each attribute, those of most files first."""
    return {
        attribute: [schemas.Value(value=value, count=count) for value, count in values]
        for attribute, values in service.metadata.attribute_values(name).items()
    }


# ------------------------------------------------------------ images


@router.get("/collections/{name}/images")
def browse(
    request: Request,
    name: Name,
    service: Use,
    offset: Offset = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    where: Where = None,
) -> schemas.Page:
    """List stored images, sorted by path."""
    if unknown := set(request.query_params) - {"offset", "limit", "where", "token"}:
        text = f"Unknown parameters {sorted(unknown)}: there are offset, limit and where."
        raise HTTPException(422, text)
    if where is not None:
        where = schemas.parsed(schemas.AnyObject, where.encode(), "query", "where").root
    test = _admitted(request, where)
    found = service.gallery(name).browse(offset, limit + 1, where=test)
    return schemas.Page(
        items=[_details(request, name, image) for image in found[:limit]],
        next=offset + limit if len(found) > limit else None,
        total=service.metadata.count(name, where=test).images,
    )


@router.post("/collections/{name}/images", status_code=201, dependencies=ADMIN)
async def upload(
    request: Request, name: Name, service: Use, image: Annotated[UploadFile, File()]
) -> schemas.PictureDetails:
    """Add a picture to a collection, which is created if it does not exist."""
    data = await image.read()
    stored = await to_thread.run_sync(service.upload, name, image.filename or "", data)
    return _details(request, name, stored)


@router.get("/collections/{name}/images/{image_id}")
def image(request: Request, name: Name, image_id: Id, service: Use) -> schemas.PictureDetails:
    """Describe a stored image."""
    return _details(request, name, service.image(name, image_id))


def _admitted(request: Request, where: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a filter; a visitor could learn the names of folders by one on paths."""
    if not request.state.admin and re.search(r'"(path|folder)":', json.dumps(where)):
        raise HTTPException(403, "Only the administrator may filter by path or folder.")
    return where


def _picture(request: Request, name: str, image: Image | Hit) -> dict:
    """Fields of a Picture."""
    address = f"/api/v1/collections/{name}/images/{image.image_id}"
    return {
        "image_id": str(image.image_id),
        "name": printable(Path(image.path).name),
        "width": image.width,
        "height": image.height,
        "thumbnail": f"{address}/thumbnail",
        "original": f"{address}/original",
        "paths": [printable(path) for path in image.paths] if request.state.admin else [],
    }


def _details(request: Request, name: str, image: Image) -> schemas.PictureDetails:
    return schemas.PictureDetails(
        **_picture(request, name, image),
        format=image.format,
        size=image.size,
        added_at=image.added_at,
        attributes=image.attributes,
    )


# ------------------------------------------------------------ searches


@router.post("/queries", status_code=201)
async def keep_query(service: Use, image: Annotated[UploadFile, File()]) -> schemas.QueryInfo:
    """Upload a picture to search with."""
    data = await image.read()
    loaded = await service.decode(pictures.checked, data, image.filename or "")
    key = service.keep_query(data)
    return schemas.QueryInfo(
        query_id=key,
        width=loaded.width,
        height=loaded.height,
        thumbnail=f"/api/v1/queries/{key}/thumbnail",
    )


@router.get("/queries/{query_id}/thumbnail", response_class=Response)
async def query_thumbnail(
    request: Request, query_id: str, service: Use, size: pictures.Size = "large"
) -> Response:
    """Return a JPEG of an uploaded picture."""
    data = service.query(query_id)

    async def make() -> tuple[bytes, str]:
        return await service.decode(images.jpeg, data, pictures.SIDES[size]), "image/jpeg"

    return await pictures.answer(request, f"{query_id}-{size}", make)


@router.post("/collections/{name}/search")
async def search(
    request: Request, name: Name, asked: schemas.SearchRequest, service: Use
) -> schemas.SearchAnswer:
    """Find the images most similar to a stored image, an uploaded picture, words or examples."""
    if asked.image_id is not None and asked.query_id is not None:
        raise HTTPException(422, "Give image_id or query_id, not both.")
    where = _admitted(request, asked.where)
    parts = asked.model_dump(include={"box", "exclude", "text", "like", "unlike"})
    where = None if where is None else json.dumps(where)
    end = asked.offset + asked.limit
    plan = Plan(name, end, where=where, **parts)
    query = asked.image_id if asked.query_id is None else service.query(asked.query_id)
    hits = await service.search(plan, query)
    return schemas.SearchAnswer(
        hits=[
            schemas.FoundPicture(**_picture(request, name, hit), rank=hit.rank, score=hit.score)
            for hit in hits[asked.offset :]
        ],
        next=end if len(hits) == end <= schemas.LAST_OFFSET else None,
        matched=hits.matched,
        way=hits.way,
        seconds=hits.seconds,
    )


# ------------------------------------------------------------ ingests


@router.post("/ingests", status_code=202, dependencies=ADMIN)
def start_ingest(asked: schemas.IngestRequest, service: Use) -> schemas.IngestInfo:
    """Load a folder; answers at once. Follow it with /ingests/{id}/events."""
    wanted = asked.collection
    name = service.options.collection if wanted is None else collection_name(wanted)
    folder = service.loadable(asked.folder)
    return _ingest(service.jobs.start(name, folder, recursive=asked.recursive))


@router.get("/ingests", dependencies=ADMIN)
def ingests(service: Use) -> list[schemas.IngestInfo]:
    """List the ingests of this server, newest first."""
    return [_ingest(job) for job in service.jobs.all()]


async def _job(number: int, service: Use) -> Job:
    return service.jobs.get(number)


OneJob = Annotated[Job, Depends(_job)]


@router.get("/ingests/{number}", dependencies=ADMIN)
def ingest(job: OneJob) -> schemas.IngestInfo:
    """Describe an ingest."""
    return _ingest(job)


@router.post("/ingests/{number}/stop", status_code=202, dependencies=ADMIN)
def stop_ingest(job: OneJob, service: Use) -> schemas.IngestInfo:
    """Stop an ingest after the images under way; what is stored stays."""
    service.jobs.stop(job)
    return _ingest(job)


@router.get("/ingests/{number}/events", response_class=EventSourceResponse, dependencies=ADMIN)
async def follow_ingest(job: OneJob) -> AsyncIterator[schemas.IngestInfo]:
    """Send the state of an ingest as server-sent events whenever it changes, until it ends."""
    sent = None
    while True:
        ended, info = job.ended, _ingest(job)
        if info != sent:
            yield info
            sent = info
        if ended:
            return
        await asyncio.sleep(POLL)


def _ingest(job: Job) -> schemas.IngestInfo:
    report, error = job.report or IngestReport(job.collection, str(job.folder), ""), job.error
    about = report.to_dict()
    about |= {"failures": about["failures"][:100]}
    return schemas.IngestInfo(
        **{k: v for k, v in about.items() if k != "state"},
        id=job.id,
        state=job.state,
        seconds_left=report.seconds_left if not job.ended else None,
        error=str(error) if isinstance(error, ImgSearchError) else error and "see the log",
    )
