"""What the proofs share: children that can be killed, and whether a collection holds."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgsearch.config import Settings
from imgsearch.gallery import Gallery
from imgsearch.maintenance import verify
from imgsearch.stores import embedded

ROOT = Path(__file__).resolve().parents[2]

# Imports torch and Towhee once; then every line of orders is obeyed by a fork, whose number is
# answered, so that a round costs no second start. No thread runs yet when it forks.
_NURSERY = """
import json, os, signal, sys, threading, time
import torch, towhee, pymilvus
import imgsearch.encoders, imgsearch.ingest, imgsearch.maintenance, imgsearch.stores.embedded
torch.set_num_threads(1)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    sys.stdin.close()
    said = open(order["said"], "w", buffering=1)
    os.dup2(said.fileno(), 1); os.dup2(said.fileno(), 2)
    os.environ.update(order["env"])
    def tell(**facts): said.write(json.dumps(facts) + "\\n")
    try:
        exec(order["code"], {"tell": tell, "order": order})
        tell(end="done")
    except BaseException as error:
        tell(end=type(error).__name__, text=str(error))
    finally:
        os._exit(0)
"""

INGEST = """
from imgsearch.ingest import ingest
from imgsearch.encoders import load_encoder
encoder = load_encoder("resnet18", weights="random:0", backend="eager")
tell(begins=True)
report = ingest(
    order["folder"], order.get("collection", "kept"), encoder=encoder, batch_size=4, workers=1,
    prune=order.get("prune", False),
    progress=lambda r: tell(run_id=r.run_id, stored=r.encoded + r.linked, unchanged=r.unchanged),
)
tell(report=report.to_dict())
"""


class Child:
    """A process of the nursery."""

    def __init__(self, pid: int, said: Path):
        self.pid, self._said = pid, said

    @property
    def said(self) -> list[dict]:
        lines = self._said.read_text().splitlines() if self._said.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def facts(self, name: str) -> list:
        return [line[name] for line in self.said if name in line]

    @property
    def alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def wait_for(self, name: str, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not self.facts(name):
            if not self.alive or time.monotonic() > until:
                raise AssertionError(f"it never said {name!r}: {self._said.read_text()[-2000:]}")
            time.sleep(0.01)

    def wait(self, seconds: float = 170) -> dict:
        """Its last words; fails where it hangs."""
        until = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > until:
                self.kill()
                raise AssertionError(f"it hangs: {self._said.read_text()[-2000:]}")
            time.sleep(0.02)
        return self.said[-1] if self.said else {}

    def kill(self, number: int = signal.SIGKILL) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return
        while number == signal.SIGKILL and self.alive:
            time.sleep(0.005)


class Nursery:
    """Makes children that run a piece of code, quickly."""

    def __init__(self, folder: Path):
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _NURSERY],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "IMGSEARCH_BACKEND": "eager"},
        )
        assert self._process.stdout.readline() == "ready\n"

    def child(self, code: str, env: dict[str, str], **order: object) -> Child:
        self._count += 1
        said = self._folder / f"child-{self._count}"
        order |= {"code": code, "env": env, "said": str(said)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], 60)
        assert ready, "the nursery hangs"
        return Child(int(self._process.stdout.readline()), said)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def environment(settings: Settings) -> dict[str, str]:
    """Settings as a child's environment."""
    env = {"IMGSEARCH_HOME": str(settings.imgsearch_home), "IMGSEARCH_BACKEND": "eager"}
    for name, value in settings.model_dump(exclude_unset=True).items():
        if value is not None:
            secret = getattr(value, "get_secret_value", None)
            env[name.upper()] = secret() if secret else str(value)
    return env


def server_pid(home: Path) -> int:
    return json.loads((home / embedded.FOLDER / "server.json").read_text())["pid"]


def until_gone(home: Path, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while (home / embedded.FOLDER / "server.json").exists():
        assert time.monotonic() < until, "the server did not leave"
        time.sleep(0.05)


@contextmanager
def opened(name: str, settings: Settings) -> Iterator[Gallery]:
    with Gallery.open(name, settings=settings) as gallery:
        yield gallery


def all_found(gallery: Gallery) -> set[str]:
    """Paths of everything that is ready, each of which a search for its own vector found."""
    found, vectors = set(), dict(zip(*gallery.embeddings(), strict=True))
    for row in gallery.metadata.browse(gallery.name, limit=1_000_000):
        hits = gallery.search(vectors[row.image_id], 3)
        best = {h.image_id for h in hits if h.score > 0.9999}
        assert row.image_id in best, f"{row.path} is ready, and a search does not find it"
        found.add(row.path)
    return found


def agree(gallery: Gallery, paths: set[str] | None = None) -> None:
    """The stores hold the same, once each, and `verify` says so."""
    account = verify(gallery, files=paths is not None)
    assert account.sound, str(account)
    ids = gallery.metadata.ids(gallery.name)
    assert gallery.vectors.ids(gallery.name).tolist() == ids.tolist()
    assert gallery.vectors.count(gallery.name) == len(ids)
    if paths is not None:
        rows = gallery.metadata.browse(gallery.name, limit=1_000_000)
        assert {row.path for row in rows} == paths
        assert len(rows) == len(paths)
