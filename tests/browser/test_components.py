"""The browser components by themselves, on a plain page: mouse, finger, keys, accessibility."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser.conftest import PATIENCE, PHOTOS
from tests.conftest import ROOT

STATIC = ROOT / "imgsearch" / "static"
SITE = "http://components.localhost"  # secure, so that the clipboard works
NAMES = [photo.name for photo in PHOTOS[:9]]


def _serve(route) -> None:
    path = urlsplit(route.request.url).path
    if path.startswith("/static/"):
        route.fulfill(path=STATIC / path.removeprefix("/static/"))
    elif path == "/names":
        route.fulfill(json=NAMES)
    elif path.startswith("/photo/"):
        route.fulfill(path=PHOTOS[0].parent / path.removeprefix("/photo/"))
    else:
        route.fulfill(path=Path(__file__).with_name("components.html"))


@pytest.fixture
def open_page(chromium):
    """Open the page of components in a context with some options."""
    contexts, errors = [], []

    def run(**options):
        context = chromium.new_context(**{"viewport": {"width": 900, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.route(f"{SITE}/**", _serve)
        page.goto(f"{SITE}/")
        page.wait_for_function("window.ready && document.querySelector('#query img').naturalWidth")
        return page

    yield run
    for context in contexts:
        context.close()
    assert errors == []


def _calls(page, name: str) -> list:
    return page.evaluate("name => calls.filter((c) => c[0] === name).map((c) => c[1])", name)


def _wait_for_call(page, name: str, n: int = 1) -> object:
    page.wait_for_function(
        "([name, n]) => calls.filter((c) => c[0] === name).length >= n", arg=[name, n]
    )
    return _calls(page, name)[n - 1]


def _focused(page) -> str:
    return page.evaluate(
        "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
    )


def _at(page, x: float, y: float) -> tuple[float, float]:
    """The place on the screen of a pixel of the query, of 1,000 by 500."""
    area = page.locator(".imgsearch-crop-surface").bounding_box()
    return area["x"] + x * area["width"] / 1000, area["y"] + y * area["height"] / 500


def _drag(page, start, end) -> None:
    page.mouse.move(*_at(page, *start))
    page.mouse.down()
    page.mouse.move(*_at(page, *end), steps=4)
    page.mouse.up()


def _close(box, wanted) -> bool:
    return all(abs(edge - other) <= 4 for edge, other in zip(box, wanted, strict=True))


def test_a_box_is_drawn_moved_resized_and_removed_by_mouse(open_page):
    page = open_page()
    _drag(page, (200, 100), (600, 300))
    assert _close(_wait_for_call(page, "box"), [200, 100, 600, 300])
    _drag(page, (400, 200), (500, 250))  # inside
    assert _close(_wait_for_call(page, "box", 2), [300, 150, 700, 350])
    _drag(page, (700, 350), (800, 400))  # a corner
    assert _close(_wait_for_call(page, "box", 3), [300, 150, 800, 400])
    _drag(page, (300, 275), (100, 275))  # an edge
    assert _close(_wait_for_call(page, "box", 4), [100, 150, 800, 400])
    _drag(page, (400, 200), (900, 900))  # not out of the picture
    assert _close(_wait_for_call(page, "box", 5), [300, 250, 1000, 500])
    # A click, and a drag that Escape ends, change nothing.
    page.mouse.click(*_at(page, 50, 50))
    page.mouse.move(*_at(page, 20, 20))
    page.mouse.down()
    page.mouse.move(*_at(page, 200, 200), steps=4)
    page.keyboard.press("Escape")
    page.mouse.up()
    page.get_by_role("button", name="Whole picture").click()
    assert _wait_for_call(page, "box", 6) is None


def test_a_box_is_drawn_moved_resized_and_removed_by_keys(open_page):
    page = open_page()
    page.locator("#before").focus()
    page.keyboard.press("Tab")
    assert _focused(page) == "Part of the picture to search with"
    page.keyboard.press("ArrowRight")
    assert _wait_for_call(page, "box") == [250, 125, 750, 375]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert _wait_for_call(page, "box", 2) == [270, 105, 770, 355]  # both keys, one search
    page.keyboard.press("Shift+ArrowLeft")
    assert _wait_for_call(page, "box", 3) == [270, 105, 750, 355]
    status = page.get_by_role("status").filter(has_text="left 270, upper 105")
    assert status.count() == 1
    page.keyboard.press("Escape")
    assert _wait_for_call(page, "box", 4) is None
    page.keyboard.press("Escape")
    assert _focused(page) == "before"
    # Tab is never caught.
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert _focused(page) == "Part: left, upper, right, lower, in pixels"
    page.keyboard.type("0 0 100 100")
    page.keyboard.press("Enter")
    assert _wait_for_call(page, "box", 5) == [0, 0, 100, 100]
    page.keyboard.press("Control+A")
    page.keyboard.type("0, 0, 5000, 10")
    page.keyboard.press("Enter")
    field = page.get_by_role("textbox", name="Part")
    assert "inside 1000 × 500" in field.evaluate("field => field.validationMessage")
    assert len(_calls(page, "box")) == 5


def test_a_box_is_drawn_by_a_finger_and_the_page_stays(open_page):
    page = open_page(has_touch=True, viewport={"width": 390, "height": 500})
    finger = page.context.new_cdp_session(page)

    def touch(kind: str, *points) -> None:
        touches = [{"x": x, "y": y} for x, y in points]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def swipe(start, end) -> None:
        (x0, y0), (x1, y1) = _at(page, *start), _at(page, *end)
        touch("touchStart", (x0, y0))
        for i in range(1, 6):
            touch("touchMove", (x0 + (x1 - x0) * i / 5, y0 + (y1 - y0) * i / 5))
        touch("touchEnd")

    swipe((100, 450), (700, 50))
    assert _close(_wait_for_call(page, "box"), [100, 50, 700, 450])
    swipe((700, 450), (900, 300))
    assert _close(_wait_for_call(page, "box", 2), [100, 50, 900, 300])
    assert page.evaluate("scrollY") == 0
    handle = page.locator(".imgsearch-crop-handle").first.bounding_box()
    assert handle["width"] >= 24


def test_the_grid_is_one_tab_stop_and_has_keys(open_page):
    page = open_page()
    page.get_by_role("slider").focus()
    page.keyboard.press("Tab")
    assert _focused(page) == f"Search with {NAMES[0]}"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Show 9 more"
    page.keyboard.press("Shift+Tab")
    for key, place in (("ArrowRight", 1), ("End", 8), ("ArrowLeft", 7), ("Home", 0)):
        page.keyboard.press(key)
        assert _focused(page) == f"Search with {NAMES[place]}"
    top = page.evaluate("document.activeElement.getBoundingClientRect().top")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > top
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") == top
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert _calls(page, "pick") == ["1"]
    # Tiles that stay keep the focus; otherwise the first one gets it.
    page.evaluate("grid.update({ items: items.slice(1) })")
    assert _focused(page) == f"Search with {NAMES[1]}"
    page.evaluate("grid.update({ items: items.slice(4) })")
    assert _focused(page) == f"Search with {NAMES[4]}"


def test_images_are_judged_with_keys_and_buttons(open_page):
    page = open_page()
    page.get_by_role("button", name=f"Search with {NAMES[0]}").focus()
    page.keyboard.press("y")  # nothing: there are no results to judge
    page.evaluate("grid.update({ judging: true })")
    for key in ("ArrowRight", "y", "ArrowRight", "n", "u"):
        page.keyboard.press(key)
    page.keyboard.down("u")
    page.keyboard.down("u")  # it is held: what follows on the first press is not asked for
    page.keyboard.up("u")
    page.get_by_role("button", name=f"More like {NAMES[4]}").click()
    page.get_by_role("button", name=f"Less like {NAMES[3]}").click()
    assert _calls(page, "judge") == [["1", 1], ["2", -1], ["4", 1], ["3", -1]]
    assert len(_calls(page, "undo")) == 2
    assert _calls(page, "pick") == []


@pytest.mark.parametrize("selecting", ["marks", "tiles"])
def test_images_are_selected_one_by_one_in_ranges_and_all(open_page, selecting):
    page = open_page()
    page.evaluate("selecting => grid.update({ selecting })", selecting)
    name = "Select" if selecting == "marks" else "Search with"

    def click(i: int, *modifiers: str) -> None:
        tile = page.get_by_role("button", name=f"{name} {NAMES[i]}")
        tile.click(modifiers=list(modifiers))
        assert tile.get_attribute("aria-pressed") == "true"

    click(1)
    click(4, "Shift")
    assert _wait_for_call(page, "select", 2) == ["1", "2", "3", "4"]
    page.get_by_text("4 selected").wait_for()
    page.keyboard.press("Tab")
    page.get_by_role("button", name=f"Search with {NAMES[6]}").focus()
    page.keyboard.press("Space")
    assert _wait_for_call(page, "select", 3) == ["1", "2", "3", "4", "6"]
    page.keyboard.press("Shift+ArrowRight")
    assert _wait_for_call(page, "select", 4)[-1] == "7"
    page.keyboard.press("Escape")
    assert _wait_for_call(page, "select", 5) == []
    page.keyboard.press("Control+A")
    assert len(_wait_for_call(page, "select", 6)) == 9
    page.get_by_role("button", name="Clear selection").click()
    assert _wait_for_call(page, "select", 7) == []
    assert _focused(page).startswith("Search with")
    assert _calls(page, "pick") == []


def test_the_viewer_steps_zooms_searches_and_returns_the_focus(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    tile = page.get_by_role("button", name=f"Search with {NAMES[2]}")
    tile.focus()
    page.keyboard.press("o")
    page.get_by_role("dialog", name=f"Image 3 of 9: {NAMES[2]}").wait_for()
    stage = page.locator(".imgsearch-viewer-stage img")
    assert page.get_by_role("img", name=f"Query: {NAMES[0]}").is_visible()
    page.get_by_text("12 kB").wait_for()
    page.keyboard.press("ArrowRight")
    page.get_by_role("dialog", name=f"Image 4 of 9: {NAMES[3]}").wait_for()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.get_by_role("dialog", name=f"Image 2 of 9: {NAMES[1]}").wait_for()
    assert _calls(page, "show") == ["2", "3", "2", "1"]
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")  # moves the zoomed image
    assert "translate(-60px, 0px) scale(1.5)" in stage.get_attribute("style")
    page.keyboard.press("0")
    assert "scale(1)" in stage.get_attribute("style")
    page.get_by_role("button", name="Copy path").click()
    page.get_by_text("Path copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == f"/photos/{NAMES[1]}"
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert _focused(page) == f"Search with {NAMES[2]}"
    page.keyboard.press("o")
    page.keyboard.press("Enter")
    assert _wait_for_call(page, "search") == "2"
    assert page.get_by_role("dialog").count() == 0


def test_pictures_are_pasted_dropped_dragged_from_the_grid_and_named(open_page):
    page = open_page()
    send = """([target, kind, name]) => {
        const files = new DataTransfer();
        files.items.add(new File(["picture"], name, { type: "image/png" }));
        const data = { clipboardData: files, dataTransfer: files, bubbles: true };
        const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
        document.querySelector(target).dispatchEvent(new Kind(kind, data));
    }"""
    page.evaluate(send, ["body", "paste", "paste.png"])
    page.evaluate(send, [".imgsearch-drop", "drop", "drop.png"])
    assert _calls(page, "files") == [["paste.png"], ["drop.png"]]
    page.get_by_role("button", name=f"Search with {NAMES[3]}").drag_to(
        page.locator(".imgsearch-drop-buttons")
    )
    assert _wait_for_call(page, "key") == "3"
    page.get_by_role("textbox", name="Path").fill("/a.jpg")
    page.keyboard.press("Enter")
    assert _calls(page, "text") == ["/a.jpg"]
    # A picture that is pasted into a text is not ours.
    page.evaluate(send, ["input[aria-label=Path]", "paste", "text.png"])
    assert len(_calls(page, "files")) == 2


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("selecting", ["", "marks", "tiles"])
def test_axe_finds_nothing(open_page, axe, theme, selecting):
    page = open_page(color_scheme=theme)
    page.evaluate("selecting => grid.update({ selecting, selected: ['1'] })", selecting)
    page.evaluate("crop.update({ box: [10, 10, 300, 300] })")
    assert axe(page) == []
    page.evaluate("viewer.update({ current: '1' })")
    page.get_by_text("12 kB").wait_for()
    assert axe(page) == []
