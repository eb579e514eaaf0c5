"""The bundled encoder: what it is, that it repeats itself, and that it is good enough."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from imgsearch.datasets.voc import Voc
from imgsearch.encoders import load_encoder, mini
from imgsearch.evaluation import scoring

FILE = mini.FILE
ANIMALS = ("cat", "cow", "dog", "horse", "sheep")


@pytest.fixture(scope="module")
def network():
    from safetensors.torch import load_file

    network = mini.build()
    network.load_state_dict({name: value.float() for name, value in load_file(FILE).items()})
    return network


@pytest.fixture
def encoder():
    return load_encoder("mini", device="cpu", precision="fp32", backend="eager")


def scene(number: int) -> Image.Image:
    """A drawn picture, the same on every machine."""
    rng = np.random.default_rng(number)
    picture = Image.new("RGB", (320, 240), tuple(int(v) for v in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        left, upper = (int(v) for v in rng.integers(-40, 280, 2))
        box = (left, upper, left + int(rng.integers(20, 160)), upper + int(rng.integers(20, 160)))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape(box, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return picture


def test_file_is_the_described_one_and_small():
    content = FILE.read_bytes()
    assert len(content) == 5_079_568
    assert hashlib.sha256(content).hexdigest() == mini.SHA256


def test_file_is_half_precision_and_finite():
    from safetensors.torch import load

    for value in load(FILE.read_bytes()).values():
        assert value.dtype == torch.float16
        assert torch.isfinite(value).all()


def test_build_is_what_load_fills(network):
    empty = mini.build()
    assert not empty.training
    assert list(empty.state_dict()) == list(network.state_dict())
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_shape(network, count):
    side = mini.PREPROCESSING.crop
    with torch.inference_mode():
        vectors = network(torch.zeros(count, 3, side, side))
    assert vectors.shape == (count, mini.DIM)
    assert vectors.dtype == torch.float32


def test_batch_size_and_company_do_not_matter(encoder):
    pictures = [scene(i) for i in range(5)]
    together = encoder.encode(pictures)
    alone = np.concatenate([encoder.encode([picture]) for picture in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_input_is_left_alone(network):
    x = torch.rand(2, 3, mini.PREPROCESSING.crop, mini.PREPROCESSING.crop)
    before = x.clone()
    with torch.inference_mode():
        network(x)
    assert torch.equal(x, before)


def test_vectors_are_pinned(network):
    ramp = np.linspace(-1, 1, mini.PREPROCESSING.crop, dtype=np.float32)
    x = np.stack([np.add.outer(ramp, ramp) / 2, np.multiply.outer(ramp, ramp), ramp[:, None] ** 2
                  * np.ones_like(ramp)])  # fmt: skip
    with torch.inference_mode():
        vector = network(torch.from_numpy(x.astype(np.float32))[None])[0].numpy()
    np.testing.assert_allclose(vector[:6], PINNED, atol=2e-3)


PINNED = [-4.8613, -2.2726, 0.5160, 2.6887, -1.4371, 0.1649]


def test_near_duplicates_stay_nearest(encoder, tmp_path):
    pictures = [scene(i) for i in range(16)]
    gallery = encoder.encode(pictures)
    changed = {"recoded": [], "mirrored": [], "smaller": [], "blurred": []}
    for picture in pictures:
        picture.save(tmp_path / "again.jpg", quality=40)
        changed["recoded"].append(Image.open(tmp_path / "again.jpg").convert("RGB"))
        changed["mirrored"].append(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        changed["smaller"].append(picture.resize((240, 180)))
        changed["blurred"].append(picture.filter(ImageFilter.GaussianBlur(1)))
    for what, queries in changed.items():
        nearest = (encoder.encode(queries) @ gallery.T).argmax(1)
        assert (nearest == np.arange(len(pictures))).all(), what


def test_finds_animals_of_the_same_kind(encoder, shared):
    voc = Voc(shared / "voc" / "VOC2012")
    names = voc.single_label(sorted(voc.annotated()), ANIMALS)
    assert len(names) == 200
    files = voc.image_files()
    paths = [files[name] for name in names]
    vectors = np.concatenate([encoder.encode(paths[i : i + 50]) for i in range(0, 200, 50)])
    labels = voc.labels(names)
    task = scoring.task(np.arange(200), vectors, *labels, classes=voc.classes, names=names)
    found = scoring.evaluate(task, ks=(1,))
    means = {s.metric: s.value for s in found.summary() if s.average == "micro"}
    assert means["mAP"] >= 0.44
    assert means["P@1"] >= 0.60
