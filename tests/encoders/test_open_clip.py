"""open_clip's models: both towers in one space, with the model's preprocessing and tokenizer."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from imgsearch.encoders import license_of, list, load_encoder
from imgsearch.encoders import open_clip as family
from imgsearch.errors import EncoderError, WeightsError
from imgsearch.pipeline import Pipeline
from tests.encoders.test_base import noise
from tests.encoders.test_timm import PICTURES

TOWER = {"width": 32, "layers": 2}
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "head_width": 16, **TOWER},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "heads": 2, **TOWER},
}
WORDS = ["a photo of a cat", "Grüße, 世界!", "a dog " * 50]


@pytest.fixture(scope="session")
def tiny_clip(open_clip, tmp_path_factory) -> str:
    """Name of a model of open_clip with two small towers."""
    file = tmp_path_factory.mktemp("clip") / "tiny-CLIP.json"
    file.write_text(json.dumps(TINY))
    open_clip.add_model_config(file)
    return "clip:tiny-CLIP"


@pytest.fixture
def encoder(tiny_clip):
    return load_encoder(tiny_clip, weights="random:3", backend="eager", precision="fp32")


def test_text_and_image_are_in_one_space(encoder, open_clip):
    """What open_clip computes before it multiplies with its logit scale."""
    clip = encoder._model.clip
    pictures = [noise(seed=seed) for seed in range(3)]
    images, texts = encoder.encode(pictures), encoder.encode_text(WORDS)
    assert images.shape == texts.shape == (3, encoder.dim) == (3, 24)
    assert texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    preprocess = open_clip.image_transform(48, is_train=False)
    with torch.inference_mode():
        logits, _ = clip.get_logits(
            torch.stack([preprocess(each) for each in pictures]),
            open_clip.get_tokenizer("tiny-CLIP")(WORDS),
        )
        wanted = (logits / clip.logit_scale.exp()).numpy()
    np.testing.assert_allclose(images @ texts.T, wanted, atol=2e-3)
    assert encoder.text
    assert encoder.encode_text("a photo of a cat").shape == (1, 24)
    np.testing.assert_array_equal(encoder.encode_text("a photo of a cat")[0], texts[0])
    assert encoder.encode_text([]).shape == (0, 24)


def test_the_tokenizer_is_the_one_that_the_package_ships(encoder):
    tokens = encoder._model.tokenizer(["a cat"])
    assert tokens.shape == (1, 16)
    assert tokens[0, :5].tolist() == [49406, 320, 2368, 49407, 0]


def test_tokenizer_and_text_weights_are_part_of_the_fingerprint(encoder, tiny_clip, open_clip):
    model = encoder._model
    assert encoder.identity["text"] == {"context_length": 16, "vocab_size": 49408}
    assert (
        encoder.identity["preprocessing"] | {"resize": 48, "interpolation": "bicubic"}
        == (encoder.identity["preprocessing"])
    )
    state = family.files.floats(model.clip)
    key = "token_embedding.weight"
    assert family.files.digest(state | {key: state[key] + 1}) != encoder.identity["weights_sha256"]
    assert load_encoder(f"{tiny_clip}@random:3", precision="fp32", backend="eager") is encoder


def test_every_backend_gives_the_same_vectors(encoder, tiny_clip):
    pytest.importorskip("openvino")
    other = load_encoder(tiny_clip, weights="random:3", backend="openvino", precision="fp32")
    batch = [encoder.preprocess(noise(seed=seed)) for seed in range(5)]
    assert other.fingerprint == encoder.fingerprint
    assert (other.encode_batch(batch) * encoder.encode_batch(batch)).sum(axis=1).min() > 0.9999
    assert len(Pipeline(encoder, workers=1)([noise()])) == 1


def test_weights_from_a_file(encoder, tiny_clip, tmp_path):
    file = tmp_path / "mine.pt"
    torch.save(encoder._model.clip.state_dict(), file)
    loaded = load_encoder(tiny_clip, weights=file, precision="fp32")
    assert loaded.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(loaded.encode_text(WORDS), encoder.encode_text(WORDS), atol=1e-6)
    torch.save({"a": torch.ones(1)}, file)
    with pytest.raises(EncoderError, match=r"open_clip cannot make it: .*visual"):
        load_encoder(tiny_clip, weights=file)
    with pytest.raises(WeightsError, match="no such file"):
        load_encoder(tiny_clip, weights=tmp_path / "none.pt")


def test_a_damaged_file_of_the_hub_is_noticed(encoder, tiny_clip, tmp_path):
    """The hub's cache names a file by its SHA-256, and links to it."""
    blob, link = tmp_path / ("0" * 64), tmp_path / "open_clip_model.safetensors"
    torch.save(encoder._model.clip.state_dict(), blob)
    link.symlink_to(blob)
    with pytest.raises(WeightsError, match=f"delete {re.escape(str(blob))}"):
        load_encoder(tiny_clip, weights=link)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("clip:ViT-B-32", r"has no such weights: clip:ViT-B-32/openai, clip:ViT-B-32/laion"),
        ("clip:PE-Core-B-16/none", r"has no such weights: clip:PE-Core-B-16/meta"),
        ("clip:no-such-model", "has no such weights: see open_clip"),
        ("clip:no-such-model@random:0", "open_clip cannot make it"),
    ],
)
def test_what_open_clip_does_not_have(open_clip, name, why):
    with pytest.raises(EncoderError, match=why):
        load_encoder(name)


