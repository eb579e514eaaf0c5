"""The Towhee pipeline: one result for each image, nothing from any hub."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgsearch import images
from imgsearch.encoders import load_encoder
from imgsearch.errors import EncoderError, ImageError
from imgsearch.pipeline import Embedded, Pipeline, _Budget

ROOT = Path(__file__).parent.parent


@pytest.fixture
def offline(monkeypatch):
    """Make every connection and every start of a program (pip, git) fail."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"tried to reach {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("mini", backend="eager")  # nothing to convert


@pytest.fixture
def folder(tmp_path):
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((120, 90)).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"not really")
    return tmp_path


@pytest.mark.usefixtures("offline")
def test_one_result_for_each_image_in_order(encoder, folder):
    first = folder / "0.png"
    sources = [
        first,
        folder / "bad.png",
        str(folder / "1.png"),
        folder / "none.png",
        first.read_bytes(),
        np.asarray(Image.open(first)),
        17,
        images.load(first),
    ]
    results = Pipeline(encoder)(sources)
    assert [type(each) for each in results] == [
        *[Embedded, ImageError, Embedded, ImageError],
        *[Embedded, Embedded, ImageError, Embedded],
    ]
    assert results[1].path == str(folder / "bad.png")
    assert results[1].reason.startswith("not an image")
    assert results[0].info.sha256 == hashlib.sha256(first.read_bytes()).hexdigest()
    assert results[0].info == results[4].info == results[7].info
    assert results[5].info is None
    for index in (4, 5, 7):
        assert np.allclose(results[index].vector, results[0].vector, atol=1e-6)
    assert np.allclose(results[2].vector, encoder.encode([folder / "1.png"])[0], atol=1e-6)
    assert results[0].vector.dtype == np.float32


def test_nothing_and_nothing_good(encoder, folder):
    run = Pipeline(encoder)
    assert run([]) == []
    assert [each.path for each in run([folder / "bad.png"])] == [str(folder / "bad.png")]


def test_box(encoder, folder):
    run = Pipeline(encoder)
    box = (10, 10, 70, 60)
    (got,) = run([folder / "0.png"], box=box)
    assert np.allclose(got.vector, encoder.encode([folder / "0.png"], box=box)[0], atol=1e-6)
    assert got.info[3:5] == (120, 90)
    assert "outside" in run([folder / "0.png"], box=(0, 0, 999, 9))[0].reason


