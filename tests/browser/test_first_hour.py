"""The first hour of a new user: from `make demo` and `make lab` to an evaluation.

Set ``IMGSEARCH_SCREENSHOTS`` to a folder to look at every step at three widths and in both themes,
and ``IMGSEARCH_PICTURES`` to ``docs/images`` to take the README's pictures anew.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.browser.conftest import PATIENCE, PHOTOS, TOKEN, Server, run_all
from tests.conftest import ROOT

WIDTHS = (1400, 1000, 390)
THEMES = ("JupyterLab Dark", "JupyterLab Light")

# Tables that scroll sideways.
TOO_WIDE = """panel => [...panel.querySelectorAll(".imgsearch-scroll")]
    .filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.ariaLabel)"""

FOCUSED = """() => {
  const { labels, ariaLabel, textContent } = document.activeElement;
  return (ariaLabel || labels?.[0]?.textContent || textContent).trim();
}"""

EVALUATION_TABS = ("Summary", "Curves", "Classes", "Confusion", "Best and worst")
ADMIN_TABS = ("Collections", "Browse", "Verify and repair", "Export and import", "Delete")
RESULTS = {"Verify": "no problems found", "Export": "Exported"}

# Whatever is shown as an error, however soon it vanishes.
COLLECT_ERRORS = """
window.errorsShown = [];
new MutationObserver(() => {
  for (const node of document.querySelectorAll('.imgsearch [role="alert"]'))
    if (node.textContent) window.errorsShown.push(node.textContent);
}).observe(document, { childList: true, subtree: true });
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The project as it is cloned, in the home directory of a new user."""
    folder = tmp_path_factory.mktemp("user") / "imgsearch"
    folder.mkdir()
    for name in ("Makefile", "data", "jupyter", "notebooks", "scripts"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def environment(clone) -> dict[str, str]:
    """The environment of that user, who has set nothing."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("IMGSEARCH", "XDG_"))}
    own = {"HOME": str(clone.parent), "PYTHONPATH": str(ROOT), "IMGSEARCH_BACKEND": "eager"}
    return kept | own


MAKE = ["make", "--no-print-directory", "--old-file=.venv/stamp", f"PY={sys.executable}"]
"""Nothing is installed: the tests have an environment."""


@pytest.fixture(scope="module")
def printed(clone, environment) -> list[str]:
    """What `make demo` prints into a file."""
    log = clone / "demo.log"
    real_kernels = {key: value for key, value in environment.items() if key != "JUPYTER_PATH"}
    with log.open("wb") as output:
        subprocess.run(
            [*MAKE, "demo"], cwd=clone, env=real_kernels, stdout=output, stderr=output, check=True
        )
    return log.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def page(printed, clone, environment, chromium) -> Iterator:
    """The browser of a user who started `make lab` after the demo."""
    arguments = (
        "--no-browser --port={port} --ServerApp.allow_root=True --IdentityProvider.token=" + TOKEN
    )
    server = Server(clone, environment, [*MAKE, "lab", f"LAB_ARGS={arguments}"], "is running at")
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.add_init_script(COLLECT_ERRORS)
    page.goto(f"{server.url}?token={TOKEN}")
    yield page
    context.close()
    server.stop()


@pytest.fixture(scope="module")
def look(page) -> Callable:
    """Make pictures of the page at each width, where somebody wants to look at them."""
    numbers = itertools.count(1)

    def shoot(name: str) -> None:
        if folder := os.environ.get("IMGSEARCH_SCREENSHOTS"):
            number, files = next(numbers), page.locator('.jp-SideBar [data-id="filebrowser"]')
            for theme in THEMES:
                _choose_theme(page, theme)
                for width in WIDTHS:
                    page.set_viewport_size({"width": width, "height": 900})
                    if width < 700:
                        files.click()  # hides the list of files
                    page.wait_for_timeout(500)
                    kind = theme.split()[1].lower()
                    page.screenshot(path=f"{folder}/{number:02}-{name}-{kind}-{width}.png")
                files.click()
                page.set_viewport_size({"width": 1400, "height": 900})

    return shoot


def _keep(name: str, take: Callable[[], bytes]) -> None:
    """Write a picture of the README, in few colours, where somebody wants it."""
    if folder := os.environ.get("IMGSEARCH_PICTURES"):
        picture = Image.open(io.BytesIO(take())).convert("RGB")
        small = picture.crop((0, 0, picture.width, min(picture.height, 760))).quantize(200)
        small.save(Path(folder) / f"{name}.png", optimize=True)


