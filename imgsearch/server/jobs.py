"""Ingests that run in a thread, one after the other, while searches go on."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from imgsearch.ingestion import IngestReport, ingest
from imgsearch.server.observing import log

WAITING = 8
"""Ingests that may wait for their turn."""

REMEMBERED = 100
"""Jobs whose results are kept."""


@dataclass
class Job:
    """One ingest; `state` is ``queued``, ``running``, ``done``, ``stopped`` or ``failed``."""

    id: int
    collection: str
    folder: Path
    options: dict[str, Any]
    state: str = "queued"
    report: IngestReport | None = None
    error: Exception | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    future: Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will change."""
        return self.state in ("done", "stopped", "failed")


class Jobs:
    """The ingests of this server. `options_of` gives what a collection's ingest needs."""

    def __init__(self, options_of: Callable[[str], dict[str, Any]]):
        self._options_of = options_of
        self._thread = ThreadPoolExecutor(1, "imgsearch-load")
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}

    def start(self, collection: str, folder: Path, **options: Any) -> Job:
        """Queue an ingest."""
        if sum(not job.ended for job in self.all()) > WAITING:
            text = "Too many loads are waiting: try again later."
            raise HTTPException(503, text, {"Retry-After": "60"})
        job = Job(next(self._numbers), collection, folder, options)
        self._jobs[job.id] = job
        for old in [job.id for job in self.all() if job.ended][REMEMBERED:]:
            del self._jobs[old]
        job.future = self._thread.submit(self._run, job)
        return job

    def all(self) -> list[Job]:
        """The jobs that are remembered, newest first."""
        return list(self._jobs.values())[::-1]

    def get(self, number: int) -> Job:
        """Return one job."""
        if number not in self._jobs:
            raise HTTPException(404, f"There is no ingest {number}.")
        return self._jobs[number]

    def stop(self, job: Job) -> None:
        """Stop an ingest: at the next safe place, or before it begins."""
        job.stop.set()
        if job.state == "queued":
            job.state = "stopped"

    def close(self) -> None:
        """Stop at the next safe place and wait for it."""
        for job in self.all():
            job.stop.set()
        self._thread.shutdown()

    def _run(self, job: Job) -> None:
        def progress(report: IngestReport) -> None:
            job.report = report

        if job.stop.is_set():
            job.state = "stopped"
            return
        job.state = "running"
        try:
            options = self._options_of(job.collection) | job.options
            job.report = ingest(
                job.folder, job.collection, progress=progress, stop=job.stop, **options
            )
            job.state = job.report.state
        except Exception as error:
            job.error, job.state = error, "failed"
        facts = {"ingest": job.id, "collection": job.collection, "state": job.state}
        log.info("ingest", exc_info=job.error, extra={"facts": facts})
