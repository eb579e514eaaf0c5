"""The middleware that every request passes: it checks, bounds, observes and catches errors."""

from __future__ import annotations

import time

from fastapi import HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imgsearch.server.limits import Queue, RateLimit, bounded_body
from imgsearch.server.observing import Metrics, log
from imgsearch.server.security import Security

METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}
"""Methods that metrics tell apart: clients can invent others."""

GET_ONLY = {"/data", "/progress"}
"""Routes of the original demo that answered HEAD with 405, and still do."""


class Gate:
    """ASGI middleware around all routes, inside that for CORS."""

    def __init__(self, app: ASGIApp, security: Security, rate: RateLimit, metrics: Metrics):
        self.app, self.security, self.rate, self.metrics = app, security, rate, metrics
        self.queue = Queue()
        metrics.queue.set_function(lambda: self.queue.length)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        if scope["method"] == "HEAD" and scope["path"] not in GET_ONLY:
            scope = scope | {"method": "GET"}  # uvicorn leaves the body out
        request = Request(scope)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self.security.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._answer(request, receive, send_marked)
        except HTTPException as error:
            await (await http_exception_handler(request, error))(scope, receive, send_marked)
        except Exception:
            log.exception("unexpected error", extra={"facts": {"route": _route(request.scope)}})
            if status:
                raise  # the answer has begun: only ending the connection tells the client
            text = "The server failed; its log holds the details."
            await JSONResponse({"detail": text}, 500)(scope, receive, send_marked)
        finally:
            self._observe(request, status, time.perf_counter() - start)

    async def _answer(self, request: Request, receive: Receive, send: Send) -> None:
        scope, path = request.scope, request.scope["path"]
        self.rate.check(_client(request))
        answer = self.security.admit(request)
        if answer is not None:
            await answer(scope, receive, send)
            return
        with self.queue.place(path):
            receive = bounded_body(receive, request.headers.get("content-type", ""), path)
            await self.app(scope, receive, send)

    def _observe(self, request: Request, status: int, seconds: float) -> None:
        route = _route(request.scope)
        method = request.method if request.method in METHODS else "other"
        self.metrics.requests.labels(method, route, status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        facts = {"method": request.method, "route": route, "status": status}
        facts |= {"ms": round(seconds * 1000, 1), "client": _client(request)}
        log.info("request", extra={"facts": facts})


def _route(scope: Scope) -> str:
    """Template of the route: a path itself may hold the key of a visitor's picture."""
    return getattr(scope.get("route"), "path", "none")


def _client(request: Request) -> str:
    return request.client.host if request.client else ""
