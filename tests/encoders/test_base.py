"""Encoders: preprocessing as published, vectors that mean the same whatever runs them."""

from __future__ import annotations

import copy
import gc
import json
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from imgsearch import images
from imgsearch.config import load_settings
from imgsearch.encoders import backends, resnet, weights
from imgsearch.encoders.base import Preprocessing, load_encoder
from imgsearch.errors import ConfigError, EncoderError, ImageError, WeightsError
from tests.conftest import CARD, missing
from tests.encoders.test_resnet import torchvision_models

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


def test_preprocessing_is_that_of_torchvision():
    torchvision_models()
    from torchvision import transforms

    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    rng = np.random.default_rng(0)
    for width, height in rng.integers(30, 400, (20, 2)):
        picture = noise(int(width), int(height))
        wanted = np.asarray(theirs(picture)).astype(int)
        # What is cut away is not computed first, and Pillow rounds its weights elsewhere.
        assert np.abs(Preprocessing().apply(picture) - wanted).max() <= 1


def test_a_line_of_pixels_takes_no_gigabytes():
    for size in ((60_000, 1), (1, 60_000), (1, 1), (5000, 20)):
        assert Preprocessing().apply(noise(*size)).shape == (224, 224, 3)


@pytest.mark.parametrize("wrong", [{"crop": 300}, {"crop": 0}, {"interpolation": "nearest"}])
def test_preprocessing_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=r"crop|interpolation"):
        Preprocessing(**wrong)


def test_vectors_are_those_of_the_network():
    encoder = load_encoder(RANDOM, backend="eager", precision="fp32")
    batch = np.stack([encoder.preprocess(noise(seed=seed)) for seed in range(3)])
    network = resnet.resnet("resnet18")
    weights.fit(network, resnet.random_state(network, 7), "resnet18")
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


def test_any_number_of_images(exported):
    encoder = load_encoder(exported[0] / "tiny.pt2", backend="eager")
    assert encoder.encode([]).shape == (0, 6)
    batch = np.random.default_rng(0).integers(0, 256, (150, 16, 16, 3), np.uint8)
    few = encoder.encode_batch(batch[-4:])
    assert np.allclose(encoder.encode_batch(batch)[-4:], few, atol=1e-5)
    for wrong in (batch[0], batch[:, :10], batch.astype(float)):
        with pytest.raises(ValueError, match="prepared pictures are uint8"):
            encoder.encode_batch(wrong)


def test_a_program_of_a_fixed_batch_takes_any(exported):
    folder, _ = exported
    fixed = load_encoder(folder / "fixed.pt2", backend="eager")
    free = load_encoder(folder / "tiny.pt2", backend="eager")
    batch = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)
    for n in (0, 1, 3, 7):
        got = fixed.encode_batch(batch[:n])
        assert got.shape == (n, 6)
        assert np.allclose(got, free.encode_batch(batch[:n]), atol=1e-5)
    assert fixed.name == str(folder / "fixed.pt2")
    assert load_encoder(fixed.name, backend="eager") is fixed


def test_a_box_is_encoded_alone():
    encoder = load_encoder(RANDOM, backend="eager")
    picture, box = noise(), (10, 10, 60, 50)
    assert np.allclose(
        encoder.encode([picture], box=box), encoder.encode([picture.crop(box)]), atol=1e-6
    )
    with pytest.raises(ImageError, match="outside"):
        encoder.encode([picture], box=(0, 0, 91, 10))


def alike(name, **options):
    """Vectors of what is loaded are those of torch in fp32, for batches of any size."""
    plain = load_encoder(name, backend="eager", precision="fp32", device="cpu")
    other = load_encoder(name, device="cpu", **options)
    assert other.fingerprint == plain.fingerprint
    for n in (1, 3, 2):
        batch = np.stack([plain.preprocess(noise(seed=seed)) for seed in range(n)])
        cosine = (plain.encode_batch(batch) * other.encode_batch(batch)).sum(axis=1)
        assert cosine.min() >= 0.999
    return other


