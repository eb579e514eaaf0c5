"""Metrics and logs."""

from __future__ import annotations

import json
import logging

from imgsearch.server.observing import JsonLines


def test_metrics_count_requests_by_route_and_hold_no_id(server, photos):
    found = server.visitor.post("/img/search", files={"image": (photos / "00.png").read_bytes()})
    number = found.json()[0][0]
    server.visitor.get(f"/api/v1/collections/served/images/{number}")
    server.visitor.get("/no/such/route")
    text = server.visitor.get("/metrics").text
    assert 'imgsearch_requests_total{method="POST",route="/img/search",status="200"}' in text
    assert 'route="/api/v1/collections/{name}/images/{image_id}"' in text
    assert 'route="none",status="404"' in text
    assert number not in text
    assert "imgsearch_batch_queries_bucket" in text
    assert "imgsearch_queue_length 0.0" in text


def test_a_log_record_is_one_line_of_json():
    record = logging.LogRecord("x", logging.INFO, "", 0, "request\n2", None, None)
    record.facts = {"status": 200}
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["status"] == 200
    assert json.loads(line)["event"] == "request\n2"
