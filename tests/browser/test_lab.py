"""The notebooks in JupyterLab, worked with as a researcher would."""

from __future__ import annotations

import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from imgsearch.gallery import Gallery
from imgsearch.stores.metadata import MetadataStore
from tests.browser.conftest import PATIENCE, PHOTOS, run_all
from tests.helpers import paint


def _tiles(page) -> list[str]:
    return page.locator(".imgsearch-main .imgsearch-tile .imgsearch-name").all_text_contents()


def _scores(page) -> list[str]:
    return page.locator(".imgsearch-main .imgsearch-score").all_text_contents()


def _in_view(page, locator) -> bool:
    place = locator.bounding_box()
    return place["y"] >= 0 and place["y"] + place["height"] <= page.viewport_size["height"]


def _upload(page, *files) -> None:
    page.get_by_label("Pictures to search with").set_input_files(list(files))


def _wait_for(condition) -> None:
    until = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def _title(page, text: str) -> None:
    page.locator("h2", has_text=text).wait_for()


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


def test_search(search, axe):
    page = search
    # The code is folded, the panel is in view, and nothing is wrong.
    assert page.locator(".jp-InputArea-editor:visible").count() == 0
    assert _in_view(page, page.locator(".imgsearch-tile").first)
    page.get_by_text("40 images", exact=True).wait_for()
    assert page.get_by_role("alert").filter(visible=True).count() == 0

    # Upload, results, click a result, other results, and back.
    _upload(page, PHOTOS[3])
    _title(page, f"Similar to {PHOTOS[3].name}")
    first = _tiles(page)
    assert PHOTOS[3].name not in first
    assert _in_view(page, page.locator(".imgsearch-tile").first)
    second = page.get_by_role("button", name="Rank 2, score 0.")
    assert first[1] in second.locator("img").get_attribute("alt")
    assert second.locator("img").evaluate("img => img.complete && img.naturalWidth > 100")
    second.focus()
    page.keyboard.press("Enter")
    _title(page, f"Similar to {first[1]}")
    page.get_by_role("button", name="Back", exact=True).click()
    _title(page, f"Similar to {PHOTOS[3].name}")
    assert _tiles(page) == first
    page.get_by_role("checkbox", name="Show the query among its results").check()
    page.get_by_role(
        "button", name=f"Rank 1, score 1.000. Search with: {PHOTOS[3].name}"
    ).wait_for()
    page.get_by_role("checkbox", name="Show the query among its results").uncheck()
    page.get_by_role("button", name="Rank 1, score 1.000").wait_for(state="detached")

    # A box: other results.
    whole = _scores(page)
    surface = page.get_by_role("application", name="Part of the picture to search with")
    surface.scroll_into_view_if_needed()
    at = surface.bounding_box()
    page.mouse.move(at["x"] + 20, at["y"] + 20)
    page.mouse.down()
    page.mouse.move(at["x"] + 130, at["y"] + 110, steps=3)
    page.mouse.up()
    _title(page, "Similar to a part of")
    assert _scores(page) != whole
    part = page.get_by_role("textbox", name="Part").input_value()
    assert len([int(number) for number in part.split(", ")]) == 4
    surface.focus()
    page.keyboard.press("Escape")
    page.locator("h2", has_text="a part of").wait_for(state="detached")
    assert _scores(page) == whole

    # A corrupt upload says so, and the results stay.
    _upload(page, {"name": "bad.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff no"})
    page.get_by_role("alert").filter(has_text="bad.jpg: ").wait_for()
    assert _scores(page) == whole

    # The original opens, the next one too, and it closes by the keyboard.
    tile = page.get_by_role("button", name="Rank 1, score 0.")
    tile.focus()
    page.keyboard.press("o")
    for place in (0, 1):
        page.get_by_role("dialog", name=f": {first[place]}").wait_for()
        photo = next(photo for photo in PHOTOS if photo.name == first[place])
        with Image.open(photo) as picture:
            width = ImageOps.exif_transpose(picture).width
        page.wait_for_function(
            "width => document.querySelector('[open] [class$=stage] img').naturalWidth === width",
            arg=width,
        )
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert tile.evaluate("tile => tile === document.activeElement")

    # Tag the first two results, find them, and export.
    tile.focus()
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    page.get_by_role("textbox", name="Tag").fill("seen")
    page.keyboard.press("Enter")
    page.get_by_text("Tagged 2 files.").wait_for()
    page.get_by_text("tags", exact=True).click()
    page.get_by_role("checkbox", name="seen").check()
    page.get_by_text("2 of 2 matching images").wait_for()
    assert axe(page) == []
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_text("24 of 39 images").wait_for()
    with page.expect_download() as csv:
        page.get_by_role("button", name="CSV", exact=True).click()
    assert csv.value.suggested_filename == "images.csv"
    with page.expect_download() as png:
        page.get_by_role("button", name="PNG", exact=True).click()
    with Image.open(png.value.path()) as grid:
        assert grid.width > 500
    assert axe(page) == []


