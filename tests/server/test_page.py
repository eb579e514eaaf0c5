"""The web page in Chromium, against a server of its own: every action, wide and on a phone."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from imgsearch.config import load_settings
from imgsearch.server import security
from tests.conftest import ROOT
from tests.server.conftest import TOKEN, Process

PHOTOS = sorted((ROOT / "data" / "VOCsample" / "JPEGImages").iterdir())
STORED, OTHER = PHOTOS[:140], PHOTOS[150]
LABELS = {photo.name: ("cat", "dog", "train")[i % 3] for i, photo in enumerate(STORED[:9])}
HEIGHTS = {390: 844, 1000: 800, 1400: 900, 2560: 1440}
PATIENCE = 60_000


class Site(NamedTuple):
    """A running server; `root` is the folder that may be loaded."""

    url: str
    root: Path

    def token(self, *, admin: bool) -> str:
        return TOKEN if admin else security.visitor_token(TOKEN)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Iterator[Site]:
    """A server with a collection ``photos``, and six pictures that can be loaded."""
    from imgsearch.gallery import Gallery
    from imgsearch.ingestion import ingest

    home, photos = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("photos")
    root = tmp_path_factory.mktemp("root")
    for photo in STORED:
        shutil.copy(photo, photos)
    for photo in PHOTOS[160:166]:
        shutil.copy(photo, root)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    settings = {"imgsearch_home": home, "imgsearch_backend": "eager", "imgsearch_encoder": "mini"}
    ingest(photos, "photos", settings=load_settings(**settings))
    with Gallery.open("photos", settings=load_settings(**settings)) as gallery:
        gallery.set_attributes({photos / name: {"label": label} for name, label in LABELS.items()})
    arguments = ["--collection", "photos", "--root", str(root), "--rate", "0"]
    process = Process(home / "log", load_settings(**settings), *arguments)
    yield Site(process.url, root)
    process.end()


@pytest.fixture(scope="session")
def context(chromium, site) -> Iterator[Callable]:
    """A browser's window by its size, theme and rights, which keeps files that it has loaded."""
    contexts = {}

    def find(width: int, theme: str, admin: bool):
        key = width, theme, admin
        if key not in contexts:
            phone = width < 600
            contexts[key] = chromium.new_context(
                viewport={"width": width, "height": HEIGHTS[width]},
                color_scheme=theme,
                has_touch=phone,
                is_mobile=phone,
                permissions=["clipboard-read", "clipboard-write"],
            )
        return contexts[key]

    yield find
    for one in contexts.values():
        one.close()


@pytest.fixture
def open_page(context, site) -> Iterator[Callable]:
    """Open the page at an address; errors and refused resources fail the test."""
    pages, errors = [], []

    def log(message) -> None:
        # A status that is an error is logged too; tests that provoke one look for the message.
        if message.type == "error" and "the server responded with a status" not in message.text:
            errors.append(message.text)

    def run(
        width: int = 1400,
        path: str = "",
        summary: str = "140 images",
        *,
        admin: bool = True,
        theme: str = "light",
    ):
        page = context(width, theme, admin).new_page()
        pages.append(page)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", log)
        mark = "&" if "?" in path else "?"
        page.goto(f"{site.url}{path}{mark}token={site.token(admin=admin)}")
        shown(page, summary)
        return page

    yield run
    for page in pages:
        page.evaluate("localStorage.clear()")
        page.context.clear_cookies()
        page.close()
    assert errors == []


def shown(page, summary: str | re.Pattern = "images") -> None:
    """Wait for a list of images and the thumbnails that are in view."""
    from playwright.sync_api import expect

    expect(page.locator(".imgsearch-summary")).to_contain_text(summary, timeout=PATIENCE)
    expect(page.locator(".imgsearch-grid")).to_have_attribute("aria-busy", "false")
    page.locator(".imgsearch-tile img").first.evaluate("img => img.decode()")


