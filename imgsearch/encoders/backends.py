"""What runs a network: torch as it is, compiled torch, or OpenVINO; and how one is chosen.

Whichever runs, the vectors mean the same: only speed differs.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import importlib.util
import logging
import re
import shutil
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import nn

from imgsearch.encoders.base import (
    Choice,
    Encoder,
    Model,
    Plan,
    Preprocessing,
    Runner,
    fingerprint_of,
)
from imgsearch.errors import ConfigError, EncoderError

AGREEMENT = 0.9995  # cosine with fp32 that a precision or a conversion must keep
# Pictures from which on another backend has earned back what it takes to start:
_LOADING = 64  # the converted model is in the cache: half a second
_CONVERTING = 500  # it must be made: some 8 s for a ResNet-50
_COMPILING = 5_000  # torch.compile: half a minute
_CONVERSION = 1  # to be raised when openvino_model makes something else of the same encoder
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_first_use = threading.Lock()
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def cpu_has_bf16() -> bool:
    """Whether this processor has units for bfloat16 (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def openvino_installed() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def compiler_installed() -> bool:
    """Whether there is the C++ compiler that torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))


# ---------------------------------------------------------------- choosing


def build_encoder(model: Model, plan: Plan, home: Path) -> Encoder:
    """Make an encoder of a model, in the fastest way that keeps its vectors."""
    model.cache = openvino_cache(home, fingerprint_of(model.identity))
    run, backend = choose_runner(model, plan)

    failed = set()

    def faster(n: int) -> tuple[Runner, str] | None:
        wish = model.backend_for(n)
        if wish is None or wish in failed:
            return None
        run, got = choose_runner(model, plan._replace(backend=Choice(wish, auto=True)))
        if got == wish:
            return run, got
        failed.add(wish)
        log = logging.getLogger(__name__)
        log.warning("%s cannot run with %s and stays with %s", model.name, wish, backend)
        return None

    may_change = plan.backend.auto and plan.device == "cpu"
    return Encoder(model, run, plan.device, backend, faster if may_change else None)


def choose_runner(model: Model, plan: Plan) -> tuple[Runner, str]:
    """Make the first runner of the wished kind, or a plainer one, that keeps the vectors.

    Lower precision costs some networks more than others (a MobileNetV2 falls to a cosine of
    0.995 in bf16), and a conversion can go wrong: both are tried on a few pictures.
    """
    device, precision, backend, plain = plan
    ways = [(precision.value, backend.value)]
    if precision.auto:
        ways.append(("fp32", backend.value))
    if backend.auto:
        ways.append(("fp32" if precision.auto else precision.value, plain))
    batch = sample_pictures(model.preprocessing.size, model.batch or 3)
    expected, made, found = None, None, 0.0
    for numbers, kind in dict.fromkeys(ways):
        try:
            run = model.runner(device, numbers, kind)
        except EncoderError:
            if not backend.auto:
                raise
            continue
        made = run, kind
        if (numbers, kind) == ("fp32", plain):
            return made
        if expected is None:
            reference = model.plan("cpu", "fp32", "auto").plain
            expected = model.runner("cpu", "fp32", reference)(batch)
        try:
            found = agreement(run(batch), expected)
        except (RuntimeError, ValueError):  # a conversion that fails only when it runs
            found = 0.0
        if found >= AGREEMENT:
            return made
    if made is not None and not precision.auto and precision.value != "fp32":
        return made  # the user has asked for that precision
    raise EncoderError(
        model.name,
        f"gives other vectors on {device} with backend={backend.value!r} (cosine {found:.4f} "
        f"with fp32 on the CPU); use backend={plain!r}, device='cpu'",
    )


def sample_pictures(size: tuple[int, int], count: int) -> np.ndarray:
    """Noise whose power falls with frequency as in photographs: uint8 (count, *size, 3)."""
    rng = np.random.default_rng(0)
    down, across = np.meshgrid(*map(np.fft.fftfreq, size), indexing="ij")
    fall = 1 / np.maximum(np.hypot(down, across), 1 / max(size))
    noise = rng.standard_normal((count, *size, 3))
    waves = np.fft.fft2(noise, axes=(1, 2)) * fall[None, :, :, None]
    values = np.fft.ifft2(waves, axes=(1, 2)).real
    values /= values.std(axis=(1, 2, 3), keepdims=True) + 1e-9
    return np.clip(128 + 64 * values, 0, 255).astype(np.uint8)


def agreement(features: np.ndarray, expected: np.ndarray) -> float:
    """Smallest cosine between rows of two arrays; 0 where they cannot be compared."""
    if features.shape != expected.shape:
        return 0.0
    a, b = features.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.einsum("nd,nd->n", a, b) / lengths
    return float(np.nan_to_num(cosine, nan=0.0, posinf=0.0, neginf=0.0).min())


def choice(wish: str, default: str) -> Choice:
    """Return what was asked for, or the default for ``auto``."""
    return Choice(default, auto=True) if wish == "auto" else Choice(wish, auto=False)


# ---------------------------------------------------------------- torch


@dataclass
class TorchModel(Model):
    """A torch network that takes normalised float (n, 3, height, width), in eval mode."""

    network: nn.Module | None = None

    backends = ("eager", "compile", "openvino")

    @classmethod
    def plan(cls, device: str, precision: str, backend: str) -> Plan:
        """Choose for each ``auto``: a GPU, and the precision that the hardware has units for."""
        device = torch_device(device)
        if backend == "openvino":
            check_openvino(device)
        if backend == "compile" and device == "cpu" and not compiler_installed():
            raise ConfigError("backend", "compile needs a C++ compiler: install g++, or use eager")
        lower = "bf16" if device == "cpu" and cpu_has_bf16() else "fp32"
        if device.startswith("cuda") and torch.cuda.get_device_capability(device)[0] >= 7:
            lower = "fp16"  # as fast as bf16 there, and eight times as exact
        return Plan(device, choice(precision, lower), choice(backend, "eager"), "eager")

    def runner(self, device: str, precision: str, backend: str) -> Runner:
        """Make what runs the network."""
        if backend == "openvino":
            model = openvino_model(self.network, self.preprocessing, self.cache)
            return OpenVinoRunner(model, precision)
        return TorchRunner(self, device, precision, compiled=backend == "compile")

    def backend_for(self, n: int) -> str | None:
        """Return the backend that `n` pictures on a CPU are worth."""
        if openvino_installed():
            kept = self.cache is not None and self.cache.exists()
            return "openvino" if n >= (_LOADING if kept else _CONVERTING) else None
        return "compile" if n >= _COMPILING and compiler_installed() else None


def torch_device(wish: str) -> str:
    """Return the device to run on; ``auto`` prefers CUDA, then Apple's GPU."""
    number, count = int(wish.partition(":")[2] or 0), torch.cuda.device_count()
    mps = torch.backends.mps.is_available()
    if wish == "auto":
        return "cuda:0" if count else "mps" if mps else "cpu"
    if wish == "mps" and not mps:
        raise ConfigError("device", "mps needs a Mac, and a torch that was built for it")
    if wish.startswith("cuda"):
        if number >= count:
            raise ConfigError("device", f"{wish} does not exist: torch sees {count} devices")
        return f"cuda:{number}"
    return wish


class TorchRunner:
    """Runs a network with torch, channels last; one batch at a time, on all of its threads."""

    def __init__(self, model: TorchModel, device: str, precision: str, *, compiled: bool):
        network = model.network
        self.precision = precision
        self._device, self._type = torch.device(device), _TYPES[precision]
        if self._type != torch.float32 or self._device.type != "cpu":
            network = copy.deepcopy(network)  # the caller's stays as it is
        network = network.to(self._device, self._type, memory_format=torch.channels_last)
        self._network = torch.compile(network, dynamic=True) if compiled else network
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
            for values in (model.preprocessing.mean, model.preprocessing.std)
        )
        self._scale = std.mul(255).reciprocal().float().to(self._device)
        self._shift = (mean / std).float().to(self._device)
        self._lock = threading.Lock()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Compute the features of a batch."""
        with self._lock, torch.inference_mode():
            # (n, h, w, c) seen as (n, c, h, w) is already channels last
            x = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2).float()
            x = x.mul_(self._scale).sub_(self._shift)
            return self._network(x.to(self._type)).float().cpu().numpy()


# ---------------------------------------------------------------- OpenVINO


def check_openvino(device: str) -> None:
    """Raise a ConfigError that says why OpenVINO cannot run, if it cannot."""
    if device != "cpu":
        raise ConfigError("backend", f"openvino runs on the CPU, not on {device}")
    if not openvino_installed():
        raise ConfigError("backend", "openvino is not installed: pip install 'imgsearch[openvino]'")


class OpenVinoRunner:
    """Runs a model on the CPU with OpenVINO, in a precision that the processor supports.

    If the model takes batches of any size and there are several threads, a batch is halved. The
    halves run side by side, and those of the next batch follow as each of them ends: threads
    that decode pictures meanwhile hold up one half, and nothing waits for it.
    """

    def __init__(self, model: Any, precision: str):
        import openvino as ov

        size = model.input(0).get_partial_shape()[0]
        self.batch = 0 if size.is_dynamic else size.get_length()
        threads = torch.get_num_threads()
        streams = 2 if not self.batch and threads > 1 else 1
        compiled = ov.Core().compile_model(
            model,
            "CPU",
            {
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
            },
        )
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = {value: key for key, value in _HINTS.items()}[hint]
        self._streams, self._idle = streams, SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())
        self._threads = ThreadPoolExecutor(streams, "openvino")  # first come, first served
        # OpenVINO's Python bindings deadlock if two threads are the first to use them at once
        # (a static initialiser that needs the GIL), 5 of 40 times in a test of that.
        with _first_use:
            sides = [side.get_length() for side in list(model.input(0).get_partial_shape())[1:]]
            self._infer(np.zeros((self.batch or 1, *sides), np.uint8))

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Compute the features of a batch."""
        parts = np.array_split(batch, min(self._streams, len(batch)))
        return np.concatenate(list(self._threads.map(self._infer, parts)))

    def _infer(self, part: np.ndarray) -> np.ndarray:
        request = self._idle.get()
        try:
            request.infer([part], share_inputs=True)
            return request.get_output_tensor(0).data.astype(np.float32)  # a copy
        finally:
            self._idle.put(request)


