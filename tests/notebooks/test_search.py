"""The search notebook, by hand."""

from __future__ import annotations

import pytest

from tests.helpers import paint
from tests.notebooks.conftest import opened

TOOLS = """
from pathlib import Path

def upload(name, data, piece=4):
    panel.uploader.receive({"type": "begin", "key": name, "name": name, "size": len(data)})
    for at in range(0, len(data), piece):
        part = memoryview(data)[at : at + piece]
        panel.uploader.receive({"type": "piece", "key": name, "offset": at}, [part])

def click(grid, i, kind="pick"):
    grid._handle_custom_msg({"type": kind, "key": grid.items[i]["key"]}, [])

def names():
    return [item["name"] for item in panel.grid.items]

sent = []
panel.grid.send = lambda content, buffers=None: sent.append((content, buffers))
refused = []
panel.uploader.send = lambda content, buffers=None: refused.append(content)
"""


@pytest.fixture(scope="module")
def search(home, photos, tmp_path_factory):
    with opened(
        "search", tmp_path_factory.mktemp("work"), IMGSEARCH_HOME=str(home), DEFAULT_TABLE="mine"
    ) as notebook:
        notebook(f"{TOOLS}\nphotos = Path({str(photos)!r})")
        yield notebook


@pytest.fixture
def uploaded(search, photos):
    search(
        "panel._history.clear(); panel.query = None\n"
        "upload('03.png', (photos / '03.png').read_bytes(), 1 << 20)",
    )
    return search


def test_stored_images_are_shown_and_can_be_searched_with(search):
    items = search("panel.browse.click()", "[[i['id'], i['name']] for i in panel.grid.items]")
    assert len(items) == 12
    assert all(image_id.isdigit() for image_id, _ in items)
    best = search("click(panel.grid, 5)", "panel.grid.items[0]['name']")
    assert best == items[5][1]
    assert "stored vector" in search("", "panel.facts.value")


def test_an_upload_finds_itself_and_says_how(uploaded):
    names, head, kind = uploaded("", "[names(), panel.grid.items[0]['head'], panel.status.kind]")
    assert names[0] == "03.png"
    assert head == ["1", "1.000"]
    assert kind == "good"
    action = uploaded("", "panel.grid.items[1]['action']")
    assert action.startswith("Rank 2, score 0.")
    facts = uploaded("", "panel.facts.value")
    for part in ("mini", "FLAT", "encode", "vector search", "metadata", "cpu"):
        assert part in facts


def test_a_click_on_a_result_searches_with_it_and_back_returns(uploaded):
    first = uploaded("", "names()")
    second = uploaded("click(panel.grid, 1)", "names()")
    assert second[0] == first[1]
    assert second != first
    assert uploaded("panel.back.click()", "names()") == first
    assert uploaded("", "panel.back.disabled") is True


def test_a_box_changes_the_results_and_can_be_typed_or_taken_away(uploaded):
    whole = uploaded("", "[i['head'] for i in panel.grid.items]")
    uploaded(
        "panel.cropper.bboxes = [{'x': 1, 'y': 1, 'width': 9, 'height': 9, 'label': 'part'}]\n"
        "panel.cropper.bboxes = [{'x': 10, 'y': 20, 'width': 90, 'height': 80, 'label': 'part'}]"
    )
    assert uploaded("", "[panel.box.value, len(panel._history)]") == ["10, 20, 100, 100", 2]
    part = uploaded("", "[i['head'] for i in panel.grid.items]")
    assert part != whole
    drawn = uploaded("panel.box.value = '0 0 150 200'", "panel.cropper.bboxes")
    assert drawn == [{"x": 0, "y": 0, "width": 150, "height": 200, "label": "part"}]
    assert uploaded("panel.whole.click()", "[i['head'] for i in panel.grid.items]") == whole
    assert uploaded("", "panel.cropper.bboxes") == []


@pytest.mark.parametrize("typed", ["1, 2, 3", "left, 0, 10, 10", "0, 0, 1000, 1000", "9, 9, 9, 9"])
def test_a_box_that_cannot_be_is_refused_in_words(uploaded, typed):
    kind, text = uploaded(f"panel.box.value = {typed!r}", "[panel.status.kind, panel.status.text]")
    assert kind == "bad"
    assert "Unexpected error" not in text


def test_the_number_of_results_is_followed(uploaded):
    assert len(uploaded("panel.top_k.value = 3", "names()")) == 3
    assert len(uploaded("panel.top_k.value = 10", "names()")) == 10


@pytest.mark.parametrize(
    ("data", "reason"),
    [("b''", "zero bytes"), ("b'\\xff\\xd8\\xff broken'", ""), ("b'text' * 99", "")],
)
def test_a_broken_upload_is_refused_in_words(uploaded, data, reason):
    before = uploaded("", "names()")
    kind, text = uploaded(f"upload('bad.jpg', {data})", "[panel.status.kind, panel.status.text]")
    assert kind == "bad"
    assert text.startswith("bad.jpg: ")
    assert reason in text
    assert uploaded("", "names()") == before