def test_threads_overlap_and_do_not_mix(encoder, folder):
    run = Pipeline(encoder, workers=2)
    files = [folder / f"{index}.png" for index in range(5)]
    expected = encoder.encode(files)
    wrong = []

    def work(shift):
        for _ in range(3):
            got = run([*files[shift:], folder / "bad.png", *files[:shift]])
            vectors = np.stack([each.vector for each in got if isinstance(each, Embedded)])
            if not np.allclose(vectors, np.roll(expected, -shift, axis=0), atol=1e-5):
                wrong.append(shift)

    threads = [threading.Thread(target=work, args=(shift,)) for shift in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_decoding_goes_on_while_another_chunk_is_encoded(encoder, folder, monkeypatch):
    inside, decoded, go = threading.Event(), threading.Event(), threading.Event()
    run = Pipeline(encoder)
    real = encoder.encode_batch

    def encode(batch):
        if not inside.is_set():
            inside.set()
            assert go.wait(30)
        return real(batch)

    def preprocess(picture):
        if inside.is_set():
            decoded.set()
        return type(encoder).preprocess(encoder, picture)

    monkeypatch.setattr(encoder, "encode_batch", encode)
    monkeypatch.setattr(encoder, "preprocess", preprocess)
    threads = [threading.Thread(target=run, args=([folder / "0.png"],)) for _ in range(2)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    assert decoded.wait(30)  # while the first chunk is still being encoded
    go.set()
    for thread in threads:
        thread.join(30)


def test_an_encoder_that_fails_keeps_its_error(encoder, folder, monkeypatch):
    def fail(batch):
        raise EncoderError("x", "is out of order")

    run = Pipeline(encoder)
    monkeypatch.setattr(encoder, "encode_batch", fail)
    with pytest.raises(EncoderError, match="out of order"):
        run([folder / "0.png"])


def test_a_pipeline_is_let_go(encoder, folder):
    run = Pipeline(encoder)
    run([folder / "0.png"])
    gone = weakref.ref(run)
    del run
    gc.collect()
    assert gone() is None


def test_an_error_keeps_no_picture_in_memory(encoder, folder, monkeypatch):
    """Attack row 4: the traceback of a failed image kept its pixels while the ingest ran."""
    pictures, real = [], Image.Image.load

    def load(self):
        pictures.append(weakref.ref(self))
        return real(self)

    monkeypatch.setattr(Image.Image, "load", load)
    data = (folder / "0.png").read_bytes()
    results = Pipeline(encoder)([data[: len(data) // 2]])
    assert results[0].reason == "truncated"
    assert pictures
    assert all(picture() is None for picture in pictures)


def test_each_file_is_read_once(encoder, folder, monkeypatch):
    seen, real = [], images.read

    def read(path):
        seen.append(path)
        return real(path)

    monkeypatch.setattr(images, "read", read)
    Pipeline(encoder)([folder / "0.png", folder / "1.png"])
    assert sorted(seen) == [folder / "0.png", folder / "1.png"]


def test_uploaded_bytes_have_no_path(encoder):
    file = io.BytesIO()
    Image.new("RGB", (30, 30)).save(file, "PNG")
    (error,) = Pipeline(encoder)([file.getvalue()[:60]])
    assert (error.path, error.reason) == ("uploaded bytes", "truncated")


def test_the_pipelines_encoder_is_replaced_and_the_shared_one_stays(encoder, monkeypatch):
    """Review 1: an ingest changed the encoder that everybody in the process shares."""
    other = load_encoder("mini")
    monkeypatch.setattr(type(encoder), "optimized_for", lambda self, count: other)
    run = Pipeline(encoder)
    run.optimize_for(10_000)
    assert run.encoder is other
    assert Pipeline(encoder).encoder is encoder


@pytest.mark.parametrize("configured", [False, True])
def test_towhee_leaves_the_root_logger_alone(configured):
    """Review 1: handlers were taken from the root logger by the text of their format."""
    code = f"""
import logging
from imgsearch.pipeline import _towhee_pipe
root = logging.getLogger()
if {configured}:
    from towhee.utils.log import FORMAT
    logging.basicConfig(format=FORMAT)  # a handler that looks like Towhee's own
before = root.handlers[:]
_towhee_pipe()
assert root.handlers == before, root.handlers
assert len(before) == {configured:d}
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_small_pictures_share_the_memory_and_a_large_one_has_it_alone():
    """Attack row 4: what is decoded at one time is bounded over all threads."""
    budget, lock = _Budget(100), threading.Lock()
    held, most = 0, 0

    def work(amount):
        nonlocal held, most
        for _ in range(200):
            with budget.reserve(amount):
                with lock:
                    held += min(amount, 100)
                    most = max(most, held)
                with lock:
                    held -= min(amount, 100)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (1, 30, 60, 10_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert most <= 100
    assert held == 0
    inside = threading.Barrier(4, timeout=30)

    def small():
        with budget.reserve(25):
            inside.wait()  # all four at one time

    threads = [threading.Thread(target=small) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not inside.broken


def test_small_pictures_do_not_keep_a_large_one_waiting():
    budget = _Budget(100)
    waiting, served = threading.Event(), []

    def large():
        waiting.set()
        with budget.reserve(100):
            served.append("large")

    def small():
        with budget.reserve(1):
            served.append("small")

    with budget.reserve(1):
        thread = threading.Thread(target=large)
        thread.start()
        assert waiting.wait(30)
        while not budget._queue.locked():
            pass
        late = threading.Thread(target=small)
        late.start()
    thread.join(30)
    late.join(30)
    assert served == ["large", "small"]