def need_openvino():
    if not backends.openvino_is_there():
        missing("openvino", "pip install 'imgsearch[openvino]'")


def test_openvino_gives_the_same_vectors():
    need_openvino()
    other = alike(RANDOM, backend="openvino")
    assert other.backend == "openvino"
    assert other.precision == ("bf16" if backends.cpu_has_bf16() else "fp32")


@pytest.mark.soak
@pytest.mark.parametrize("name", [RANDOM, "tiny.pt2"])
def test_compiled_torch_gives_the_same_vectors(exported, name):
    if not backends.compiler_is_there():
        missing("a C++ compiler", "apt-get install g++")
    alike(exported[0] / name if name.endswith(".pt2") else name, backend="compile")


def test_a_conversion_that_goes_wrong_is_noticed(exported, tmp_path):
    need_openvino()
    path = exported[0] / "tiny.pt2"  # its reshape would be frozen at one size of batch
    with pytest.raises(EncoderError, match="use backend='eager'"):
        load_encoder(path, backend="openvino", device="cpu")
    encoder = load_encoder(path, backend="auto", device="cpu", settings=automatic(tmp_path))
    assert encoder.optimized_for(10**6).backend == "eager"
    alike(path, backend="auto", settings=automatic(tmp_path))


def automatic(home):
    return load_settings(imgsearch_home=home, imgsearch_backend="auto")


def test_a_long_job_gets_openvino_and_a_short_one_does_not(tmp_path):
    need_openvino()
    given = {"device": "cpu", "precision": "fp32", "settings": automatic(tmp_path)}
    encoder = load_encoder(RANDOM, **given)
    batch = np.stack([encoder.preprocess(noise(seed=seed)) for seed in range(5)])
    before, described = encoder.encode_batch(batch), encoder.describe()
    assert encoder.optimized_for(100) is encoder  # a conversion would take longer than they do
    fast = encoder.optimized_for(10_000)
    assert fast.describe() == described | {"backend": "openvino"}
    assert (fast.encode_batch(batch) * before).sum(axis=1).min() >= 0.9999
    # The encoder itself is shared, and stays what it was.
    assert encoder.describe() == described
    assert (encoder.encode_batch(batch) == before).all()
    assert load_encoder(RANDOM, **given) is encoder
    assert fast.optimized_for(10**6) is fast
    assert encoder.optimized_for(1) is fast  # in use already: it costs nothing


def test_a_converted_model_is_kept_and_a_damaged_one_is_replaced(tmp_path):
    need_openvino()
    given = {"device": "cpu", "precision": "fp32", "settings": automatic(tmp_path)}
    batch = np.stack([load_encoder(RANDOM, **given).preprocess(noise())])
    vectors = load_encoder(RANDOM, **given).optimized_for(10_000).encode_batch(batch)
    (kept,) = (tmp_path / "openvino").iterdir()
    written = kept.stat().st_mtime_ns
    again = load_encoder(RANDOM, **given).optimized_for(100)  # worth it now for a shorter job
    assert again.backend == "openvino"
    assert kept.stat().st_mtime_ns == written
    assert (again.encode_batch(batch) == vectors).all()
    del again
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    mended = load_encoder(RANDOM, **given).optimized_for(100)
    assert (mended.encode_batch(batch) * vectors).sum(axis=1).min() >= 0.9999
    assert kept.read_bytes() != bytes(data)


def test_an_encoder_lives_as_long_as_it_is_used():
    """Review 1 and 8: no endless cache of encoders on a GPU."""
    encoder = load_encoder(RANDOM, backend="eager")
    assert load_encoder(RANDOM, backend="eager") is encoder
    gone = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert gone() is None


def test_a_backend_that_was_asked_for_stays(tmp_path):
    encoder = load_encoder(RANDOM, backend="eager", settings=automatic(tmp_path))
    assert encoder.optimized_for(10**6) is encoder


def test_lower_precision_where_the_hardware_has_it(monkeypatch):
    monkeypatch.setattr(backends, "cpu_has_bf16", lambda: True)
    assert alike(RANDOM, backend="eager").precision == "bf16"


