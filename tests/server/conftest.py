"""Real servers on loopback, in threads of the test process, over the embedded store."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from imgsearch.config import Settings, load_settings
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
from imgsearch.server.app import create_app
from imgsearch.server.security import visitor_token
from imgsearch.server.service import Options
from tests.conftest import ROOT
from tests.guarantees.common import environment
from tests.helpers import paint

TOKEN = "a-token-of-the-tests"
BOUND = """
import ctypes, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it dies with its parent
runpy.run_module("imgsearch.server", run_name="__main__")
"""
ODD = ["a&b#c+d%41.png", "日本 x.png", os.fsdecode(b"\xff.png")]
"""Names that break addresses, or are no UTF-8."""


class Running:
    """A server that runs in a thread; `admin`, `visitor` and `stranger` are its clients."""

    def __init__(self, options: Options):
        self.options = options
        self.app = create_app(options)
        config = uvicorn.Config(self.app, port=0, log_config=None, ws="none", lifespan="on")
        self._server = uvicorn.Server(config)
        socket = config.bind_socket()
        socket.listen()
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.run, args=([socket],), daemon=True)
        self._thread.start()
        self.stranger = httpx.Client(base_url=self.url, timeout=60)
        self.admin = self._client(options.token)
        self.visitor = self._client(visitor_token(options.token))
        until = time.monotonic() + 60
        while self.stranger.get("/readyz").status_code != 200:
            assert time.monotonic() < until, self.stranger.get("/readyz").text
            time.sleep(0.02)

    def _client(self, token: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    @property
    def service(self):
        return self.app.state.service

    def close(self) -> None:
        for client in (self.stranger, self.admin, self.visitor):
            client.close()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


class Process:
    """A server in a process of its own, which does not outlive the tests."""

    def __init__(self, log: Path, settings: Settings, *arguments: str):
        self._log = log
        names = {name.upper() for name in Settings.model_fields}
        inherited = {key: value for key, value in os.environ.items() if key not in names}
        own = {"IMGSEARCH_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOUND, "--port", "0", *arguments],
                cwd=ROOT,
                env=inherited | environment(settings) | own,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.printed = self._process.stdout.readline() + self._process.stdout.readline()
        assert self.printed, log.read_text()
        self.url = re.search(r"http://[^?]*", self.printed)[0]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def wait_until_ready(self) -> None:
        until = time.monotonic() + 60
        while self.client.get("/readyz").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.05)

    def end(self, number: int = signal.SIGTERM) -> str:
        """End it, if it still runs, and return its log."""
        self.client.close()
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(60)
        self._process.stdout.close()
        return self._log.read_text()


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Twenty pictures and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(17):
        paint(folder / f"{number:02d}.png", number)
    for number, name in enumerate(ODD):
        paint(folder / name, 100 + number)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return folder


@pytest.fixture(scope="session")
def stored(shared_home, tmp_path_factory, encoder, photos) -> Settings:
    """Settings of a store whose collection ``served`` holds the photos."""
    database = tmp_path_factory.mktemp("metadata") / "metadata.sqlite"
    settings = load_settings(
        imgsearch_home=shared_home,
        imgsearch_backend="eager",
        imgsearch_encoder=encoder.name,
        database_url=f"sqlite:///{database}",
        upload_path=tmp_path_factory.mktemp("uploads"),
        default_table="served",
    )
    assert ingest(photos, settings=settings).encoded == 20
    with Gallery.open(settings=settings) as gallery:
        labels = {photos / f"{n:02d}.png": {"label": ["even", "odd"][n % 2]} for n in range(17)}
        gallery.set_attributes(labels)
    return settings


@pytest.fixture(scope="session")
def server(stored, photos) -> Iterator[Running]:
    """A server with tokens, for tests that change nothing of the collection ``served``."""
    running = Running(Options(stored, TOKEN, "served", roots=(photos.parent,), rate=0))
    yield running
    running.close()


@pytest.fixture
def start(stored) -> Iterator[Callable[..., Running]]:
    """Start another server over the same stores, with other options."""
    started = []

    def begin(**options) -> Running:
        given = {"settings": stored, "token": TOKEN, "collection": "served", "rate": 0} | options
        started.append(Running(Options(**given)))
        return started[-1]

    yield begin
    for running in started:
        running.close()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six pictures of a test's own, and what is none of them."""
    for number in range(6):
        paint(tmp_path / "load" / f"{number}.png", 1000 + number)
    (tmp_path / "load" / "notes.txt").write_text("no picture")
    (tmp_path / "load" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return tmp_path / "load"
