"""Fixtures of the proofs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from imgsearch.config import Settings
from tests.conftest import settings_of
from tests.guarantees.common import Nursery


@pytest.fixture(scope="session")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("children"))
    yield made
    made.close()


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.soak)])
def stores(request, tmp_path) -> Iterator[Settings]:
    """Settings of both kinds of stores; attacks on servers take their time."""
    yield from settings_of(request.param, request, tmp_path)
