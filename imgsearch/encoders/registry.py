"""The encoders that a name can mean: one entry for each name, or for each form of name."""

from __future__ import annotations

import re
import threading
import weakref
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imgsearch.config import Settings, load_settings
from imgsearch.encoders.weights import random_seed
from imgsearch.errors import ConfigError, EncoderError
from imgsearch.io import absolute

if TYPE_CHECKING:
    from imgsearch.encoders.base import Encoder, Model, Plan

PRECISIONS = ("fp32", "bf16", "fp16")


class Entry(NamedTuple):
    """A registered encoder.

    Attributes
    ----------
    name : str
        What a user types: ``resnet50``, or a form such as ``timm:NAME``.
    pattern : str
        Regular expression that the whole name must match.
    model : str
        Where its class is, ``"module:class"``; imported when an encoder is loaded. The class
        is a subclass of :class:`imgsearch.encoders.base.Model`.
    licence : str
        Of the weights; or where it is to be found.
    dim : int or None
        Length of the vectors; None if that depends on the model.
    input_size : int or None
        Side of the network's input in pixels; None if that depends on the model.
    needs : str
        What must be there for it to load.
    is_path : bool
        Whether the name is the path of a file.
    weights_setting : bool
        Whether ``IMGSEARCH_WEIGHTS`` names its weights.
    """

    name: str
    pattern: str
    model: str
    licence: str
    dim: int | None
    input_size: int | None
    needs: str
    is_path: bool = False
    weights_setting: bool = False


def _resnet(depth: int, dim: int, size: str) -> Entry:
    return Entry(
        f"resnet{depth}", f"resnet{depth}", "imgsearch.encoders.resnet:ResNetModel",
        "BSD-3-Clause (torchvision)", dim, 224, f"a download of {size}, once",
        weights_setting=True,
    )  # fmt: skip


_entries: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("mini", "mini", "imgsearch.encoders.mini:MiniModel",
              "Apache-2.0", 256, 160, "nothing: it is part of the package"),
        _resnet(18, 512, "45 MB"),
        _resnet(34, 512, "83 MB"),
        _resnet(50, 2048, "98 MB"),
        _resnet(101, 2048, "171 MB"),
        _resnet(152, 2048, "230 MB"),
        Entry("timm:NAME", r"timm:[\w.\-]+", "imgsearch.encoders.timm:TimmModel",
              "the model's own", None, None, "pip install 'imgsearch[timm]', and a download, once"),
        # .pt2 is matched to say how such a file is converted.
        Entry("FILE.onnx", r"(?s).+\.(onnx|pt2)", "imgsearch.encoders.onnx:OnnxModel",
              "the model's own", None, None, "pip install 'imgsearch[openvino]'", is_path=True),
    )
}  # fmt: skip


def entries() -> tuple[Entry, ...]:
    """Return every registered encoder, in the order of registration."""
    return tuple(_entries.values())


def register(entry: Entry) -> None:
    """Add an encoder, or replace the one of the same name.

    Parameters
    ----------
    entry : Entry
        Its pattern is tried after those of the entries before it.
    """
    _entries[entry.name] = entry


_loaded: weakref.WeakValueDictionary[tuple[Any, ...], Encoder] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load_encoder(
    name: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    settings: Settings | None = None,
) -> Encoder:
    """Load an encoder, or return the one that is in use already.

    Parameters
    ----------
    name : str or Path, optional
        One of :func:`entries`: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``,
        ``resnet152``; ``mini``, which is part of the package; ``timm:NAME``; or the path of
        an ONNX file with a JSON card beside it. ``NAME@WEIGHTS`` gives weights with it.
        Without a name, the one that ``IMGSEARCH_ENCODER`` gives.
    weights : str or Path, optional
        A ``.pth`` or ``.safetensors`` file, or ``random:SEED`` for tests. Without it, what
        ``IMGSEARCH_WEIGHTS`` gives for a ResNet, else the published weights.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    precision : {"auto", "fp32", "bf16", "fp16"}
        ``auto`` takes what the hardware has units for, if the vectors stay the same: the
        cosine with fp32 must be at least 0.9995 on a few generated pictures.
    backend : {"auto", "eager", "compile", "openvino", "onnxruntime"}
        ``auto`` uses ``eager`` for torch networks, and :meth:`Encoder.optimized_for` another
        one for a long job on a CPU. ONNX files run on ``openvino``, or with CUDA on
        ``onnxruntime``; for them an ``IMGSEARCH_BACKEND`` of torch has no meaning.
    settings : Settings, optional
        Instead of the environment's. Parameters that are not ``auto`` win over it.

    Returns
    -------
    Encoder

    Raises
    ------
    EncoderError
        There is no such encoder, or it cannot run as asked for.
    WeightsError
        Its weights are missing, damaged or of another network.
    ConfigError
        A parameter has a value that cannot be used.
    """
    settings = settings or load_settings()
    entry, name, weights = _resolve(str(name or settings.imgsearch_encoder), weights, settings)
    device = settings.imgsearch_device if device == "auto" else device
    precision = settings.imgsearch_precision if precision == "auto" else precision
    home = settings.imgsearch_home
    key = (
        name, weights, device, precision, backend, settings.imgsearch_backend, home,
        _stamp(weights), _stamp(name),
    )  # fmt: skip
    with _loading:
        encoder = _loaded.get(key)
        if encoder is None:
            model, plan = _plan(entry, device, precision, backend, settings.imgsearch_backend)
            from imgsearch.encoders.backends import build_encoder

            encoder = build_encoder(model.load(name, weights, home), plan, home)
            _loaded[key] = encoder
    if settings.vector_dimension not in (None, encoder.dim):
        raise EncoderError(
            encoder.name,
            f"has {encoder.dim} dimensions and VECTOR_DIMENSION is {settings.vector_dimension}; "
            "change or unset it",
        )
    return encoder


def _resolve(
    name: str, weights: str | Path | None, settings: Settings
) -> tuple[Entry, str, str | None]:
    """Find the entry of a name, and separate name and weights."""
    plain, _, own = name.partition("@")
    for entry in _entries.values():
        if entry.is_path and re.fullmatch(entry.pattern, name):
            return entry, str(absolute(name)), None if weights is None else str(weights)
        if not entry.is_path and re.fullmatch(entry.pattern, plain):
            weights = weights if weights is not None else own or None
            if weights is None and entry.weights_setting:
                weights = settings.imgsearch_weights
            if weights is not None and random_seed(weights) is None:
                weights = absolute(weights)
            return entry, plain, None if weights is None else str(weights)
    raise EncoderError(name, f"is unknown; known are {', '.join(_entries)}")


def _plan(
    entry: Entry, device: str, precision: str, backend: str, preferred: str
) -> tuple[type[Model], Plan]:
    """Import the class of an entry and check every wish, before weights are downloaded."""
    module, _, family = entry.model.partition(":")
    model: type[Model] = getattr(import_module(module), family)
    if backend == "auto" and preferred in model.backends:
        backend = preferred
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError("device", f"{device!r} is none of auto, cpu, cuda, cuda:N, mps")
    if precision not in ("auto", *PRECISIONS):
        raise ConfigError("precision", f"{precision!r} is none of auto, {', '.join(PRECISIONS)}")
    if backend not in ("auto", *model.backends):
        names = ", ".join(model.backends)
        raise ConfigError("backend", f"{backend!r} is none of auto, {names}: {entry.name}")
    return model, model.plan(device, precision, backend)


def _stamp(file: str | None) -> tuple[int, int] | None:
    """Time and size of a file, so that an exchanged one is loaded anew."""
    try:
        found = Path(file or "").stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size
