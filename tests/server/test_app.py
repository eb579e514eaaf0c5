"""Health, the page and its files, errors of the stores."""

from __future__ import annotations

import re
from unittest.mock import Mock

import pytest

from imgsearch.errors import StoreBusy, StoreError, StoreUnavailable
from tests.conftest import ROOT


def test_the_page_is_served_with_its_files(server):
    page = server.admin.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    script = server.stranger.get("/static/grid.js")
    assert script.status_code == 200
    again = server.stranger.get(
        "/static/grid.js", headers={"If-None-Match": script.headers["etag"]}
    )
    assert again.status_code == 304


def test_the_scripts_of_the_page_are_small_and_whole(server):
    page = server.admin.get("/").text
    names = set(re.findall(r'"/static/(\w+\.js)"', page))
    sent = {name: server.stranger.get(f"/static/{name}").text for name in names}
    assert {name for text in sent.values() for name in re.findall(r'"\./(.*?)"', text)} <= names
    assert sum(len(text.encode()) for text in sent.values()) <= 60 * 1024
    for folder in ("imgsearch/static", "imgsearch/server/static"):
        for script in (ROOT / folder).glob("*.js"):
            lines = map(str.strip, script.read_text().splitlines())
            code = [line for line in lines if line and not line.startswith("//")]
            assert [line for line in sent[script.name].splitlines() if line] == code


@pytest.mark.parametrize("path", ["/", "/healthz", "/static/grid.js", "/api/v1", "/none"])
def test_head_is_answered_as_get_without_a_body(server, path):
    get, head = server.admin.get(path), server.admin.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/x"])
def test_nothing_but_its_files_is_served(server, path):
    assert server.stranger.get(path).status_code in (401, 404)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_pages_that_load_from_other_hosts_are_off(server, path):
    assert server.admin.get(path).status_code == 404


def test_health_and_readiness(start, collection):
    running = start(collection=collection)
    assert running.stranger.get("/healthz").json() == "ok"
    assert running.stranger.get("/readyz").json() == "ok"
    running.service.problem = "starting"
    answer = running.stranger.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"detail": "starting"})
    assert running.stranger.get("/healthz").status_code == 200


def test_errors_of_a_store_name_it_to_the_administrator_only(start, monkeypatch):
    running = start()
    for error, status in (
        (StoreUnavailable("MySQL root@db", "cannot be reached"), 503),
        (StoreBusy("store /home/me", "process 1", "is being written"), 503),
        (StoreError("store /home/me", "its disk is full"), 500),
    ):
        monkeypatch.setattr(running.service, "gallery", Mock(side_effect=error))
        for client, shown in ((running.admin, True), (running.visitor, False)):
            answer = client.post("/img/count")
            assert answer.status_code == status
            assert (error.reason in answer.text) is shown
            assert ("retry-after" in answer.headers) is (status == 503)


def test_visitors_are_told_what_is_wrong_unless_it_names_a_path(server):
    for where in ({"width": {"<<": "and/or"}}, {"and/or": []}):
        answer = server.visitor.post("/api/v1/collections/served/search", json={"where": where})
        assert "administrator" not in answer.json()["detail"]


def test_visitors_are_referred_to_the_log_only_where_it_has_an_entry(server, caplog):
    body = {"text": "x", "where": {"width": {"/x": 1}}}
    address = "/api/v1/collections/served/search"
    told, hidden = server.admin.post(address, json=body), server.visitor.post(address, json=body)
    assert told.status_code == hidden.status_code == 400
    assert '"/x"' in told.json()["detail"]
    assert hidden.json()["detail"].endswith("only the administrator is told why.")
    assert not [record for record in caplog.records if record.message == "failed"]
