"""What every test may ask for: a private home, the two kinds of stores, real photographs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def missing(part: str, how: str) -> None:
    """Skip the test, or fail it where ``IMGSEARCH_TEST_STRICT`` is set."""
    text = f"{part} is missing: {how}"
    if os.environ.get("IMGSEARCH_TEST_STRICT"):
        pytest.fail(text + " (IMGSEARCH_TEST_STRICT is set)", pytrace=False)
    pytest.skip(text)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch, tmp_path):
    """Tests neither read the user's settings nor write to the user's home."""
    from imgsearch.config import Settings

    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("IMGSEARCH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photographs and weights for development; never part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "voc").is_dir():
        pytest.skip("../shared is missing: real photographs lie beside a development checkout only")
    return folder
