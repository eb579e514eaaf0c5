"""Recall and latency of indexes, measured in temporary collections of a real store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from imgsearch.config import load_settings
from imgsearch.errors import ConfigError
from imgsearch.evaluation import index_sweep
from imgsearch.gallery import Gallery
from imgsearch.stores.vectors import IndexSpec
from tests.helpers import rows_and_vectors


@pytest.fixture(scope="module")
def gallery(shared_home, encoder, tmp_path_factory):
    """38 random vectors."""
    database = tmp_path_factory.mktemp("metadata") / "metadata.sqlite"
    own = load_settings(imgsearch_home=shared_home, database_url=f"sqlite:///{database}")
    with Gallery.open("t_sweep", encoder=encoder, create=True, settings=own) as gallery:
        assert gallery.store(*rows_and_vectors(gallery.row.dim, 38)) == []
        gallery.flush()
        yield gallery
        gallery.drop()


def test_the_sweep_measures_every_index_and_leaves_nothing_behind(gallery):
    before = gallery.vectors.collections()
    lines: list[str] = []
    assert gallery.row.index == "FLAT"
    ivf = [f"IVF_FLAT:nlist=8,nprobe={n}" for n in (1, 8)]
    indexes = ["HNSW:M=8,efConstruction=100,ef=64", "auto", *ivf]
    points = index_sweep.sweep(gallery, indexes, k=5, queries=20, progress=lines.append)
    assert [p.index.split(":")[0] for p in points] == ["HNSW", "FLAT", "IVF_FLAT", "IVF_FLAT"]
    assert len(lines) == 4
    assert points[1].recall == points[3].recall == 1.0
    assert points[2].recall <= 1.0
    assert points[1].build_seconds == 0 < points[0].build_seconds
    for point in points:
        assert 0 < point.median_ms <= point.p95_ms
        assert point.low <= point.recall <= point.high
        assert (point.collection, point.k) == (gallery.name, 5)
        assert (point.queries, point.vectors) == (20, 38)
    assert gallery.vectors.collections() == before
    whole = index_sweep.sweep(gallery, "FLAT", k=1000, queries=1000)[0]
    assert (whole.k, whole.queries, whole.recall) == (37, 38, 1.0)


def test_a_failed_sweep_leaves_nothing_behind(gallery):
    before = gallery.vectors.collections()

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_sweep.sweep(gallery, ["FLAT"], progress=stop)
    assert gallery.vectors.collections() == before
    for wrong in ({"k": 0}, {"queries": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            index_sweep.sweep(gallery, ["FLAT"], **wrong)
    with pytest.raises(ConfigError, match="unknown"):
        index_sweep.sweep(gallery, ["FLAT", "ROUND"])


def test_concurrent_sweeps_of_one_collection_do_not_conflict(gallery):
    """Attack row 10(k): two sweeps in one process used one name, and broke each other."""
    before = gallery.vectors.collections()
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(index_sweep.sweep, gallery, ["FLAT", "IVF_FLAT:nlist=4"], queries=10)
            for _ in range(2)
        ]
        for points in (sweep.result() for sweep in both):
            assert [point.recall for point in points] == [1.0, 1.0]
    assert gallery.vectors.collections() == before


def test_temporary_collections_record_their_purpose_and_creator(gallery):
    """Review 8.10: a left-over collection could not be told from a damaged one."""
    before, seen = set(gallery.vectors.collections()), []

    def look(_: str) -> None:
        for name in set(gallery.vectors.collections()) - before:
            seen.append((name, gallery.vectors.about(name)["sweep"]))

    index_sweep.sweep(gallery, ["IVF_FLAT:nlist=4"], queries=3, progress=look)
    ((name, about),) = seen
    assert name.startswith("t_sweep_sweep_")
    host = socket.gethostname()
    assert about == f"index sweep of t_sweep, process {os.getpid()} on host {host}"


KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from imgsearch.config import load_settings
from imgsearch.evaluation import index_sweep
from imgsearch.gallery import Gallery

with Gallery.open("t_sweep", settings=load_settings()) as gallery:
    kill = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    index_sweep.sweep(gallery, ["IVF_FLAT:nlist=4"], queries=3, progress=kill)
"""


def test_the_next_sweep_drops_only_what_a_killed_sweep_left(gallery):
    """Review 8.10: such collections stayed for ever."""
    before = set(gallery.vectors.collections())
    own = gallery.settings
    subprocess.run(
        [sys.executable, "-c", KILLED_IN_THE_MIDDLE],
        env=os.environ
        | {
            "IMGSEARCH_HOME": str(own.imgsearch_home),
            "DATABASE_URL": own.database_url.get_secret_value(),
        },
        check=False,
    )
    (left,) = set(gallery.vectors.collections()) - before
    pid = left.split("_")[-2]
    others = [
        f"{left[:-8]}{'0' * 8}",  # of a process that does not run, but not made by a sweep
        left.replace(f"_{pid}_", f"_{os.getpid()}_"),  # of a process that runs
        left.replace(index_sweep._machine(), "0" * 8),  # of another machine
        "t_sweep_of_a_researcher",
    ]
    try:
        for name in others:
            gallery.vectors.create(name, 2, IndexSpec.parse("FLAT"))
        index_sweep.sweep(gallery, [gallery.row.index], queries=3)
        assert set(gallery.vectors.collections()) == before | set(others)
    finally:
        for name in others:
            gallery.vectors.drop(name)
