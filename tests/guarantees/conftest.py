"""Fixtures of the robustness tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from imgsearch.config import Settings
from tests.conftest import settings_of


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.soak)])
def stores(request, tmp_path) -> Iterator[Settings]:
    """Settings of both kinds of stores; tests on servers are long, and run in `make soak`."""
    yield from settings_of(request.param, request, tmp_path)
