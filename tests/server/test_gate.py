"""Errors nobody expected are answers too, and every request is observed."""

from __future__ import annotations

import logging
import time

import pytest


def test_an_unexpected_error_is_status_500_without_its_text(start, monkeypatch, caplog):
    running = start(origins=("http://named.example",))
    monkeypatch.setattr(running.service, "find", lambda *_, **__: 1 / 0)
    answer = running.admin.get(
        "/data", params={"image_path": "secret-path"}, headers={"Origin": "http://named.example"}
    )
    assert answer.status_code == 500
    assert answer.json() == {"detail": "The server failed; its log holds the details."}
    assert answer.headers["access-control-allow-origin"] == "http://named.example"
    assert "ZeroDivisionError" in caplog.text
    assert running.admin.get("/healthz").status_code == 200


@pytest.mark.parametrize("client", ["visitor", "stranger"])
def test_requests_are_counted_and_logged_without_secrets(server, photos, caplog, client):
    caplog.set_level(logging.INFO, "imgsearch.server")
    picture = {"image": ("my-holiday.png", (photos / "00.png").read_bytes())}
    address = "/img/search?token=a-wrong-token&table_name=served"
    getattr(server, client).post(address, files=picture)
    until = time.monotonic() + 30
    while not caplog.records:  # it is written after the answer
        assert time.monotonic() < until
        time.sleep(0.01)
    (record,) = caplog.records
    assert record.facts["method"] == "POST"
    assert record.facts["status"] in (200, 401)
    assert "token" not in str(record.facts)
    assert "holiday" not in str(record.facts)
