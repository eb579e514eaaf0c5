"""Loading encoders by name: identities, settings, and errors that say the way out."""

from __future__ import annotations

import json

import pytest
import torch

from imgsearch.config import load_settings
from imgsearch.encoders import license_of, load_encoder, resnet, weights
from imgsearch.errors import ConfigError, EncoderError, WeightsError
from tests.encoders.conftest import CARD
from tests.encoders.test_base import RANDOM


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("mini", "a677db56fb4866e3"),
        ("resnet18@random:7", "82fd172fc260f639"),
        ("resnet50@random:0", "06dab350a25ffc7f"),
    ],
)
def test_fingerprints_stay_what_they_are(name, fingerprint):
    """Collections of earlier versions stay usable."""
    assert load_encoder(name, backend="eager", precision="fp32").fingerprint == fingerprint


def test_the_licence_is_known_without_loading(onnx_file, tmp_path):
    assert license_of("mini") == load_encoder("mini").license == "Apache-2.0"
    assert license_of("resnet50") == "BSD-3-Clause"
    assert license_of("resnet50@mine.pth") == load_encoder(RANDOM).license == "not stated"
    assert license_of("mine@1") == "not stated"
    assert license_of(str(onnx_file)) == load_encoder(onnx_file).license == CARD["license"]


def test_fingerprint_is_of_what_the_vectors_mean(tmp_path):
    from safetensors.torch import save_file

    network = resnet.resnet("resnet18")
    state = weights.random_state(network, 7)
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "b.safetensors")
    random = load_encoder("resnet18", weights="random:7", precision="fp32")
    files = [
        load_encoder("resnet18", weights=tmp_path / name, precision="fp32")
        for name in ("a.pth", "b.safetensors")
    ]
    assert random.name == RANDOM
    assert {each.fingerprint for each in files} == {random.fingerprint}
    assert files[0].name == f"resnet18@{tmp_path / 'a.pth'}"
    assert load_encoder(files[0].name, precision="fp32") is files[0]
    assert load_encoder("resnet18@random:8", precision="fp32").fingerprint != random.fingerprint
    assert json.loads(json.dumps(random.identity)) == random.identity
    assert random.describe()["fingerprint"] == random.fingerprint
    assert len(random.fingerprint) == 16


def test_a_file_in_the_working_folder_does_not_load_an_encoder_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = load_encoder("mini", backend="eager", precision="fp32")
    (tmp_path / "mini").touch()
    assert load_encoder("mini", backend="eager", precision="fp32") is encoder


def test_weights_by_setting_and_an_exchanged_file(tmp_path, monkeypatch):
    network, file = resnet.resnet("resnet18"), tmp_path / "mine.pth"
    torch.save(weights.random_state(network, 1), file)
    monkeypatch.setenv("IMGSEARCH_WEIGHTS", str(file))
    monkeypatch.setenv("IMGSEARCH_ENCODER", "resnet18")
    monkeypatch.setenv("IMGSEARCH_PRECISION", "fp32")
    first = load_encoder()
    assert load_encoder() is first
    torch.save(weights.random_state(network, 2), file)
    assert load_encoder().fingerprint != first.fingerprint
    with pytest.raises(WeightsError, match=r"size mismatch.*another network"):
        load_encoder("resnet50")
    assert load_encoder(RANDOM).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"name": "resnet51"}, EncoderError, "is unknown; known are mini, resnet18"),
        ({"name": "../x"}, EncoderError, "is unknown"),
        ({"name": "none.onnx"}, WeightsError, "no such file"),
        ({"name": "nul\0.onnx"}, ConfigError, "NUL"),
        ({"weights": "none.pth"}, WeightsError, "no such file"),
        ({"name": "mini", "weights": "x.pth"}, ConfigError, "mini has its own"),
        ({"device": "gpu"}, ConfigError, "device: 'gpu' is none of"),
        ({"device": "cuda:99"}, ConfigError, "cuda:99 does not exist"),
        ({"precision": "int8"}, ConfigError, "precision: 'int8' is none of"),
        ({"backend": "onnxruntime"}, ConfigError, "'onnxruntime' is none of auto, eager"),
    ],
)
def test_what_cannot_be_loaded_says_why(options, error, why):
    with pytest.raises(error, match=why):
        load_encoder(**{"name": "resnet18", "device": "cpu", **options})


def test_another_dimension_than_set_is_refused():
    with pytest.raises(EncoderError, match="VECTOR_DIMENSION is 2048"):
        load_encoder("mini", settings=load_settings(vector_dimension=2048))


def test_no_weights_and_no_network(monkeypatch):
    monkeypatch.setattr(weights, "SOURCE", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"IMGSEARCH_WEIGHTS.*another machine.*'mini'"):
        load_encoder("resnet50")
