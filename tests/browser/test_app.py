"""The search notebook as a web page, as `make app` serves it."""

from __future__ import annotations

import json
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, build_opener

import pytest

from tests.browser.conftest import PHOTOS, TOKEN
from tests.conftest import ROOT


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def _status(url: str) -> int:
    try:
        with build_opener(_Stay).open(url, timeout=60) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def test_a_visitor_uploads_and_goes_on(app, home, new_page):
    page = new_page()
    page.goto(f"{app.url}?token={TOKEN}")
    page.locator(".imgsearch-tile img").first.wait_for()
    assert "papermill" not in page.inner_text("body")
    assert "import" not in page.inner_text("body")
    assert page.get_by_role("textbox", name="Path of an image").count() == 0

    page.locator("input[type=file]").set_input_files(PHOTOS[3])
    page.locator("h2", has_text=f"Similar to {PHOTOS[3].name}").wait_for()
    names = page.locator(".imgsearch-main .imgsearch-name").all_text_contents()
    assert PHOTOS[3].name not in names
    page.get_by_role("button", name="Rank 2, score 0.").click()
    page.locator("h2", has_text=f"Similar to {names[1]}").wait_for()
    assert str(home.parent) not in page.content()

    page.locator("input[type=file]").set_input_files(
        {"name": "bad.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n"}
    )
    page.get_by_role("alert").filter(has_text="bad.png: ").wait_for()


@pytest.mark.parametrize(
    "path",
    [
        "voila/files/private.jpg",
        "voila/files/search.ipynb",
        "voila/files/../notebooks/private.jpg",
        "voila/files/%2e%2e/log",
        "private.jpg",
        "voila/render/admin.ipynb",
        "voila/tree",
        "api/contents/",
        "admin.ipynb",
    ],
)
@pytest.mark.parametrize("token", ["", f"?token={TOKEN}"], ids=["stranger", "visitor"])
def test_no_file_and_no_other_notebook_is_served(app, path, token):
    status = _status(f"{app.url}{path}{token}")
    if status == 302:  # to the login, or to voila/files, which refuses
        status = _status(f"{app.url}voila/files/{path}")
    assert status in (403, 404)


def test_a_stranger_without_the_token_sees_nothing(app):
    assert _status(app.url) == 302
    assert _status(f"{app.url}?token=guess") == 302
    assert _status(f"{app.url}api/kernels/00000000-0000-0000-0000-000000000000") == 403


def test_the_page_loads_nothing_from_other_hosts(app, new_page):
    page = new_page()
    answer = page.goto(f"{app.url}?token={TOKEN}")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "*" not in policy
    assert "http" not in policy


def test_the_servers_listen_on_loopback_with_a_token():
    voila = json.loads((ROOT / "jupyter" / "voila.json").read_text())
    assert voila["Voila"]["ip"] == "127.0.0.1"
    assert voila["Voila"]["auto_token"] is True
    lab = json.loads((ROOT / "jupyter" / "jupyter_server_config.json").read_text())
    assert lab["ServerApp"]["ip"] == "127.0.0.1"