def test_no_hub(open_clip, tiny_clip, monkeypatch, tmp_path):
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "tiny-CLIP", {"mine": {"url": "http://127.0.0.1:9/x.pt"}}
    )
    with pytest.raises(EncoderError, match=r"open_clip cannot make it.*refused"):
        load_encoder(f"{tiny_clip}")


def test_preprocessing_is_that_of_open_clip(open_clip):
    """For every published model: its own configuration, on photographs."""
    seen = set()
    for kind, tag in open_clip.list_pretrained():
        config = open_clip.get_pretrained_cfg(kind, tag)
        size = open_clip.get_model_config(kind)["vision_cfg"].get("image_size", 224)
        config = {"size": size, "interpolation": "bicubic", "resize_mode": "shortest", **config}
        ours = family.preprocessing_of(kind, config)
        key = size, config["interpolation"], config["resize_mode"]
        if key in seen or size not in (224, 256):
            continue
        seen.add(key)
        theirs = open_clip.image_transform(
            size, is_train=False, mean=config["mean"], std=config["std"],
            interpolation=config["interpolation"], resize_mode=config["resize_mode"],
        )  # fmt: skip
        mean, std = (np.array(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
        for path in PICTURES[::9]:
            with Image.open(path) as picture:
                picture = picture.convert("RGB")
            wanted = (theirs(picture).numpy() * std + mean) * 255
            difference = np.abs(ours.apply(picture).transpose(2, 0, 1) - wanted)
            assert difference.mean() <= 0.2
            assert (difference > 2.5).mean() <= 0.001
    assert {mode for *_, mode in seen} == {"shortest", "squash"}
    with pytest.raises(EncoderError, match="cannot be reproduced: crop_mode 'longest'"):
        family.preprocessing_of("x", config | {"resize_mode": "longest"})


def test_the_registered_models_are_what_their_entries_say(open_clip):
    entries = [each for each in list() if each.name.startswith("clip:") and each.dim]
    assert len(entries) >= 3
    for entry in entries:
        config = open_clip.get_model_config(entry.name.removeprefix("clip:"))
        assert entry.dim == config["embed_dim"]
        assert entry.input_size == config["vision_cfg"]["image_size"]
        assert entry.text
        with torch.device("meta"):
            clip = open_clip.create_model(entry.name.removeprefix("clip:"), device="meta")
        size = 4 * sum(each.numel() for each in clip.parameters())
        assert entry.download == pytest.approx(size, rel=0.05), (entry.name, size)


def test_licences_are_told_and_research_only_ones_warn(tiny_clip, monkeypatch):
    assert license_of("clip:PE-Core-L-14-336") == "Apache-2.0"
    assert license_of("clip:ViT-L-16-SigLIP2-512") == "Apache-2.0"
    assert license_of("clip:ViT-B-32/openai") == "MIT"
    assert license_of("clip:MobileCLIP2-S4") == "apple-amlr (research only)"
    assert license_of(tiny_clip) == "not stated"
    monkeypatch.setitem(family.LICENSES, "tiny.*", "CC-BY-NC-4.0")
    monkeypatch.setattr("imgsearch.encoders.loading.license_of", lambda name: "CC-BY-NC-4.0")
    with pytest.warns(UserWarning, match=r"CC-BY-NC-4.0\) does not allow commercial use"):
        load_encoder(tiny_clip, weights="random:4")


def test_an_encoder_without_a_text_tower_names_those_that_have_one():
    with pytest.raises(EncoderError, match=r"no text tower.*clip:PE-Core-B-16"):
        load_encoder("resnet18@random:7", backend="eager").encode_text(["a cat"])


def test_open_clip_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(EncoderError, match=r"imgsearch\[clip\]"):
        load_encoder("clip:PE-Core-B-16")
