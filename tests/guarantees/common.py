"""What the robustness tests share: ingests in other processes, and what must hold after each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgsearch.config import Settings
from imgsearch.gallery import Gallery
from imgsearch.maintenance import repair, verify
from imgsearch.stores import locks

soak = pytest.mark.soak

INGEST = """
from imgsearch.ingestion import ingest
from imgsearch.encoders import load_encoder
encoder = load_encoder(arguments["encoder"])
report(begins=True)
done = ingest(
    arguments["folder"], arguments.get("collection", "kept"), encoder=encoder, batch_size=4,
    workers=1, prune=arguments.get("prune", False),
    progress=lambda r: report(
        run_id=r.run_id, stored=r.encoded + r.linked, unchanged=r.unchanged
    ),
)
report(ingested=done.to_dict())
"""


def rounds(name: str, quick: int, long: int) -> list:
    """Parametrize a test: ``quick`` rounds in `make test`, ``long`` in `make soak`.

    ``IMGSEARCH_SOAK_<name>`` sets another number for `make soak`; 0 quick rounds leave `make
    test` out.
    """
    counts = [pytest.param(quick, id="quick")] if quick else []
    long = int(os.environ.get(f"IMGSEARCH_SOAK_{name}", long))
    return [*counts, pytest.param(long, id="soak", marks=[soak])]


def environment(settings: Settings) -> dict[str, str]:
    """Return settings as environment variables for another process."""
    env = {"IMGSEARCH_HOME": str(settings.imgsearch_home), "IMGSEARCH_BACKEND": "eager"}
    for name, value in settings.model_dump(exclude_unset=True).items():
        if value is not None:
            secret = getattr(value, "get_secret_value", None)
            env[name.upper()] = secret() if secret else str(value)
    return env


def server_pid(home: Path) -> int:
    """Return the process id of the embedded server of a home."""
    return json.loads((home / locks.FOLDER / "server.json").read_text())["pid"]


def freeze(pid: int) -> None:
    """Stop a process, and wait until each of its threads has stopped."""
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 60
    while set(_states(pid)) != {"T"}:
        assert time.monotonic() < until, f"process {pid} does not stop"
        time.sleep(0.001)


def _states(pid: int) -> Iterator[str]:
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended
            yield stat.read_text().rpartition(")")[2].split()[0]


def end_server(home: Path) -> None:
    """Kill the server, so that it writes nothing more, and wait until its locks are free."""
    try:
        os.kill(server_pid(home), signal.SIGKILL)
    except (OSError, ValueError):
        return
    lock = locks.FileLock(home / locks.FOLDER / "server.lock")
    try:
        assert lock.wait(30)
    finally:
        lock.close()


def searchable_paths(gallery: Gallery) -> set[str]:
    """Return the paths of all ready images, after searching for each by its own vector."""
    ids, vectors = gallery.embeddings()
    found = set()
    for start in range(0, len(ids), 500):
        hits_of = gallery.vectors.search(gallery.name, vectors[start : start + 500], 3)
        queries = zip(ids[start : start + 500], hits_of, strict=True)
        found |= {i for i, (hits, scores) in queries if i in hits[scores > 0.9999]}
    for image_id, vector in list(zip(ids, vectors, strict=True))[:: max(1, len(ids) // 20)]:
        hits = gallery.search(vector, 3)
        assert image_id in {hit.image_id for hit in hits if hit.score > 0.9999}
    rows = gallery.metadata.browse(gallery.name, limit=1_000_000)
    missed = [row.path for row in rows if row.image_id not in found]
    assert not missed, f"ready, but a search does not find them: {missed}"
    return {row.path for row in rows}


def assert_consistent(gallery: Gallery, paths: set[str] | None = None) -> int:
    """Check that both stores hold the same, once each, and that `verify` confirms it.

    With ``paths``, the files are verified too, and exactly these must be stored. Returns how many
    deleted vectors a server has brought back, as Milvus 2.3.5 sometimes does; they are removed.
    """
    back = 0
    while True:
        account = verify(gallery, files=paths is not None)
        ids = gallery.metadata.ids(gallery.name).tolist()
        stored = gallery.vectors.ids(gallery.name).tolist()
        extra = {*account.orphan_vectors, *stored} - set(ids)
        if gallery.settings.embedded_vectors or not extra:
            break
        back += len(extra)
        assert back <= 5, f"too many for the server's fault: {extra}"
        repair(gallery.name, remove_orphans=True, settings=gallery.settings)
    assert account.sound, str(account)
    assert stored == ids
    assert gallery.vectors.count(gallery.name) == len(ids)
    if paths is not None:
        rows = gallery.metadata.browse(gallery.name, limit=1_000_000)
        assert {row.path for row in rows} == paths
        assert len(rows) == len(paths)
    return back
