"""The notebooks in JupyterLab, worked with as a researcher would."""

from __future__ import annotations

import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from imgsearch.gallery import Gallery
from imgsearch.stores.metadata import MetadataStore
from tests.browser.conftest import PATIENCE, PHOTOS, run_all
from tests.helpers import paint


def _tiles(page) -> list[str]:
    return page.locator(".imgsearch-main .imgsearch-tile .imgsearch-name").all_inner_texts()


def _heads(page) -> list[str]:
    return page.locator(".imgsearch-main .imgsearch-head").all_inner_texts()


def _upload(page, *files) -> None:
    page.locator("input[type=file]").set_input_files(list(files))


def _wait_for(condition) -> None:
    until = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def _title(page, text: str) -> None:
    page.locator("h4", has_text=text).wait_for()


def _big(side: int) -> bytes:
    """Noise, which PNG cannot make smaller: three bytes a pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def search(notebook):
    """The search notebook, for several tests: each begins with a query of its own."""
    page = notebook("search")
    page.locator(".imgsearch-tile img").first.wait_for()
    return page


def test_search(search):
    page = search
    assert page.get_by_role("textbox", name="Path").is_visible()

    # Upload, grid, click a result, a new grid, and back.
    _upload(page, PHOTOS[3])
    _title(page, f"Similar to {PHOTOS[3].name}")
    first = _tiles(page)
    assert first[0] == PHOTOS[3].name
    second = page.get_by_role("button", name="Rank 2, score 0.")
    assert second.locator("img").get_attribute("alt") == first[1]
    assert second.locator("img").evaluate("img => img.complete && img.naturalWidth > 100")
    second.focus()
    page.keyboard.press("Enter")
    _title(page, f"Similar to {first[1]}")
    assert _tiles(page)[0] == first[1]
    page.get_by_role("button", name="Back", exact=True).click()
    _title(page, f"Similar to {PHOTOS[3].name}")
    assert _tiles(page) == first

    # A box: other results.
    whole = _heads(page)
    canvas = page.locator(".imgsearch-query svg")
    canvas.scroll_into_view_if_needed()
    page.wait_for_function(
        "document.querySelector('.imgsearch-query svg').getBoundingClientRect().width > 100"
    )
    at = canvas.bounding_box()
    page.mouse.move(at["x"] + 20, at["y"] + 20)
    page.mouse.down()
    page.mouse.move(at["x"] + 60, at["y"] + 60, steps=3)
    page.mouse.move(at["x"] + 130, at["y"] + 110, steps=3)
    page.mouse.up()
    _title(page, "(the part in the box)")
    assert _heads(page) != whole
    part = page.get_by_role("textbox", name="Part").input_value()
    assert len([int(number) for number in part.split(", ")]) == 4
    page.get_by_role("button", name="Whole picture").click()
    page.locator("h4", has_text="(the part in the box)").wait_for(state="detached")
    assert _heads(page) == whole

    # A corrupt upload says so, and the results stay.
    _upload(page, {"name": "bad.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff no"})
    page.get_by_role("alert").filter(has_text="bad.jpg: ").wait_for()
    assert _heads(page) == whole

    # The original opens, and closes by the keyboard.
    page.locator(".imgsearch-main .imgsearch-tile").first.hover()
    page.get_by_role("button", name=f"Open the original of {PHOTOS[3].name}").click()
    original = page.get_by_role("dialog").locator("img")
    original.wait_for()
    with Image.open(PHOTOS[3]) as photo:
        width = photo.width
    page.wait_for_function(
        "width => document.querySelector('dialog[open] img').naturalWidth === width", arg=width
    )
    page.keyboard.press("Escape")
    original.wait_for(state="hidden")

    # Downloads.
    with page.expect_download() as csv:
        page.get_by_role("button", name="Save as CSV").click()
    assert csv.value.suggested_filename == "search.csv"
    with page.expect_download() as png:
        page.get_by_role("button", name="Save as PNG").click()
    with Image.open(png.value.path()) as grid:
        assert grid.width > 500


def test_a_photograph_of_40_mb_is_searched_with(search, tmp_path):
    page = search
    big = tmp_path / "big.png"
    big.write_bytes(_big(3700))
    assert big.stat().st_size > 40_000_000
    _upload(page, big)
    _title(page, "Similar to big.png")
    assert len(_heads(page)) == 10


def test_files_are_dropped_on_the_panel(search):
    page = search
    data = list(PHOTOS[5].read_bytes())
    page.locator(".imgsearch-drop").evaluate(
        """(zone, [data, name]) => {
            const moved = new DataTransfer();
            moved.items.add(new File([new Uint8Array(data)], name, {type: "image/jpeg"}));
            moved.items.add(new File(["text"], "notes.jpg", {type: "image/jpeg"}));
            zone.dispatchEvent(new DragEvent("drop", {dataTransfer: moved, bubbles: true}));
        }""",
        [data, "dropped.jpg"],
    )
    page.get_by_role("alert").filter(has_text="notes.jpg: ").wait_for()


def test_ingest_with_stop_and_resume(notebook, tmp_path):
    for photo in PHOTOS[40:160]:
        shutil.copy(photo, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    page = notebook("ingest")
    page.get_by_role("textbox", name="Folder", exact=True).fill(str(tmp_path))
    page.keyboard.press("Enter")
    page.get_by_text("0 subfolders, 121 files").wait_for()
    page.get_by_role("combobox", name="Collection").fill("more")
    page.keyboard.press("Tab")
    many = page.get_by_role("spinbutton", name="Batch size")
    many.fill("1")
    many.press("Enter")
    start = page.get_by_role("button", name="Start", exact=True)
    stop = page.get_by_role("button", name="Stop", exact=True)
    start.click()
    page.get_by_text("of 121 files ·").wait_for()
    stop.click()
    stopped = page.get_by_text("more: stopped, 121 files")
    stopped.wait_for()
    page.get_by_text("Press Start to resume").wait_for()
    many.fill("32")
    many.press("Enter")
    start.click()
    page.get_by_text("more: done, 121 files").wait_for()
    page.get_by_text("the collection holds 120 images").wait_for()
    assert page.locator(".imgsearch-table", has_text="broken.png").is_visible()
    page.locator("h4", has_text="Added").wait_for()
    assert page.locator(".imgsearch-small .imgsearch-tile img").count() > 0


@pytest.fixture
def damaged(stores, tmp_path):
    """A collection of eight pictures, two of whose vectors are lost."""
    from imgsearch.ingestion import ingest

    for i in range(8):
        paint(tmp_path / "eight" / f"{i}.png", i)
    ingest(tmp_path / "eight", "damaged", settings=stores)
    with Gallery.open("damaged", settings=stores) as gallery:
        gallery.vectors.delete("damaged", gallery.metadata.ids("damaged")[:2])
    yield "damaged"
    with Gallery.open("damaged", create=True, settings=stores) as gallery:
        gallery.drop()


def test_admin_verifies_repairs_and_deletes_by_name(lab, notebook, damaged, stores):
    count = "sum(isinstance(w, type(panel)) for w in type(panel).widgets.values())"
    counted = lab.folder / "notebooks" / "open-panels"
    page = notebook("admin", f"open({str(counted)!r}, 'w').write(str({count}))")
    page.locator(".imgsearch-tile img").first.wait_for()
    page.locator(".imgsearch-table", has_text="8 images, but 6 vectors: run `verify`").wait_for()
    page.get_by_role("combobox", name="Collection").select_option(damaged)

    page.get_by_role("tab", name="Verify and repair").click()
    page.get_by_role("button", name="Verify", exact=True).click()
    page.get_by_role("alert").filter(has_text="damaged: 2 images without a vector").wait_for()
    page.get_by_text("2 images have no vector").wait_for()
    page.get_by_role("button", name="Repair …").click()
    page.get_by_role("button", name="Repair now").click()
    page.get_by_text("2 vectors computed again from image files").first.wait_for()
    page.get_by_role("button", name="Verify", exact=True).click()
    page.get_by_text("damaged: sound, 8 images under 8 paths").wait_for()

    page.get_by_role("tab", name="Delete").click()
    name = page.get_by_role("textbox", name="Type the name to confirm")
    name.fill("damagad")
    page.get_by_role("button", name="Delete collection").click()
    page.get_by_role("alert").filter(has_text="nothing was deleted").wait_for()
    name.fill(damaged)
    page.get_by_role("button", name="Delete collection").click()
    page.get_by_text("Deleted the collection damaged").wait_for()
    options = page.get_by_role("combobox", name="Collection").locator("option")
    assert damaged not in options.all_inner_texts()

    # Ingests of other processes appear while the panel is displayed; running the cells again
    # replaces the panel.
    for folder in ("/photos/first", "/photos/second"):
        with MetadataStore.open(stores) as metadata:
            metadata.finish_run(metadata.start_run("elsewhere", folder, 10), "done")
        page.locator(".imgsearch-table", has_text=folder).wait_for()
        _wait_for(lambda: counted.exists() and counted.read_text() == "1")
        counted.unlink()
        run_all(page)
