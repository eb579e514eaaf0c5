from __future__ import annotations

import pytest

from imgsearch.errors import ConfigError
from imgsearch.stores.index import IndexSpec


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("auto", "HNSW:M=16,efConstruction=200,ef=128"),
        ("HNSW:ef=auto", "HNSW:M=16,efConstruction=200,ef=128"),
        ("hnsw: m=8 , EF=100", "HNSW:M=8,efConstruction=200,ef=100"),
        ("FLAT", "FLAT"),
        ("IVF_FLAT:nlist=64", "IVF_FLAT:nlist=64,nprobe=16"),
        ("autoindex", "AUTOINDEX"),
    ],
)
def test_an_index_is_read_with_its_defaults_and_written_back(text, full):
    assert str(IndexSpec.parse(text)) == full
    assert IndexSpec.parse(full) == IndexSpec.parse(text)


def test_auto_is_exact_embedded():
    assert str(IndexSpec.parse("auto", embedded=True)) == "FLAT"


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("HSNW", "HSNW"),
        ("", "unknown"),
        ("HNSW:M=3", "M=3"),
        ("HNSW:M=65", "M=65"),
        ("HNSW:M=-8", "M=-8"),
        ("HNSW:M=eight", "M=eight"),
        ("HNSW:M", "M="),
        ("HNSW:nlist=9", "nlist"),
        ("FLAT:M=8", "FLAT"),
        ("IVF_FLAT:nlist=8,nprobe=9", "nprobe=9"),
        ("IVF_FLAT:nlist=0", "nlist=0"),
    ],
)
def test_an_invalid_index_is_refused_with_the_reason(text, blamed):
    with pytest.raises(ConfigError, match=blamed):
        IndexSpec.parse(text)