def eventually(page, script: str, wanted) -> None:
    """Wait until a script returns something; the page allows no evaluation from within."""
    for _ in range(PATIENCE // 50):
        if page.evaluate(script) == wanted:
            return
        page.wait_for_timeout(50)
    assert page.evaluate(script) == wanted


def names(page) -> list[str]:
    return page.locator(".imgsearch-tile img").evaluate_all("all => all.map((img) => img.alt)")


def address(page) -> dict[str, str]:
    return {key: value for key, [value] in parse_qs(urlsplit(page.url).query).items()}


def choose(page, photo: Path) -> None:
    page.locator("#query input[type=file]").first.set_input_files(photo)
    page.locator(".searching .imgsearch-crop-surface").wait_for()
    shown(page, "Similar")


def search_for(page, words: str) -> None:
    field = page.get_by_role("searchbox", name="Describe what you are looking for")
    field.fill(words)
    field.press("Enter")
    shown(page, f"Images for “{words}”")


def search_with(page, name: str) -> None:
    page.get_by_role("button", name=f"Open {name}").click()
    page.get_by_role("button", name="More like this").click()
    shown(page, "Similar")


WIDTHS = pytest.mark.parametrize("width", [1400, 390])
# What does not depend on the width is tried on a phone, and in the long form on a wide screen too.
PHONE_FIRST = pytest.mark.parametrize("width", [390, pytest.param(1400, marks=pytest.mark.soak)])


# ---------------------------------------------------------------- a picture from outside


@WIDTHS
def test_an_uploaded_picture_is_searched_with(open_page, width):
    page = open_page(width, admin=False)
    assert names(page)[:2] == [photo.name for photo in STORED[:2]]
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(STORED[20])
    shown(page, "Similar images")
    assert names(page)[0] == STORED[20].name
    assert address(page) == {"collection": "photos"}  # the picture is not part of it
    assert "not part of the address" in page.locator("#note").inner_text()
    assert page.locator("#share").is_hidden()
    # The results are in view, also on a phone.
    assert page.locator(".imgsearch-tile").first.bounding_box()["y"] < 0.7 * HEIGHTS[width]
    page.reload()
    shown(page, "Similar images")
    assert names(page)[0] == STORED[20].name
    page.go_back()
    shown(page, "140 images")
    page.go_forward()
    shown(page, "Similar images")
    page.get_by_role("button", name="Clear search").click()
    shown(page, "140 images")
    assert page.get_by_role("heading", name="Find images like yours").is_visible()


def test_one_picture_is_searched_with_at_a_time(open_page):
    page = open_page()
    chooser = page.locator("#query input[type=file]").first
    chooser.set_input_files(STORED[20:22])
    page.get_by_role("alert").filter(has_text="2 pictures at once").wait_for()
    assert page.locator(".searching").count() == 0
    held = []
    page.route("**/queries", lambda route: held.append(route), times=1)
    chooser.set_input_files(STORED[20])
    choose(page, STORED[21])  # before the first has arrived
    with page.expect_response("**/queries"):
        held[0].continue_()
    page.wait_for_timeout(200)
    assert names(page)[0] == STORED[21].name


def _transfer(page, photo: Path):
    data = base64.b64encode(photo.read_bytes()).decode()
    return page.evaluate_handle(
        """([data, name]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt());
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            return transfer;
        }""",
        [data, photo.name],
    )


@pytest.mark.parametrize("way", ["on the area", "anywhere", "paste", "paste while reading"])
def test_a_picture_is_dropped_or_pasted(open_page, way):
    page = open_page()
    if way == "paste while reading":
        search_for(page, "dog")
    transfer = _transfer(page, STORED[21])
    if "paste" in way:
        page.evaluate(
            "clipboardData => document.body.dispatchEvent("
            "new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true }))",
            transfer,
        )
    else:
        place = ".imgsearch-drop" if way == "on the area" else "#grid"
        page.dispatch_event(place, "dragover", {"dataTransfer": transfer})
        page.dispatch_event(place, "drop", {"dataTransfer": transfer})
        assert page.locator("#over").is_hidden()
    shown(page, "Similar images")
    assert names(page)[0] == STORED[21].name


def test_a_phone_can_take_a_picture(open_page):
    page = open_page(390)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a picture").tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(OTHER)
    shown(page, "Similar images")
    assert open_page(1400).get_by_role("button", name="Take a picture").is_hidden()


def test_what_is_no_picture_is_refused(open_page, tmp_path):
    page = open_page()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    page.locator("#query input[type=file]").first.set_input_files(tmp_path / "broken.jpg")
    alert = page.locator(".imgsearch-drop [role=alert]", has_text="broken.jpg")
    alert.wait_for()
    assert page.locator(".searching").count() == 0
    choose(page, OTHER)
    assert alert.is_hidden()


def test_a_picture_that_the_server_forgot_is_sent_again(open_page):
    page = open_page()
    choose(page, STORED[22])
    page.evaluate(  # as after a restart of the server
        "history.replaceState({ ...history.state, upload: { ...history.state.upload } }, '')"
    )
    gone = {"status": 404, "json": {"detail": "This query picture is no longer kept."}}
    page.route("**/search", lambda route: route.fulfill(**gone), times=1)
    page.locator(".imgsearch-crop-surface").press("ArrowRight")
    shown(page, "Similar to this part")
    assert page.locator("#problem").is_hidden()


# ---------------------------------------------------------------- a part


def _drag(page, *, finger: bool) -> None:
    """Draw a box over the middle of the picture."""
    surface = page.locator(".imgsearch-crop-surface")
    loaded = "it => it.querySelector('img').complete && it.querySelector('img').width > 0"
    page.wait_for_function(loaded, arg=surface.element_handle())
    surface.hover()  # once it stays where it is
    area = surface.bounding_box()
    start, end = (
        (area["x"] + share * area["width"], area["y"] + share * area["height"])
        for share in (0.25, 0.75)
    )
    if finger:
        touch = page.context.new_cdp_session(page)
        for kind, points in (("Start", [start]), ("Move", [end]), ("End", [])):
            points = [{"x": x, "y": y} for x, y in points]
            touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    else:
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(*end, steps=4)
        page.mouse.up()


@WIDTHS
def test_a_part_is_drawn_by_mouse_and_by_finger(open_page, width):
    page = open_page(width)
    search_with(page, STORED[1].name)
    whole = names(page)
    _drag(page, finger=width == 390)
    shown(page, "Similar to this part")
    box = [int(edge) for edge in address(page)["box"].split(",")]
    shape = page.locator(".imgsearch-crop-surface").evaluate(
        "it => [it.querySelector('img').naturalWidth, it.querySelector('img').naturalHeight]"
    )
    for edge, side in zip(box, shape * 2, strict=True):
        assert min(abs(edge / side - 0.25), abs(edge / side - 0.75)) < 0.03
    assert names(page) != whole
    page.get_by_role("button", name="Whole picture").click()
    shown(page, "Similar images")
    assert names(page) == whole
    page.go_back()
    shown(page, "Similar to this part")


def test_a_part_is_drawn_by_keys(open_page):
    page = open_page()
    search_with(page, STORED[1].name)
    page.locator(".imgsearch-crop-surface").press("ArrowRight")
    shown(page, "Similar to this part")
    page.locator(".imgsearch-crop-surface").press("Escape")
    shown(page, "Similar images")


# ---------------------------------------------------------------- stored images


@PHONE_FIRST
def test_an_image_is_looked_at_and_searched_with(open_page, width):
    page = open_page(width, admin=False)
    page.get_by_role("button", name=f"Open {STORED[0].name}").click()
    viewer = page.get_by_role("dialog", name=f"1 of 60: {STORED[0].name}")
    viewer.wait_for()
    first = address(page)["open"]
    page.keyboard.press("ArrowRight")
    page.get_by_role("dialog", name=f"2 of 60: {STORED[1].name}").wait_for()
    assert address(page)["open"] != first
    page.keyboard.press("Escape")
    eventually(page, "location.search", "?collection=photos")
    page.go_forward()
    page.get_by_role("dialog", name=f"2 of 60: {STORED[1].name}").wait_for()
    page.get_by_role("button", name="More like this").click()
    shown(page, "Similar images")
    assert STORED[1].name not in names(page)
    assert set(address(page)) == {"collection", "image"}
    assert STORED[1].name in page.title()
    page.go_back()
    page.get_by_role("dialog").wait_for()
    page.go_back()
    shown(page, "140 images")


def test_a_finger_turns_to_the_next_image(open_page):
    page = open_page(390)
    page.get_by_role("button", name=f"Open {STORED[0].name}").tap()
    page.get_by_role("dialog", name=f"1 of 60: {STORED[0].name}").wait_for()
    touch = page.context.new_cdp_session(page)
    for kind, points in (("Start", [300]), ("Move", [100]), ("End", [])):
        points = [{"x": x, "y": 400} for x in points]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    page.get_by_role("dialog", name=f"2 of 60: {STORED[1].name}").wait_for()


def test_a_search_is_shared_as_an_address(open_page):
    page = open_page()
    search_with(page, STORED[2].name)
    _drag(page, finger=False)
    shown(page, "Similar to this part")
    found = names(page)
    page.get_by_role("button", name="Copy link").click()
    page.locator("#note", has_text="Link copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert "token" not in link
    query = urlsplit(link).query
    other = open_page(390, f"?{query}", "Similar to this part", admin=False)
    assert names(other) == found
    assert other.locator(".imgsearch-crop-part").count() == 1


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    page.get_by_role("button", name=f"Open {STORED[0].name}").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name=f"2 of 60: {STORED[1].name}").wait_for()
    page.keyboard.press("Escape")
    focused = "document.activeElement.getAttribute('aria-label')"
    eventually(page, focused, f"Open {STORED[1].name}")


def test_scores_are_shown_on_demand(open_page):
    page = open_page()
    assert page.locator("#scores").is_hidden()
    search_with(page, STORED[3].name)
    shown_scores = page.locator(".imgsearch-score", has_text=".")
    assert shown_scores.count() == 0
    page.get_by_role("button", name="Scores").click()
    scores = [float(text) for text in shown_scores.all_inner_texts()]
    assert len(scores) >= 60
    assert scores == sorted(scores, reverse=True)
    page.reload()
    shown_scores.first.wait_for()


@PHONE_FIRST
def test_scrolling_loads_more_and_back_returns_to_the_place(open_page, width):
    page = open_page(width)
    count = "document.querySelectorAll('.imgsearch-tile').length"
    assert page.evaluate(count) == 60
    for expected in (120, 140):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        eventually(page, count, expected)
    assert names(page) == [photo.name for photo in STORED]
    page.get_by_role("button", name=f"Open {STORED[130].name}").scroll_into_view_if_needed()
    place = page.evaluate("scrollY")
    assert place > 1000
    search_with(page, STORED[130].name)
    assert page.evaluate("scrollY") == 0
    page.go_back()
    page.go_back()
    shown(page, "140 images")
    eventually(page, f"Math.abs(scrollY - {place}) < 5", True)


# ---------------------------------------------------------------- examples


@PHONE_FIRST
def test_results_become_examples_and_counter_examples(open_page, width):
    page = open_page(width, admin=False)
    assert page.get_by_role("button", name="More like").count() == 0
    search_with(page, STORED[1].name)
    liked = names(page)[3]
    page.get_by_role("button", name=f"More like {liked}").click()
    shown(page, "Similar images")
    assert liked not in names(page)
    unliked = names(page)[0]
    page.get_by_role("button", name=f"Less like {unliked}").click()
    shown(page, "Similar images")
    found = names(page)
    assert not {liked, unliked} & set(found)
    assert set(address(page)) == {"collection", "image", "like", "unlike"}
    parts = page.get_by_role("group", name="Parts of the query").get_by_role("button")
    chips = ["Remove the picture", f"Remove like {liked}", f"Remove unlike {unliked}"]
    assert parts.evaluate_all("all => all.map((chip) => chip.ariaLabel)") == chips
    page.reload()
    shown(page, "Similar images")
    assert names(page) == found
    page.get_by_role("button", name="Remove the picture").click()
    shown(page, "Images like the examples")
    assert set(address(page)) == {"collection", "like", "unlike"}
    page.get_by_role("button", name=f"Remove like {liked}").click()
    shown(page, "140 images")  # a counter-example alone is no query
    assert set(address(page)) == {"collection"}
    page.go_back()
    shown(page, "Images like the examples")
    page.go_back()
    shown(page, "Similar images")
    assert names(page) == found
    page.go_back()
    shown(page, "Similar images")
    assert unliked in names(page)
    page.get_by_role("button", name=f"Less like {unliked}").dblclick()
    shown(page, "Similar images")
    page.get_by_role("button", name=f"Remove unlike {unliked}").wait_for()
    assert "," not in address(page)["unlike"]


def test_results_are_judged_by_keys(open_page):
    page = open_page()
    page.get_by_role("searchbox", name="Describe").fill("dog")
    page.keyboard.press("Enter")
    shown(page, "Images for “dog”")
    first = names(page)[0]
    page.get_by_role("button", name=f"Open {first}").focus()
    page.keyboard.press("n")
    shown(page, "Images for “dog”")
    assert first not in names(page)
    page.get_by_role("button", name=f"Remove unlike {first}").wait_for()
    page.get_by_role("button", name="Remove “dog”").wait_for()
    page.keyboard.press("u")
    shown(page, "Images for “dog”")
    assert names(page)[0] == first
    assert page.locator("#parts button").count() == 0


# ---------------------------------------------------------------- words


@PHONE_FIRST
def test_words_are_searched_for(open_page, width):
    page = open_page(width, admin=False)
    field = page.get_by_role("searchbox", name="Describe what you are looking for")
    field.fill("dog")
    field.press("Enter")
    shown(page, "Images for “dog”")
    assert address(page) == {"collection": "photos", "text": "dog"}
    found = names(page)
    page.reload()
    shown(page, "Images for “dog”")
    assert (names(page), field.input_value()) == (found, "dog")
    field.fill("qwxyz")
    field.press("Enter")
    page.get_by_role("alert").filter(has_text="qwxyz").wait_for()
    page.go_back()
    shown(page, "Images for “dog”")
    assert field.input_value() == "dog"
    for _ in range(3):
        page.locator("#home").click()
        shown(page, "140 images")
    assert field.input_value() == ""
    page.go_back()  # the same place is in the history once
    shown(page, "Images for “dog”")


# ---------------------------------------------------------------- filters


@PHONE_FIRST
def test_images_are_filtered(open_page, width):
    page = open_page(width, admin=False)
    assert page.get_by_role("searchbox", name="Find in paths").count() == 0
    page.locator("summary", has_text="label").click()
    page.get_by_label("cat").check()
    shown(page, "3 images")
    assert names(page) == [name for name, label in LABELS.items() if label == "cat"]
    assert json.loads(address(page)["where"]) == {"label": ["cat"]}
    page.get_by_label("dog").check()
    shown(page, "6 images")
    page.keyboard.press("Escape")
    search_with(page, STORED[0].name)
    assert {LABELS[name] for name in names(page)} == {"cat", "dog"}
    page.reload()
    shown(page, "Similar")
    assert len(names(page)) == 5
    page.get_by_role("button", name="Clear filters").click()
    eventually(page, "document.querySelectorAll('.imgsearch-tile').length >= 60", True)
    page.get_by_role("button", name="Clear search").click()
    shown(page, "140 images")


def test_paths_are_filtered_by_an_administrator(open_page):
    page = open_page()
    page.get_by_role("searchbox", name="Find in paths").fill(STORED[10].name)
    page.keyboard.press("Enter")
    shown(page, "1 image")
    page.get_by_role("searchbox", name="Find in paths").fill("nothing like this")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="No matches").wait_for()
    page.locator("#empty").get_by_role("button", name="Clear filters").click()
    shown(page, "140 images")