def test_an_upload_comes_in_pieces_and_a_giant_is_refused(uploaded):
    uploaded("upload('04.png', (photos / '04.png').read_bytes(), 100)")
    assert uploaded("", "names()[0]") == "04.png"
    giant = {"type": "begin", "key": "g", "name": "giant.jpg", "size": 2**40}
    answer = uploaded(f"panel.uploader.receive({giant})", "refused[-1]")
    assert answer["type"] == "refused"
    assert "limit 128.0 MiB" in answer["reason"]
    longer = "upload('05.png', b'12345678', 8); panel.uploader.receive("
    longer += "{'type': 'begin', 'key': 'l', 'name': 'l.png', 'size': 4});"
    longer += "panel.uploader.receive({'type': 'piece', 'key': 'l', 'offset': 0}, [b'12345678'])"
    assert "changed" in uploaded(longer, "refused[-1]['reason']")


def test_several_uploads_stay_at_hand(uploaded):
    uploaded("upload('06.png', (photos / '06.png').read_bytes(), 1 << 20)")
    assert uploaded("", "names()[0]") == "06.png"
    strip = uploaded("", "[i['name'] for i in panel.uploads.items]")
    assert strip[-2:] == ["03.png", "06.png"]
    at = len(strip) - 2
    assert uploaded(f"click(panel.uploads, {at})", "names()[0]") == "03.png"


def test_a_path_is_searched_with_and_a_wrong_one_is_told(search, photos, tmp_path):
    other = paint(tmp_path / "$other <b>.png", 3, (300, 200))
    go = "panel.path.value = {!r}; panel.search_path.click()"
    assert search(go.format(str(other)), "names()[0]") == "03.png"
    assert "$other &lt;b&gt;.png" in search("", "panel.title.value")
    for wrong in ("", str(tmp_path), str(tmp_path / "none.jpg"), str(photos / "notes.txt")):
        assert search(go.format(wrong), "panel.status.kind") == "bad"
        assert "Unexpected error" not in search("", "panel.status.text")


def test_results_are_saved_and_originals_opened(uploaded):
    uploaded("sent.clear(); panel.save_hits.click()")
    name, head, lines = uploaded(
        "text = sent[-1][1][0].decode()",
        "[sent[-1][0]['name'], text.splitlines()[0], len(text.splitlines())]",
    )
    assert (name, head, lines) == ("search.csv", "rank,score,image_id,path,width,height", 11)
    png = uploaded("panel.save_grid.click()", "[sent[-1][0]['name'], sent[-1][1][0][:4].hex()]")
    assert png == ["search.png", "89504e47"]
    shown = uploaded("click(panel.grid, 0, 'open')", "sent[-1][0]")
    assert shown == {
        "type": "show",
        "name": "03.png",
        "mime": "image/png",
        "note": shown["note"],
    }
    assert shown["note"].startswith("300 × 200 pixels")


def test_a_result_whose_file_is_gone_is_a_tile_that_says_so(uploaded, photos):
    gone = photos / "03.png"
    data = gone.read_bytes()
    gone.unlink()
    try:
        uploaded("panel.search(panel.query)")
        thumb, reason = uploaded(
            "", "[panel.grid.items[0]['thumb'] is None, panel.grid.items[0]['reason']]"
        )
        assert thumb
        assert reason
        # Its vector is still there to search with; its original is not there to open.
        assert uploaded("click(panel.grid, 0)", "panel.status.kind") == "good"
        assert uploaded("click(panel.grid, 0, 'open')", "panel.status.kind") == "bad"
    finally:
        gone.write_bytes(data)


def test_a_collection_that_was_dropped_meanwhile_is_told(uploaded):
    uploaded(
        "from imgsearch import export\nfrom imgsearch.gallery import Gallery\n"
        "with Gallery.open('mine') as g: export.export_collection(g, 'copy.parquet')\n"
        "export.import_collection('copy.parquet', 'copy')\n"
        "panel.refresh.click(); panel.wait(100); panel.collection.value = 'copy'\n"
    )
    assert uploaded("", "names()[0]") == "03.png"
    uploaded("with Gallery.open('copy') as g: g.drop()\npanel.search(panel.query)")
    assert "collection 'copy' does not exist" in uploaded("", "panel.status.text")
    assert uploaded("panel.refresh.click()", "panel.collection.options") == ["mine"]
    assert uploaded("panel.search(panel.query)", "names()[0]") == "03.png"


def test_what_nobody_foresaw_is_told_too_and_never_as_a_traceback(uploaded):
    uploaded("fine = panel._gallery\npanel._gallery = lambda: 1 / 0\npanel.search(panel.query)")
    text = uploaded("panel._gallery = fine", "panel.status.text")
    assert text.startswith("Unexpected error: ZeroDivisionError: division by zero")
    assert "Traceback" not in uploaded.outputs


