"""Addresses are fetched from the Internet only: never from this machine or its network."""

from __future__ import annotations

import http.server
import socket
import threading

import pytest

from imgsearch.errors import ImageError
from imgsearch.server import fetching
from imgsearch.server.fetching import fetch, is_public

PRIVATE = [
    "127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1", "255.255.255.255", "::1", "::",
    "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_recognised(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111"])
def test_public_addresses_are_recognised(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/x.png", "http://localhost/x.png", "http://[::1]/x.png", "http://0/x.png",
     "http://2130706433/x.png", "http://0x7f.1/x.png", "file:///etc/hostname", "ftp://1.1.1.1/x",
     "http://user:pass@1.1.1.1/", "http:///x", "x.png", "", "http://[", "http://a\u0000b/",
     "http://\udcff/", "http://1.1.1.1:99999/"],
)  # fmt: skip
def test_other_addresses_are_refused(url):
    with pytest.raises(ImageError):
        fetch(url)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a picture, and redirects to where the path says."""

    def do_GET(self):
        self.server.seen.append((self.headers["Host"], self.path))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/large":
            self.send_response(200)
            self.end_headers()
            for _ in range(8):
                self.wfile.write(b"x" * 1000)
        else:
            self.send_response(200 if self.path == "/x.png" else 404)
            self.end_headers()
            self.wfile.write(b"content")

    def log_message(self, *_):
        pass


@pytest.fixture
def internet(monkeypatch):
    """A server that stands for public ones: names that end in ``.example`` lead to it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real = socket.create_connection
    asked = []

    def look_up(host, port, **_):
        asked.append(host)
        address = "93.184.216.34" if host.endswith(".example") else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def connect(address, timeout):
        assert is_public(address[0]), "connected to an address that was not checked"
        return real(("127.0.0.1", server.server_port), timeout)

    monkeypatch.setattr(fetching, "getaddrinfo", look_up)
    monkeypatch.setattr(fetching, "create_connection", connect)
    server.asked = asked
    yield server
    server.shutdown()
    server.server_close()


def test_a_name_is_looked_up_once_and_the_checked_address_is_connected_to(internet):
    assert fetch("http://photos.example/x.png") == b"content"
    assert internet.asked == ["photos.example"]
    assert internet.seen == [("photos.example", "/x.png")]


def test_characters_that_an_address_cannot_hold_are_encoded(internet):
    for path in ("/Köln 1%2F2.png?a=ß&b=[1]", "/a?b=http://c/d+e;f=(g)"):
        with pytest.raises(ImageError, match="status 404"):
            fetch(f"http://photos.example{path}")
    paths = [path for _, path in internet.seen]
    assert paths == ["/K%C3%B6ln%201%2F2.png?a=%C3%9F&b=[1]", "/a?b=http://c/d+e;f=(g)"]


def test_redirects_are_followed_and_each_is_checked(internet):
    assert fetch("http://a.example/to/http://b.example/x.png") == b"content"
    assert fetch("http://a.example/to//x.png") == b"content"
    for target in ("http://127.0.0.1/x.png", "http://169.254.169.254/", "file:///etc/passwd"):
        with pytest.raises(ImageError):
            fetch(f"http://a.example/to/{target}")
    assert not [seen for seen in internet.seen if "169.254" in seen[0]]


def test_endless_redirects_large_answers_and_errors_end(internet, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_BODY", 5000)
    with pytest.raises(ImageError, match="too large"):
        fetch("http://a.example/large")
    with pytest.raises(ImageError, match="status 404"):
        fetch("http://a.example/none")
    monkeypatch.setattr(Handler, "do_GET", lambda self: (
        self.send_response(302), self.send_header("Location", "/again"), self.end_headers()
    ))  # fmt: skip
    with pytest.raises(ImageError, match="redirects"):
        fetch("http://a.example/again")


def test_a_picture_is_uploaded_by_its_address_where_that_is_allowed(
    internet, start, photos, collection, monkeypatch
):
    content = (photos / "00.png").read_bytes()
    running = start(fetch_urls=True, collection=collection)
    monkeypatch.setattr("imgsearch.server.service.fetch", lambda url: content)
    answer = running.admin.post("/img/upload", params={"url": "http://a.example/../x.png"})
    assert answer.json().startswith("Successfully loaded data: ")
    assert running.admin.post("/img/count").json() == 1
