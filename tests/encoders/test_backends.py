"""An encoder gives the same vectors whatever runs it, and the faster way is chosen with care."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from imgsearch import images
from imgsearch.config import load_settings
from imgsearch.encoders import Entry, Preprocessing, backends, load_encoder, register, registry
from imgsearch.errors import EncoderError
from tests.conftest import missing
from tests.encoders.test_base import RANDOM, noise


def alike(name, **options):
    """Load an encoder whose vectors must be those of torch in fp32, for batches of any size."""
    plain = load_encoder(name, backend="eager", precision="fp32", device="cpu")
    other = load_encoder(name, device="cpu", **options)
    assert other.fingerprint == plain.fingerprint
    for n in (1, 3, 2):
        batch = np.stack([plain.preprocess(noise(seed=seed)) for seed in range(n)])
        cosine = (plain.encode_batch(batch) * other.encode_batch(batch)).sum(axis=1)
        assert cosine.min() >= 0.999
    return other


def need_openvino():
    if not backends.openvino_installed():
        missing("openvino", "pip install 'imgsearch[openvino]'")


def need_compiler():
    if not backends.compiler_installed():
        missing("a C++ compiler", "apt-get install g++")


def automatic(home):
    return load_settings(imgsearch_home=home, imgsearch_backend="auto")


def test_openvino_gives_the_same_vectors():
    need_openvino()
    other = alike(RANDOM, backend="openvino")
    assert other.backend == "openvino"
    # What OpenVINO takes for bfloat16 units is not quite what torch takes for them.
    assert other.precision in ("bf16", "fp32")


@pytest.mark.soak
def test_compiled_torch_gives_the_same_vectors():
    need_compiler()
    alike(RANDOM, backend="compile")


class Frozen(nn.Module):
    """A network whose conversion by tracing holds for the traced size of batch only."""

    def forward(self, x):
        return x.reshape(int(x.shape[0]), -1)[:, ::48]


class FrozenModel(backends.TorchModel):
    @classmethod
    def load(cls, name, weights, home):
        return cls(name, 16, Preprocessing(20, 16), "0" * 64, network=Frozen())


@pytest.fixture
def frozen(monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    model = f"{__name__}:FrozenModel"
    register(Entry("frozen", "frozen", model, "MIT", 16, 16, "", None, "A test."))
    return "frozen"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_conversion_that_goes_wrong_is_noticed(frozen, tmp_path, caplog):
    need_openvino()
    with pytest.raises(EncoderError, match="use backend='eager'"):
        load_encoder(frozen, backend="openvino", device="cpu", settings=automatic(tmp_path / "1"))
    encoder = load_encoder(frozen, device="cpu", settings=automatic(tmp_path / "2"))
    with caplog.at_level("WARNING"):
        assert encoder.optimized_for(10**6) is encoder
        assert encoder.optimized_for(10**6) is encoder
    assert caplog.text.count("cannot run with openvino and stays with eager") == 1


@pytest.mark.soak
def test_two_threads_may_be_the_first_to_use_openvino(onnx_file):
    """OpenVINO's bindings deadlock if two threads are the first to use them at once."""
    need_openvino()
    code = (
        "import sys, numpy as np; sys.setswitchinterval(1e-6)\n"
        "from imgsearch.encoders import load_encoder\n"
        "encoder = load_encoder(sys.argv[1], backend='openvino')\n"
        "print(encoder.encode_batch(np.ones((8, 16, 16, 3), np.uint8)).shape)"
    )
    for _ in range(30):
        subprocess.run([sys.executable, "-c", code, str(onnx_file)], check=True, timeout=120)