# ---------------------------------------------------------------- administration


def test_a_folder_is_loaded_with_progress(open_page, site):
    page = open_page()
    page.get_by_role("button", name="Load images").click()
    assert page.get_by_label("Folder on the server").input_value() == str(site.root)
    page.get_by_label("Folder on the server").fill("/etc")
    page.get_by_role("button", name="Start").click()
    page.locator("#loading [role=alert]", has_text="--root").wait_for()
    page.get_by_label("Folder on the server").fill(str(site.root))
    page.locator("#loading input[name=collection]").fill("loaded")
    page.get_by_role("button", name="Start").click()
    status = page.locator("#loading [role=status]")
    status.filter(has_text="Done · 6 added · 1 could not be read").wait_for()
    page.get_by_text("Files that could not be read").click()
    assert "broken.jpg" in page.locator("#loading details").inner_text()
    page.keyboard.press("Escape")
    page.locator("#collection").select_option("loaded")
    shown(page, "6 images")
    assert address(page) == {"collection": "loaded"}
    visitor = open_page(admin=False)
    assert visitor.get_by_role("button", name="Load images").count() == 0


# ---------------------------------------------------------------- what goes wrong


def test_a_stranger_is_asked_for_the_token_and_keeps_the_search(open_page, chromium, site):
    page = open_page()
    search_with(page, STORED[4].name)
    link = page.url
    page.context.clear_cookies()
    page.goto(link)
    page.get_by_text("Enter the token").wait_for()
    assert page.get_by_role("button", name="Choose a picture").count() == 0
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("This is not the token").wait_for()
    assert "wrong" not in page.url
    page.get_by_label("Token").fill(site.token(admin=False))
    page.keyboard.press("Enter")
    shown(page, "Similar images")
    assert page.url == link


