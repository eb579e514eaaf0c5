"""ONNX files: run by OpenVINO or onnxruntime, checked against their card, never executed."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch

from imgsearch import images
from imgsearch.config import load_settings
from imgsearch.encoders import backends, load_encoder
from imgsearch.errors import ConfigError, EncoderError, WeightsError
from tests.conftest import missing
from tests.encoders.conftest import CARD, write_onnx

ENGINES = ("openvino", "onnxruntime")


@pytest.fixture(params=ENGINES)
def engine(request):
    try:
        __import__(request.param)
    except ImportError:
        missing(request.param, f"pip install {request.param}")
    return request.param


def expected(network, batch):
    x = torch.tensor(batch / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)
    return network(x).numpy()


def test_features_are_those_of_the_network(onnx_file, tiny, pixels, engine):
    encoder = load_encoder(onnx_file, backend=engine, precision="fp32")
    assert (encoder.name, encoder.dim) == (str(onnx_file), 6)
    assert (encoder.device, encoder.precision, encoder.backend) == ("cpu", "fp32", engine)
    for n in (1, 3, 7):
        assert np.allclose(encoder.features(pixels[:n]), expected(tiny, pixels[:n]), atol=1e-5)
    assert load_encoder(encoder.name, backend=engine, precision="fp32") is encoder
    assert load_encoder(onnx_file).fingerprint == encoder.fingerprint


def test_the_setting_chooses_the_library_that_runs_it(onnx_file, tiny, pixels, engine, tmp_path):
    settings = load_settings(imgsearch_home=tmp_path, imgsearch_backend=engine)
    encoder = load_encoder(onnx_file, precision="fp32", settings=settings)
    assert encoder.backend == engine
    assert np.allclose(encoder.features(pixels), expected(tiny, pixels), atol=1e-5)


def test_a_model_of_a_fixed_batch_takes_any(tiny, pixels, tmp_path, engine):
    path = write_onnx(tmp_path / "fixed.onnx", tiny, batch=3)
    encoder = load_encoder(path, backend=engine, precision="fp32")
    for n in (0, 1, 3, 7):
        got = encoder.features(pixels[:n])
        assert got.shape == (n, 6)
        assert np.allclose(got, expected(tiny, pixels[:n]), atol=1e-5)


def test_lower_precision_keeps_the_vectors_of_photographs(shared):
    path = shared / "weights" / "mobilenet_v2.onnx"
    plain = load_encoder(path, precision="fp32")
    found = [each.path for each in images.find(shared / "voc" / "VOC2012" / "JPEGImages")][::100]
    vectors = plain.encode(found)
    between = vectors @ vectors.T - np.eye(len(found))
    assert between.max() < 0.9  # a network that sees something
    assert (vectors * load_encoder(path).encode(found)).sum(axis=1).min() >= 0.999


def test_the_same_network_as_a_torch_program_and_as_onnx(shared):
    folder = shared / "weights"
    program = torch.export.load(folder / "mobilenet_v2.pt2").module()
    encoder = load_encoder(folder / "mobilenet_v2.onnx", precision="fp32")
    batch = backends.sample_pictures((224, 224), 2)
    with torch.no_grad():
        wanted = expected(program, batch)
    assert np.allclose(encoder.features(batch), wanted, atol=1e-4, rtol=1e-4)


def test_a_torch_program_is_refused_with_the_lines_that_convert_it(tmp_path):
    """Review 3 and 8.15: the interpreter of torch programs is gone."""
    with pytest.raises(EncoderError, match=r"torch\.export\.load\('old\.pt2'\)"):
        load_encoder(tmp_path / "old.pt2")


@pytest.mark.soak
def test_the_lines_that_convert_a_torch_program_work(tiny, pixels, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    shapes = {"x": {0: torch.export.Dim("n", min=1, max=100)}}
    program = torch.export.export(tiny, (torch.zeros(3, 3, 16, 16),), dynamic_shapes=shapes)
    torch.export.save(program, "old.pt2")
    (tmp_path / "old.json").write_text(json.dumps(CARD))
    with pytest.raises(EncoderError) as caught:
        load_encoder("old.pt2")
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert len(lines) == 2
    exec("\n".join(lines), {"torch": torch})
    encoder = load_encoder("old.onnx", precision="fp32")
    assert np.allclose(encoder.features(pixels), expected(tiny, pixels), atol=1e-5)


# ---------------------------------------------------------------- external weights


def separated(path, location):
    """Move a model's weights into a file of its folder, and let the model name `location`."""
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data, set_external_data

    model = onnx.load(path)
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        tensor.raw_data = b" "  # set_external_data wants something there
        set_external_data(tensor, location, int(where["offset"]), int(where["length"]))
        tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())