@pytest.mark.soak
def test_lower_precision_only_where_it_keeps_the_vectors(shared, monkeypatch):
    monkeypatch.setattr(backends, "cpu_has_bf16", lambda: True)
    # depthwise convolutions lose too much: a cosine of 0.995 on photographs
    path = shared / "weights" / "mobilenet_v2.pt2"
    assert alike(path, backend="eager").precision == "fp32"


def test_openvino_takes_a_fixed_batch(exported):
    need_openvino()
    path = exported[0] / "fixed.pt2"
    batch = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    given = {"device": "cpu", "precision": "fp32"}
    got = load_encoder(path, backend="openvino", **given).encode_batch(batch)
    expected = load_encoder(path, backend="eager", **given).encode_batch(batch)
    assert np.allclose(got, expected, atol=1e-4)


def test_real_photographs(shared):
    path = shared / "weights" / "mobilenet_v2.pt2"
    plain = load_encoder(path, backend="eager", precision="fp32", device="cpu")
    found = [each.path for each in images.find(shared / "voc" / "VOC2012" / "JPEGImages")][::100]
    vectors = plain.encode(found)
    between = vectors @ vectors.T - np.eye(len(found))
    assert between.max() < 0.9  # a network that sees something
    assert (vectors * load_encoder(path).encode(found)).sum(axis=1).min() >= 0.999


@pytest.mark.soak
@pytest.mark.parametrize("backend", ["openvino", "compile"])
@pytest.mark.parametrize("name", ["resnet50@random:0", "mini", "mobilenet_v2.pt2"])
def test_every_backend_sees_the_same_in_every_photograph(shared, name, backend):
    if backend == "openvino":
        need_openvino()
    elif not backends.compiler_is_there():
        missing("a C++ compiler", "apt-get install g++")
    encoder = str(shared / "weights" / name) if name.endswith(".pt2") else name
    photos = [each.path for each in images.find(shared / "voc" / "VOC2012" / "JPEGImages")]
    plain = load_encoder(encoder, backend="eager", precision="fp32", device="cpu")
    prepared = np.stack([plain.preprocess(images.decode(path)) for path in photos])
    vectors = load_encoder(encoder, backend=backend, device="cpu").encode_batch(prepared)
    assert len(vectors) == 400
    assert (vectors * plain.encode_batch(prepared)).sum(axis=1).min() >= 0.999


