"""Bodies of requests and answers of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

T = TypeVar("T", bound=BaseModel)

ImageId = Annotated[int, Field(ge=0, lt=2**63)]
"""Given as a number or as a string of digits; answers hold strings, which JavaScript can read."""


LAST_OFFSET = 10_000
"""Results that a search may pass over."""


class Invalid(BaseModel):
    """A parameter that is wrong."""

    type: str
    loc: list[str | int] = Field(examples=[["body", "limit"]])
    msg: str


class Problem(BaseModel):
    """Why a request is refused: a sentence, or what is wrong with each parameter (status 422)."""

    detail: str | list[Invalid]


class Picture(BaseModel):
    """A stored image."""

    image_id: str = Field(examples=["6917529027641081856"])
    name: str = Field(description="file name", examples=["2026_000001.jpg"])
    width: int
    height: int
    thumbnail: str = Field(description="address; add ?size=small, medium or large")
    original: str = Field(description="address")
    paths: list[str] = Field(description="all paths of the content; empty for visitors")


class PictureDetails(Picture):
    """A stored image with what is known about its file."""

    format: str = Field(examples=["JPEG"])
    size: int = Field(description="bytes")
    added_at: datetime | None
    attributes: dict[str, Any]


class Page(BaseModel):
    """A page of stored images."""

    items: list[PictureDetails] = Field(description="one for each file: copies are listed, too")
    next: int | None = Field(description="offset of the next page, null after the last")
    total: int = Field(description="images, each counted once, that fulfil the filter")


class AnyObject(RootModel[dict[str, Any]]):
    """An object whose fields are checked later, such as a filter."""


class CollectionInfo(BaseModel):
    """A collection."""

    name: str = Field(examples=["photos"])
    images: int
    paths: int
    encoder: str = Field(examples=["mini"])
    dim: int
    text: bool = Field(description="whether it can be searched with words")
    index: str
    created_at: datetime | None


class About(BaseModel):
    """The server, and what this client may do."""

    version: str
    scope: Literal["admin", "visitor"]
    collection: str = Field(description="the collection to begin with")
    formats: list[str]
    max_bytes: int = Field(description="bytes of the largest picture that may be uploaded")
    fetches_urls: bool
    roots: list[str] = Field(description="folders that may be loaded; empty for visitors")


class SearchRequest(BaseModel):
    """A query of one or several parts: a picture, words, examples and counter-examples."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"image_id": "6917529027641081856", "limit": 20},
                {"query_id": "Zk3x…", "box": [10, 20, 300, 200], "where": {"label": "cat"}},
                {"text": "a red car", "like": ["6917529027641081856"], "offset": 50},
            ]
        },
    )

    image_id: ImageId | None = Field(None, description="a stored image")
    query_id: str | None = Field(None, max_length=64, description="an uploaded picture")
    text: str | None = Field(None, min_length=1, max_length=1000)
    like: tuple[ImageId, ...] = Field((), max_length=100, description="examples")
    unlike: tuple[ImageId, ...] = Field((), max_length=100, description="counter-examples")
    box: tuple[int, int, int, int] | None = Field(
        None, description="left, upper, right, lower in pixels of the upright picture"
    )
    where: dict[str, Any] | None = Field(None, description="filter, as in Gallery.search")
    exclude: tuple[ImageId, ...] = Field((), max_length=1000)
    limit: int = Field(50, ge=1, le=200)
    offset: int = Field(0, ge=0, le=LAST_OFFSET)


class FoundPicture(Picture):
    """A result."""

    rank: int
    score: float = Field(description="cosine similarity, from -1 to 1")


class SearchAnswer(BaseModel):
    """Results, best first."""

    hits: list[FoundPicture]
    next: int | None = Field(description="offset of the next page, null after the last")
    matched: int | None = Field(description="images that match the filter; null without one")
    way: str | None = Field(description="how the filter was applied; null without one")
    seconds: dict[str, float]


class QueryInfo(BaseModel):
    """An uploaded query picture, kept for a while; whoever knows the id can search with it."""

    query_id: str
    width: int
    height: int
    thumbnail: str


class Value(BaseModel):
    """A value of an attribute, and how many files have it."""

    value: Any
    count: int


class IngestRequest(BaseModel):
    """A folder to load, below one of the server's roots."""

    model_config = ConfigDict(extra="forbid")

    folder: str = Field(min_length=1, max_length=4096, examples=["/data/photos"])
    collection: str | None = Field(None, description="created if it does not exist")
    recursive: bool = True


class Failure(BaseModel):
    """A file that could not be stored."""

    path: str
    reason: str


class IngestInfo(BaseModel):
    """An ingest."""

    id: int
    collection: str
    folder: str
    state: Literal["queued", "running", "done", "stopped", "failed"]
    total: int
    done: int
    encoded: int
    linked: int
    unchanged: int
    failed: int
    ignored: int
    seconds: float
    seconds_left: float | None
    failures: list[Failure] = Field(description="the first 100")
    error: str | None


def parsed(model: type[T], given: bytes | dict[str, Any], *place: str) -> T:
    """Read a JSON body, whatever its Content-Type is, or parameters; status 422 if it is wrong."""
    try:
        if isinstance(given, bytes):
            return model.model_validate_json(given)
        return model.model_validate(given)
    except ValidationError as error:
        problems = [e | {"loc": (*(place or ["body"]), *e["loc"])} for e in error.errors()]
        raise RequestValidationError(problems) from None


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that :func:`parsed` reads, for OpenAPI."""
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}}}