def test_the_path_field_takes_enter_and_more_shows_more(search):
    page = search
    path = page.get_by_role("textbox", name="Path of an image")
    path.fill("/no/such.jpg")
    path.press("Enter")
    page.get_by_role("alert").filter(has_text="/no/such.jpg: no such file").wait_for()
    path.fill(str(PHOTOS[7]))
    path.press("Enter")
    _title(page, f"Similar to {PHOTOS[7].name}")
    assert page.get_by_role("alert").filter(visible=True).count() == 0
    first = _tiles(page)
    page.get_by_role("button", name="Show 15 more").click()
    page.get_by_text("39 of 39 images").wait_for()
    assert _tiles(page)[: len(first)] == first


def test_a_photograph_of_40_mb_is_searched_with(search, tmp_path):
    page = search
    big = tmp_path / "big.png"
    big.write_bytes(_big(3700))
    assert big.stat().st_size > 40_000_000
    _upload(page, big)
    _title(page, "Similar to big.png")
    page.get_by_text("24 of 40 images").wait_for()


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


def test_judgments_outlive_the_kernel(search, axe):
    page = search
    field = page.get_by_role("textbox", name="Path of an image, or words")
    field.fill("dog")
    field.press("Enter")
    _title(page, "Results for “dog”")
    first = _tiles(page)
    page.locator(".imgsearch-main .imgsearch-pick").first.focus()
    page.keyboard.press("y")
    page.get_by_text("1 relevant, 0 not relevant").wait_for()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("n")
    page.get_by_text("Saved in “dog”: 1 relevant, 1 not relevant").wait_for()
    refined = _tiles(page)
    assert first[0] not in refined
    page.get_by_role("button", name="Session: dog").click()
    name = page.get_by_role("textbox", name="Name", exact=True)
    name.fill("all dogs")
    name.press("Enter")
    page.get_by_text("Saved the session “all dogs”.").wait_for()
    assert axe(page) == []

    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Restart Kernel and Run All Cells…").click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.locator(".imgsearch-summary", has_text="40 images").wait_for()
    page.get_by_role("button", name="Session", exact=True).click()
    page.get_by_role("combobox", name="Saved").select_option(label="all dogs · photos · 2 judged")
    page.get_by_role("button", name="Resume").click()
    page.get_by_text("Saved in “all dogs”: 1 relevant, 1 not relevant").wait_for()
    assert _tiles(page) == refined


def test_ingest_with_stop_and_resume(notebook, tmp_path):
    for photo in PHOTOS[40:160]:
        shutil.copy(photo, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    page = notebook("ingest")
    page.get_by_role("textbox", name="Folder", exact=True).fill(str(tmp_path))
    page.keyboard.press("Enter")
    page.get_by_text("121 images in it").wait_for()
    page.get_by_role("combobox", name="Collection").fill("more")
    page.keyboard.press("Tab")
    many = page.get_by_role("spinbutton", name="Batch size")
    many.fill("1")
    many.press("Enter")
    start = page.get_by_role("button", name="Start", exact=True)
    stop = page.get_by_role("button", name="Stop", exact=True)
    start.click()
    page.get_by_text("of 121 images ·").wait_for()
    stop.click()
    page.get_by_text("Press Start to resume").wait_for()
    many.fill("32")
    many.press("Enter")
    start.click()
    page.get_by_text("1 image could not be read. The collection holds 120 images.").wait_for()
    assert page.locator(".imgsearch-table", has_text="broken.png").is_visible()
    page.locator("h2", has_text="Added").wait_for()
    assert page.locator(".imgsearch-tile img").count() > 0


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
    page.get_by_text("damaged: no problems found in 8 images under 8 paths").wait_for()

    page.get_by_role("tab", name="Delete").click()
    name = page.get_by_role("textbox", name="Name")
    name.fill("damagad")
    page.get_by_role("button", name="Delete collection", disabled=True).wait_for()
    name.fill(damaged)
    page.get_by_role("button", name="Delete collection").click()
    page.get_by_text("Deleted the collection damaged").wait_for()
    options = page.get_by_role("combobox", name="Collection").locator("option")
    assert damaged not in options.all_inner_texts()

    # Ingests of other processes appear while the panel is displayed; running the cells again
    # replaces the panel.
    page.get_by_role("tab", name="Collections").click()
    for folder in ("/photos/first", "/photos/second"):
        with MetadataStore.open(stores) as metadata:
            metadata.finish_run(metadata.start_run("elsewhere", folder, 10), "done")
        page.locator(".imgsearch-table", has_text=folder).wait_for()
        _wait_for(lambda: counted.exists() and counted.read_text() == "1")
        counted.unlink()
        run_all(page, page.url.rpartition("/")[2])
