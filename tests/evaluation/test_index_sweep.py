"""Recall and latency of indexes, measured in temporary collections of a real store."""

from __future__ import annotations

import pytest

from imgsearch.config import load_settings
from imgsearch.errors import ConfigError
from imgsearch.evaluation import index_sweep
from imgsearch.gallery import Gallery
from tests.helpers import rows_and_vectors


@pytest.fixture(scope="module")
def gallery(shared_home, encoder, tmp_path_factory):
    """38 random vectors."""
    database = tmp_path_factory.mktemp("metadata") / "metadata.sqlite"
    own = load_settings(imgsearch_home=shared_home, database_url=f"sqlite:///{database}")
    with Gallery.open("t_sweep", encoder=encoder, create=True, settings=own) as gallery:
        assert gallery.add(*rows_and_vectors(gallery.row.dim, 38)) == []
        gallery.flush()
        yield gallery
        gallery.drop()


def test_the_sweep_measures_every_index_and_leaves_nothing_behind(gallery):
    before = gallery.vectors.collections()
    lines: list[str] = []
    indexes = ["FLAT", gallery.row.index, "IVF_FLAT:nlist=8,nprobe=1", "IVF_FLAT:nlist=8,nprobe=8"]
    points = index_sweep.sweep(gallery, indexes, k=5, queries=20, progress=lines.append)
    assert [p.index.split(":")[0] for p in points] == ["FLAT", "HNSW", "IVF_FLAT", "IVF_FLAT"]
    assert len(lines) == 4
    assert points[0].recall == points[3].recall == 1.0
    assert points[2].recall <= 1.0
    assert points[1].build_seconds == 0 < points[0].build_seconds
    for point in points:
        assert 0 < point.median_ms <= point.p95_ms
        assert point.low <= point.recall <= point.high
        assert (point.k, point.queries, point.vectors) == (5, 20, 38)
    assert gallery.vectors.collections() == before
    whole = index_sweep.sweep(gallery, ["FLAT"], k=1000, queries=1000)[0]
    assert (whole.k, whole.queries, whole.recall) == (37, 38, 1.0)


def test_a_sweep_that_fails_leaves_nothing_behind(gallery):
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
