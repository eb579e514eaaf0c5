"""How much a client may ask for: requests per second, requests at a time, bytes of a body."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException
from starlette.types import Message, Receive

AT_ONCE = 128
"""Requests in work; more are refused rather than kept waiting."""

MAX_BODY = 32 * 2**20
"""Bytes of a body with a picture."""

MAX_JSON = 2**20
"""Bytes of a body without one."""

BODY_TIMEOUT = 30.0
"""Seconds that a client may be silent while it sends a body."""

BURST = 10.0
"""Seconds' worth of requests that a client may send at once."""

_CLIENTS = 10_000
_UNCOUNTED = re.compile(r"/(healthz|readyz|metrics|progress|static/.*|img/load|.*/events)")
"""Paths of requests that cost next to nothing, or wait for an ingest."""


class RateLimit:
    """A token bucket for each client. A `rate` of 0 requests per second is no limit."""

    def __init__(self, rate: float):
        self._rate = rate
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, client: str) -> None:
        """Count a request, or refuse it with status 429."""
        if not self._rate:
            return
        now, most = time.monotonic(), self._rate * BURST
        left, since = self._clients.pop(client, (most, now))
        left = min(most, left + (now - since) * self._rate)
        self._clients[client] = max(0.0, left - 1), now
        if len(self._clients) > _CLIENTS:
            self._clients.popitem(last=False)  # the one that has been quiet for longest
        if left < 1:
            raise HTTPException(429, "Too many requests: wait a moment.", {"Retry-After": "1"})


class Queue:
    """The requests in work, whose number is bounded."""

    def __init__(self, at_once: int = AT_ONCE):
        self.at_once, self.length = at_once, 0

    @contextmanager
    def place(self, path: str) -> Iterator[None]:
        """Count a request while it runs, or refuse it with status 503."""
        if _UNCOUNTED.fullmatch(path):
            yield
            return
        if self.length >= self.at_once:
            raise HTTPException(503, "The server is busy: try again.", {"Retry-After": "1"})
        self.length += 1
        try:
            yield
        finally:
            self.length -= 1


def bounded_body(receive: Receive, content_type: str, path: str) -> Receive:
    """Refuse a body that is too large, or that does not arrive."""
    pictures = content_type.startswith("multipart/form-data") or path == "/knn-service"
    most = MAX_BODY if pictures else MAX_JSON
    size, complete = 0, False

    async def receive_bounded() -> Message:
        nonlocal size, complete
        try:
            async with asyncio.timeout(None if complete else BODY_TIMEOUT):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "The body of the request did not arrive in time.") from None
        size += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if size > most:
            raise HTTPException(413, f"The body is too large: {most >> 20} MiB at most.")
        return message

    return receive_bounded