def test_a_busy_server_is_tried_again(open_page):
    page = open_page()
    answers = iter([503] * 3)
    busy = {"json": {"detail": "The server is busy: try again."}, "headers": {"Retry-After": "0.1"}}

    def refuse(route):
        status = next(answers, None)
        route.fulfill(status=status, **busy) if status else route.continue_()

    page.route("**/search", refuse)
    page.get_by_role("button", name=f"Open {STORED[5].name}").click()
    page.get_by_role("button", name="More like this").click()
    page.get_by_role("alert").filter(has_text="The server is busy").wait_for()
    page.get_by_role("button", name="Try again").click()
    shown(page, "Similar images")
    assert page.locator("#problem").is_hidden()


def test_a_search_that_fails_leaves_the_results_as_they_are(open_page):
    page = open_page()
    search_for(page, "dog")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("searchbox", name="Describe").fill("qwxyz")
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="qwxyz").wait_for()
    page.get_by_role("button", name="Scores").click()
    shown(page, "Images for “dog”")
    count = "document.querySelectorAll('.imgsearch-tile').length"
    for expected in (120, 140):  # more of the same
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        eventually(page, count, expected)
    assert len(set(names(page))) == 140


def test_more_results_that_fail_are_not_asked_for_again_and_again(open_page):
    page = open_page()
    asked = []

    def fail(route):
        asked.append(route.request.url)
        route.fulfill(status=500, json={"detail": "The server failed."})

    page.route("**/images?*", fail)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.get_by_role("alert").filter(has_text="The server failed.").wait_for()
    page.wait_for_timeout(500)
    assert len(asked) <= 2


