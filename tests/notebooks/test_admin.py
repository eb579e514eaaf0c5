"""The admin notebook, by hand and in batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from imgsearch.config import Settings
from tests.conftest import ROOT
from tests.helpers import paint
from tests.notebooks.conftest import opened
from tests.stores.scripts import writer_of


@pytest.fixture(scope="module")
def admin(home, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with opened("admin", work, IMGSEARCH_HOME=str(home), DEFAULT_TABLE="mine") as notebook:
        notebook(
            "import os\nimport numpy as np\nfrom imgsearch.gallery import Gallery\n"
            "from imgsearch import ingest\n"
        )
        yield notebook


@pytest.fixture
def scratch(admin, tmp_path):
    """A collection of six pictures for one test, chosen in the panel."""
    for i in range(6):
        paint(tmp_path / "six" / f"{i}.png", 50 + i)
    admin(
        f"ingest({str(tmp_path / 'six')!r}, 'scratch', encoder='mini')\n"
        "panel.refresh.click(); panel.wait(100); panel.collection.value = 'scratch'",
    )
    yield tmp_path / "six"
    admin(
        "panel.wait(100)\n"
        "if 'scratch' in panel.collection.options:\n"
        "    with Gallery.open('scratch') as gallery: gallery.drop()\n"
        "panel.refresh.click()"
    )


def test_collections_are_listed_with_counts_of_both_stores(admin):
    overview = admin("panel.refresh.click()", "panel.overview.value")
    for part in ("mine", ">12</td>", "mini (256)", "FLAT", "KiB", "just now, done"):
        assert part in overview
    assert "run `verify`" not in overview


def test_ingests_of_all_processes_are_shown_as_they_go(admin):
    admin(
        "import time\nfrom imgsearch import config\n"
        "from imgsearch.stores.metadata import MetadataStore\n"
        "store = MetadataStore.open(config.load_settings())\n"
        "run = store.start_run('elsewhere', '/photos/2026', 400)\n"
        "store.update_run(run, done=100)\n"
        "until = time.monotonic() + 100\n"
        "panel._view_count = 1  # a browser displays the panel\n"
        "while '100&nbsp;of' not in panel.runs.value and time.monotonic() < until: time.sleep(0.1)"
    )
    shown = admin("", "panel.runs.value")
    assert "/photos/2026" in shown
    assert "running" in shown
    admin(
        "store.finish_run(run, 'done', done=400)\n"
        "while '400&nbsp;of' not in panel.runs.value and time.monotonic() < until: time.sleep(0.1)"
    )
    assert "400&nbsp;of&nbsp;400" in admin("", "panel.runs.value")


def test_images_are_found_chosen_and_deleted_after_asking(admin, scratch):
    names = "[item['name'] for item in panel.grid.items]"
    assert admin("", names) == [f"{i}.png" for i in range(6)]
    assert admin("panel.find.value = '/3.p'", names) == ["3.png"]
    admin("panel.find.value = ''; panel.wait(100); panel.grid.set_state({'selected': ['1', '4']})")
    assert admin("", "panel.delete.description") == "Delete 2 selected …"
    hidden = "'imgsearch-hidden' in panel.really_delete._dom_classes"
    assert admin("", hidden) is True
    assert admin("panel.delete.click()", hidden) is False
    assert admin("panel.keep.click()", hidden) is True
    assert len(admin("", names)) == 6
    admin("panel.delete.click(); panel.really_delete.click()")
    assert admin("", names) == ["0.png", "2.png", "3.png", "5.png"]
    assert "Deleted 2 paths from scratch" in admin("", "panel.status.text")
    assert len(list(scratch.iterdir())) == 6


def test_attributes_of_selected_images_are_shown_and_set(admin, scratch):
    select = "panel.grid.set_state({'selected': ['1', '4']})\n"
    admin(select + 'panel.attributes.value = \'{"label": "cat"}\'; panel.set_attributes.click()')
    assert admin("", "panel.status.text") == "Set the attributes of 2 files."
    admin(
        "panel.grid.set_state({'selected': ['4']})\n"
        'panel.attributes.value = \'{"label": "cat", "rating": 4}\'; panel.set_attributes.click()'
    )
    assert admin(select, "panel.attributes.value") == '{"label": "cat"}'  # what both have
    admin("panel.attributes.value = ''; panel.set_attributes.click()")
    rows = "[row.attributes for row in panel._rows if row.attributes]"
    assert admin("", rows) == [{"rating": 4}]
    wrong = select + "panel.attributes.value = 'cat'; panel.set_attributes.click()"
    assert admin(wrong, "panel.status.kind") == "bad"
    assert "as JSON" in admin("", "panel.status.text")


def test_damage_is_found_explained_and_repaired(admin, scratch):
    assert admin("panel.verify.click()", "panel.verification.sound") is True
    admin(
        "gallery = Gallery.open('scratch')\n"
        "ids = gallery.metadata.ids('scratch')\n"
        "gallery.vectors.delete('scratch', ids[:2])\n"
        "wrong = np.roll(gallery.vectors.get('scratch', ids[2:3])[1], 1, axis=1)\n"
        "gallery.vectors.upsert('scratch', ids[2:3], wrong)\n"
        "orphan = np.eye(1, 256, dtype=np.float32)\n"
        "gallery.vectors.upsert('scratch', np.array([7]), orphan)\n"
        "panel.verify.click()"
    )
    kind, account = admin("", "[panel.status.kind, panel.account.value]")
    assert kind == "bad"
    for words in (
        "2 images have no vector",
        "1 images have a damaged vector",
        "1 vectors belong to no image",
        "encodes the files again",
    ):
        assert words in account
    hidden = "'imgsearch-hidden' in panel.really_repair._dom_classes"
    assert admin("panel.remove_orphans.value = True; panel.repair.click()", hidden) is False
    assert admin("panel.cancel.click()", hidden) is True
    assert admin("panel.verify.click()", "panel.verification.sound") is False
    admin("panel.repair.click(); panel.wait(100); panel.really_repair.click()")
    assert "3 vectors computed again" in admin("", "panel.status.text")
    assert "1 vector without an image removed" in admin("", "panel.account.value")
    assert admin("panel.verify.click()", "panel.verification.sound") is True
    (scratch / "0.png").unlink()
    paint(scratch / "1.png", 99)
    account = admin("panel.files.value = True; panel.verify.click()", "panel.account.value")
    assert "1 image files are missing" in account
    assert "1 image files have changed" in account
    assert str(scratch / "0.png") in account


def test_a_sound_collection_is_not_offered_a_repair(admin, scratch):
    hidden = "'imgsearch-hidden' in panel.really_repair._dom_classes"
    assert admin("panel.repair.click()", f"[panel.status.text, {hidden}]") == [
        "scratch: nothing to repair",
        True,
    ]


def test_a_repair_asks_first_and_can_be_stopped(admin, scratch):
    """Review 8.16: Stop did not work while a repair read the folders."""
    admin(
        "gallery = Gallery.open('scratch')\n"
        "gallery.vectors.delete('scratch', gallery.metadata.ids('scratch')[:2])\n"
        "report = panel.report_progress\n"
        "panel.report_progress = lambda text: (panel.stop.click(), report(text))\n"
        "panel.planned = panel.repaired = None; panel.repair.click()"
    )
    assert admin("", "[panel.status.text, panel.planned]") == ["Stopped.", None]
    admin("panel.report_progress = report; panel.repair.click()")
    assert admin("", "[panel.planned.encoded, panel.repaired]") == [2, None]
    admin(
        "panel.report_progress = lambda text: (panel.stop.click(), report(text))\n"
        "panel.really_repair.click()"
    )
    assert admin("", "[panel.status.text, panel.repaired]") == ["Stopped.", None]
    admin("panel.report_progress = report; panel.repair.click(); panel.wait(100)")
    assert admin("panel.really_repair.click()", "panel.repaired.encoded") == 2


def test_a_collection_that_only_the_vector_store_knows_is_deleted(admin):
    """Review 8.10, attack row 10: the leftovers of a sweep could not be dropped."""
    listed = admin(
        "import json\n"
        "from imgsearch.stores.index import IndexSpec\n"
        "gallery = Gallery.open('mine')\n"
        "gallery.vectors.create('mine_sweep_1', 4, IndexSpec.parse('FLAT'),\n"
        "    description=json.dumps({'sweep': 'index sweep of mine'}))\n"
        "panel.refresh.click(); panel.wait(100); panel.collection.value = 'mine_sweep_1'",
        "panel.overview.value",
    )
    assert "temporary collection of an index sweep of mine" in listed
    admin("panel.typed.value = 'mine_sweep_1'; panel.drop.click()")
    assert admin("", "panel.status.text").startswith("Deleted the collection mine_sweep_1.")
    assert admin("", "'mine_sweep_1' in gallery.vectors.collections()") is False
    assert admin("", "list(panel.collection.options)") == ["mine"]


def test_a_verification_can_be_stopped(admin, scratch):
    admin(
        "report = panel.report_progress\n"
        "panel.report_progress = lambda text: (panel.stop.click(), report(text))\n"
        "panel.verification = None; panel.verify.click()"
    )
    assert admin("panel.report_progress = report", "panel.status.text") == "Stopped."
    assert admin("", "[panel.verification, panel.stop.disabled]") == [None, True]


def test_a_collection_goes_into_a_file_and_comes_back(admin, scratch, tmp_path):
    kept = tmp_path / "kept.parquet"
    file = str(kept)
    admin(f"panel.file.value = {file!r}; panel.export.click()")
    assert file in admin("", "panel.status.text")
    assert admin("panel.import_.click()", "panel.status.kind") == "bad"
    assert "already exists: use another name" in admin("", "panel.status.text")
    admin("panel.new_name.value = 'again'; panel.import_.click()")
    assert "Imported 6 images" in admin("", "panel.status.text")
    admin("panel.collection.value = 'again'; panel.wait(100); panel.verify.click()")
    assert admin("", "panel.status.text") == "again: no problems found in 6 images under 6 paths"
    admin("panel.typed.value = 'again'; panel.drop.click()")
    content = bytearray(kept.read_bytes())
    content[-300:-294] = b"damage"
    kept.write_bytes(content)
    assert admin("panel.import_.click()", "panel.status.kind") == "bad"
    assert "Unexpected error" not in admin("", "panel.status.text")
    for wrong in ("", "/no/such/file"):
        code = f"panel.file.value = {wrong!r}; panel.import_.click()"
        assert admin(code, "panel.status.kind") == "bad"
        assert "Unexpected error" not in admin("", "panel.status.text")


def test_a_drop_needs_the_right_name(admin, scratch):
    for wrong in ("", "Scratch", "mine"):
        assert admin(f"panel.typed.value = {wrong!r}", "panel.drop.disabled") is True
        assert "scratch" in admin("panel.drop.click()", "panel.collection.options")
    assert admin("panel.typed.value = 'scratch'", "panel.drop.disabled") is False
    assert admin("panel.collection.value = 'mine'", "panel.drop.disabled") is True
    admin("panel.collection.value = 'scratch'")
    admin("panel.typed.value = 'scratch'; panel.drop.click()")
    assert "Deleted the collection scratch" in admin("", "panel.status.text")
    assert admin("", "list(panel.collection.options)") == ["mine"]
    assert len(list(scratch.iterdir())) == 6


def test_a_deletion_that_waits_tells_for_whom_and_stops_or_goes_on(admin, scratch, home):
    with writer_of(home, "mine") as writer:
        admin(
            "import signal\n"
            "def wait(then):\n"
            "    shown = []\n"
            "    def see(_):\n"
            "        shown.append(panel.status.text)\n"
            "        if 'held by' in shown[-1]: then()\n"
            "    panel.status.observe(see, 'value')\n"
            "    panel.typed.value = 'scratch'; panel.drop.click(); panel.wait(100)\n"
            "    panel.status.unobserve_all()\n"
            "    return shown"
        )
        shown = admin("shown = wait(panel.stop.click)", "shown")
        doing, waiting, stop = shown[1].split("\n")
        assert shown[0] == doing == "Deleting scratch …"
        assert f"process {writer.process.pid} on " in waiting
        assert waiting.endswith("writing mine")
        assert stop == "Press Stop to stop waiting."
        assert shown[-1] == "Stopped."
        assert "scratch" in admin("", "panel.collection.options")
        pid = writer.process.pid
        shown = admin(f"shown = wait(lambda: os.kill({pid}, signal.SIGKILL))", "shown")
        assert shown[2:] == [doing, "Deleted the collection scratch. The image files stay."]


def test_an_empty_home_is_no_error(tmp_path):
    with opened("admin", tmp_path, IMGSEARCH_HOME=str(tmp_path / "home")) as admin:
        assert admin("", "'imgsearch-hidden' in panel.first_steps._dom_classes") is False
        assert admin("", "[panel.status.text, panel.collection.value]") == ["", None]
        assert "Traceback" not in admin.outputs


def test_in_batch_it_reads_and_reports(home, tmp_path):
    names = [name.upper() for name in Settings.model_fields]
    clean = {key: value for key, value in os.environ.items() if key not in names}
    before = (home / "metadata.sqlite").read_bytes()
    subprocess.run(
        [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "admin.ipynb"), "out.ipynb",
         "-p", "output_dir", "out", "-p", "collection", "mine", "-p", "files", "True"],
        cwd=tmp_path,
        env=clean | {"PYTHONPATH": str(ROOT), "IMGSEARCH_HOME": str(home)},
        check=True,
        capture_output=True,
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "admin.json").read_text())
    (mine,) = (one for one in report["collections"] if one["name"] == "mine")
    assert (mine["images"], mine["vectors"], mine["problem"]) == (12, 12, "")
    assert report["verifications"][0]["sound"] is True
    assert {run["collection"] for run in report["runs"]} == {"mine"}
    assert (home / "metadata.sqlite").read_bytes() == before
