"""The web server under load: many clients at once against one, and during a load of pictures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, Options, Result, copies, memory, photographs, watch_server
from imgsearch.server.security import visitor_token

TITLE = "Web server"
CLIENTS = 64
TOKEN = "a-token-of-the-benchmark"
THUMBNAILS = 3  # for each search, as a page that shows results asks for them


@dataclass
class Load:
    """What a number of clients measured."""

    seconds: float
    search: list[float] = field(default_factory=list)
    thumbnail: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return (len(self.search) + len(self.thumbnail)) / self.seconds

    def errors(self) -> int:
        return sum(n for status, n in self.statuses.items() if status not in (200, 503))


class Client:
    """HTTP over one connection, as little of it as is needed: it shares the processors."""

    def __init__(self, port: int, token: str):
        self._port, self._streams = port, None
        self._head = f"HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> tuple:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = f"{method} {path} {self._head}Content-Length: {len(body)}\r\n"
        writer.write((head + (f"Content-Type: {kind}\r\n" if kind else "") + "\r\n").encode())
        writer.write(body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer, re.I)
        content = await reader.readexactly(int(length[1])) if length else b""
        if b"connection: close" in answer.lower():
            writer.close()
            self._streams = None
        return int(answer.split(b" ", 2)[1]), content

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def measure(port: int, clients: int, seconds: float, pictures: list[bytes]) -> Load:
    """Have clients search with pictures and fetch the thumbnails of what is found."""
    load, end = Load(seconds), time.perf_counter() + seconds

    async def visit(number: int) -> None:
        client, turn = Client(port, visitor_token(TOKEN)), number
        try:
            while time.perf_counter() < end:
                body, kind = _form(pictures[turn % len(pictures)])
                found = await timed(load.search, client, "POST", "/img/search", body, kind)
                for image_id, _ in json.loads(found or b"[]")[:THUMBNAILS]:
                    address = f"/api/v1/collections/served/images/{image_id}/thumbnail"
                    await timed(load.thumbnail, client, "GET", address)
                turn += clients
        finally:
            client.close()

    async def timed(times: list[float], client: Client, *request) -> bytes:
        start = time.perf_counter()
        status, content = await client.ask(*request)
        times.append(time.perf_counter() - start)
        load.statuses[status] = load.statuses.get(status, 0) + 1
        return content if status == 200 else b""

    await asyncio.gather(*(visit(number) for number in range(clients)))
    return load


def _form(picture: bytes) -> tuple[bytes, str]:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return head + picture + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def run(options: Options, result: Result) -> None:
    from imgsearch.config import load_settings
    from imgsearch.ingestion import ingest

    photos = photographs(options.photos)
    seconds = 5 if options.quick else 20
    home = options.work / "home"
    settings = load_settings(imgsearch_home=home, imgsearch_encoder="mini")
    ingest(copies(photos, options.work / "served", 1000), "served", settings=settings)
    more = copies(photos[::-1], options.work / "more", 400 if options.quick else 2000)
    pictures = [path.read_bytes() for path in photos[:200]]
    process, port = start(home, options.work)
    watch_server(process.pid)
    try:
        asyncio.run(measure(port, 8, 10, pictures))  # until a faster backend is loaded
        one = asyncio.run(measure(port, 1, seconds, pictures))
        many = asyncio.run(measure(port, CLIENTS, seconds, pictures))
        result.add("one client: requests a second", one.rate, "/s")
        result.add(f"{CLIENTS} clients: requests a second", many.rate, "/s")
        result.add(f"{CLIENTS} clients to one", many.rate / one.rate, "×", least=3)
        before = memory(process.pid)
        asyncio.run(_start_ingest(port, more))
        loaded = asyncio.run(measure(port, CLIENTS, 3 * seconds, pictures))
        after = memory(process.pid)
        state = asyncio.run(_ingest(port))
        p95 = {name: np.quantile(getattr(loaded, name), 0.95) for name in ("search", "thumbnail")}
        during = f"{CLIENTS} clients during a load"
        result.add(f"{during}: requests a second", loaded.rate, "/s")
        result.add(f"{during}: 95 % of the searches within", float(p95["search"]), "s")
        result.add(f"{during}: 95 % of the thumbnails within", float(p95["thumbnail"]), "s")
        errors = sum(load.errors() for load in (one, many, loaded))
        result.add("answers other than 200 and 503", errors, most=0)
        result.add("answers with status 503", loaded.statuses.get(503, 0))
        result.add("memory of the server after that", after - before, "MiB more", most=300)
        result.note(f"The load of {len(list(more.iterdir()))} pictures: {state}.")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def start(home: Path, root: Path) -> tuple[subprocess.Popen, int]:
    environment = {**os.environ, "IMGSEARCH_HOME": str(home), "DEFAULT_TABLE": "served"}
    environment["IMGSEARCH_ENCODER"] = "mini"
    command = [sys.executable, "-m", "imgsearch.server", "--token", TOKEN, "--port", "0"]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--rate", "0", "--root", str(root)], cwd=ROOT, env=environment, stderr=log,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
    while asyncio.run(Client(port, TOKEN).ask("GET", "/readyz"))[0] != 200:
        time.sleep(0.1)
    return process, port


async def _start_ingest(port: int, folder: Path) -> None:
    body = json.dumps({"folder": str(folder), "collection": "loaded"}).encode()
    status, _ = await Client(port, TOKEN).ask("POST", "/api/v1/ingests", body, "application/json")
    assert status == 202


async def _ingest(port: int) -> str:
    _, content = await Client(port, TOKEN).ask("GET", "/api/v1/ingests/1")
    told = json.loads(content)
    return f"{told['state']}, {told['done']} of {told['total']} in {told['seconds']:.0f} s"