def with_normalisation(model: Any, preprocessing: Preprocessing) -> Any:
    """Let an OpenVINO model of float (n, 3, h, w) take uint8 (n, h, w, 3) and normalise it."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(
        [255 * value for value in preprocessing.mean]
    ).scale([255 * value for value in preprocessing.std])
    return steps.build()


def openvino_model(network: nn.Module, preprocessing: Preprocessing, cache: Path) -> Any:
    """OpenVINO's model of a network, with normalisation as part of its graph.

    Converting takes a ResNet-50 some 8 s, so the result is kept in `cache`. A damaged one is
    made anew.
    """
    import openvino as ov

    with contextlib.suppress(OSError, KeyError, RuntimeError, zipfile.BadZipFile):
        with zipfile.ZipFile(cache) as archive:  # checks its contents by their CRC-32
            graph, numbers = archive.read("model.xml"), archive.read("model.bin")
        return ov.Core().read_model(graph, ov.Tensor(np.frombuffer(numbers, np.uint8)))
    shape = (3, *preprocessing.size)
    model = _convert(network, torch.zeros(2, *shape))
    model.reshape([-1, *shape])
    model = with_normalisation(model, preprocessing)
    with contextlib.suppress(OSError):  # a full or read-only disk costs time, nothing else
        _keep(model, cache)
    return model


def openvino_cache(home: Path, fingerprint: str) -> Path:
    """File of a home that keeps an encoder's converted model, another for each OpenVINO."""
    version = importlib.metadata.version("openvino") if openvino_installed() else "none"
    return home / "openvino" / f"{fingerprint}-{version}-{_CONVERSION}.zip"


def _keep(model: Any, cache: Path) -> None:
    import openvino as ov

    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
        made = Path(folder)
        ov.save_model(model, made / "model.xml", compress_to_fp16=False)
        with zipfile.ZipFile(made / "model.zip", "w") as archive:
            for name in ("model.xml", "model.bin"):
                archive.write(made / name, name)
        (made / "model.zip").replace(cache)


def _convert(network: nn.Module, example: torch.Tensor) -> Any:
    """Make an OpenVINO model of a network.

    By the frontend itself and not by ``convert_model``, which reports each use to Google
    Analytics unless the user's home has a file that says no.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        frontend = FrontEndManager().load_by_framework("pytorch")
        with torch.no_grad():
            decoder = TorchScriptPythonDecoder(network, example_input=(example,))
        return frontend.convert(frontend.load(decoder))
    except Exception as error:
        raise EncoderError(
            type(network).__name__, f"OpenVINO cannot run it ({short(error)}); use backend='eager'"
        ) from None


def short(error: Exception) -> str:
    """Return an error's text on one line of at most 160 characters."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return (text or type(error).__name__)[:160]
