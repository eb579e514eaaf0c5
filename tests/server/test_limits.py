"""Overload and large bodies are answered by statuses, and never by growing."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import HTTPException

from imgsearch.server import limits
from imgsearch.server.limits import MAX_BODY, MAX_JSON, Queue, RateLimit
from tests.helpers import run_async


def test_a_client_that_asks_too_often_is_told_to_wait(start):
    running = start(rate=1)
    answers = [running.visitor.get("/api/v1") for _ in range(30)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 10
    assert refused[0].headers["retry-after"] == "1"


def test_clients_are_counted_apart_and_the_oldest_are_forgotten(monkeypatch):
    monkeypatch.setattr(limits, "_CLIENTS", 2)
    rate = RateLimit(0.1)
    rate.check("a")
    with pytest.raises(HTTPException):
        rate.check("a")
    rate.check("b")
    rate.check("c")
    assert list(rate._clients) == ["b", "c"]


def test_the_queue_is_bounded_and_empties():
    queue = Queue(at_once=2)
    with queue.place("/a"), queue.place("/b"):
        with queue.place("/healthz"), pytest.raises(HTTPException) as caught, queue.place("/c"):
            pass
        assert caught.value.status_code == 503
        assert caught.value.headers["Retry-After"]
    assert queue.length == 0


def test_a_body_that_is_too_large_is_refused(server):
    large = b"x" * (MAX_JSON + 1)
    assert server.visitor.post("/metadata", content=large).status_code == 413
    # Without a length, too.
    pieces = (b"x" * 2**16 for _ in range(20))
    assert server.visitor.post("/metadata", content=pieces).status_code == 413
    picture = {"image": b"x" * (MAX_BODY + 1)}
    assert server.visitor.post("/api/v1/queries", files=picture).status_code == 413
    picture = {"image": b"x" * (MAX_BODY - 2**16)}
    assert server.visitor.post("/api/v1/queries", files=picture).status_code == 400


def test_a_body_that_does_not_arrive_is_given_up(server, monkeypatch):
    monkeypatch.setattr(limits, "BODY_TIMEOUT", 0.2)

    async def send_half() -> bytes:
        port = int(server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        token = server.visitor.headers["authorization"]
        writer.write(
            f"POST /metadata HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        answer = await asyncio.wait_for(reader.read(100), 30)
        writer.close()
        return answer

    assert b" 408 " in run_async(send_half())
