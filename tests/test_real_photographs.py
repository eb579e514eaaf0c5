"""The spine on real photographs, as a researcher runs it: papermill in, neighbours out."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from imgsearch.config import load_settings
from imgsearch.gallery import Gallery
from tests.conftest import ROOT

ANIMALS = {"cat", "cow", "dog", "horse", "sheep"}


def single_label(voc) -> dict[str, str]:
    """Stem of each photograph that shows one of the animals and nothing else, to its class."""
    labels = {}
    for path in sorted((voc / "Annotations").glob("*.xml")):
        names = {name.text for name in ElementTree.parse(path).findall("object/name")}
        if len(names) == 1 and names <= ANIMALS:
            labels[path.stem] = names.pop()
    return labels


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("kernels")
def test_papermill_ingests_400_photographs_and_neighbours_are_of_the_same_class(
    shared, tmp_path, monkeypatch
):
    monkeypatch.delenv("IMGSEARCH_BACKEND")
    voc = shared / "voc" / "VOC2012"
    parameters = {
        "image_dir": voc / "JPEGImages",
        "collection": "voc",
        "encoder": shared / "weights" / "mobilenet_v2.onnx",
        "output_dir": tmp_path,
    }
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "notebooks/ingest.ipynb"]
    command += [str(tmp_path / "ingest.ipynb")]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "ingest.json").read_text())
    assert (report["total"], report["encoded"], report["failed"]) == (400, 400, 0)
    labels = single_label(voc)
    assert len(labels) == 200
    right = 0
    with Gallery.open("voc", settings=load_settings()) as gallery:
        chosen = [voc / "JPEGImages" / f"{stem}.jpg" for stem in labels]
        others = {gallery.get(p).image_id for p in voc.glob("JPEGImages/*") if p not in chosen}
        for path in chosen:
            query = gallery.get(path)
            (hit,) = gallery.search(query, 1, exclude=others | {query.image_id})
            right += labels[hit.path.rpartition("/")[2][:-4]] == labels[path.stem]
    assert right / len(labels) >= 0.75
