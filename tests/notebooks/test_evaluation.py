"""The evaluation notebook, by hand and in batch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from imgsearch.config import Settings, load_settings
from tests.conftest import ROOT
from tests.notebooks.conftest import opened

SAMPLE = ROOT / "data" / "VOCsample"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, encoder):
    """A home with the sample, once by each of two encoders."""
    from imgsearch.ingestion import ingest

    home = tmp_path_factory.mktemp("home")
    stores = load_settings(imgsearch_home=home, imgsearch_backend="eager")
    for name, how in (("mini", "mini"), ("chance", encoder)):
        ingest(SAMPLE / "JPEGImages", name, encoder=how, settings=stores)
    return home


@pytest.fixture(scope="module")
def evaluation(sampled, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with opened("evaluation", work, IMGSEARCH_HOME=str(sampled), DEFAULT_TABLE="mini") as notebook:
        # Photographs take longest to draw.
        notebook("from imgsearch.widgets import evaluation\nevaluation.CASES = 1")
        yield notebook


def test_collections_are_measured_and_compared(evaluation):
    assert evaluation("", "panel.collections.value") == ["mini"]
    evaluation(
        f"panel.voc_root.value = {str(SAMPLE)!r}\n"
        "panel.collections.value = ['mini', 'chance']; panel.start.click()"
    )
    assert "queries against" in evaluation("", "panel.status.text")
    maps = evaluation(
        "",
        "{n: float(e.views['all'].values['AP'].mean()) for n, e in panel.evaluations.items()}",
    )
    assert maps["mini"] > maps["chance"] > 0
    headline, _, every_score = evaluation("", "panel.summary.value").partition("<details>")
    assert f"{maps['mini']:.3f} (" in headline
    assert headline.partition("</table>")[0].count("<tr>") == 7  # a head and six rows
    assert "paired randomisation test" in headline
    assert "micro without person" in every_score
    for tab, figure in enumerate(("curves", "classes", "confusion"), 1):
        assert evaluation("", f"panel.{figure}.value") == ""  # until its tab is opened
        shown = evaluation(f"panel.tabs.selected_index = {tab}", f"panel.{figure}.value")
        assert ";base64," in shown
        assert 'alt="' in shown
    assert evaluation("", "panel.cases.items") == []
    tiles = evaluation(
        "panel.tabs.selected_index = 4",
        "[{k: v for k, v in item.items() if k != 'thumb'} for item in panel.cases.items]",
    )
    assert [tile["heading"].split(":")[0] for tile in tiles if "heading" in tile] == [
        "Worst query 1", "Best query 1"
    ]  # fmt: skip
    assert ["relevant" in tile for tile in tiles[-6:]] == [False] + [True] * 5
    assert tiles[-5]["action"].startswith("Rank 1, relevant, score 0.")
    shown = "sent = []\npanel.cases.send = lambda *message: sent.append(message)\n"
    shown += "panel._show_original('7')"
    assert evaluation(shown, "[sent[0][0]['key'], sent[0][0]['mime']]") == ["7", "image/jpeg"]
    evaluation("panel.tabs.selected_index = 1")
    before = evaluation("", "panel.curves.value")
    assert evaluation("panel.view.value = 'dog'", "panel.curves.value") != before


def test_indexes_are_measured_against_exact_search(evaluation):
    evaluation("panel.shown.value = 'mini'; panel.measure.click()")
    assert "indexes over mini" in evaluation("", "panel.status.text")
    recalls = evaluation("", "{p.index: p.recall for p in panel.points}")
    assert recalls["FLAT"] == 1
    assert min(recalls.values()) < 1
    assert "data:image/png;base64," in evaluation("", "panel.indexes.value")
    before = evaluation("panel.tabs.selected_index = 2", "panel.classes.value")
    assert evaluation("panel.metric.value = 'P@5'", "panel.classes.value") != before
    shown = "[item['action'] for item in panel.cases.items]"
    before = evaluation("panel.tabs.selected_index = 4", shown)
    other = "[n for n in panel.shown.options if n != panel.shown.value][0]"
    assert evaluation(f"panel.shown.value = {other}", shown) != before
    evaluation("panel.output.value = 'found'; panel.save.click()")
    assert "files to found" in evaluation("", "panel.status.text")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("panel.voc_root.value = ''", "VOC folder: type the folder"),
        ("panel.voc_root.value = '/no/such'", "/no/such"),
        ("panel.collections.value = []", "Collections: select one or more"),
        ("panel.protocol.value = 'train, val'", "protocol: 'train, val'"),
        ("panel.protocol.value = 'train -> test'", "test.txt"),
        ("panel.ks.value = 'ten'", "take whole numbers"),
        ("panel.ks.value = '0'", "ks: is [0]"),
        ("panel.year.value = 'last'", "take whole numbers"),
    ],
)
def test_what_cannot_be_done_is_told(evaluation, change, words):
    evaluation(
        f"panel.voc_root.value = {str(SAMPLE)!r}; panel.collections.value = ['mini']\n"
        "panel.protocol.value = 'train -> val'; panel.ks.value = '1, 5'; panel.year.value = ''\n"
        f"{change}\npanel.start.click()"
    )
    kind, text = evaluation("", "[panel.status.kind, panel.status.text]")
    assert kind == "bad"
    assert words in text
    assert "Unexpected error" not in text
    assert "Traceback" not in evaluation.outputs


def test_an_evaluation_can_be_stopped(evaluation):
    evaluation(
        f"panel.voc_root.value = {str(SAMPLE)!r}; panel.collections.value = ['mini']\n"
        "panel.protocol.value = 'train -> val'; panel.ks.value = '5'; panel.year.value = ''\n"
        "report = panel.report_progress\n"
        "panel.report_progress = lambda text: (panel.stop.click(), report(text))\n"
        "panel.start.click()"
    )
    assert evaluation("panel.report_progress = report", "panel.status.text") == "Stopped."
    assert evaluation("", "[panel.start.disabled, panel.stop.disabled]") == [False, True]


def test_in_batch_it_writes_tables_figures_and_a_report(sampled, tmp_path):
    names = [name.upper() for name in Settings.model_fields]
    clean = {key: value for key, value in os.environ.items() if key not in names}
    shutil.copytree(SAMPLE, tmp_path / "VOC2012", ignore=shutil.ignore_patterns("JPEGImages"))
    (tmp_path / "VOC2012" / "JPEGImages").symlink_to(SAMPLE / "JPEGImages")
    subprocess.run(
        [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "evaluation.ipynb"),
         "out.ipynb", "-p", "voc_root", ".", "-p", "year", "2012", "-p", "collections",
         "mini, chance", "-p", "output_dir", "out", "-y", "ks: [1, 5]"],
        cwd=tmp_path,
        env=clean | {"PYTHONPATH": str(ROOT), "IMGSEARCH_HOME": str(sampled)},
        check=True,
        capture_output=True,
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(report["evaluations"]) == ["mini", "chance"]
    assert report["comparisons"]["chance"]["overall"]["difference"] < 0
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == {*report["files"], "evaluation.json"}
    assert [row["metric"] for row in report["evaluations"]["mini"]["headline"]] == [
        "mAP", "MRR", "P@1", "P@5", "R@5", "nDCG@5"
    ]  # fmt: skip
    assert {"evaluation-curves.png", "evaluation-mini.json", "evaluation-chance-worst.png"} <= there
