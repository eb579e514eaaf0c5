"""timm's models: their own preprocessing, and the dimension that they really give."""

from __future__ import annotations

import contextlib
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from imgsearch.encoders import load_encoder
from imgsearch.encoders import timm as family
from imgsearch.errors import EncoderError
from tests.conftest import ROOT
from tests.encoders.test_base import RANDOM, noise

PICTURES = sorted((ROOT / "data" / "VOCsample" / "JPEGImages").iterdir())
SMALL = [
    "mobilenetv3_small_050",  # 1024 numbers, though num_features is 288
    "hgnetv2_b0",
    "ghostnet_100",
    "vit_tiny_patch16_224",
    "coat_lite_mini",
    "efficientnet_b0",
    "convnext_atto",
    "repvgg_a0",
    "levit_128s",
    "mobileone_s0",
    "test_byobnet",
    "test_vit3",
]
# From the lists of timm: every way of cropping, and an input that is not square.
DECLARED = [
    ("coat_lite_medium_384.in1k", "squash"),
    ("dm_nfnet_f0.dm_in1k", "squash"),
    ("vit_base_patch16_sapiens2.fb", "squash"),
    ("deepseek_vit_412m.deepseek_v4_1_flash", "border"),
    ("fbnetv3_b.ra2_in1k", "center"),
    ("resnet50.a1_in1k", "center"),
]


def compare(timm, config: dict) -> None:
    """Hold our preprocessing to timm's on photographs: the same pixels, give or take rounding."""
    ours = family.preprocessing_of("timm:x", config)
    theirs = timm.data.create_transform(**config, is_training=False)
    mean, std = (np.array(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    for path in PICTURES[:: len(PICTURES) // 4]:
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
        wanted = (theirs(picture).numpy() * std + mean) * 255
        got = ours.apply(picture).transpose(2, 0, 1)
        assert got.shape == wanted.shape == config["input_size"]
        # Pillow may resize rows before columns where only a part is computed: what is rounded
        # and clipped between the two differs.
        difference = np.abs(got - wanted)
        assert difference.mean() <= 0.2, config
        assert (difference > 2.5).mean() <= 0.001, config


def walk(timm, name: str) -> None:
    """Load a model with random weights, encode with it, and compare its preprocessing."""
    encoder = load_encoder(f"timm:{name}", weights="random:3", precision="fp32", device="cpu")
    assert encoder.encode([noise()]).shape == (1, encoder.dim)
    compare(timm, timm.data.resolve_data_config(pretrained_cfg=encoder._model.network.default_cfg))


@pytest.mark.parametrize("name", SMALL)
def test_dimension_and_preprocessing_are_those_of_the_model(timm, name):
    """Attack row 8 and review 8.4: MobileNetV3 says 288 and gives 1024 numbers."""
    walk(timm, name)


@pytest.mark.parametrize(("name", "mode"), DECLARED)
def test_preprocessing_is_the_declared_one(timm, name, mode):
    """Attack row 8: 131 models are squashed and 6 are given a border."""
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    assert config["crop_mode"] == mode
    compare(timm, config)


def test_every_published_model_can_be_preprocessed_or_is_refused(timm):
    """Attack row 8: nothing is replaced in silence."""
    kept, refused = 0, {}
    for name in timm.list_models(pretrained=True):
        config = timm.data.resolve_data_config(
            pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()
        )
        try:
            preprocessing = family.preprocessing_of(name, config)
        except EncoderError as error:
            refused[name] = str(error)
            continue
        kept += 1
        assert preprocessing.size == config["input_size"][1:]
        assert preprocessing.interpolation == config["interpolation"]
        assert preprocessing.crop_mode == config["crop_mode"]
    assert kept > 1500
    assert len(refused) < 30, refused


def test_an_input_that_is_not_square(timm):
    for mode in ("center", "squash", "border"):
        compare(timm, {
            "input_size": (3, 160, 224), "interpolation": "bicubic", "crop_pct": 0.9,
            "crop_mode": mode, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2),
        })  # fmt: skip


def test_what_cannot_be_reproduced_is_refused():
    config = {
        "input_size": (3, 224, 224), "interpolation": "nearest", "crop_pct": 0.9,
        "crop_mode": "center", "mean": (0.5,) * 3, "std": (0.5,) * 3,
    }  # fmt: skip
    with pytest.raises(EncoderError, match="cannot be reproduced: interpolation 'nearest'"):
        family.preprocessing_of("timm:x", config)
    with pytest.raises(EncoderError, match="takes 1 channels"):
        family.preprocessing_of("timm:x", config | {"input_size": (1, 28, 28)})


def test_a_resnet_of_timm_is_ours(timm, tmp_path):
    ours = load_encoder(RANDOM, backend="eager", precision="fp32")
    theirs = load_encoder("timm:resnet18", weights="random:7", backend="eager", precision="fp32")
    batch = np.stack([ours.preprocess(noise())])
    assert np.allclose(ours.features(batch), theirs.features(batch), atol=1e-4)
    whole = timm.create_model("resnet18", pretrained=False)  # with its classifier
    torch.save(whole.state_dict(), tmp_path / "mine.pth")
    theirs = load_encoder(f"timm:resnet18@{tmp_path / 'mine.pth'}", precision="fp32")
    assert theirs.dim == 512


def test_a_model_that_timm_does_not_know(timm):
    with pytest.raises(EncoderError, match="timm cannot make it"):
        load_encoder("timm:no_such_model", weights="random:0")


def test_timm_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EncoderError, match=r"imgsearch\[timm\]"):
        load_encoder("timm:resnet18")


SMALLER = re.compile(r"atto|femto|pico|nano|tiny|mini|small|xxs|xs|_t\b|_s\b|_?[bs]0|050|18|10")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_one_model_of_each_family(timm):
    """Attack row 8: a small model of each family, with random weights."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.models.model_entrypoint(name).__module__, []).append(name)
    refused, failed, large, walked = {}, {}, [], 0
    for names in families.values():
        names.sort(key=lambda name: (not SMALLER.search(name), len(name)))
        sizes = {}
        for name in names[:4]:
            with contextlib.suppress(Exception), torch.device("meta"):  # not all can be made so
                network = timm.create_model(name, pretrained=False)
                sizes[name] = sum(p.numel() for p in network.parameters())
        name = min(sizes, key=sizes.get) if sizes else names[0]
        if sizes.get(name, 0) > 40e6:
            large.append(name)
            continue
        try:
            walk(timm, name)
            walked += 1
        except EncoderError as error:
            refused[name] = error.reason
        except Exception as error:
            failed[name] = repr(error)
    print(f"{walked} families walked; refused: {refused}; too large for a test: {large}")
    assert not failed
    assert walked >= 60
    assert len(refused) < 10, refused
