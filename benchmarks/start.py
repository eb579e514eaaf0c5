"""How long it takes until something is there: import, first search, and where it goes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from benchmarks.common import ROOT, Options, Result, cold, copies, median, photographs

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
    page(folder, options, result, rounds)


def page(photos: Path, options: Options, result: Result, rounds: int) -> None:
    """The page of `make app`, in a browser, with kernels that were started before."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        result.note("No Chromium here: the page of `make app` is not measured.")
        return
    from playwright.sync_api import sync_playwright

    from imgsearch import ingest
    from imgsearch.config import load_settings
    from tests.browser.conftest import TOKEN, Server

    home, served = options.work / "app", options.work / "served"
    ingest(photos, "photos", encoder="mini", settings=load_settings(imgsearch_home=home))
    shutil.copytree(ROOT / "notebooks", served / "notebooks")
    filled = "is filled with"
    server = Server(served, home, ["voila", "notebooks/search.ipynb", f"--token={TOKEN}"], filled)
    there, drawn = [], []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            visitor = browser.new_context()
            for visit in range(rounds + 1):
                tab = visitor.new_page()
                start = time.perf_counter()
                tab.goto(f"{server.url}?token={TOKEN}", wait_until="domcontentloaded")
                there.append(time.perf_counter() - start)
                tab.locator(".imgsearch-tile img").first.wait_for(timeout=60_000)
                drawn.append(time.perf_counter() - start)
                tab.close()
                until = time.monotonic() + 60  # for the kernel that takes the place of this one
                while server.log.read_text().count(filled) < visit + 2 and time.monotonic() < until:
                    time.sleep(0.2)
    finally:
        server.stop()
    # At the first visit, nothing is in the browser's cache.
    for what, times in (("page", there), ("panel with its pictures", drawn)):
        result.add(f"`make app`, {what}: first visit", times[0], "s")
        goal = {"most": 1} if times is there else {}
        result.add(f"`make app`, {what}: later visits", median(times[1:]), "s", **goal)


def told(what: str, runs: list[dict], result: Result, **goal: float) -> None:
    result.add(what, median([run["laps"]["total"] for run in runs]), "s", **goal)
    parts = [
        f"{name} {median([run['laps'][name] for run in runs]):.2f}"
        for name in runs[0]["laps"]
        if name != "total"
    ]
    result.note(f"{what}, where it goes (s): {', '.join(parts)}.")
