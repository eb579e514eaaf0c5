"""Mangled pictures, strange names, and folders that are not what they seem."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from imgsearch import images
from imgsearch.config import load_settings
from imgsearch.gallery import Gallery
from imgsearch.ingestion import ingest
from tests.conftest import ROOT
from tests.guarantees.common import assert_consistent, rounds, soak
from tests.guarantees.mangle import EXTENSIONS, HUGE, mangled
from tests.helpers import PEAK_MEMORY, paint

DECODE = (
    PEAK_MEMORY
    + """
import time
from imgsearch import images
from imgsearch.errors import ImageError
from tests.guarantees.mangle import BASES, mangled
images.decode(BASES[0])
before = peak_memory()
good, worst, reasons = 0, (0.0, -1), set()
for number in range(arguments["count"]):
    data = mangled(number)
    start = time.thread_time()
    try:
        picture = images.decode(data, draft=224 if number % 2 else None)
        assert picture.mode == "RGB" and picture.width * picture.height <= images.MAX_PIXELS
        good += 1
    except ImageError as error:
        assert error.reason and len(error.reason) < 200, error.reason
        reasons.add(error.reason)
    worst = max(worst, (time.thread_time() - start, number))
grown = (peak_memory() - before) // 2**20
report(good=good, seconds=worst[0], slowest=worst[1], grown=grown, reasons=len(reasons))
"""
)


@pytest.mark.parametrize("count", rounds("MANGLED", 300, 10_000))
def test_mangled_pictures_are_refused_with_a_reason_in_bounded_time_and_memory(
    forkserver, count, record_property
):
    child = forkserver.run(DECODE, {}, count=count)
    assert child.wait(3600)["end"] == "done", child.reports
    (facts,) = [line for line in child.reports if "good" in line]
    record_property(
        "figures",
        f"{count:,} decoded: {facts['good']} still good, {facts['reasons']} different reasons, "
        f"slowest {facts['seconds']:.2f} s, {facts['grown']} MB above the largest before",
    )
    assert 0 < facts["good"] < count / 2
    assert facts["seconds"] < 5
    assert facts["grown"] < 700  # MB; the largest picture that is let in takes some 500


EMBED = """
import resource, threading
from imgsearch.encoders import load_encoder
from imgsearch.images import MAX_MEMORY
from imgsearch.pipeline import Embedded, Pipeline
from tests.guarantees.mangle import huge, mangled, BASES
pipeline = Pipeline(load_encoder("mini", backend="eager"), workers=4)
files = [huge(kind) for kind in arguments["kinds"]]
pipeline(BASES)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts from here
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
before = peak()
results = []
threads = [threading.Thread(target=lambda: results.extend(pipeline(files))) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
errors = [str(each) for each in results if not isinstance(each, Embedded)]
report(errors=errors, count=len(results), before=before, grown=peak() - before)
"""


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(["RGBA", "progressive 4:4:4"], id="quick"),
        pytest.param(HUGE, id="soak", marks=[soak]),
    ],
)
def test_huge_pictures_take_bounded_memory_however_many_there_are(
    forkserver, kinds, record_property
):
    """Attack row 4: a picture took up to 1.4 GB to decode, and each thread decoded one."""
    child = forkserver.run(EMBED, {}, kinds=kinds)
    assert child.wait(600)["end"] == "done", child.reports
    (facts,) = [line for line in child.reports if "grown" in line]
    record_property(
        "figures", f"{2 * len(kinds)} huge pictures, two threads: {facts['grown']} MiB more at most"
    )
    assert facts["errors"] == []
    assert facts["count"] == 2 * len(kinds)
    assert facts["grown"] < 640  # MiB
    assert facts["before"] + facts["grown"] < 1_144  # MiB, 1.2 GB


@pytest.mark.parametrize("count", rounds("MANGLED", 60, 10_000))
def test_good_pictures_among_mangled_ones_all_go_in(tmp_path, encoder, count, record_property):
    folder, good = tmp_path / "photos", set()
    folder.mkdir()
    for number in range(count):
        name = f"{number:05d}{random.Random(number).choice(EXTENSIONS)}"
        (folder / name).write_bytes(mangled(number))
        if number % 20 == 0:
            good.add(str(paint(folder / f"{number:05d}-good.png", seed=number, size=(32, 24))))
    settings = load_settings(imgsearch_home=tmp_path / "home")
    report = ingest(folder, "kept", encoder=encoder, settings=settings)
    assert report.state == "done"
    assert report.done == report.total == count + len(good)
    assert len(report.failures) == report.failed > 0
    assert all(reason and len(reason) < 200 for _, reason in report.failures)
    failed = {path for path, _ in report.failures}
    assert not failed & good
    with Gallery.open("kept", settings=settings) as gallery:
        rows = gallery.metadata.browse("kept", limit=1_000_000)
        assert good <= {row.path for row in rows}
        assert not failed & {row.path for row in rows}
        assert_consistent(gallery)
    record_property(
        "figures",
        f"{count:,} mangled among {len(good)} good: {report.failed} refused, "
        f"{report.encoded} encoded",
    )


NAMES = [
    b"with space.png",
    b" leading and trailing .png",
    b'quote\'s "and" `ticks`.png',
    b"new\nline\rand\ttab.png",
    b"back\\slash;semi$HOME%s%(x)s{0}.png",
    "ümläut ελληνικά русский 中文 العربية עברית ไทย.png".encode(),
    "🐈‍⬛ family 👨‍👩‍👧 flag 🇨🇭.png".encode(),
    "e\u0301 decomposed.png".encode(),
    "\u00e9 composed.png".encode(),
    "\u202egnp.reversed".encode() + b".png",
    b"\xff\xfe not utf-8 \x80.png",
    b"x" * 251 + b".png",
    b"-rf.png",
    b"con.png",
    b"a" * 200 + b"/" + b"b" * 200 + b"/" + b"c" * 200 + b"/deep.png",
    b"'; DROP TABLE imgsearch_images; --.png",
    b"<script>alert(1)</script>".replace(b"/", b"_") + b".png",
]


def test_any_name_is_found_again(stores, encoder, collection, tmp_path):
    folder = tmp_path / "photos"
    paths = [str(folder / os.fsdecode(name)) for name in NAMES]
    for i, path in enumerate(paths):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paint(tmp_path / "source.png", seed=i), path)
    report = ingest(folder, collection, encoder=encoder, settings=stores)
    assert (report.encoded, report.failed) == (len(NAMES), 0)
    json.dumps(report.to_dict(), allow_nan=False).encode()
    again = ingest(folder, collection, encoder=encoder, settings=stores)
    assert again.unchanged == len(NAMES)
    with Gallery.open(collection, settings=stores) as gallery:
        for path in paths:
            hits = gallery.search(path, 1)
            assert hits[0].path == path
            json.dumps(hits.to_dict())
        assert_consistent(gallery, set(paths))
        assert gallery.delete(paths) == len(NAMES)


def test_links_in_circles_pipes_and_sockets_are_reported(tmp_path, encoder):
    """Attack "mangled files": pipes, sockets and devices were passed over in silence.

    That nothing hangs is the proof that no pipe is opened; pytest-timeout watches.
    """
    folder = tmp_path / "photos"
    good = paint(folder / "in" / "good.png", seed=0)
    (folder / "circle").symlink_to(folder)
    (folder / "in" / "up.png").symlink_to("..")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    (folder / "out.png").symlink_to(paint(tmp_path / "outside.png", seed=1))
    os.mkfifo(folder / "pipe.png")
    (folder / "to pipe.png").symlink_to(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    plug = socket.socket(socket.AF_UNIX)
    os.chdir(folder)  # names of sockets are short
    try:
        plug.bind("socket.png")
        settings = load_settings(imgsearch_home=tmp_path / "home")
        report = ingest(folder, "kept", encoder=encoder, settings=settings)
    finally:
        plug.close()
        os.chdir(ROOT)
    with Gallery.open("kept", settings=settings) as gallery:
        assert_consistent(gallery, {str(good)})
    said = {Path(path).name for path, _ in report.failures}
    assert said == {
        *("self.png", "nowhere.png", "out.png"),
        *("pipe.png", "to pipe.png", "device.png", "socket.png"),
    }


def test_a_folder_without_permission_is_reported_and_the_rest_goes_in(tmp_path):
    paint(tmp_path / "photos" / "a.png", seed=0)
    paint(tmp_path / "photos" / "locked" / "b.png", seed=1)
    paint(tmp_path / "photos" / "c.png", seed=2).chmod(0)
    (tmp_path / "photos" / "locked").chmod(0)
    code = """
import sys
from imgsearch import images
from imgsearch.errors import ImageError
errors = []
for found in images.find(sys.argv[1], on_error=errors.append):
    try:
        images.read(found.path); print("read", found.path.name)
    except ImageError as error:
        print(error.reason, found.path.name)
for error in errors:
    print(error.reason, error.path.rsplit("/", 1)[1])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "photos")]
    if os.getuid() == 0:  # root may read everything, unless it gives that up
        if not shutil.which("setpriv"):
            pytest.skip("root may read everything, and setpriv (util-linux) is not here")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    (tmp_path / "photos" / "locked").chmod(0o700)
    denied = "unreadable: permission denied"
    assert set(said.splitlines()) == {"read a.png", f"{denied} c.png", f"{denied} locked"}


