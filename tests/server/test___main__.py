"""The server as a process: options, the printed addresses, and kill -9 in a load."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgsearch.gallery import Gallery
from imgsearch.server.__main__ import _options, _parser, main
from imgsearch.server.security import visitor_token
from tests.guarantees.common import assert_consistent
from tests.helpers import paint
from tests.server.conftest import TOKEN, Process


@pytest.fixture
def launch(stored, tmp_path) -> Iterator[Callable[..., Process]]:
    """Start servers in processes of their own, which end with the test."""
    started = []

    def run(*arguments: str) -> Process:
        started.append(Process(tmp_path / "log", stored, *arguments))
        started[-1].wait_until_ready()
        return started[-1]

    yield run
    for process in started:
        process.end(signal.SIGKILL)


def test_each_start_makes_a_new_token_if_none_is_given():
    tokens = {_options(_parser().parse_args([])).token for _ in range(2)}
    assert len(tokens) == 2
    assert min(map(len, tokens)) > 30
    assert _options(_parser().parse_args(["--token", "mine"])).token == "mine"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--no-auth", "--host", "0.0.0.0"], "loopback only"),
        (["--collection", "a b"], "not a valid collection name"),
        (["--root", ""], "empty"),
        (["--root", "/no/such"], "/no/such is not a folder"),
        (["--rate", "-1"], "--rate: is -1"),
        (["--port", "70000"], r"Cannot listen on 127.0.0.1, port 70000 .*choose another"),
        (["--host", "203.0.113.1", "--port", "0"], r"Cannot listen on 203.0.113.1, port 0 \("),
    ],
)
def test_options_that_cannot_be_used_are_refused(arguments, why):
    with pytest.raises(SystemExit, match=why):
        main(arguments)


def test_nothing_is_lost_when_the_server_is_killed_in_a_load(launch, stored, tmp_path, collection):
    folder = tmp_path / "many"
    for number in range(300):
        paint(folder / f"{number}.png", number, size=(32, 24))
    arguments = ["--root", str(tmp_path), "--collection", collection, "--rate", "0"]
    process = launch(*arguments)
    assert process.url.startswith("http://127.0.0.1:")
    assert f"?token={visitor_token(TOKEN)}" in process.printed
    number = process.client.post("/api/v1/ingests", json={"folder": str(folder)}).json()["id"]
    until = time.monotonic() + 60
    while (told := process.client.get(f"/api/v1/ingests/{number}").json())["encoded"] < 64:
        assert told["state"] in ("queued", "running"), told
        assert time.monotonic() < until
        time.sleep(0.01)
    process.end(signal.SIGKILL)
    process = launch(*arguments)
    count = process.client.post("/img/count").json()
    assert told["encoded"] <= count <= 300, "acknowledged, but not there"
    assert process.client.post("/img/load", json={"File": str(folder)}).status_code == 200
    assert process.client.post("/img/count").json() == 300
    log = process.end()
    assert TOKEN not in log
    assert '"event": "request"' in log
    with Gallery.open(collection, settings=stored) as gallery:
        assert_consistent(gallery, {str(path) for path in Path(folder).iterdir()})