@pytest.fixture(scope="module")
def visited(home, photos, tmp_path_factory):
    """The panel as a visitor of the app gets it."""
    work = tmp_path_factory.mktemp("work")
    environment = {"IMGSEARCH_HOME": str(home), "DEFAULT_TABLE": "mine", "VOILA_PREHEAT": "True"}
    with opened("search", work, **environment) as notebook:
        notebook(f"{TOOLS}\nphotos = Path({str(photos)!r})")
        yield notebook


def test_a_visitor_reaches_no_file_outside_the_collection(visited, tmp_path):
    search, secret = visited, tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    tree = (
        "from ipywidgets import Widget\n"
        "def below(w): return [w] + [b for c in getattr(w, 'children', ()) for b in below(c)]\n"
    )
    assert search(tree, "[panel.path in below(panel), panel.find in below(panel)]") == [
        False,
        False,
    ]
    # Every synchronised trait can be set by a browser, whatever the page shows.
    search(f"panel.cropper.set_state({{'image': {str(secret)!r}}})")
    assert search("", "bytes(panel.cropper.image_bytes).decode()") == ""
    search(f"panel.path.value = {str(secret)!r}; panel.search_path.click()")
    assert "secret" not in search("", "panel.status.text")
    assert search("", "panel.grid.items[0]['title']") == "00.png"


def test_a_visitor_is_shown_no_path(visited, photos):
    """Review 8.11, attack row 9: errors and the facts line named folders of the server."""
    visited("panel.browse.click()")
    gone = photos / "07.png"
    data = gone.read_bytes()
    gone.unlink()
    try:
        kind, text = visited(
            "click(panel.grid, 7, 'open')", "[panel.status.kind, panel.status.text]"
        )
        assert kind == "bad"
        assert text.startswith("07.png: ")
        assert str(photos) not in text
    finally:
        gone.write_bytes(data)
    for error in (
        "OSError(2, 'No such file', '/srv/home/vectors.db')",
        "StoreError('/srv/home/vectors.db', 'cannot be read')",
        "ImageError('/srv/a.jpg', 'see /srv/log')",
        "ValueError('/srv')",
    ):
        visited(
            "from imgsearch.errors import ImageError, StoreError\n"
            f"def fail(): raise {error}\n"
            "panel.attempt(fail)"
        )
        assert visited("", "panel.status.text") == (
            "The server could not do this. Its log holds the details."
        )
    visited("upload('03.png', (photos / '03.png').read_bytes(), 1 << 20)")
    shown = visited(
        "from dataclasses import replace\n"
        "renamed = replace(panel.hits, encoder=panel.hits.encoder | {'name': '/srv/model.onnx'})",
        "panel._facts(renamed) + panel.facts.value + panel.title.value + str(panel.grid.items)",
    )
    assert "Encoder model.onnx" in shown
    assert "/srv" not in shown
    assert str(photos) not in shown


def test_a_visitor_cannot_ask_for_more_results_than_the_panel_offers(visited, tmp_path):
    """Attack row 9: 16,000 results were taken instead of 100."""
    for i in range(110):
        paint(tmp_path / f"{i}.png", 1000 + i, (32, 32))
    n = visited(
        "from imgsearch import ingest\n"
        f"ingest({str(tmp_path)!r}, 'many')\n"
        "panel.refresh.click(); panel.wait(100); panel.collection.value = 'many'\n"
        "panel.wait(100); click(panel.grid, 0); panel.wait(100)\n"
        "panel.top_k.set_state({'max': 16000}); panel.top_k.set_state({'value': 16000})",
        "[panel.top_k.value, len(panel.hits)]",
    )
    visited("from imgsearch.gallery import Gallery\nGallery.open('many').drop()")
    assert n == [16000, 100]


def test_a_kernel_of_unknown_origin_is_confined(visited):
    """Review 8.11: confinement hung on a variable of Voilà and failed open."""
    found = visited(
        "import os\nfrom unittest import mock\n"
        "from imgsearch.widgets.search import confined_by_default\n"
        "def started(**names):\n"
        "    known = ('VOILA_', 'JPY_SESSION', 'VSCODE_')\n"
        "    clean = {n: v for n, v in os.environ.items() if not n.startswith(known)}\n"
        "    with mock.patch.dict(os.environ, clean | names, clear=True):\n"
        "        return confined_by_default()",
        "[started(), started(VOILA_KERNEL_ID='1', JPY_SESSION_NAME='a.ipynb'),"
        " started(JPY_SESSION_NAME='a.ipynb'), started(VSCODE_PID='1')]",
    )
    assert found == [True, True, False, False]
    settings = "load_settings(imgsearch_confined=False)"
    code = (
        "from imgsearch.config import load_settings\n"
        f"open_one = widgets.SearchPanel(settings={settings})"
    )
    assert visited(code, "[open_one.confined, panel.confined]") == [False, True]
