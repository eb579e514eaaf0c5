"""The application: routes, middleware, errors, health, and the page."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.staticfiles import StaticFiles

from imgsearch import errors
from imgsearch.io import versions
from imgsearch.server import api, clip_retrieval, compat
from imgsearch.server.gate import Gate
from imgsearch.server.limits import RateLimit
from imgsearch.server.observing import Metrics, log
from imgsearch.server.schemas import Problem
from imgsearch.server.security import PAGE, Security
from imgsearch.server.service import Options, Service, Use

THREADS = 12
"""Threads for what touches a store, fewer than a store has connections."""

STATUS: list[tuple[type[errors.ImgSearchError], int]] = [
    (errors.CollectionNotFound, 404),
    (errors.ImageNotFound, 404),
    (errors.ConfigError, 400),
    (errors.ImageError, 400),
    (errors.EncoderMismatch, 500),
    (errors.EncoderError, 400),  # it reads no words, or not these
    (errors.StoreBusy, 503),
    (errors.StoreUnavailable, 503),
    (errors.ImgSearchError, 500),
]

PLAIN = {
    "model_attributes_type": "Send a JSON object with the header 'Content-Type: application/json'",
    "dict_type": "Input should be a JSON object",
    "tuple_type": "Input should be a list",
    "value_error": "Input should be a file, sent as multipart/form-data",
}
"""Sentences in place of those of Pydantic that speak of Python, by type of error."""


def create_app(options: Options) -> FastAPI:
    """Make the application; errors of the stores are raised here."""
    metrics = Metrics()
    service = Service(options, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        await to_thread.run_sync(service.close)

    problem = {"model": Problem, "description": "The reason, and what to do"}
    app = _App(
        title="imgsearch",
        version=versions()["imgsearch"],
        lifespan=lifespan,
        responses={"4XX": problem, "503": problem},
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
    )
    app.state.service = service
    security = Security(options.token, options.hosts, options.origins)
    app.add_middleware(Gate, security, RateLimit(options.rate), metrics)
    if options.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )
    app.add_exception_handler(errors.ImgSearchError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    for router in (api.router, compat.router, clip_retrieval.router):
        app.include_router(router)
    _add_pages(app, metrics)
    return app


class _App(FastAPI):
    """Adds the token to the OpenAPI description: the gate checks it, not a dependency of routes."""

    def openapi(self) -> dict[str, Any]:
        described = super().openapi()
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
        return described


def _add_pages(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(PAGE)

    @app.get("/healthz", tags=["operation"])
    def healthy() -> str:
        """Report that the server is running."""
        return "ok"

    @app.get("/readyz", tags=["operation"])
    def ready(service: Use) -> str:
        """Report whether searches can be answered; status 503 and the reason if not."""
        problem = service.problem
        service.metadata.collections()
        return JSONResponse({"detail": problem}, 503) if problem else "ok"

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    def show_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    files = _Files(packages=[("imgsearch.server", "static"), ("imgsearch", "static")])
    app.mount("/static", files, "static")


class _Files(StaticFiles):
    """Files of the page; scripts are sent without whole-line comments and indentation."""

    def file_response(self, full_path: str, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(full_path, *arguments, **options)
        if response.status_code != 200 or not full_path.endswith(".js"):
            return response
        headers = {name: response.headers[name] for name in ("etag", "last-modified")}
        code = _shortened(Path(full_path), headers["etag"])
        return Response(code, headers=headers, media_type="text/javascript")


@cache
def _shortened(script: Path, etag: str) -> str:
    """Text of a script as it is sent; `etag` differs once the file has changed."""
    return re.sub(r"^\s+(//.*)?|^//.*", "", script.read_text(), flags=re.MULTILINE)


async def _failed(request: Request, error: errors.ImgSearchError) -> Response:
    """Answer an error with its own sentence; visitors learn no path of the server."""
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    text = str(error)
    if not request.state.admin:
        if status >= 500:
            text = "The server could not do this; its log holds the details."
        elif isinstance(error, errors.ImageError) and os.sep in error.path:
            text = error.reason
        elif re.search(r"(?<!\w)/\w", text):
            text = "The request cannot be answered; only the administrator is told why."
    if status >= 500:
        log.error("failed", exc_info=error)
    headers = {"Retry-After": "5"} if status == 503 else {}
    return JSONResponse({"detail": text}, status, headers)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """Name what is wrong with the parameters, without repeating their values."""
    problems = [
        {"type": e["type"], "loc": e["loc"], "msg": PLAIN.get(e["type"], e["msg"])}
        for e in error.errors()
    ]
    return JSONResponse({"detail": problems}, 422)
