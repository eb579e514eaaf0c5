"""Queries that arrive together are searched together."""

from __future__ import annotations

import asyncio
import threading

import pytest

from imgsearch.server import batching
from imgsearch.server.batching import Batcher
from tests.helpers import run_async


def test_what_arrives_while_others_run_becomes_one_batch():
    may_go, sizes, calls = threading.Event(), [], []

    def run(key, queries):
        may_go.wait(30)
        calls.append((key, list(queries)))
        return [f"{key}{query}" for query in queries]

    async def main():
        batcher = Batcher(run, sizes.append)
        tasks = [asyncio.create_task(batcher.submit("ab"[n % 2], n)) for n in range(40)]
        await asyncio.sleep(0)
        may_go.set()
        return await asyncio.gather(*tasks)

    assert run_async(main()) == [f"{'ab'[n % 2]}{n}" for n in range(40)]
    assert sum(sizes) == 40
    assert max(sizes) == batching.SIZE
    assert all(len({query % 2 for query in queries}) == 1 for _, queries in calls)


def test_an_error_reaches_the_request_that_it_belongs_to():
    def run(key, queries):
        if key == "broken":
            raise KeyError
        return [ValueError(query) if query == 1 else query for query in queries]

    async def main():
        batcher = Batcher(run, lambda size: None)
        asked = [batcher.submit("a", n) for n in range(3)] + [batcher.submit("broken", 0)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third, fourth = run_async(main())
    assert (first, third) == (0, 2)
    assert isinstance(second, ValueError)
    assert isinstance(fourth, KeyError)


def test_a_request_that_was_given_up_disturbs_no_other():
    may_go = threading.Event()

    def run(key, queries):
        may_go.wait(30)
        return queries

    async def main():
        batcher = Batcher(run, lambda size: None)
        first = asyncio.create_task(batcher.submit("a", 1))
        second = asyncio.create_task(batcher.submit("a", 2))
        await asyncio.sleep(0.01)
        first.cancel()
        may_go.set()
        return await second

    assert run_async(main()) == 2


@pytest.mark.parametrize("broken", [b"\x89PNG\r\n\x1a\n broken", b"no picture"])
def test_one_broken_picture_fails_alone(server, photos, broken):
    pictures = [(photos / f"{n:02d}.png").read_bytes() for n in range(6)] + [broken]
    status = []

    def search(data):
        answer = server.visitor.post("/img/search", files={"image": data})
        status.append((answer.status_code, data == broken))

    threads = [threading.Thread(target=search, args=(data,)) for data in pictures * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status) == [(200, False)] * 18 + [(400, True)] * 3
