"""The ingest notebook, by hand."""

from __future__ import annotations

import shutil

import pytest

from tests.helpers import paint
from tests.notebooks.conftest import opened
from tests.stores.scripts import writer_of


@pytest.fixture(scope="module")
def ingest(home, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with opened("ingest", work, IMGSEARCH_HOME=str(home), DEFAULT_TABLE="mine") as notebook:
        yield notebook


def _start(folder, collection: str, more: str = "") -> str:
    return (
        f"panel.folder.path.value = {str(folder)!r}; panel.collection.value = {collection!r}\n"
        f"{more}\npanel.start.click()"
    )


def test_a_folder_comes_in_with_its_failures_and_a_contact_sheet(ingest, photos):
    text = ingest(_start(photos, "fresh"), "panel.status.text")
    assert text.startswith("Added 12 images to fresh in ")
    assert "1 image could not be read. The collection holds 12 images." in text
    failures, progress = ingest("", "[panel.failures.value, panel.progress.value]")
    assert "broken.jpg" in failures
    assert "truncated" in failures or "broken" in failures
    for part in ("13 of 13 images", "1 failed", "1 other file"):
        assert part in progress
    assert len(ingest("", "[i['name'] for i in panel.sheet.items]")) == 12
    assert "fresh" in ingest("", "list(panel.collection.options)")
    code = "sent = []\npanel.sheet.send = lambda c, b: sent.append(b)\npanel.save_failures.click()"
    assert ingest(code, "sent[0][0].decode().splitlines()[0]") == "path,reason"
    assert ingest("", "[panel.start.disabled, panel.stop.disabled]") == [False, True]


def test_the_images_are_searched_from_the_same_panel(ingest, photos):
    ingest(_start(photos, "fresh"))
    found = "panel.below.children[0]"
    shown = f"{found}.wait(100); names = [{found}.collection.value, len({found}.grid.items)]"
    ingest("panel.search.click()")
    assert ingest(shown, "names") == ["fresh", 12]


def test_a_collection_is_named_after_its_folder(ingest, tmp_path):
    paint(tmp_path / "My Photos 2026" / "0.png", 200)
    folder = str(tmp_path / "My Photos 2026")
    clear = "panel.collection.value = ''\n"
    choose = f"panel.folder.path.value = {folder!r}"
    named = "[panel.collection.value, panel.folder.note.value]"
    name, note = ingest(clear + choose, named)
    assert name == "My_Photos_2026"
    assert "1 image in it" in note
    ingest("panel.start.click()")
    assert "My_Photos_2026" in ingest("", "panel.status.text")
    # A folder that was ingested before keeps its collection.
    ingest("panel.collection.value = 'other'; panel.start.click()")
    other = "panel.folder.path.value = ''; panel.collection.value = ''; panel.wait(100)\n"
    assert ingest(other + choose, "panel.collection.value") == "other"


@pytest.mark.parametrize("labels", ["folders", "table"])
def test_images_get_labels(ingest, tmp_path, labels):
    for i, kind in enumerate(("cats", "dogs")):
        paint(tmp_path / "animals" / kind / f"{i}.png", 300 + i)
    table = tmp_path / "labels.csv"
    table.write_text("name,label\n0.png,cats\n1.png,dogs\n")
    more = f"panel.labels.value = {labels!r}; panel.table.value = {str(table)!r}"
    ingest(_start(tmp_path / "animals", f"animals_{labels}", more))
    found = "panel.metadata.attribute_values(panel.report.collection)['label']"
    assert sorted(ingest("panel.labels.value = ''", found)) == [["cats", 1], ["dogs", 1]]


def test_the_encoder_is_chosen_for_a_new_collection_only(ingest):
    hidden = "'imgsearch-hidden' in panel.encoder._dom_classes"
    assert ingest("panel.collection.value = 'new'", hidden) is False
    assert ingest("", "panel.encoder.value") == "mini"
    shown = f"[{hidden}, panel.about_encoder.value]"
    concealed, about = ingest("panel.collection.value = 'mine'", shown)
    assert concealed
    assert "its encoder is mini" in about


def test_an_encoder_that_must_be_downloaded_is_not_preselected(tmp_path):
    home = str(tmp_path / "home")
    with opened("ingest", tmp_path, IMGSEARCH_HOME=home, IMGSEARCH_ENCODER="") as ingest:
        assert ingest("", "panel.encoder.value") == "mini"
        assert "resnet50" in ingest("", "[name for _, name in panel.encoder.options]")
        # A folder has to be chosen.
        kind, text = ingest("panel.start.click()", "[panel.status.kind, panel.status.text]")
        assert (kind, text) == ("bad", "Folder: choose the folder that holds the images")
        # The message goes with its cause.
        assert ingest(f"panel.folder.path.value = {str(tmp_path)!r}", "panel.status.text") == ""
        # In an empty home, the sample is offered.
        hidden = "'imgsearch-hidden' in panel.first_steps._dom_classes"
        assert ingest("", hidden) is False
        assert ingest("panel.first_steps.load.click()", hidden) is True
        assert ingest("", "panel.collection.options") == ["sample"]


def test_a_second_ingest_passes_over_what_is_there(ingest, photos):
    ingest(_start(photos, "fresh"))
    report = ingest("", "panel.report.to_dict()")
    assert (report["unchanged"], report["encoded"]) == (12, 0)
    assert ingest("", "panel.sheet.items") == []


def test_stopped_at_a_chunks_end_and_resumed(ingest, tmp_path):
    folder = tmp_path / "many"
    for i in range(30):
        paint(folder / f"{i}.png", 100 + i)
    ingest(
        # Stop is pressed as soon as the first picture is stored.
        "show = panel._show_report\n"
        "panel._show_report = lambda report: (show(report), report.done and panel.stop.click())\n"
        + _start(folder, "many", "panel.batch_size.value = 1")
    )
    state, encoded = ingest(
        "panel._show_report = show", "[panel.report.state, panel.report.encoded]"
    )
    assert state == "stopped"
    assert 0 < encoded < 30
    assert "Press Start to resume" in ingest("", "panel.status.text")
    ingest("panel.batch_size.value = 32; panel.start.click()")
    report = ingest("", "panel.report.to_dict()")
    assert report["state"] == "done"
    assert (report["unchanged"], report["encoded"]) == (encoded, 30 - encoded)


def test_an_ingest_that_waits_tells_for_whom_and_can_be_stopped(ingest, home, photos):
    with writer_of(home) as writer:
        ingest(
            "waits = []\n"
            "def see(_):\n"
            "    if 'held by' in panel.status.text:\n"
            "        waits.append(panel.status.text); panel.stop.click()\n"
            "panel.status.observe(see, 'value')\n" + _start(photos, "waiting")
        )
    waits, text = ingest("panel.status.unobserve_all()", "[waits, panel.status.text]")
    assert f"process {writer.process.pid} on " in waits[0]
    assert text == "Stopped."
    assert ingest("", "panel.metadata.runs('waiting')[0].state") == "stopped"


@pytest.mark.parametrize(
    ("folder", "collection", "encoder", "words"),
    [
        ("/no/such/folder", "mine", "mini", "/no/such/folder"),
        ("", "mine", "mini", "Folder: choose the folder"),
        ("photos", "another", "", "Name or path: type the name"),
        ("photos", "another", "no-such-encoder", "encoder no-such-encoder"),
        ("photos", "another", "/no/such.onnx", "/no/such.onnx: no such file"),
        ("empty", "mine", "mini", "holds no images"),
    ],
)
def test_what_cannot_be_done_is_told(ingest, photos, tmp_path, folder, collection, encoder, words):
    (tmp_path / "empty").mkdir()
    folder = {"photos": photos, "empty": tmp_path / "empty"}.get(folder, folder)
    named = f"panel.encoder.value = ''; panel.other_encoder.value = {encoder!r}"
    ingest(_start(folder, collection, named))
    kind, text = ingest("", "[panel.status.kind, panel.status.text]")
    assert kind == "bad"
    assert words in text
    assert "Unexpected error" not in text
    assert ingest("", "[panel.start.disabled, panel.stop.disabled]") == [False, True]
    assert "Traceback" not in ingest.outputs


def test_folders_are_walked_through(ingest, tmp_path):
    for name in ("b/c", "a", ".hidden", "<i>"):
        (tmp_path / "top" / name).mkdir(parents=True)
    top = str(tmp_path / "top")
    listed = ingest(f"panel.folder.path.value = {top!r}", "panel.folder.subfolders.options")
    assert [name for _, name in listed] == ["<i>", "a", "b"]
    found = "[panel.folder.value, [name for _, name in panel.folder.subfolders.options]]"
    choose = "panel.folder.subfolders.value = {!r}".format
    assert ingest(choose("a"), found) == [f"{top}/a", ["<i>", "a", "b"]]
    assert ingest(choose("b"), found) == [f"{top}/b", ["<i>", "a", "b"]]
    assert ingest("panel.folder.down.click()", found) == [f"{top}/b", ["c"]]
    assert "0 images in it" in ingest("", "panel.folder.note.value")
    assert ingest(choose("c"), found) == [f"{top}/b/c", ["c"]]
    assert ingest("panel.folder.up.click()", found) == [top, ["<i>", "a", "b"]]
    shutil.rmtree(top)
    assert "Cannot be read" in ingest("panel.folder.path.value += '/a'", "panel.folder.note.value")


def test_an_encoder_that_was_registered_is_offered(ingest, photos):
    ingest(
        "import numpy as np\nfrom imgsearch import encoders\n"
        "@encoders.register(name='colours', version='3', license='MIT')\n"
        "def colours(pictures):\n"
        "    'Mean colours'\n"
        "    return np.array([np.asarray(each).mean((0, 1)) + 1 for each in pictures])\n"
        "panel.collection.value = 'colourful'"
    )
    assert ["colours@3", "colours@3"] in ingest("", "panel.encoder.options")
    about = ingest("panel.encoder.value = 'colours@3'", "panel.about_encoder.value")
    assert "Mean colours. Licence of the weights: MIT." in about
    text = ingest(_start(photos, "colourful"), "panel.status.text")
    assert text.startswith("Added 12 images to colourful")


def test_stores_that_cannot_be_reached_are_told(tmp_path, photos):
    environment = {
        "DATABASE_URL": "mysql+pymysql://me:s3cret@127.0.0.1:1/x",
        "IMGSEARCH_HOME": str(tmp_path / "home"),
    }
    with opened("ingest", tmp_path, **environment) as ingest:
        for code in ("", _start(photos, "mine")):
            kind, text = ingest(code, "[panel.status.kind, panel.status.text]")
            assert kind == "bad"
            assert "127.0.0.1:1" in text
            assert "s3cret" not in ingest.outputs + text


def test_a_setting_that_cannot_be_used_is_told(tmp_path):
    with opened("ingest", tmp_path, IMGSEARCH_BACKEND="quick") as ingest:
        assert ingest("", "panel.status.text").startswith("IMGSEARCH_BACKEND: ")
        assert ingest("panel.start.click()", "panel.status.kind") == "bad"
