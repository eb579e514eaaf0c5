"""Memory, open files and threads of long work stay where they are."""

from __future__ import annotations

import os

import pytest

from imgsearch.config import load_settings
from tests.guarantees.common import environment, soak

_MEASURE = """
import ctypes, gc, os
from pathlib import Path
trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
def measure(at):
    gc.collect()
    trim(0)  # what is free is no leak
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    facts = dict(at=at, mb=round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
                 files=len(os.listdir("/proc/self/fd")), threads=len(os.listdir("/proc/self/task")))
    report(sample=facts)
"""

INGEST = (
    _MEASURE
    + """
import numpy as np
from PIL import Image
from imgsearch.config import load_settings
from imgsearch.ingestion import ingest
folder = Path(arguments["folder"]); folder.mkdir()
rng = np.random.default_rng(0)
for i in range(arguments["count"]):
    picture = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    picture.save(folder / f"{i:06d}.png", compress_level=0)
last = [0]
def watch(state):
    if state.done - last[0] >= arguments["each"]:
        last[0] = state.done
        measure(state.done)
report(ingested=ingest(folder, "kept", encoder="mini", progress=watch).to_dict())
"""
)

SEARCH = (
    _MEASURE
    + """
from imgsearch.gallery import Gallery
with Gallery.open("kept") as gallery:
    paths = [row.path for row in gallery.metadata.browse("kept", limit=100)]
    for i in range(1, arguments["count"] + 1):
        if i % 10 == 0:
            hits = gallery.search(paths[i % len(paths)], 10)  # a file, through the encoder
        else:
            hits = gallery.search(gallery.get(paths[i % len(paths)]), 10)
        assert hits[0].path == paths[i % len(paths)]
        if i % arguments["each"] == 0:
            measure(i)
"""
)


def assert_flat(samples: list[dict], stretch: int, slack: float) -> str:
    """Check that nothing grows after the first stretch by more than a tenth or ``slack`` MB.

    The least of each stretch counts: more than that is work under way, a batch in the network or
    a message being sent, which differs from one moment to the next.
    """
    stretches: dict[int, list[dict]] = {}
    for sample in samples:
        stretches.setdefault(sample["at"] // stretch, []).append(sample)
    del stretches[0]
    whole = [of_stretch for _, of_stretch in sorted(stretches.items()) if len(of_stretch) > 1]
    least = [min(sample["mb"] for sample in of_stretch) for of_stretch in whole]
    assert len(least) >= 2
    assert max(least) <= max(least[0] * 1.1, least[0] + slack), least
    first = whole[0][0]
    assert max(s["files"] for s in samples) <= first["files"] + 8
    assert max(s["threads"] for s in samples) <= first["threads"] + 8
    return (
        f"{least[0]:.0f} MB after {stretch:,}, then {min(least):.0f} to {max(least):.0f}; "
        f"{first['files']} open files, {first['threads']} threads"
    )


@pytest.mark.parametrize(
    ("images", "searches", "stretch", "each", "slack"),
    [
        pytest.param(192, 200, 64, 16, 150, id="quick"),
        pytest.param(
            int(os.environ.get("IMGSEARCH_SOAK_IMAGES", 10_000)),
            int(os.environ.get("IMGSEARCH_SOAK_SEARCHES", 5_000)),
            1_000,
            100,
            0,
            id="soak",
            marks=[soak],
        ),
    ],
)
def test_memory_and_files_stay_flat(
    forkserver, tmp_path, images, searches, stretch, each, slack, record_property
):
    env = environment(load_settings(imgsearch_home=tmp_path / "home"))
    worker = forkserver.run(INGEST, env, folder=str(tmp_path / "photos"), count=images, each=each)
    assert worker.wait(7200)["end"] == "done", worker.reports[-3:]
    ingested = worker.reported("ingested")[0]
    assert (ingested["state"], ingested["images"]) == ("done", images)
    of_ingest = assert_flat(worker.reported("sample"), stretch, slack)
    searcher = forkserver.run(SEARCH, env, count=searches, each=each)
    assert searcher.wait(7200)["end"] == "done", searcher.reports[-3:]
    of_searches = assert_flat(searcher.reported("sample"), stretch, slack)
    record_property(
        "figures", f"ingest of {images:,}: {of_ingest}. {searches:,} searches: {of_searches}"
    )