CHANGES = {
    "vanishes": lambda path: path.unlink(),
    "becomes a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "becomes a folder": lambda path: (path.unlink(), path.mkdir()),
    "becomes a link to a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "becomes another picture": lambda path: paint(path, seed=77),
    "is cut": lambda path: os.truncate(path, 30),
    "is emptied": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("when", ["before it is read", "after it was read"])
def test_files_that_change_while_they_are_ingested(tmp_path, encoder, when, monkeypatch):
    """Whatever was stored in the hurry, the next ingest sees that it is no longer so."""
    folder = tmp_path / "photos"
    for i, name in enumerate(CHANGES):
        paint(folder / f"{name}.png", seed=i)
    paint(folder / "stays.png", seed=50)
    real = images.read

    def read(path):
        change = CHANGES.pop(Path(path).stem, None) if Path(path).is_file() else None
        if change and when == "before it is read":
            change(Path(path))
        data = real(path)
        if change and when == "after it was read":
            change(Path(path))
        return data

    monkeypatch.setitem(globals(), "CHANGES", dict(CHANGES))
    settings = load_settings(imgsearch_home=tmp_path / "home")
    with monkeypatch.context() as patch:
        patch.setattr(images, "read", read)
        first = ingest(folder, "kept", encoder=encoder, settings=settings)
    assert not CHANGES, "not every file was read"
    assert first.state == "done"
    expected = {str(folder / "becomes another picture.png"), str(folder / "stays.png")}
    again = ingest(folder, "kept", encoder=encoder, settings=settings, prune=True)
    assert again.state == "done"
    with Gallery.open("kept", settings=settings) as gallery:
        rows = gallery.metadata.browse("kept", limit=100)
        assert_consistent(gallery)
        paths = {row.path for row in rows}
        assert expected <= paths
        for path in expected:
            assert gallery.search(path, 1)[0].path == path
        left = paths - expected
    # A file that is there and cannot be read any more keeps its row, and is reported each time.
    ruined = {str(folder / "is cut.png"), str(folder / "is emptied.png")}
    no_files = {str(folder / f"becomes a {it}.png") for it in ("pipe", "link to a device")}
    assert {path for path, _ in again.failures} == ruined | no_files
    assert left == (ruined if when == "after it was read" else set())
