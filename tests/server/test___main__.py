"""The server as a process: options, the printed addresses, and kill -9 in a load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from imgsearch.gallery import Gallery
from imgsearch.server.__main__ import _options, _parser, main
from imgsearch.server.security import visitor_token
from tests.conftest import ROOT
from tests.guarantees.common import assert_consistent, environment
from tests.helpers import paint
from tests.server.conftest import TOKEN

ADDRESS = re.compile(r"(http://\S+?/)\?token=(\S+)")


class Process:
    """A server in a process of its own."""

    def __init__(self, log: Path, settings, *arguments: str):
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "imgsearch.server", "--port", "0", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                **environment(settings),
                "IMGSEARCH_TOKEN": TOKEN,
                "PYTHONPATH": str(ROOT),
            },
            stdout=subprocess.PIPE,
            stderr=log.open("a"),
            text=True,
        )
        self.printed = self._process.stdout.readline()
        self.printed += self._process.stdout.readline()
        self.url, token = ADDRESS.search(self.printed).groups()
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def end(self, number: int = signal.SIGTERM) -> str:
        self.client.close()
        self._process.send_signal(number)
        self._process.communicate(timeout=60)
        return self._log.read_text()


def ready(process: Process) -> None:
    until = time.monotonic() + 60
    while process.client.get("/readyz").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.05)


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
    ],
)
def test_options_that_cannot_be_used_are_refused(arguments, why):
    with pytest.raises(SystemExit, match=why):
        main(arguments)


def test_nothing_is_lost_when_the_server_is_killed_in_a_load(stored, tmp_path, collection):
    folder = tmp_path / "many"
    for number in range(300):
        paint(folder / f"{number}.png", number, size=(32, 24))
    arguments = ["--root", str(tmp_path), "--collection", collection, "--rate", "0"]
    process = Process(tmp_path / "log", stored, *arguments)
    assert process.url.startswith("http://127.0.0.1:")
    assert f"?token={visitor_token(TOKEN)}" in process.printed
    ready(process)
    number = process.client.post("/api/v1/ingests", json={"folder": str(folder)}).json()["id"]
    until = time.monotonic() + 60
    while (told := process.client.get(f"/api/v1/ingests/{number}").json())["encoded"] < 64:
        assert told["state"] in ("queued", "running"), told
        assert time.monotonic() < until
        time.sleep(0.01)
    process.end(signal.SIGKILL)
    process = Process(tmp_path / "log", stored, *arguments)
    ready(process)
    count = process.client.post("/img/count").json()
    assert told["encoded"] <= count <= 300, "acknowledged, but not there"
    assert process.client.post("/img/load", json={"File": str(folder)}).status_code == 200
    assert process.client.post("/img/count").json() == 300
    log = process.end()
    assert TOKEN not in log
    assert '"event": "request"' in log
    with Gallery.open(collection, settings=stored) as gallery:
        assert_consistent(gallery, {str(path) for path in Path(folder).iterdir()})
