"""What runs a network: torch as it is, compiled torch, or OpenVINO; and how one is chosen.

Whichever runs, the vectors mean the same: only speed differs.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import logging
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
    Encoder,
    Model,
    Plan,
    Preprocessing,
    Runner,
    fingerprint_of,
    sample_pictures,
    short,
)
from imgsearch.errors import ConfigError, EncoderError
from imgsearch.io import atomic

AGREEMENT = 0.9995  # cosine with fp32 that a precision or a conversion must keep
ROUGH = 0.95  # the same for a lower precision that was asked for
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
    failed = set()

    def faster(n: int) -> Encoder | None:
        wish = model.backend_for(n)
        if not plan.may_change or wish is None or wish in failed:
            return None
        try:
            run = choose_runner(model, plan._replace(backend=wish))
            return Encoder(model, run, plan.device, wish)
        except EncoderError:
            failed.add(wish)
            log = logging.getLogger(__name__)
            log.warning("%s cannot run with %s and stays with %s", model.name, wish, plan.backend)
            return None

    return Encoder(model, choose_runner(model, plan), plan.device, plan.backend, faster)


def choose_runner(model: Model, plan: Plan) -> Runner:
    """Make a runner of the first precision that keeps the vectors of a few pictures."""
    # Lower precision costs some networks more than others (a MobileNetV2 falls to a cosine of
    # 0.995 in bf16), and a conversion can go wrong.
    plain = model.plan("cpu", "fp32", "auto").backend
    expected, found = None, 0.0
    for precision in plan.precisions:
        run = model.runner(plan.device, precision, plan.backend)
        if (precision, plan.backend) == ("fp32", plain):
            return run
        if expected is None:
            batch = sample_pictures(model.preprocessing.size, model.batch or 3)
            expected = model.runner("cpu", "fp32", plain)(batch)
        with contextlib.suppress(RuntimeError, ValueError):  # may fail only when it runs
            found = agreement(run(batch), expected)
        asked_for = precision != "fp32" and len(plan.precisions) == 1
        if found >= (ROUGH if asked_for else AGREEMENT):
            return run
    raise EncoderError(
        model.name,
        f"gives different vectors on {plan.device} with backend={plan.backend!r} (cosine "
        f"{found:.4f} with fp32 on the CPU); use backend={plain!r}, device='cpu'",
    )


def agreement(features: np.ndarray, expected: np.ndarray) -> float:
    """Smallest cosine between rows of two arrays; 0 where they cannot be compared."""
    if features.shape != expected.shape:
        return 0.0
    a, b = features.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.einsum("nd,nd->n", a, b) / lengths
    return float(np.nan_to_num(cosine, nan=0.0, posinf=0.0, neginf=0.0).min())


# ---------------------------------------------------------------- torch


def import_extra(name: str, module: str, extra: str) -> Any:
    """Import the library that a model comes from, or raise an EncoderError about the model."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchvision breaks in many ways beside a torch not its own
        raise EncoderError(
            name,
            f"{module} cannot be imported ({short(error)}): pip install 'imgsearch[{extra}]'",
        ) from None


@dataclass
class TorchModel(Model):
    """A torch network that takes normalised float (n, 3, height, width), in eval mode."""

    network: nn.Module | None = None

    backends = ("eager", "compile", "openvino")

    @classmethod
    def of_network(
        cls, name: str, network: nn.Module, preprocessing: Preprocessing, **about: Any
    ) -> TorchModel:
        """Make the model of a network whose weights are loaded, and measure its output."""
        # What a library says of a network may be of another layer (MobileNetV3, HGNet in timm).
        with torch.inference_mode():
            output = network(torch.zeros(1, 3, *preprocessing.size))
        if not isinstance(output, torch.Tensor) or output.ndim != 2:
            raise EncoderError(name, "does not give one vector for each picture; choose another")
        return cls(name, output.shape[1], preprocessing, network=network, **about)

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
        return Plan.make(device, precision, lower, backend, "eager")

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
    """Runs a model on the CPU with OpenVINO, in a precision that the processor supports."""

    # If the model takes batches of any size and there are several threads, a batch is halved. The
    # halves run side by side, and those of the next batch follow as each of them ends: threads
    # that decode pictures meanwhile hold up one half, and nothing waits for it.

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
    """Read OpenVINO's model of a network from `cache`, or convert the network and keep it there."""
    import openvino as ov

    # A file that is damaged is made anew.
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

    with tempfile.TemporaryDirectory() as folder, atomic(cache) as file:
        ov.save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("model.xml", "model.bin"):
                archive.write(Path(folder) / name, name)


def _convert(network: nn.Module, example: torch.Tensor) -> Any:
    """Make an OpenVINO model of a network."""
    # By the frontend itself and not by convert_model, which reports each use to Google Analytics
    # unless the user's home has a file that says no.
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