@pytest.mark.parametrize(("name", "backend"), [("tiny.pt2", "eager"), (RANDOM, "openvino")])
def test_threads_may_encode_at_once(exported, name, backend):
    if backend == "openvino":
        need_openvino()
    name = str(exported[0] / name) if name == "tiny.pt2" else name
    encoder = load_encoder(name, backend=backend, device="cpu")
    batch = np.stack([encoder.preprocess(noise(seed=seed)) for seed in range(4)])
    expected, got = encoder.encode_batch(batch), [[]] * 6

    def work(index):
        got[index] = [encoder.encode_batch(batch[index % 4 :]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, every in enumerate(got):
        assert len(every) == 10
        for vectors in every:
            assert (vectors * expected[index % 4 :]).sum(axis=1).min() >= 0.9999


def test_fingerprint_is_of_what_the_vectors_mean(tmp_path):
    from safetensors.torch import save_file

    network = resnet.resnet("resnet18")
    state = resnet.random_state(network, 7)
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "b.safetensors")
    random = load_encoder("resnet18", weights="random:7", backend="eager")
    files = [
        load_encoder("resnet18", weights=tmp_path / name, backend="eager")
        for name in ("a.pth", "b.safetensors")
    ]
    assert random.name == RANDOM
    assert {each.fingerprint for each in files} == {random.fingerprint}
    assert files[0].name == f"resnet18@{tmp_path / 'a.pth'}"
    assert load_encoder(files[0].name, backend="eager") is files[0]
    assert load_encoder("resnet18@random:8", backend="eager").fingerprint != random.fingerprint
    assert json.loads(json.dumps(random.identity)) == random.identity
    assert random.describe()["fingerprint"] == random.fingerprint
    assert len(random.fingerprint) == 16


def test_weights_by_setting_and_an_exchanged_file(tmp_path, monkeypatch):
    network, file = resnet.resnet("resnet18"), tmp_path / "mine.pth"
    torch.save(resnet.random_state(network, 1), file)
    monkeypatch.setenv("IMGSEARCH_WEIGHTS", str(file))
    monkeypatch.setenv("IMGSEARCH_ENCODER", "resnet18")
    monkeypatch.setenv("IMGSEARCH_BACKEND", "eager")
    first = load_encoder()
    assert load_encoder() is first
    torch.save(resnet.random_state(network, 2), file)
    assert load_encoder().fingerprint != first.fingerprint
    with pytest.raises(WeightsError, match="missing"):
        load_encoder("resnet50")
    assert load_encoder(RANDOM).fingerprint != first.fingerprint


def test_mini_is_bundled():
    pytest.importorskip(
        "imgsearch.encoders.mini", reason="the bundled encoder is not in this checkout"
    )
    with pytest.raises(ConfigError, match="brings its own"):
        load_encoder("mini", weights="x.pth")
    encoder = load_encoder("mini")
    vectors = encoder.encode([noise(), noise(seed=1)])
    assert vectors.shape == (2, encoder.dim)
    assert encoder.name == "mini"
    assert load_encoder("mini", backend="eager").fingerprint == encoder.fingerprint


def test_timm_where_it_is_and_where_it_is_not():
    try:
        import timm  # noqa: F401
    except Exception:
        with pytest.raises(EncoderError, match=r"imgsearch\[timm\]"):
            load_encoder("timm:resnet18")
        return
    ours = load_encoder(RANDOM, backend="eager")
    theirs = load_encoder("timm:resnet18", weights="random:7", backend="eager")
    batch = np.stack([ours.preprocess(noise())])
    assert np.allclose(ours.features(batch), theirs.features(batch), atol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_vectors_that_mean_nothing_are_an_error(exported, tmp_path, monkeypatch, bf16):
    monkeypatch.setattr(backends, "cpu_has_bf16", lambda: bf16)
    network = copy.deepcopy(exported[1])
    with torch.no_grad():
        network.head.weight.fill_(float("inf"))
    program = torch.export.export(network, (torch.randn(3, 3, 16, 16),))
    torch.export.save(program, tmp_path / "bad.pt2")
    (tmp_path / "bad.json").write_text(json.dumps(CARD))
    encoder = load_encoder(tmp_path / "bad.pt2", backend="eager")
    with pytest.raises(EncoderError, match="zero or not finite"):
        encoder.encode([noise()])


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"name": "resnet51"}, EncoderError, "is unknown; there are resnet18"),
        ({"name": "../x"}, EncoderError, "is unknown"),
        ({"name": "none.pt2"}, WeightsError, "needs it beside it"),
        ({"weights": "none.pth"}, WeightsError, "no such file"),
        ({"device": "gpu"}, ConfigError, "device: 'gpu' is none of"),
        ({"device": "cuda:99"}, ConfigError, "cuda:99 is not there"),
        ({"precision": "int8"}, ConfigError, "precision"),
        ({"backend": "onnx"}, ConfigError, "backend"),
    ],
)
def test_what_cannot_be_loaded_says_why(options, error, why):
    with pytest.raises(error, match=why):
        load_encoder(**{"name": "resnet18", "device": "cpu", **options})


def test_another_dimension_than_set_is_refused(exported):
    with pytest.raises(EncoderError, match="VECTOR_DIMENSION is 2048"):
        load_encoder(
            exported[0] / "tiny.pt2", backend="eager", settings=load_settings(vector_dimension=2048)
        )


def test_no_weights_and_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(weights.locate, "__kwdefaults__", {
        **weights.locate.__kwdefaults__, "source": "http://127.0.0.1:9",
    })  # fmt: skip
    with pytest.raises(WeightsError, match=r"IMGSEARCH_WEIGHTS.*another machine.*'mini'"):
        load_encoder("resnet50")
