"""What runs a network: torch as it is, torch compiled, or OpenVINO.

A runner takes uint8 pictures and gives float32 features. Whichever runs, the vectors
mean the same; only speed differs.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import importlib.util
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import nn

from imgsearch.errors import EncoderError

Runner = Callable[[np.ndarray], np.ndarray]
"""uint8 (n, crop, crop, 3) to float32 (n, dim), from any thread."""

_CONVERSION = 1  # to be raised when openvino_model makes something else of the same encoder
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cpu_has_bf16() -> bool:
    """Whether this processor has units for bfloat16 (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def openvino_is_there() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def compiler_is_there() -> bool:
    """Whether there is the C++ compiler that torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))


def pictures(crop: int, count: int) -> np.ndarray:
    """Pictures to try a network on: noise whose power falls with frequency, as in photographs.

    Parameters
    ----------
    crop : int
        Side in pixels.
    count : int

    Returns
    -------
    numpy.ndarray
        uint8 (count, crop, crop, 3), always the same.
    """
    rng = np.random.default_rng(0)
    down, across = np.meshgrid(np.fft.fftfreq(crop), np.fft.fftfreq(crop), indexing="ij")
    fall = 1 / np.maximum(np.hypot(down, across), 1 / crop)
    noise = rng.standard_normal((count, crop, crop, 3))
    waves = np.fft.fft2(noise, axes=(1, 2)) * fall[None, :, :, None]
    values = np.fft.ifft2(waves, axes=(1, 2)).real
    values /= values.std(axis=(1, 2, 3), keepdims=True) + 1e-9
    return np.clip(128 + 64 * values, 0, 255).astype(np.uint8)


def agreement(features: np.ndarray, expected: np.ndarray) -> float:
    """Compare what two runners make of the same pictures.

    Parameters
    ----------
    features, expected : numpy.ndarray
        float, shape ``(n, dim)``.

    Returns
    -------
    float
        Smallest cosine between rows; 0 where they cannot be compared.
    """
    if features.shape != expected.shape:
        return 0.0
    a, b = features.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.einsum("nd,nd->n", a, b) / lengths
    return float(np.nan_to_num(cosine, nan=0.0, posinf=0.0, neginf=0.0).min())


class TorchRunner:
    """Runs a network with torch, channels last; one batch at a time, on all of its threads.

    Parameters
    ----------
    network : torch.nn.Module
        Takes normalised float (n, 3, crop, crop), gives (n, dim).
    mean, std : tuple of float
        Of the three channels, for pictures in [0, 1].
    device : str
    precision : {"fp32", "bf16", "fp16"}
    cast : bool
        Whether the network's weights may be cast; if not, torch's autocast is used.
    compiled : bool
        Whether torch.compile is to compile it, at the first batch.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        device: str,
        precision: str,
        cast: bool,
        compiled: bool,
    ):
        self.precision = precision
        self._device, self._type = torch.device(device), _TYPES[precision]
        self._autocast = precision != "fp32" and not cast
        kind = self._type if cast else None
        if kind not in (None, torch.float32) or self._device.type != "cpu":
            network = copy.deepcopy(network)  # the caller's stays as it is
        network = network.to(self._device, kind, memory_format=torch.channels_last)
        self._network = torch.compile(network, dynamic=True) if compiled else network
        scale = torch.tensor(std, dtype=torch.float64).mul(255).reciprocal()
        shift = torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self._scale = scale.float().view(1, 3, 1, 1).to(self._device)
        self._shift = shift.float().view(1, 3, 1, 1).to(self._device)
        self._lock = threading.Lock()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Compute the features of a batch.

        Parameters
        ----------
        batch : numpy.ndarray
            uint8, shape ``(n, crop, crop, 3)``.

        Returns
        -------
        numpy.ndarray
            float32, shape ``(n, dim)``.
        """
        with self._lock, torch.inference_mode():
            # (n, h, w, c) seen as (n, c, h, w) is already channels last
            x = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2).float()
            x = x.mul_(self._scale).sub_(self._shift)
            if self._autocast:
                with torch.autocast(self._device.type, self._type):
                    features = self._network(x)
            else:
                features = self._network(x.to(self._type))
            return features.float().cpu().numpy()


class OpenVinoRunner:
    """Runs a model on the CPU with OpenVINO.

    Where there are several threads, the batch is halved and the halves run side by side, and
    those of the next batch follow as each of them ends: threads that decode pictures
    meanwhile then hold up one half, and nothing waits for it.

    Parameters
    ----------
    model : openvino.Model
        From :func:`openvino_model`.
    precision : {"fp32", "bf16", "fp16"}
        A wish: `precision` says what the processor made of it.
    split : bool
        Whether the model takes batches of any size.
    """

    def __init__(self, model: Any, *, precision: str, split: bool):
        import openvino as ov

        threads = torch.get_num_threads()
        streams = 2 if split and threads > 1 else 1
        wish = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]
        compiled = ov.Core().compile_model(
            model,
            "CPU",
            {
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": wish,
            },
        )
        runs = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}[runs]
        self._streams, self._idle = streams, SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())
        self._threads = ThreadPoolExecutor(streams, "openvino")  # first come, first served

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Compute the features of a batch.

        Parameters
        ----------
        batch : numpy.ndarray
            uint8, shape ``(n, crop, crop, 3)``.

        Returns
        -------
        numpy.ndarray
            float32, shape ``(n, dim)``.
        """
        parts = np.array_split(batch, min(self._streams, len(batch)))
        return np.concatenate(list(self._threads.map(self._infer, parts)))

    def _infer(self, part: np.ndarray) -> np.ndarray:
        request = self._idle.get()
        try:
            request.infer([part], share_inputs=True)
            return request.get_output_tensor(0).data.astype(np.float32)  # a copy
        finally:
            self._idle.put(request)