def test_a_long_job_gets_openvino_and_a_short_one_does_not(tmp_path):
    need_openvino()
    given = {"device": "cpu", "precision": "fp32", "settings": automatic(tmp_path)}
    encoder = load_encoder("mini", **given)
    batch = np.stack([encoder.preprocess(noise(seed=seed)) for seed in range(5)])
    before, described = encoder.encode_batch(batch), encoder.describe()
    assert encoder.optimized_for(100) is encoder  # a conversion would take longer than they do
    fast = encoder.optimized_for(10_000)
    assert fast.describe() == described | {"backend": "openvino"}
    assert (fast.encode_batch(batch) * before).sum(axis=1).min() >= 0.9999
    # The encoder itself is shared, and stays what it was.
    assert encoder.describe() == described
    assert (encoder.encode_batch(batch) == before).all()
    assert load_encoder("mini", **given) is encoder
    assert fast.optimized_for(10**6) is fast
    assert encoder.optimized_for(1) is fast  # in use already: it costs nothing


def test_a_converted_model_is_kept_and_a_damaged_one_is_replaced(tmp_path):
    need_openvino()
    given = {"device": "cpu", "precision": "fp32", "settings": automatic(tmp_path)}
    batch = np.stack([load_encoder("mini", **given).preprocess(noise())])
    vectors = load_encoder("mini", **given).optimized_for(10_000).encode_batch(batch)
    (kept,) = (tmp_path / "openvino").iterdir()
    written = kept.stat().st_mtime_ns
    again = load_encoder("mini", **given).optimized_for(100)  # worth it now for a shorter job
    assert again.backend == "openvino"
    assert kept.stat().st_mtime_ns == written
    assert (again.encode_batch(batch) == vectors).all()
    del again
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    mended = load_encoder("mini", **given).optimized_for(100)
    assert (mended.encode_batch(batch) * vectors).sum(axis=1).min() >= 0.9999
    assert kept.read_bytes() != bytes(data)


def test_a_backend_that_was_asked_for_stays(tmp_path):
    encoder = load_encoder(RANDOM, backend="eager", settings=automatic(tmp_path))
    assert encoder.optimized_for(10**6) is encoder


def test_lower_precision_where_the_hardware_has_it(monkeypatch):
    monkeypatch.setattr(backends, "cpu_has_bf16", lambda: True)
    assert alike(RANDOM, backend="eager").precision == "bf16"


def test_lower_precision_only_where_it_keeps_the_vectors(monkeypatch):
    monkeypatch.setattr(backends, "cpu_has_bf16", lambda: True)
    # depthwise convolutions lose too much: a cosine of 0.995 on photographs
    assert alike("mini", backend="eager").precision == "fp32"


@pytest.mark.soak
@pytest.mark.parametrize("backend", ["openvino", "compile"])
@pytest.mark.parametrize("name", ["resnet50@random:0", "mini"])
def test_every_backend_sees_the_same_in_every_photograph(shared, name, backend):
    need_openvino() if backend == "openvino" else need_compiler()
    photos = [each.path for each in images.find(shared / "voc" / "VOC2012" / "JPEGImages")]
    plain = load_encoder(name, backend="eager", precision="fp32", device="cpu")
    prepared = np.stack([plain.preprocess(images.decode(path)) for path in photos])
    vectors = load_encoder(name, backend=backend, device="cpu").encode_batch(prepared)
    assert len(vectors) == 400
    assert (vectors * plain.encode_batch(prepared)).sum(axis=1).min() >= 0.999


@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_threads_may_encode_at_once(onnx_file, backend):
    if backend == "openvino":
        need_openvino()
    name = {"eager": RANDOM, "openvino": onnx_file}[backend]
    encoder = load_encoder(name, backend=backend, device="cpu")
    batch = np.stack([encoder.preprocess(noise(seed=seed)) for seed in range(4)])
    expected, got = encoder.encode_batch(batch), [[]] * 6

    def work(index):
        got[index] = [encoder.encode_batch(batch[index % 4 :]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, every in enumerate(got):
        assert len(every) == 5
        for vectors in every:
            assert (vectors * expected[index % 4 :]).sum(axis=1).min() >= 0.9999


def test_importing_encoders_changes_no_setting_of_torch():
    """Review 1: no process-wide state."""
    before = torch.get_num_threads(), torch.is_grad_enabled(), warnings.filters[:]
    load_encoder(RANDOM, backend="eager").encode([noise()])
    assert (torch.get_num_threads(), torch.is_grad_enabled(), warnings.filters[:]) == before