@pytest.mark.parametrize("where", ["{", "null", "[1]", "5"])
def test_a_filter_that_cannot_be_read_is_told(open_page, site, where):
    page = open_page()
    page.goto(f"{site.url}?collection=photos&where={where}")
    page.get_by_role("alert").filter(has_text="The filter in the address").wait_for()
    assert names(page) == []
    page.locator("#home").click()
    shown(page, "140 images")


def test_an_address_that_is_wrong_says_why(open_page, site):
    page = open_page()
    page.goto(f"{site.url}?collection=nowhere")
    page.get_by_role("alert").filter(has_text="nowhere").wait_for()
    page.goto(f"{site.url}?collection=photos&image=123")
    page.get_by_role("alert").filter(has_text="123").wait_for()
    page.locator("#home").click()
    shown(page, "140 images")


def test_a_server_without_images_says_what_to_do(open_page, site):
    page = open_page()
    page.route("**/api/v1/collections", lambda route: route.fulfill(json=[]))
    page.goto(site.url)
    page.get_by_role("heading", name="There are no images yet").wait_for()
    page.locator("#empty").get_by_role("button", name="Load images").click()
    page.get_by_role("dialog", name="Load images").wait_for()


def test_a_search_without_results_does_not_blame_filters_that_are_not_there(open_page):
    page = open_page()
    page.route("**/search", lambda route: route.fulfill(json={"hits": [], "next": None}))
    page.get_by_role("searchbox", name="Describe").fill("dog")
    page.keyboard.press("Enter")
    page.get_by_text("The collection holds no other images.").wait_for()
    assert page.locator("#empty").get_by_role("button").count() == 0


