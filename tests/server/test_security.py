"""Tokens, scopes, hosts, origins; what strangers and other sites may not do."""

from __future__ import annotations

import pytest

from imgsearch.server.security import is_loopback, visitor_token
from tests.server.conftest import TOKEN


@pytest.mark.parametrize(
    "path",
    ["/api/v1", "/api/v1/collections", "/progress", "/metrics", "/indices-list", "/openapi.json",
     "/data?image_path=x", "/none"],
)  # fmt: skip
def test_a_token_is_needed(server, path):
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = server.stranger.get(path, headers=headers)
        assert answer.status_code == 401
        assert "token" in answer.json()["detail"]
    assert server.admin.get(path).status_code != 401
    assert server.visitor.get(path).status_code != 401


def test_a_wrong_token_is_told_from_a_missing_one(server):
    for given in ({"headers": {"Authorization": "Bearer x"}}, {"params": {"token": "x"}}):
        answer = server.stranger.get("/api/v1", **given)
        assert answer.json()["detail"].startswith("This is not a token of the server.")
    assert server.stranger.get("/api/v1").json()["detail"].startswith("A token is needed.")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_none(server, path):
    assert server.stranger.get(path).status_code == 200


def test_the_page_keeps_the_token_in_a_cookie_and_out_of_the_address(server):
    from httpx import Client

    with Client(base_url=server.url) as browser:
        assert browser.get("/").status_code == 401
        assert browser.get("/?token=wrong").status_code == 401
        answer = browser.get(f"/?collection=served&token={TOKEN}&q=1")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/?collection=served&q=1"
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert browser.get("/").status_code == 200
        assert browser.get("/api/v1").json()["scope"] == "admin"
        token = visitor_token(TOKEN)
        browser.get(f"/?token={token}")
        assert browser.get("/api/v1").json()["scope"] == "visitor"


@pytest.mark.parametrize("host", ["localhost", "[::1]", "[::1]:5000", "localhost:x"])
def test_every_host_name_gives_a_cookie(server, host):
    """An IPv6 address without a port was an error of the server."""
    answer = server.stranger.get("/", params={"token": TOKEN}, headers={"Host": host})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].partition(";")[0]
    headers = {"Host": host, "Cookie": cookie}
    assert server.stranger.get("/api/v1", headers=headers).status_code == 200
    server.stranger.cookies.clear()


def test_a_visitor_reads_and_changes_nothing(server):
    about = server.visitor.get("/api/v1").json()
    assert (about["scope"], about["roots"]) == ("visitor", [])
    assert server.visitor.delete("/api/v1/collections/served").status_code == 403
    assert server.visitor.post("/api/v1/ingests", json={"folder": "/"}).status_code == 403
    assert server.visitor.get("/api/v1/ingests").status_code == 403
    upload = server.visitor.post("/api/v1/collections/served/images", files={"image": b"x"})
    assert upload.status_code == 403


def test_a_visitor_sees_no_path(server, photos):
    for path in ("/api/v1/collections/served/images", "/api/v1/collections/none/images"):
        assert str(photos) not in server.visitor.get(path).text
    assert str(photos) in server.admin.get("/api/v1/collections/served/images").text


def test_the_name_of_the_host_is_checked(start):
    running = start(hosts=("photos.example",))
    for host in ("localhost", "127.0.0.1:80", "[::1]:5000", "10.1.2.3", "photos.example"):
        assert running.admin.get("/api/v1", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "", "[", "127.0.0.1.evil.example"):
        assert running.admin.get("/api/v1", headers={"Host": host}).status_code == 400, host


def test_other_sites_cannot_send_requests_that_change_something(start):
    running = start(token="")
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        headers = {"Origin": origin}
        assert running.stranger.post("/img/drop", headers=headers).status_code == 403
        answer = running.stranger.get("/api/v1", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
    own = {"Origin": running.url}
    assert running.stranger.post("/img/count", headers=own).json() == 20


def test_cors_is_for_the_sites_that_are_named(start):
    running = start(token="", origins=("http://127.0.0.1:8001",))
    named, other = {"Origin": "http://127.0.0.1:8001"}, {"Origin": "http://evil.example"}
    allowed = "access-control-allow-origin"
    answer = running.stranger.post("/img/count", headers=named)
    assert answer.headers[allowed] == named["Origin"]
    # Errors, too: without these headers a client sees a network error and no status.
    for answer in (
        running.stranger.post("/img/search", headers=named),
        running.stranger.post("/img/load", json={"File": "/etc"}, headers=named),
        running.stranger.get("/data", params={"image_path": "x"}, headers=named),
    ):
        assert answer.status_code >= 400
        assert answer.headers[allowed] == named["Origin"]
    assert allowed not in running.stranger.post("/img/count", headers=other).headers
    asked = {"Access-Control-Request-Method": "POST", **named}
    assert running.stranger.options("/img/load", headers=asked).status_code == 200


def test_without_a_token_everybody_is_an_administrator(start):
    running = start(token="")
    assert running.stranger.get("/api/v1").json()["scope"] == "admin"
    assert running.stranger.get("/").status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("example.org", False)],
)  # fmt: skip
def test_loopback_is_recognised(host, loopback):
    assert is_loopback(host) is loopback


def test_answers_carry_the_headers_that_confine_a_page(server):
    for client, path in ((server.admin, "/"), (server.stranger, "/none"), (server.admin, "/x")):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