def _whole(page, part) -> bytes:
    """Take a picture of a part of the page in a window that shows all of it."""
    page.set_viewport_size({"width": 1400, "height": 2000})
    page.wait_for_timeout(500)
    picture = part.screenshot()
    page.set_viewport_size({"width": 1400, "height": 900})
    return picture


def _choose_theme(page, theme: str) -> None:
    if page.locator(f'body[data-jp-theme-name="{theme}"]').count():
        return
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    labels = page.locator(".lm-Menu-itemLabel")
    labels.get_by_text("Theme", exact=True).click()
    labels.get_by_text(theme, exact=True).click()
    page.locator(f'body[data-jp-theme-name="{theme}"]').wait_for(state="attached")


def _go(page, name: str, *keys: str) -> None:
    """Press Tab until something has the focus, then other keys."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if re.fullmatch(name, page.evaluate(FOCUSED)):
            break
    else:
        pytest.fail(f"Tab does not reach {name}")
    for key in keys:
        page.keyboard.press(key)


def _open(page, name: str):
    """Follow a link of the start page, run the notebook, and return its panel."""
    page.get_by_role("tab", name="start.md").click()
    page.get_by_role("link", name=name, exact=True).click()
    run_all(page, f"{name.lower()}.ipynb")
    panel = page.locator(".jp-NotebookPanel:visible .imgsearch").first
    panel.wait_for()
    return panel


def _turn(panel, before: str, tab: str) -> None:
    """Go from a tab to the one on its right."""
    panel.get_by_role("tab", name=before).focus()
    panel.page.keyboard.press("ArrowRight")
    panel.page.keyboard.press("Enter")
    panel.get_by_role("tab", name=tab, selected=True).wait_for()


def _too_wide(page, panel) -> list[str]:
    """Name the tables that scroll sideways beside the list of files, 1,000 pixels together."""
    page.set_viewport_size({"width": 1000, "height": 900})
    page.wait_for_function("innerWidth === 1000 && new Promise(requestAnimationFrame)")
    found = panel.evaluate(TOO_WIDE)
    page.set_viewport_size({"width": 1400, "height": 900})
    return found


@pytest.fixture(scope="module")
def violations(page, axe) -> Callable[[], list]:
    """Return what axe finds in the panels that are shown, of their colours in both themes."""

    def find() -> list:
        dark = page.locator('body[data-jp-theme-light="false"]').count()
        found = axe(page)
        _choose_theme(page, THEMES[dark])
        return found + axe(page, colors_only=True)

    return find


def test_the_demo_says_in_a_few_lines_what_it_did_and_what_comes_next(printed, clone):
    text = "\n".join(printed)
    assert len(printed) <= 25
    assert "200 images" in text
    assert "WARNING" not in text
    assert "papermill" not in text
    assert "make lab" in text
    assert "Run All Cells" in text
    for name in ("search.png", "evaluation-classes.png", "words/search.png"):
        assert name in text
        assert (clone / "output" / "demo" / name).is_file()
    _keep("grid", (clone / "output" / "demo" / "search.png").read_bytes)
    _keep("words", (clone / "output" / "demo" / "words" / "search.png").read_bytes)
    for name in ("ingest", "search", "evaluation", "words/search"):
        saved = json.loads((clone / "output" / "demo" / f"{name}.ipynb").read_text())
        outputs = [output for cell in saved["cells"] for output in cell.get("outputs", ())]
        assert outputs
        assert not [output for output in outputs if output.get("name") == "stderr"]
        assert not [output for output in outputs if "Panel" in str(output.get("data"))]


def test_from_the_start_page_to_a_search(page, look, violations):
    page.get_by_role("link", name="Search", exact=True).wait_for()
    look("start")
    panel = _open(page, "Search")
    panel.locator(".imgsearch-tile img").first.wait_for()
    look("search-opened")
    panel.locator(".imgsearch-pick").nth(2).click()
    panel.locator("h2", has_text="Similar to").wait_for()
    look("search-clicked")

    # A box by keys, the whole picture again, and a box by a finger.
    part = panel.locator("h2", has_text="Similar to a part of")
    surface = panel.get_by_role("application")
    surface.focus()
    page.keyboard.press("ArrowRight")
    part.wait_for()
    page.keyboard.press("Escape")
    part.wait_for(state="detached")
    at = surface.bounding_box()
    touch = page.context.new_cdp_session(page)
    for kind, share in (
        ("touchStart", 0.2),
        ("touchMove", 0.5),
        ("touchMove", 0.8),
        ("touchEnd", 0),
    ):
        x, y = at["x"] + share * at["width"], at["y"] + share * at["height"]
        points = [] if kind == "touchEnd" else [{"x": x, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    part.wait_for()
    look("search-box")
    _keep("search", lambda: _whole(page, panel))
    assert violations() == []


def test_own_images_are_ingested_and_searched_by_keys(page, look, violations, tmp_path):
    folder = tmp_path / "My Photos 2026"
    folder.mkdir()
    for photo in PHOTOS[:30]:
        shutil.copy(photo, folder)
    panel = _open(page, "Ingest")
    look("ingest-opened")
    panel.get_by_role("textbox", name="Folder", exact=True).focus()
    page.keyboard.type(str(tmp_path))
    page.keyboard.press("Enter")
    panel.get_by_role("option", name=folder.name).wait_for(state="attached")
    _go(page, "Subfolders", "ArrowDown")
    panel.get_by_text("30 images in it").wait_for()
    look("ingest-chosen")
    _go(page, "Start", "Enter")
    panel.get_by_text("Added 30 images to My_Photos_2026").wait_for()
    panel.get_by_role("button", name="Search these").wait_for()
    look("ingest-done")
    assert violations() == []
    panel.get_by_role("button", name="Start", exact=True).focus()
    _go(page, "Open: .*", "Enter")
    page.get_by_role("dialog", name="Image 1 of 30").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    panel.get_by_role("button", name="Start", exact=True).focus()
    _go(page, "Search these", "Enter")
    below = panel.locator(".imgsearch").first
    below.locator(".imgsearch-tile img").first.wait_for()
    assert below.get_by_role("combobox", name="Collection").input_value() == "My_Photos_2026"
    look("ingest-searching")


def test_the_sample_is_evaluated_by_keys(page, look, violations):
    panel = _open(page, "Evaluation")
    collections = panel.get_by_role("listbox", name="Collections")
    collections.get_by_role("option", name="sample").wait_for(state="attached")
    look("evaluation-opened")
    panel.get_by_role("textbox", name="VOC folder").focus()
    _go(page, "Collections", "End")
    _go(page, "Options", "Enter")
    _go(page, "Cut-offs k")
    panel.get_by_role("button", name="Refresh").focus()
    _go(page, "Evaluate", "Enter")
    panel.get_by_role("table").first.wait_for()
    _go(page, "Options", "Enter")
    look("evaluation-headline")
    _keep("evaluation", lambda: _whole(page, panel.locator(".widget-tab")))
    assert violations() == []
    for before, tab in itertools.pairwise(EVALUATION_TABS):
        _turn(panel, before, tab)
        panel.locator("img").filter(visible=True).first.wait_for()
        look(f"evaluation-{tab.split()[0].lower()}")
        assert violations() == []
        assert _too_wide(page, panel) == []
    # The pictures open in the viewer.
    panel.get_by_role("tab", name=tab).focus()
    _go(page, "Worst query 1: .*", "ArrowRight", "Enter")
    page.get_by_role("dialog", name="Image 2 of 72").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert page.evaluate(FOCUSED).startswith("Rank 1, ")


def test_collections_are_browsed_and_deleted_by_keys(page, look, violations):
    panel = _open(page, "Admin")
    panel.get_by_role("table").first.wait_for()
    look("admin-opened")
    assert violations() == []
    assert _too_wide(page, panel) == []
    name = panel.get_by_role("combobox", name="Collection").input_value()
    _turn(panel, *ADMIN_TABS[:2])
    panel.locator(".imgsearch-tile img").first.wait_for()
    _go(page, "Select: .*", "Space", "Shift+ArrowRight")
    panel.get_by_role("button", name="Delete 2 selected").wait_for()
    look("admin-browse")
    assert violations() == []
    for before, tab in itertools.pairwise(ADMIN_TABS[1:]):
        _turn(panel, before, tab)
        look(f"admin-{tab.split()[0].lower()}")
        assert violations() == []
        panel.get_by_role("tab", name=tab).focus()
        if tab == "Delete":
            _go(page, "Name")
            page.keyboard.type(name)
            panel.get_by_role("button", name="Delete collection", disabled=False).wait_for()
            _go(page, "Delete collection", "Enter")
            panel.get_by_text(f"Deleted the collection {name}").wait_for()
        else:
            first = tab.split()[0]
            _go(page, first, "Enter")
            panel.get_by_role("status").filter(has_text=RESULTS[first]).wait_for()


def test_nothing_was_shown_as_an_error(page):
    assert page.evaluate("window.errorsShown") == []
