"""Fixtures of the proofs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guarantees.common import Nursery


@pytest.fixture(scope="session")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("children"))
    yield made
    made.close()
