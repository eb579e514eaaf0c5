"""Preprocessing as published, and vectors that are those of the network."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from imgsearch.encoders import Preprocessing, load_encoder, resnet, weights
from imgsearch.errors import EncoderError, ImageError
from tests.encoders.conftest import write_onnx

RANDOM = "resnet18@random:7"


def noise(width=90, height=70, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), np.uint8)
    return Image.fromarray(small).resize((width, height))


def bilinear(pixels, count):
    """Antialiased bilinear resize along the first axis, by its definition, rounded to bytes."""
    size = len(pixels)
    scale = size / count
    support = max(scale, 1.0)
    rows = []
    for index in range(count):
        centre = (index + 0.5) * scale
        first, last = max(0, int(centre - support + 0.5)), min(size, int(centre + support + 0.5))
        weight = np.clip(1 - np.abs(np.arange(first, last) + 0.5 - centre) / support, 0, None)
        rows.append(np.tensordot(weight / weight.sum(), pixels[first:last].astype(float), 1))
    return np.clip(np.floor(np.array(rows) + 0.5), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (100, 80), (256, 256), (333, 257)])
def test_preprocessing_is_the_published_one(size):
    picture = noise(*size)
    width, height = size
    short = min(size)
    resized = int(256 * width / short), int(256 * height / short)
    pixels = bilinear(np.asarray(picture).swapaxes(0, 1), resized[0]).swapaxes(0, 1)
    pixels = bilinear(pixels, resized[1])
    top, left = round((resized[1] - 224) / 2), round((resized[0] - 224) / 2)
    expected = pixels[top : top + 224, left : left + 224].astype(int)
    got = Preprocessing().apply(picture)
    assert (got.dtype, got.shape) == (np.uint8, (224, 224, 3))
    assert np.abs(got - expected).max() <= 1  # Pillow computes with integers


def test_preprocessing_is_that_of_torchvision(torchvision):
    from torchvision import transforms

    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    rng = np.random.default_rng(0)
    for width, height in rng.integers(30, 400, (20, 2)):
        picture = noise(int(width), int(height))
        wanted = np.asarray(theirs(picture)).astype(int)
        # What is cut away is not computed first, and Pillow rounds its weights elsewhere.
        assert np.abs(Preprocessing().apply(picture) - wanted).max() <= 1


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_a_line_of_pixels_takes_no_gigabytes(crop_mode):
    for size in ((60_000, 1), (1, 60_000), (1, 1), (5000, 20)):
        got = Preprocessing((256, 300), (224, 200), crop_mode=crop_mode).apply(noise(*size))
        assert got.shape == (224, 200, 3)


def test_border_adds_the_mean_and_squash_loses_nothing():
    picture = Image.new("RGB", (400, 200), (255, 0, 0))
    border = Preprocessing(100, 100, mean=(0.0, 1.0, 0.0), crop_mode="border").apply(picture)
    assert (border[:25] == (0, 255, 0)).all()
    assert (border[25:75] == (255, 0, 0)).all()
    assert (border[75:] == (0, 255, 0)).all()
    picture.paste((0, 0, 255), (0, 0, 40, 200))
    squashed = Preprocessing(100, 100, crop_mode="squash").apply(picture)
    assert squashed[50, :8].tolist() == [[0, 0, 255]] * 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 300},
        {"crop": 0},
        {"crop": (224, 300)},
        {"interpolation": "nearest"},
        {"crop_mode": "tile"},
    ],
)
def test_preprocessing_that_is_not_supported(wrong):
    with pytest.raises(ValueError, match=r"crop|interpolation"):
        Preprocessing(**wrong)


def test_vectors_are_those_of_the_network():
    encoder = load_encoder(RANDOM, backend="eager", precision="fp32")
    batch = np.stack([encoder.preprocess(noise(seed=seed)) for seed in range(3)])
    network = resnet.resnet("resnet18")
    weights.load_state(network, weights.random_state(network, 7), "resnet18")
    x = (batch / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        features = network(torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)).numpy()
    assert np.allclose(encoder.features(batch), features, atol=1e-4)
    vectors = encoder.encode_batch(batch)
    assert vectors.dtype == np.float32
    assert np.allclose(
        vectors, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-6
    )
    assert np.allclose(encoder.encode([noise(seed=1)]), vectors[1], atol=1e-6)


def test_any_number_of_images(onnx_file):
    encoder = load_encoder(onnx_file, precision="fp32")
    assert encoder.encode([]).shape == (0, 6)
    batch = np.random.default_rng(0).integers(0, 256, (150, 16, 16, 3), np.uint8)
    few = encoder.encode_batch(batch[-4:])
    assert np.allclose(encoder.encode_batch(batch)[-4:], few, atol=1e-5)
    for wrong in (batch[0], batch[:, :10], batch.astype(float)):
        with pytest.raises(ValueError, match="preprocessed pictures are uint8"):
            encoder.encode_batch(wrong)


def test_one_image_is_encoded_as_a_list_of_one(tmp_path):
    """The characters of a path were taken for paths."""
    encoder, path = load_encoder(RANDOM, backend="eager"), tmp_path / "a.png"
    noise().save(path)
    for source in (str(path), path, path.read_bytes(), noise()):
        assert np.array_equal(encoder.encode(source), encoder.encode([path]))


def test_a_box_is_encoded_alone():
    encoder = load_encoder(RANDOM, backend="eager")
    picture, box = noise(), (10, 10, 60, 50)
    assert np.allclose(
        encoder.encode([picture], box=box), encoder.encode([picture.crop(box)]), atol=1e-6
    )
    with pytest.raises(ImageError, match="outside"):
        encoder.encode([picture], box=(0, 0, 91, 10))


def test_an_encoder_lives_as_long_as_it_is_used():
    """Review 1: no endless cache of encoders on a GPU."""
    encoder = load_encoder(RANDOM, backend="eager")
    assert load_encoder(RANDOM, backend="eager") is encoder
    gone = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert gone() is None


def test_vectors_without_meaning_are_an_error(tiny, tmp_path):
    bad = type(tiny)().requires_grad_(False)
    bad.head.weight.fill_(float("inf"))
    encoder = load_encoder(write_onnx(tmp_path / "bad.onnx", bad), precision="fp32")
    with pytest.raises(EncoderError, match="zero or not finite"):
        encoder.encode([noise()])
