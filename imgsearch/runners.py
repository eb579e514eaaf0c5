"""What runs a network: torch as it is, torch compiled, or OpenVINO.

A runner takes uint8 pictures and gives float32 features. Whichever runs, the vectors
mean the same; only speed differs.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from imgsearch.errors import EncoderError

Runner = Callable[[np.ndarray], np.ndarray]
"""uint8 (n, crop, crop, 3) to float32 (n, dim)."""

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
    """Smallest cosine between rows of two arrays (n, dim); 0 where they cannot be compared."""
    if features.shape != expected.shape:
        return 0.0
    a, b = features.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.einsum("nd,nd->n", a, b) / lengths
    return float(np.nan_to_num(cosine, nan=0.0, posinf=0.0, neginf=0.0).min())


class TorchRunner:
    """Runs a network with torch, channels last.

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

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Features of a batch: uint8 (n, crop, crop, 3) to float32 (n, dim)."""
        with torch.inference_mode():
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
    """Runs a network with OpenVINO on the CPU; normalisation is part of its graph.

    Parameters
    ----------
    network : torch.nn.Module
        Takes normalised float (n, 3, crop, crop), gives (n, dim).
    mean, std : tuple of float
        Of the three channels, for pictures in [0, 1].
    crop : int
        Side of the pictures in pixels.
    precision : {"fp32", "bf16", "fp16"}
        A wish: `precision` says what the processor made of it.
    batch : int
        0 for a network that takes any batch, else the only size it takes.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        crop: int,
        precision: str,
        batch: int = 0,
    ):
        import openvino as ov
        from openvino.preprocess import PrePostProcessor

        model = _converted(network, torch.zeros(batch or 2, 3, crop, crop))
        model.reshape([batch or -1, 3, crop, crop])
        steps = PrePostProcessor(model)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        steps.input().preprocess().convert_element_type(ov.Type.f32).mean(
            [255 * value for value in mean]
        ).scale([255 * value for value in std])
        wish = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]
        self._model = ov.Core().compile_model(
            steps.build(),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",  # one request at a time, on all threads
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "INFERENCE_PRECISION_HINT": wish,
            },
        )
        runs = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}[runs]
        self._request = self._model.create_infer_request()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Features of a batch: uint8 (n, crop, crop, 3) to float32 (n, dim)."""
        results = self._request.infer([batch], share_inputs=True, share_outputs=True)
        return np.array(results[0], dtype=np.float32)


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
