"""JupyterLab as users start it, on a copy of the notebooks, and a browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from imgsearch.config import Settings, load_settings
from tests.conftest import ROOT
from tests.servers import free_port

PATIENCE = 120_000
"""Milliseconds to wait for anything; other things run on the machine too."""

TOKEN = "a-token-of-the-tests"
PHOTOS = sorted((ROOT / "data" / "VOCsample" / "JPEGImages").iterdir())


class Server:
    """A Jupyter server, ended with its kernels; ``{port}`` in the command is filled in."""

    def __init__(self, folder: Path, environment: dict[str, str], command: list[str], ready: str):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [argument.format(port=self.port) for argument in command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + PATIENCE / 1000
        while not (self._answers() and re.search(ready, self.log.read_text())):
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                pytest.fail(self.log.read_text()[-3000:], pytrace=False)
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            urlopen(f"{self.url}?token={TOKEN}", timeout=10).close()
        except (URLError, OSError):
            return False
        return True

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _environment(folder: Path, home: Path) -> dict[str, str]:
    """A user who works with the collection ``photos`` of a home."""
    names = {name.upper() for name in Settings.model_fields}
    kept = {key: value for key, value in os.environ.items() if key not in names}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "IMGSEARCH_HOME": str(home),
        "IMGSEARCH_BACKEND": "eager",
        "IMGSEARCH_ENCODER": "mini",
        "DEFAULT_TABLE": "photos",
        "JUPYTER_CONFIG_PATH": str(ROOT / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }


@pytest.fixture(scope="session", autouse=True)
def _kernels(kernels):
    """Kernels start at once."""


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A home whose collection ``photos`` holds forty pictures of the sample."""
    from imgsearch.ingestion import ingest

    folder = tmp_path_factory.mktemp("photos")
    for photo in PHOTOS[:40]:
        shutil.copy(photo, folder)
    home = tmp_path_factory.mktemp("home")
    stores = load_settings(imgsearch_home=home, imgsearch_backend="eager")
    ingest(folder, "photos", encoder="mini", settings=stores)
    return home


@pytest.fixture(scope="session")
def stores(home) -> Settings:
    return load_settings(imgsearch_home=home, imgsearch_backend="eager", imgsearch_encoder="mini")


@pytest.fixture(scope="session")
def lab(home, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    server = Server(
        folder,
        _environment(folder, home),
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--port={port}"),
            "--ServerApp.allow_root=True",
            f"--IdentityProvider.token={TOKEN}",
            f"--LabApp.workspaces_dir={folder / 'workspaces'}",
            f"--LabApp.user_settings_dir={folder / 'settings'}",
        ],
        "is running at",
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def new_page(chromium):
    """Make pages, whose errors in JavaScript fail the test."""
    made, errors = [], []

    def make():
        page = chromium.new_page(viewport={"width": 1000, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        made.append(page)
        return page

    yield make
    for page in made:
        page.close()
    assert [error for error in errors if "imgsearch" in error] == []


def run_all(page, notebook: str) -> None:
    """Run all cells of a notebook that JupyterLab shows."""
    # Without a kernel it would run none and say nothing. The title tells whose kernel is idle.
    kernel = page.get_by_title(f"Change kernel for {notebook}")
    kernel.filter(has_text="| Idle").wait_for(state="attached")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


@pytest.fixture(scope="module")
def notebook(lab, new_page):
    """Open a notebook in JupyterLab and run all of it, and perhaps one more cell."""

    def run(name: str, cell: str = ""):
        page = new_page()
        # A workspace and a copy of its own: nothing is left open from the test before.
        own = f"{name}-{uuid.uuid4().hex[:8]}"
        import nbformat

        content = nbformat.read(lab.folder / "notebooks" / f"{name}.ipynb", 4)
        content.cells += [nbformat.v4.new_code_cell(cell)] if cell else []
        nbformat.write(content, lab.folder / "notebooks" / f"{own}.ipynb")
        page.goto(f"{lab.url}lab/workspaces/{own}/tree/notebooks/{own}.ipynb?reset&token={TOKEN}")
        run_all(page, f"{own}.ipynb")
        page.locator(".imgsearch").first.wait_for()
        return page

    return run