def test_weights_in_a_file_beside_the_model_are_part_of_the_fingerprint(
    tiny, pixels, tmp_path, engine
):
    path = write_onnx(tmp_path / "tiny.onnx", tiny)
    separated(path, "weights.bin")
    encoder = load_encoder(path, backend=engine, precision="fp32")
    assert np.allclose(encoder.features(pixels), expected(tiny, pixels), atol=1e-5)
    first = encoder.fingerprint
    del encoder
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[1] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    os.utime(path)  # what is in use is known by the model's own time and size
    assert load_encoder(path, backend=engine, precision="fp32").fingerprint != first


@pytest.mark.parametrize("absolute", [False, True])
def test_weights_outside_the_folder_of_the_model_are_refused(tiny, tmp_path, engine, absolute):
    (tmp_path / "models").mkdir()
    path = write_onnx(tmp_path / "models" / "tiny.onnx", tiny)
    outside = tmp_path / "weights.bin"
    separated(path, os.fspath(outside) if absolute else "../weights.bin")
    (tmp_path / "models" / "weights.bin").rename(outside)
    with pytest.raises(EncoderError, match="cannot run it"):
        load_encoder(path, backend=engine)


# ---------------------------------------------------------------- cards and damage


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (None, "needs its JSON card beside it"),
        ("{", "Invalid JSON"),
        ({"dim": "6"}, "dim: "),
        ({"mean": [0.5, 0.5]}, "mean: "),
        ({"std": [0.5, 0.5, 0.0]}, r"std.2: "),
        ({"crop": 300}, "must be between 1 and resize"),
        ({"url": "x"}, "url: Extra"),
        ({"interpolation": "nearest"}, "interpolation: "),
    ],
)
def test_the_card_is_checked(onnx_file, tmp_path, change, why):
    path = shutil.copy(onnx_file, tmp_path / "tiny.onnx")
    if change is not None:
        text = change if isinstance(change, str) else json.dumps(CARD | change)
        path.with_suffix(".json").write_text(text)
    with pytest.raises(WeightsError, match=why):
        load_encoder(path)


def test_a_card_of_another_model_is_refused(tiny, tmp_path, engine):
    with pytest.raises(EncoderError, match=r"output of shape \(1, 6\), not \(n, 7\)"):
        load_encoder(write_onnx(tmp_path / "a.onnx", tiny, dim=7), backend=engine)
    with pytest.raises(EncoderError, match=r"input is \[3, 16, 16\], and its JSON card says"):
        load_encoder(write_onnx(tmp_path / "b.onnx", tiny, crop=15), backend=engine)


def test_damaged_files_are_refused(onnx_file, tmp_path, engine):
    data, path = onnx_file.read_bytes(), tmp_path / "tiny.onnx"
    shutil.copy(onnx_file.with_suffix(".json"), tmp_path)
    for part in (b"", b"<html>", data[: len(data) // 2]):
        path.write_bytes(part)
        with pytest.raises(EncoderError, match=r"cannot run it|must have one input"):
            load_encoder(path, backend=engine)
    path.unlink()
    with pytest.raises(WeightsError, match="no such file"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"backend": "eager"}, "'eager' is none of auto, openvino, onnxruntime"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "onnxruntime runs in fp32"),
        ({"device": "mps"}, "not on mps"),
        ({"weights": "random:0"}, "has its own"),
    ],
)
def test_what_an_onnx_file_cannot_do_is_told(onnx_file, options, why):
    with pytest.raises(ConfigError, match=why):
        load_encoder(onnx_file, **options)


def test_a_gpu_needs_the_right_build_of_onnxruntime(onnx_file):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        assert load_encoder(onnx_file, device="cuda").device == "cuda:0"
        return
    with pytest.raises(ConfigError, match="onnxruntime-gpu"):
        load_encoder(onnx_file, device="cuda")
