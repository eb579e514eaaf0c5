"""Metrics for Prometheus, and logs as lines of JSON that hold neither queries nor secrets."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

log = logging.getLogger("imgsearch.server")


class Metrics:
    """What ``/metrics`` shows."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "imgsearch_requests", "Requests", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "imgsearch_request_seconds", "Time to answer a request", ["route"], registry=registry
        )
        self.queue = Gauge("imgsearch_queue_length", "Requests in work", registry=registry)
        self.batches = Histogram(
            "imgsearch_batch_queries",
            "Queries that were searched together",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )


class JsonLines(logging.Formatter):
    """One JSON object a record; what was passed as ``extra={"facts": {...}}`` is part of it."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            facts["error"] = self.formatException(record.exc_info)
        return json.dumps(facts)
