"""The Towhee pipeline: one result for each image, nothing from any hub."""

from __future__ import annotations

import gc
import hashlib
import io
import logging
import socket
import subprocess
import threading
import weakref

import numpy as np
import pytest
from PIL import Image

from imgsearch import images, pipeline
from imgsearch.encoders.base import load_encoder
from imgsearch.errors import EncoderError, ImageError
from imgsearch.pipeline import Embedded, Pipeline

RANDOM = "resnet18@random:7"


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch):
    """Neither a connection nor a program (pip, git) is started."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"reached out: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setenv("IMGSEARCH_BACKEND", "eager")  # nothing to convert


@pytest.fixture
def encoder(exported):
    return load_encoder(exported[0] / "tiny.pt2", backend="eager")


@pytest.fixture
def folder(tmp_path):
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((120, 90)).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"not really")
    return tmp_path


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
    ]
    results = Pipeline(encoder)(sources)
    kinds = [type(each) for each in results]
    assert kinds == [Embedded, ImageError, Embedded, ImageError, Embedded, Embedded, ImageError]
    assert results[1].path == str(folder / "bad.png")
    assert results[1].reason == "not an image"
    assert results[0].facts.sha256 == hashlib.sha256(first.read_bytes()).hexdigest()
    assert results[0].facts == results[4].facts
    assert results[5].facts is None
    for index in (4, 5):
        assert np.allclose(results[index].vector, results[0].vector, atol=1e-6)
    assert np.allclose(results[2].vector, encoder.encode([folder / "1.png"])[0], atol=1e-6)
    assert results[0].vector.dtype == np.float32


def test_nothing_and_nothing_good(encoder, folder):
    run = Pipeline(encoder)
    assert run([]) == []
    assert [each.reason for each in run([folder / "bad.png"])] == ["not an image"]


def test_box_and_formats(encoder, folder):
    Image.open(folder / "0.png").save(folder / "x.gif")
    run = Pipeline(encoder)
    box = (10, 10, 70, 60)
    got, other = run([folder / "0.png", folder / "x.gif"], box=box)
    assert np.allclose(got.vector, encoder.encode([folder / "0.png"], box=box)[0], atol=1e-6)
    assert got.facts[3:5] == (120, 90)
    assert "GIF is not among" in other.reason
    assert isinstance(Pipeline(encoder, formats=("GIF",))([folder / "x.gif"])[0], Embedded)
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

    def prepare(picture):
        if inside.is_set():
            decoded.set()
        return type(encoder).preprocess(encoder, picture)

    monkeypatch.setattr(encoder, "encode_batch", encode)
    monkeypatch.setattr(encoder, "preprocess", prepare)
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


def test_every_operator_resolves_here():
    from towhee.runtime.operator_manager import OperatorRegistry

    pipeline.register()
    for name in pipeline.OPERATORS:
        assert OperatorRegistry.resolve(name) is not None, name
    formats = [h.formatter._fmt for h in logging.getLogger().handlers if h.formatter]
    assert not any("%(thread)d" in each for each in formats)


@pytest.mark.parametrize("mode", [(), ("rgb",), ("RGB",)])
def test_the_original_demo_runs_unchanged(folder, mode, monkeypatch, tmp_path):
    import torch
    from towhee import ops, pipe

    from imgsearch.encoders import resnet

    torch.save(resnet.random_state(resnet.resnet("resnet18"), 7), tmp_path / "w.pth")
    monkeypatch.setenv("IMGSEARCH_WEIGHTS", str(tmp_path / "w.pth"))
    pipeline.register()
    run = (
        pipe.input("p")
        .map("p", "img", ops.image_decode.cv2_rgb(*mode))
        .map("img", "vec", ops.image_embedding.timm(model_name="resnet18"))
        .map("vec", "vec", ops.towhee.np_normalize())
        .output("p", "vec")
    )
    path = str(folder / "0.png")
    got, vector = run(path).get()
    assert got == path
    assert np.allclose(vector, load_encoder(RANDOM).encode([path])[0], atol=1e-5)


def test_the_operators_by_themselves(folder):
    path = folder / "0.png"
    rgb, bgr = pipeline.DecodeCv2("rgb")(path), pipeline.DecodeCv2()(path)
    assert (rgb.mode, bgr.mode) == ("RGB", "BGR")
    assert np.array_equal(rgb[:, :, ::-1], bgr)
    assert np.array_equal(rgb, images.decode(path))
    embed = pipeline.EmbedTimm(RANDOM)
    one, many = embed(rgb), embed([rgb, bgr])
    assert np.allclose(one, many[0], atol=1e-4)
    assert np.allclose(one, many[1], atol=1e-4)
    assert np.linalg.norm(one) > 1.5  # not normalised: another operator does that
    assert np.allclose(np.linalg.norm(pipeline.NpNormalize(axis=1)(np.ones((2, 5))), axis=1), 1)
    with pytest.raises(ValueError, match="RGB or BGR"):
        pipeline.DecodeCv2("grey")
    with pytest.raises(EncoderError, match="skip_preprocess"):
        pipeline.EmbedTimm("resnet18", skip_preprocess=True)


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
