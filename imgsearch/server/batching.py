"""Batching: queries that arrive while others are being answered are then searched together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from anyio import CapacityLimiter, to_thread

SIZE = 16
"""Queries of one batch."""

AT_ONCE = 2
"""Batches under way: pictures of one are decoded while another is encoded."""

Run = Callable[[Hashable, list], Sequence[Any]]


class Batcher:
    """Collects queries with equal keys and passes them to ``run(key, queries)`` in a thread.

    `run` returns a result or an exception for each query. No query waits for others to come:
    a batch is what has arrived when a thread becomes free.
    """

    def __init__(self, run: Run, observe: Callable[[int], None]):
        self._run, self._observe = run, observe
        self._waiting: dict[Hashable, list[tuple[Any, asyncio.Future]]] = {}
        self._threads = CapacityLimiter(AT_ONCE)
        self._tasks: set[asyncio.Task] = set()

    async def submit(self, key: Hashable, query: Any) -> Any:
        """Wait for the result of one query."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append((query, future))
        if len(self._tasks) < AT_ONCE:
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _work(self) -> None:
        while self._waiting:
            key = next(iter(self._waiting))
            waiting = self._waiting.pop(key)
            if rest := waiting[SIZE:]:
                self._waiting[key] = rest  # behind the others
            queries, futures = zip(*waiting[:SIZE], strict=True)
            self._observe(len(queries))
            try:
                results = await to_thread.run_sync(self._run, key, queries, limiter=self._threads)
            except Exception as error:
                results = [error] * len(queries)
            for future, result in zip(futures, results, strict=True):
                if future.cancelled():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
