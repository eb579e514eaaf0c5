"""Panels in a real kernel: what they hold open, and when they release it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.notebooks.conftest import opened

TOOLS = """
import threading
import time
from pathlib import Path
from ipywidgets import Widget
from imgsearch import widgets

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

def search_with_the_first():
    panel.browse.click()
    panel.wait(100)
    panel.grid._handle_custom_msg({"type": "pick", "key": panel.grid.items[0]["key"]}, [])
    panel.wait(100)
"""


@pytest.fixture(scope="module")
def notebook(home, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with opened("search", work, IMGSEARCH_HOME=str(home), DEFAULT_TABLE="mine") as notebook:
        notebook(TOOLS)
        yield notebook


@pytest.mark.parametrize(
    ("panel", "use", "polls"),
    [
        ("SearchPanel", "search_with_the_first()", []),
        ("AdminPanel", "panel._view_count = 1; panel.verify.click()", ["imgsearch-runs"]),
        ("IngestPanel", "panel._show_added('mine', None)", []),
        ("EvaluationPanel", "panel.submit(lambda: panel.gallery('mine').vectors)", []),
    ],
)
def test_running_a_cell_again_closes_the_panel_it_made(notebook, home, panel, use, polls):
    """Review 8.12: each run left a polling thread, open collections and their leases."""
    files = f"open_files({str(home)!r})"
    notebook("panel.close(); panel.wait(100)")
    before = notebook("", files)
    held = []
    for _ in range(5):
        notebook(f"panel = widgets.{panel}()")
        notebook(use)
        assert notebook("", f"wait_for(lambda: threads() == {polls!r}) or threads()") is True
        held.append(notebook("", files) - before)
    assert held[0] > 0
    assert max(held) <= held[0] + 3, held  # the poll may have the metadata's files open
    notebook("panel.close()")
    closed = f"not threads() and {files} == {before}"
    assert notebook("", f"wait_for(lambda: {closed}) or [threads(), {files}]") is True
    notebook("panel = widgets.SearchPanel('mine')")


def test_a_cell_is_known_by_its_id_although_its_text_changes(notebook):
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


def test_a_closed_panel_closes_its_widgets(notebook):
    left = notebook(
        "panel.wait(100)\n"
        "before = set(Widget.widgets)\n"
        "other = widgets.AdminPanel('mine'); other.wait(100)\n"
        "assert len(set(Widget.widgets) - before) > 50\n"
        "other.close()",
        "len(set(Widget.widgets) - before)",
    )
    assert left == 0


def test_closing_a_panel_ends_its_job(notebook):
    notebook(
        "ending = widgets.AdminPanel('mine'); ending.wait(100)\n"
        "started, later = threading.Event(), []\n"
        "def work():\n"
        "    started.set()\n"
        "    while True: ending.report_progress('working'); time.sleep(0.01)\n"
        "ending.submit(work, 'working', stoppable=True)\n"
        "ending.submit(lambda: later.append(1))\n"
        "started.wait(100); ending.close(); ending.wait(100)"
    )
    code = "ending.submit(lambda: later.append(2))"
    assert notebook(code, "[later, wait_for(lambda: not threads())]") == [[], True]


def test_a_press_of_stop_after_the_end_stops_nothing(notebook):
    notebook(
        "done = []\n"
        "def work(): panel.report_progress('working'); done.append(1)\n"
        "panel.wait(100); panel.status.show('Done.', 'good'); panel.stop.click()"
    )
    assert notebook("", "panel.status.text") == "Done."
    assert notebook("panel.submit(work, 'working', stoppable=True)", "done") == [1]


def test_a_script_with_an_open_panel_ends(tmp_path):
    code = "from imgsearch.widgets import AdminPanel; panel = AdminPanel(); panel.wait()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IMGSEARCH_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