def test_a_collection_that_was_dropped_is_not_shown_from_memory(open_page):
    page = open_page()
    gone = {"status": 404, "json": {"detail": "collection 'photos' does not exist"}}
    page.route("**/collections/photos/**", lambda route: route.fulfill(**gone))
    page.get_by_role("searchbox", name="Describe").fill("dog")
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert").filter(has_text="does not exist")
    alert.wait_for()
    with page.expect_request("**/images?*"):
        page.locator("#home").click()
    alert.wait_for()


# ---------------------------------------------------------------- looks


def test_the_theme_follows_the_system_and_the_switch(open_page):
    page = open_page(theme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Dark theme", pressed=True).click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    shown(page)
    assert page.evaluate(ground) == light
    assert open_page(theme="light").evaluate(ground) == light


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (1400, "light"),
        (390, "dark"),
        pytest.param(1400, "dark", marks=pytest.mark.soak),
        pytest.param(390, "light", marks=pytest.mark.soak),
    ],
)
def test_axe_finds_nothing(open_page, axe, width, theme):
    page = open_page(width, theme=theme)

    def check(name: str) -> None:
        assert axe(page, "html") == []
        if folder := os.environ.get("IMGSEARCH_SCREENSHOTS"):
            page.wait_for_timeout(400)  # transitions
            page.screenshot(path=Path(folder) / f"{name}-{width}-{theme}.png")

    check("home")
    page.get_by_role("button", name="Load images").click()
    check("load")
    page.keyboard.press("Escape")
    page.get_by_role("button", name=f"Open {STORED[6].name}").click()
    page.get_by_role("dialog", name=STORED[6].name).wait_for()
    check("viewer")
    page.get_by_role("button", name="More like this").click()
    shown(page, "Similar")
    for judgment, place in (("More like", 0), ("Less like", 5)):
        page.get_by_role("button", name=f"{judgment} {names(page)[place]}").click()
        shown(page, "Similar")
    page.locator(".imgsearch-crop-surface").press("ArrowRight")
    shown(page, "Similar to this part")
    check("results")


@pytest.mark.parametrize(
    "width", [390, 2560, *(pytest.param(width, marks=pytest.mark.soak) for width in (1000, 1400))]
)
def test_it_fits_from_a_phone_to_a_wide_screen(open_page, width):
    page = open_page(width)
    search_with(page, STORED[7].name)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if width == 390:
            small = page.evaluate(
                """[...document.querySelectorAll("button, a, select, summary, input")]
                .filter((it) => it.checkVisibility() && !it.matches(".skip"))
                .map((it) => [it.outerHTML.slice(0, 80), it.getBoundingClientRect()])
                .filter(([, place]) => Math.min(place.width, place.height) < 44)"""
            )
            assert small == []
        page.get_by_role("button", name="Clear search").click(force=True)
        shown(page, "140 images")
        page.go_back()
        shown(page, "Similar")
