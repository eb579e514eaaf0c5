"""Panels in a real kernel: what they hold open, and when they let go of it."""

from __future__ import annotations

import pytest

from tests.notebooks.conftest import opened

TOOLS = """
import threading
import time
from pathlib import Path

def threads():
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("imgsearch"))

def open_files(home):
    links = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(link.readlink()))
        except OSError:
            pass
    return sum(link.startswith(str(home)) for link in links)

def wait_for(condition):
    until = time.monotonic() + 100
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()
"""

PANEL = {
    "search": "panel.browse.click(); panel.wait(100); panel.grid._handle_custom_msg("
    "{'type': 'pick', 'key': panel.grid.items[0]['key']}, [])",
    "admin": "panel._view_count = 1; panel.verify.click()",
    "ingest": "panel._list()",
    "evaluation": "panel.refresh.click()",
}


@pytest.mark.parametrize("name", PANEL)
def test_running_a_cell_again_closes_the_panel_it_made(name, home, tmp_path):
    """Review 8.12: each run left a polling thread, open collections and their leases."""
    with opened(name, tmp_path, IMGSEARCH_HOME=str(home), DEFAULT_TABLE="mine") as notebook:
        notebook(TOOLS)
        polling = ["imgsearch-runs"] if name == "admin" else []
        held = []
        for _ in range(5):
            notebook.run_panel_cell()
            notebook(PANEL[name])
            expected = f"threads() == {polling!r}"
            assert notebook(f"settled = wait_for(lambda: {expected})", "settled"), notebook(
                "", "threads()"
            )
            held.append(notebook("", f"open_files({str(home)!r})"))
        assert max(held) <= held[0] + 3, held  # the poll may have the metadata's files open
        assert held[0] > 0
        notebook("panel.close()")
        released = f"wait_for(lambda: not threads() and open_files({str(home)!r}) == 0)"
        assert notebook(f"released = {released}", "released")


@pytest.fixture(scope="module")
def notebook(home, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with opened("search", work, IMGSEARCH_HOME=str(home), DEFAULT_TABLE="mine") as notebook:
        notebook(TOOLS + "from imgsearch import widgets\nfrom ipywidgets import Widget")
        yield notebook


def test_a_cell_is_known_by_its_id_though_its_text_has_changed(notebook):
    """Review 8.12, as JupyterLab runs a cell."""
    notebook.execute("first = widgets.SearchPanel()", cell_id="a")
    notebook.execute("second = widgets.SearchPanel('mine')", cell_id="b")
    assert notebook("", "[first.comm is None, second.comm is None]") == [False, False]
    notebook.execute("third = widgets.SearchPanel(top_k=3)", cell_id="a")
    closed = notebook("", "[first.comm is None, second.comm is None, third.comm is None]")
    assert closed == [True, False, False]


def test_a_cell_may_make_several_panels(notebook):
    code = "both = [widgets.SearchPanel('mine'), widgets.AdminPanel('mine')]"
    notebook.execute(code, cell_id="c")
    assert notebook("", "[p.comm is None for p in both]") == [False, False]


def test_a_closed_panel_takes_its_widgets_along(notebook):
    assert (
        notebook(
            "panel.wait(100)\n"
            "before = set(Widget.widgets)\n"
            "for _ in range(2):\n"
            "    other = widgets.AdminPanel('mine')\n"
            "    other.wait(100)\n"
            "    other.close()\n",
            "len(set(Widget.widgets) - before)",
        )
        < 3
    )


def test_a_box_that_is_dragged_costs_one_thread(notebook):
    """Review 8.12: every event of a drag started a sleeping thread."""
    most, now = notebook(
        "panel.browse.click(); panel.wait(100)\n"
        "panel.grid._handle_custom_msg({'type': 'pick', 'key': panel.grid.items[0]['key']}, [])\n"
        "panel.wait(100)\n"
        "counts = []\n"
        "for i in range(200):\n"
        "    panel.cropper.bboxes = [{'x': 0, 'y': 0, 'width': 50 + i / 4, 'height': 80}]\n"
        "    counts.append(threads().count('imgsearch-debounce'))\n"
        "panel.wait(100)",
        "[max(counts), threads()]",
    )
    assert (most, now) == (1, [])
    assert notebook("", "panel.query.box") == [0, 0, 100, 80]


def test_closing_a_panel_ends_its_job(notebook):
    notebook(
        "ending = widgets.AdminPanel('mine'); ending.wait(100)\n"
        "started = threading.Event()\n"
        "def work():\n"
        "    started.set()\n"
        "    while True: ending.report_progress('working'); time.sleep(0.01)\n"
        "ending.submit_stoppable(work, 'working', [])\n"
        "ending.submit(lambda: never.append(1))\n"
        "never = []\n"
        "started.wait(100); ending.close(); ending.wait(100)"
    )
    assert notebook("ending.submit(lambda: never.append(2))", "[never, threads()]") == [[], []]