def openvino_model(
    network: nn.Module,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    crop: int,
    batch: int = 0,
    cache: Path,
) -> Any:
    """OpenVINO's model of a network, with normalisation as part of its graph.

    Converting takes a ResNet-50 some 8 s, so the result is kept.

    Parameters
    ----------
    network : torch.nn.Module
        Takes normalised float (n, 3, crop, crop), gives (n, dim).
    mean, std : tuple of float
        Of the three channels, for pictures in [0, 1].
    crop : int
        Side of the pictures in pixels.
    batch : int
        0 for a network that takes any batch, else the only size it takes.
    cache : Path
        File to keep it in. A damaged one is made anew; where none can be written, none is kept.

    Returns
    -------
    openvino.Model
        uint8 (n, crop, crop, 3) to float (n, dim).

    Raises
    ------
    EncoderError
        OpenVINO cannot run this network.
    """
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    kept = _kept(cache)
    if kept is not None:
        return kept
    model = _converted(network, torch.zeros(batch or 2, 3, crop, crop))
    model.reshape([batch or -1, 3, crop, crop])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(
        [255 * value for value in mean]
    ).scale([255 * value for value in std])
    model = steps.build()
    with contextlib.suppress(OSError):  # a full or read-only disk costs time, nothing else
        _keep(model, cache)
    return model


def openvino_cache(home: Path, fingerprint: str) -> Path:
    """File of a home in which the converted model of an encoder is kept.

    Parameters
    ----------
    home : Path
        ``IMGSEARCH_HOME``.
    fingerprint : str
        The encoder's.

    Returns
    -------
    pathlib.Path
        Another one for each version of OpenVINO.
    """
    version = importlib.metadata.version("openvino") if openvino_is_there() else "none"
    return home / "openvino" / f"{fingerprint}-{version}-{_CONVERSION}.zip"


def _kept(cache: Path) -> Any | None:
    import openvino as ov

    try:
        with zipfile.ZipFile(cache) as archive:  # checks its contents by their CRC-32
            graph, numbers = archive.read("model.xml"), archive.read("model.bin")
        return ov.Core().read_model(graph, ov.Tensor(np.frombuffer(numbers, np.uint8)))
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile):
        return None


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


def _converted(network: nn.Module, example: torch.Tensor) -> Any:
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
        words = " ".join(str(error).split())[:160]
        raise EncoderError(
            type(network).__name__, f"OpenVINO cannot run it ({words}); use backend='eager'"
        ) from None
