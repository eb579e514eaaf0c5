"""Loads: one after the other, bounded, and remembered."""

from __future__ import annotations

import threading

import pytest
from fastapi import HTTPException

from imgsearch.ingestion import IngestReport
from imgsearch.server import jobs
from imgsearch.server.jobs import Jobs


@pytest.fixture
def running(monkeypatch):
    """Jobs whose ingests wait for an event."""
    may_go, order = threading.Event(), []

    def ingest(folder, collection, *, progress, stop, **_):
        order.append(folder)
        progress(IngestReport(collection, str(folder), ""))
        assert may_go.wait(30)
        if folder == "broken":
            raise RuntimeError("broken")
        return IngestReport(collection, str(folder), "", state="done")

    monkeypatch.setattr(jobs, "ingest", ingest)
    kept = Jobs(lambda collection: {})
    kept.may_go, kept.order = may_go, order
    yield kept
    may_go.set()
    kept.close()


def test_loads_run_one_after_the_other_in_their_order(running):
    started = [running.start("c", folder) for folder in ("a", "broken", "b")]
    running.may_go.set()
    for job in started:
        job.future.result(30)
    assert running.order == ["a", "broken", "b"]
    assert [job.state for job in started] == ["done", "failed", "done"]
    assert running.all() == started[::-1]


def test_a_load_that_waits_is_stopped_before_it_begins(running):
    first, second = running.start("c", "a"), running.start("c", "b")
    running.stop(second)
    assert second.ended
    running.may_go.set()
    second.future.result(30)
    assert (first.state, second.state) == ("done", "stopped")
    assert running.order == ["a"]


def test_too_many_loads_are_refused(running):
    for _ in range(jobs.WAITING + 1):
        running.start("c", "a")
    with pytest.raises(HTTPException) as caught:
        running.start("c", "a")
    assert caught.value.status_code == 503


def test_old_loads_are_forgotten(running, monkeypatch):
    monkeypatch.setattr(jobs, "REMEMBERED", 2)
    running.may_go.set()
    for _ in range(5):
        running.start("c", "a").future.result(30)
    assert [job.id for job in running.all()] == [5, 4, 3]
