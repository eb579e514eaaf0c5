"""Load the encoder that a name means, or make one of a function."""

from __future__ import annotations

import re
import threading
import warnings
import weakref
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from imgsearch.config import Settings, load_settings
from imgsearch.encoders.base import NOT_STATED, Encoder, Model
from imgsearch.encoders.registry import Entry, entry_of, resolve
from imgsearch.encoders.weights import random_seed
from imgsearch.errors import ConfigError, EncoderError, ImgSearchError
from imgsearch.io import absolute

PRECISIONS = ("fp32", "bf16", "fp16")

_loaded: weakref.WeakValueDictionary[tuple[Any, ...], Encoder] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load_encoder(
    name: str | Path | Callable | None = None,
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
    name : str, Path or callable, optional
        A name that :func:`list` shows, such as ``mini``, ``resnet50``, ``timm:NAME`` or
        ``clip:NAME``; or the path of an ONNX file with a JSON card beside it.
        ``NAME@WEIGHTS`` gives weights with it. Or a function as :func:`from_callable` takes
        it, which is registered under its own name unless it is registered already.
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
        ``onnxruntime``. An ``IMGSEARCH_BACKEND`` that cannot run an encoder is ignored
        for it. A function chooses device, precision and backend itself.
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
    if callable(name):
        name = entry_of(name).name
    entry, name, weights = _with_weights(str(name or settings.imgsearch_encoder), weights, settings)
    device = settings.imgsearch_device if device == "auto" else device
    precision = settings.imgsearch_precision if precision == "auto" else precision
    home, wishes = settings.imgsearch_home, (device, precision, backend, settings.imgsearch_backend)
    stamps = _stamp(weights), _stamp(name if entry.is_path else None)
    key = entry, name, weights, home, wishes, stamps
    with _loading:
        encoder = _loaded.get(key)
        if encoder is None:
            encoder = _load(entry, name, weights, home, *wishes)
            _loaded[key] = encoder
    if settings.vector_dimension not in (None, encoder.dim):
        raise EncoderError(
            encoder.name,
            f"has {encoder.dim} dimensions and VECTOR_DIMENSION is {settings.vector_dimension}; "
            "change or unset it",
        )
    return encoder


def license_of(name: str) -> str:
    """Return the licence of an encoder's weights without loading them.

    Parameters
    ----------
    name : str
        As for :func:`load_encoder`.

    Returns
    -------
    str
        ``"not stated"`` where neither imgsearch nor the library that provides the model knows
        it, or where the weights are a file of the user.
    """
    try:
        entry, name, weights = resolve(name)
        if entry.license is not None or weights is not None:
            return NOT_STATED if weights else entry.license
        return _class(entry).license_of(name)
    except ImgSearchError:  # not installed here, or not registered in this session
        return NOT_STATED


def _with_weights(
    name: str, weights: str | Path | None, settings: Settings
) -> tuple[Entry, str, str | None]:
    """Find the entry of a name and its weights; a path becomes absolute."""
    entry, name, own = resolve(name)
    if entry.is_path:
        return entry, str(absolute(name)), None if weights is None else str(weights)
    weights = weights if weights is not None else own
    if weights is None and entry.weights_setting:
        weights = settings.imgsearch_weights
    if weights is not None and random_seed(weights) is None:
        weights = absolute(weights)
    return entry, name, None if weights is None else str(weights)


def _load(
    entry: Entry, name: str, weights: str | None, home: Path,
    device: str, precision: str, backend: str, preferred: str,
) -> Encoder:  # fmt: skip
    """Check every wish, before weights are downloaded, and load an encoder."""
    if not isinstance(entry.model, str):
        if weights is not None:
            raise ConfigError("weights", f"leave it out: {entry.name} is a function")
        return entry.model()
    family = _class(entry)
    if backend == "auto" and preferred in family.backends:
        backend = preferred
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError("device", f"{device!r} is none of auto, cpu, cuda, cuda:N, mps")
    if precision not in ("auto", *PRECISIONS):
        raise ConfigError("precision", f"{precision!r} is none of auto, {', '.join(PRECISIONS)}")
    if backend not in ("auto", *family.backends):
        names = ", ".join(family.backends)
        raise ConfigError("backend", f"{backend!r} is none of auto, {names}: {entry.name}")
    plan = family.plan(device, precision, backend)
    from imgsearch.encoders.backends import build_encoder

    model = family.load(name, weights, home)
    model.name = f"{name}@{weights}" if weights else name
    model.license = license_of(model.name)
    if re.search(r"research|non-?commercial|-nc\b|amlr", model.license, re.I):
        warnings.warn(
            f"{name}: its licence ({model.license}) does not allow commercial use", stacklevel=3
        )
    return build_encoder(model, plan, home)


def _class(entry: Entry) -> type[Model]:
    module, _, name = entry.model.partition(":")
    return getattr(import_module(module), name)


def _stamp(file: str | None) -> tuple[int, int] | None:
    """Time and size of a file, so that an exchanged one is loaded anew."""
    if file is None:
        return None
    try:
        found = Path(file).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size
