"""How long it takes until something is there: import, first search, and where it goes."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks import server
from benchmarks.common import Options, Result, cold, copies, median, photographs
from tests.servers import find_chromium

TITLE = "Start"

IMPORT = "import time; t = time.perf_counter(); import imgsearch; print(time.perf_counter() - t)"

SEARCH = """
import json, sys, time
start = last = time.perf_counter()
laps = {}
def lap(name):
    global last
    now = time.perf_counter()
    laps[name], last = now - last, now
import imgsearch
lap("import imgsearch")
import imgsearch.config
settings = imgsearch.config.load_settings()
lap("settings (pydantic, SQLAlchemy)")
from imgsearch.gallery import Gallery
lap("gallery")
gallery = Gallery.open(sys.argv[1], settings=settings)
lap("metadata")
gallery.encoder
lap("encoder with torch; the store's server starts beside")
if len(sys.argv) > 3:
    gallery.pipeline.optimize_for(10**6)
    lap("another backend")
gallery.vectors
lap("waiting for the vector store")
gallery.pipeline
lap("pipeline with towhee")
hits = gallery.search(sys.argv[2], 10)
lap("first search")
laps["total"] = time.perf_counter() - start
assert len(hits) == 10
print(json.dumps({"laps": laps, "backend": gallery.encoder.backend, "first": hits.seconds}))
"""

KERNEL = """
import sys, time
start = time.perf_counter()
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="python3")
code = '''from imgsearch import Gallery
gallery = Gallery.open("start")
assert len(gallery.search({path!r}, 10)) == 10'''.format(path=sys.argv[1])
reply = client.execute_interactive(code, output_hook=lambda message: None, timeout=120)
assert reply["content"]["status"] == "ok", reply["content"]
print(time.perf_counter() - start)
client.stop_channels()
manager.shutdown_kernel(now=True)
"""

EVALUATION = """
import json, sys, time
from imgsearch.widgets import EvaluationPanel
panel = EvaluationPanel(sys.argv[1], "evaluated")
panel.wait()
panel.protocol.value = "leave-one-out trainval"
times = []
panel.summary.observe(lambda _: times.append(time.perf_counter() - start), "value")
start = time.perf_counter()
panel.start.click()
panel.wait()
assert len(times) == 1, panel.status.text
print(json.dumps([times[0], panel.status.text]))
"""


def run(options: Options, result: Result) -> None:
    from imgsearch import ingest
    from imgsearch.config import load_settings
    from imgsearch.stores.embedded import lease

    rounds = 2 if options.quick else 3
    cold(IMPORT)  # so that files are in the page cache and compiled
    result.add(
        "import imgsearch", median([float(cold(IMPORT)) for _ in range(2 * rounds)]), "s", most=0.3
    )
    for module in ("torch", "pymilvus", "towhee", "sqlalchemy", "pydantic_settings"):
        code = IMPORT.replace("imgsearch", module)
        cold(code)
        times = [float(cold(code)) for _ in range(rounds)]
        result.add(f"by itself: import {module}", median(times), "s")
    photos = photographs(options.photos)
    folder = copies(photos, options.work / "photos", 100)
    home = options.work / "home"
    env = {"IMGSEARCH_HOME": str(home), "IMGSEARCH_BACKEND": "auto"}
    query = str(photos[0])
    for name, collection in (("mini", "start"), ("resnet50@random:0", "start_resnet")):
        chosen = load_settings(imgsearch_home=home, imgsearch_backend="auto")
        ingest(folder, collection, encoder=name, settings=chosen)
        laps = [json.loads(cold(SEARCH, env=env, args=(collection, query))) for _ in range(rounds)]
        goal = {"most": 6} if name == "mini" else {}
        told(f"{name}: fresh process to first result", laps, result, **goal)
        # What a query would pay if it did not begin with eager.
        for what in ("converted anew", "converted before"):
            got = json.loads(cold(SEARCH, env=env, args=(collection, query, "openvino")))
            seconds = got["laps"]["another backend"]
            result.add(
                f"{name}: {got['backend']}, {what}", seconds, "s", note="once; no query pays it"
            )
            if got["backend"] == "eager":
                break
    with lease(home):
        warm = [json.loads(cold(SEARCH, env=env, args=("start", query))) for _ in range(rounds)]
        told("mini: fresh process, the store's server runs", warm, result)
    try:
        times = [float(cold(KERNEL, env=env, args=(query,))) for _ in range(rounds)]
        result.add("mini: cold Jupyter kernel to first result", median(times), "s", most=6)
    except RuntimeError as error:
        result.note(f"No Jupyter kernel could be started here: {error}")
    if (options.photos.parent / "Annotations").is_dir():
        ingest(options.photos, "evaluated", encoder="mini", settings=chosen)
        voc = str(options.photos.parent)
        shown = [json.loads(cold(EVALUATION, env=env, args=(voc,))) for _ in range(rounds)]
        what = f"evaluation panel in a new kernel, click to headline: {shown[0][1]}"
        result.add(what, median([seconds for seconds, _ in shown]), "s", most=1.5)
    page(folder, options, result, rounds)


def page(photos: Path, options: Options, result: Result, rounds: int) -> None:
    """The page of `make app`, in a browser."""
    program = find_chromium()
    if program is None:
        result.note("No Chromium here: the page of `make app` is not measured.")
        return
    from playwright.sync_api import sync_playwright

    from imgsearch import ingest
    from imgsearch.config import load_settings

    home = options.work / "app"
    ingest(photos, "served", encoder="mini", settings=load_settings(imgsearch_home=home))
    process, port = server.start(home, options.work)
    painted, drawn, found = [], [], []
    paint = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            visitor = browser.new_context()
            visitor.new_page().goto(f"http://127.0.0.1:{port}/?token={server.TOKEN}")
            for _ in range(rounds + 1):
                tab = visitor.new_page()
                start = time.perf_counter()
                tab.goto(f"http://127.0.0.1:{port}/")
                tab.locator(".imgsearch-tile img").first.wait_for(timeout=60_000)
                drawn.append(time.perf_counter() - start)
                painted.append(tab.wait_for_function(paint).json_value() / 1000)
                tab.get_by_role("button", name="Open ").first.click()
                more = tab.get_by_role("button", name="More like this")
                more.wait_for()
                start = time.perf_counter()
                more.click()
                tab.wait_for_url("**image=**")
                tab.locator(".imgsearch-tile img").first.wait_for(timeout=60_000)
                found.append(time.perf_counter() - start)
                tab.close()
    finally:
        process.terminate()
        process.wait(60)
    result.add("`make app`, page: first paint", median(painted), "s", most=0.3)
    result.add("`make app`, page with its pictures", median(drawn), "s")
    result.add("`make app`, results of a stored picture", median(found), "s", most=0.5)


def told(what: str, runs: list[dict], result: Result, **goal: float) -> None:
    result.add(what, median([run["laps"]["total"] for run in runs]), "s", **goal)
    parts = [
        f"{name} {median([run['laps'][name] for run in runs]):.2f}"
        for name in runs[0]["laps"]
        if name != "total"
    ]
    result.note(f"{what}, where it goes (s): {', '.join(parts)}.")
