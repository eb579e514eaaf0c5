"""Notebooks in a real kernel: run as they are, then worked with as a user would."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from imgsearch.config import Settings, load_settings
from tests.conftest import ROOT
from tests.helpers import paint

if TYPE_CHECKING:
    from nbclient import NotebookClient


class Notebook:
    """A notebook whose cells have run, and whose kernel takes more code."""

    def __init__(self, client: NotebookClient):
        self.client = client

    def __call__(self, code: str, result: str = "None"):
        """Run code, wait for the panel's threads, and return the value of an expression."""
        import nbformat  # here, because it takes two seconds

        source = f"{code}\npanel.wait(150)\nimport json\nprint(json.dumps({result}))"
        cell = nbformat.v4.new_code_cell(source)
        self.client.nb.cells.append(cell)
        self.client.execute_cell(cell, len(self.client.nb.cells) - 1)
        texts = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
        return json.loads("".join(texts).splitlines()[-1])

    def execute(self, code: str, cell_id: str) -> None:
        """Send code as JupyterLab sends a cell: with the cell's id."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        message = self.client.kc.session.msg(
            "execute_request", content, metadata={"cellId": cell_id}
        )
        self.client.kc.shell_channel.send(message)

    @property
    def outputs(self) -> str:
        """Everything that was printed or raised, in the cells and since."""
        found = []
        for cell in self.client.nb.cells:
            for output in cell.get("outputs", ()):
                found.append(output.get("text", "") + " ".join(output.get("traceback", ())))
        return "\n".join(found)


@contextlib.contextmanager
def opened(name: str, folder: Path, **environment: str) -> Iterator[Notebook]:
    """Run a notebook of the project with some environment, in some folder."""
    import nbformat
    from nbclient import NotebookClient

    names = [name.upper() for name in Settings.model_fields]
    clean = {key: value for key, value in os.environ.items() if key not in names}
    clean |= {"PYTHONPATH": str(ROOT), "IMGSEARCH_BACKEND": "eager", "IMGSEARCH_ENCODER": "mini"}
    clean["JPY_SESSION_NAME"] = str(folder / f"{name}.ipynb")  # as JupyterLab starts a kernel
    with mock.patch.dict(os.environ, clean | environment, clear=True):
        client = NotebookClient(
            nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4),
            timeout=170,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        )
        with client.setup_kernel():
            for index, cell in enumerate(client.nb.cells):
                client.execute_cell(cell, index)
            yield Notebook(client)


@pytest.fixture(scope="session", autouse=True)
def _kernels(kernels):
    """Kernels start at once."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twelve pictures, a broken one and a text."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        paint(folder / f"{i:02d}.png", i, (300, 200))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory, photos) -> Path:
    """A home of the module, whose collection ``mine`` holds the pictures."""
    from imgsearch.ingestion import ingest

    home = tmp_path_factory.mktemp("home")
    stores = load_settings(imgsearch_home=home, imgsearch_backend="eager")
    ingest(photos, "mine", encoder="mini", settings=stores)
    return home
