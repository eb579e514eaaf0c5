"""Encoders: images in, vectors out.

An encoder is a network, the preprocessing it was trained with, and something that runs
it. Its fingerprint says what the vectors mean, and leaves out what only changes speed:
device, precision and backend.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from imgsearch import images
from imgsearch.config import Settings, load_settings
from imgsearch.errors import ConfigError, EncoderError, WeightsError
from imgsearch.images import Box, Source

if TYPE_CHECKING:
    import torch

    from imgsearch.encoders.backends import Runner

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Networks with published ImageNet weights."""

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_STEP = 64  # images in one go: more gain nothing and take memory
# Images from which on another backend has earned back what it takes to start:
_LOADING = 64  # OpenVINO's model is kept from before: half a second
_CONVERTING = 500  # it must be made: some 8 s for a ResNet-50
_COMPILING = 5_000  # torch.compile: half a minute
_AGREEMENT = 0.9995  # cosine with torch in fp32 that `auto` asks for


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before the network sees it.

    The short side is resized to `resize` pixels as Pillow does it (with antialiasing), the
    middle `crop` x `crop` pixels are kept, scaled to [0, 1] and normalised by `mean` and
    `std` of each channel. The defaults are those published with the ImageNet weights.

    Raises
    ------
    ValueError
        `crop` is larger than `resize`, or `interpolation` is neither bilinear nor bicubic.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop {self.crop} must be between 1 and resize {self.resize}")
        if self.interpolation not in _RESAMPLING:
            raise ValueError(f"interpolation {self.interpolation!r}: bilinear or bicubic")

    def apply(self, picture: Image.Image) -> np.ndarray:
        """Resize and crop; normalising is left to whatever runs the network.

        Parameters
        ----------
        picture : PIL.Image.Image
            Mode RGB.

        Returns
        -------
        numpy.ndarray
            uint8 (crop, crop, 3).
        """
        width, height = picture.size
        short, crop = self.resize, self.crop
        # torchvision: the long side is cut down to an integer, the crop's corner rounded
        if width <= height:
            size = short, int(short * height / width)
        else:
            size = int(short * width / height), short
        left, upper = (round((side - crop) / 2.0) for side in size)
        how = _RESAMPLING[self.interpolation]
        if size == picture.size:
            return np.asarray(picture.crop((left, upper, left + crop, upper + crop)))
        # Only what is kept is computed: a third less work, and a line of pixels that is
        # resized whole would become gigabytes.
        across, down = width / size[0], height / size[1]
        part = left * across, upper * down, (left + crop) * across, (upper + crop) * down
        return np.asarray(picture.resize((crop, crop), how, box=part))


class Encoder:
    """Turns images into vectors. Made by :func:`load_encoder`.

    Attributes
    ----------
    name : str
        What :func:`load_encoder` takes to give this encoder again.
    dim : int
        Length of the vectors.
    preprocessing : Preprocessing
    identity : dict
        What the vectors mean, fit for JSON: backbone, SHA-256 of the weights,
        preprocessing, dimension, normalisation.
    fingerprint : str
        16 hex digits of the SHA-256 of `identity`; the same on every device, in every
        precision, with every backend.
    device, precision, backend : str
        What really runs: ``"cpu"`` or ``"cuda:0"``; ``"fp32"``, ``"bf16"`` or ``"fp16"``;
        ``"eager"``, ``"compile"`` or ``"openvino"``. See :meth:`optimized_for`.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        preprocessing: Preprocessing,
        identity: dict[str, Any],
        run: Runner,
        *,
        device: str,
        precision: str,
        backend: str,
        batch: tuple[int, int] = (1, _STEP),
        quicker: Callable[[int], tuple[str, Runner] | None] | None = None,
    ):
        self.name, self.dim, self.preprocessing = name, dim, preprocessing
        self.identity = identity
        self.fingerprint = fingerprint_of(identity)
        self.device, self.precision, self.backend = device, precision, backend
        self._run, self._batch, self._quicker = run, batch, quicker
        self._optimized: weakref.ref[Encoder] | None = None
        self._choosing = threading.Lock()

    def __repr__(self) -> str:
        return (
            f"<Encoder {self.name} ({self.fingerprint}), {self.dim} numbers, "
            f"{self.device} {self.precision} {self.backend}>"
        )

    def describe(self) -> dict[str, str | int]:
        """Name, dim, fingerprint, device, precision, backend: for reports and panels."""
        keys = ("name", "dim", "fingerprint", "device", "precision", "backend")
        return {key: getattr(self, key) for key in keys}

    def optimized_for(self, n: int) -> Encoder:
        """Return the encoder to use for a job of `n` pictures, which may be this one.

        An encoder whose backend was ``auto`` begins with the one that starts at once, which
        is best for a few queries. A long job is worth a faster one, which takes up to half a
        minute to prepare the first time. This encoder stays as it is.

        Parameters
        ----------
        n : int
            Number of pictures that are about to be encoded.

        Returns
        -------
        Encoder
            Has the same identity and fingerprint.
        """
        with self._choosing:
            if self._quicker is None:
                return self
            known = self._optimized() if self._optimized else None
            if known is not None:
                return known
            found = self._quicker(n)
            if found is None:
                return self
            backend, run = found
            made = Encoder(
                self.name, self.dim, self.preprocessing, self.identity, run,
                device=self.device, precision=run.precision, backend=backend, batch=self._batch,
            )  # fmt: skip
            self._optimized = weakref.ref(made)
            return made

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Resize and crop one picture, in any thread.

        Parameters
        ----------
        image : PIL.Image.Image
            Mode RGB, as from :func:`imgsearch.images.decode`.

        Returns
        -------
        numpy.ndarray
            uint8 (crop, crop, 3).
        """
        return self.preprocessing.apply(image)

    def features(self, batch: np.ndarray) -> np.ndarray:
        """Features of prepared pictures as the network gives them, not normalised.

        Parameters
        ----------
        batch : numpy.ndarray
            uint8 (n, crop, crop, 3); n may be 0.

        Returns
        -------
        numpy.ndarray
            float32 (n, dim).

        Raises
        ------
        ValueError
            `batch` has another shape or type.
        """
        batch, crop = np.asarray(batch), self.preprocessing.crop
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (crop, crop, 3):
            raise ValueError(
                f"prepared pictures are uint8 of shape (n, {crop}, {crop}, 3), "
                f"not {batch.dtype} of shape {batch.shape}"
            )
        features = np.empty((len(batch), self.dim), dtype=np.float32)
        least, most = self._batch
        for start in range(0, len(batch), most):
            part = np.ascontiguousarray(batch[start : start + most])
            count = len(part)
            if count < least:  # a program that was exported for larger batches
                part = np.concatenate([part, np.repeat(part[-1:], least - count, axis=0)])
            features[start : start + count] = self._run(part)[:count]
        return features

    def encode_batch(self, batch: np.ndarray) -> np.ndarray:
        """Vectors of prepared pictures, from any thread.

        Parameters
        ----------
        batch : numpy.ndarray
            uint8 (n, crop, crop, 3); n may be 0.

        Returns
        -------
        numpy.ndarray
            float32 (n, dim), finite, each of length 1.

        Raises
        ------
        EncoderError
            The network gave NaN, infinity or nothing but zeros.
        ValueError
            `batch` has another shape or type.
        """
        features = self.features(batch)
        lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise EncoderError(
                self.name,
                f"gives vectors that are zero or not finite in {self.precision} on "
                f"{self.device}; try precision='fp32'",
            )
        return (features / lengths).astype(np.float32)

    def encode(self, images_: Sequence[Source], *, box: Box | None = None) -> np.ndarray:
        """Vectors of images, one after the other; for a few. Many go through a pipeline.

        Parameters
        ----------
        images_ : sequence of str, Path, bytes, PIL.Image.Image or numpy.ndarray
        box : tuple of int, optional
            Left, upper, right, lower in pixels of the upright picture: the part to encode.

        Returns
        -------
        numpy.ndarray
            float32 (n, dim), each of length 1.

        Raises
        ------
        ImageError
            One of the images cannot be decoded.
        """
        crop = self.preprocessing.crop
        batch = np.empty((len(images_), crop, crop, 3), dtype=np.uint8)
        for index, source in enumerate(images_):
            batch[index] = self.preprocess(
                images.decode(source, box=box, draft=self.preprocessing.resize)
            )
        return self.encode_batch(batch)


_loaded: weakref.WeakValueDictionary[tuple[Any, ...], Encoder] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load_encoder(
    name: str | None = None,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    settings: Settings | None = None,
) -> Encoder:
    """Load an encoder; processes share one for as long as it is in use.

    Parameters
    ----------
    name : str, optional
        ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``, ``resnet152``; ``mini``,
        which is part of the package; ``timm:NAME``, where timm is installed; or the path
        of an exported torch program (``.pt2``). ``NAME@WEIGHTS`` gives weights with it.
        Without a name, the one that ``IMGSEARCH_ENCODER`` says.
    weights : str or Path, optional
        A ``.pth`` or ``.safetensors`` file, or ``random:SEED`` for tests. Without it, what
        ``IMGSEARCH_WEIGHTS`` says, else the published weights.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    precision : {"auto", "fp32", "bf16", "fp16"}
        ``auto`` takes what the hardware has units for, if the vectors stay the same: it
        asks for a cosine of 0.9995 with fp32 on a few pictures made for it.
    backend : {"auto", "eager", "compile", "openvino"}
        ``auto`` begins with ``eager``. On a CPU,
        :meth:`Encoder.optimized_for` then gives
        OpenVINO for a job of some length, or where that is not installed to ``compile``
        for a very long one.
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
        A parameter has a value that means nothing.
    """
    settings = settings or load_settings()
    name, weights = _names(name or settings.imgsearch_encoder, weights)
    if weights is None and settings.imgsearch_weights and name in RESNETS:
        weights = str(settings.imgsearch_weights)
    if weights is not None and not _seed(weights):
        weights = str(Path(weights).expanduser().absolute())
    device = _device(settings.imgsearch_device if device == "auto" else device)
    precision = _precision(
        settings.imgsearch_precision if precision == "auto" else precision, device
    )
    backend = _backend(settings.imgsearch_backend if backend == "auto" else backend, device)
    key = (
        name, weights, device, precision, backend, settings.imgsearch_home,
        _stamp(weights), _stamp(name),
    )  # fmt: skip
    with _loading:
        encoder = _loaded.get(key)
        if encoder is None:
            encoder = _load(name, weights, device, precision, backend, settings)
            _loaded[key] = encoder
    if settings.vector_dimension not in (None, encoder.dim):
        raise EncoderError(
            encoder.name,
            f"gives {encoder.dim} numbers and VECTOR_DIMENSION is {settings.vector_dimension}; "
            "change or unset it",
        )
    return encoder


def fingerprint_of(identity: dict[str, Any]) -> str:
    """Fingerprint of an encoder's identity: 16 hex digits."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _names(name: str, weights: str | Path | None) -> tuple[str, str | Path | None]:
    """Name and weights apart, the path of a program made absolute."""
    name = str(name)
    if name.endswith(".pt2"):
        return str(Path(name).expanduser().absolute()), weights
    name, _, own = name.partition("@")
    if name not in RESNETS and name != "mini" and not re.fullmatch(r"timm:[\w.\-]+", name):
        raise EncoderError(
            name,
            f"is unknown; there are {', '.join(RESNETS)}, mini, timm:NAME, and paths of "
            "exported programs (.pt2)",
        )
    return name, weights if weights is not None else own or None


def _seed(weights: str | Path | None) -> re.Match[str] | None:
    return re.fullmatch(r"random:(\d{1,9})", str(weights))


def _stamp(file: str | None) -> tuple[int, int] | None:
    """Time and size of a file, so that an exchanged one is loaded anew."""
    try:
        facts = Path(file or "").stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size


def _device(wish: str) -> str:
    import torch

    if wish == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", wish)
    if match is None:
        raise ConfigError("device", f"{wish!r} is none of auto, cpu, cuda, cuda:N, mps")
    if wish.startswith("cuda"):
        number = int(match[1] or 0)
        if number >= torch.cuda.device_count():
            raise ConfigError(
                "device",
                f"{wish} is not there: torch sees {torch.cuda.device_count()} CUDA devices",
            )
        return f"cuda:{number}"
    if wish == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device", "mps is not there: it needs a Mac and a torch built for it")
    return wish


def _precision(wish: str, device: str) -> _Choice:
    import torch

    from imgsearch.encoders import backends

    if wish not in ("auto", "fp32", "bf16", "fp16"):
        raise ConfigError("precision", f"{wish!r} is none of auto, fp32, bf16, fp16")
    if wish != "auto":
        return _Choice(wish, auto=False)
    lower = "fp32"
    if device.startswith("cuda") and torch.cuda.get_device_capability(device)[0] >= 7:
        lower = "fp16"  # as quick as bf16 there, and eight times as exact
    elif device == "cpu" and backends.cpu_has_bf16():
        lower = "bf16"
    return _Choice(lower, auto=True)


def _backend(wish: str, device: str) -> _Choice:
    from imgsearch.encoders import backends

    if wish not in ("auto", "eager", "compile", "openvino"):
        raise ConfigError("backend", f"{wish!r} is none of auto, eager, compile, openvino")
    if wish == "openvino" and device != "cpu":
        raise ConfigError("backend", f"openvino runs on the CPU, not on {device}")
    if wish == "openvino" and not backends.openvino_is_there():
        raise ConfigError("backend", "openvino is not installed: pip install 'imgsearch[openvino]'")
    if wish == "compile" and device == "cpu" and not backends.compiler_is_there():
        raise ConfigError("backend", "compile needs a C++ compiler: install g++, or use eager")
    if wish == "auto":
        return _Choice("eager", auto=True)
    return _Choice(wish, auto=False)


class _Choice(NamedTuple):
    """A value, and whether it was chosen here (``auto``) or by the user."""

    value: str
    auto: bool


@dataclass
class _Parts:
    """A network with everything that an encoder says about it."""

    name: str
    backbone: str
    network: torch.nn.Module
    dim: int
    preprocessing: Preprocessing
    sha256: str
    batch: tuple[int, int] = (1, 2**16)
    cast: bool = True
    kept: Path | None = None


def _load(
    name: str,
    weights: str | None,
    device: str,
    precision: _Choice,
    backend: _Choice,
    settings: Settings,
) -> Encoder:
    from imgsearch.encoders import backends

    if name.endswith(".pt2"):
        parts = _program(name, weights)
    elif name == "mini":
        parts = _mini(weights)
    elif name.startswith("timm:"):
        parts = _timm(name, weights)
    else:
        parts = _resnet(name, weights, settings)
    preprocessing = parts.preprocessing
    identity = {
        "backbone": parts.backbone,
        "weights_sha256": parts.sha256,
        "preprocessing": {**asdict(preprocessing), "mean": list(preprocessing.mean),
                          "std": list(preprocessing.std)},
        "dim": parts.dim,
        "normalisation": "l2",
    }  # fmt: skip
    parts.kept = backends.openvino_cache(settings.imgsearch_home, fingerprint_of(identity))
    run, _, kind = _runner(parts, device, precision, backend)
    least, most = parts.batch

    def quicker(images: int) -> tuple[str, Runner] | None:
        choice = _quicker(images, parts.kept.exists())
        if choice is None:
            return None
        run, _, got = _runner(parts, device, precision, _Choice(choice, auto=True))
        if got != choice:
            log = logging.getLogger(__name__)
            log.warning("%s cannot run with %s and stays with eager", parts.name, choice)
        return got, run

    return Encoder(
        parts.name, parts.dim, preprocessing, identity, run,
        device=device, precision=run.precision, backend=kind,
        batch=(least, max(least, min(most, _STEP))),
        quicker=quicker if backend.auto and device == "cpu" else None,
    )  # fmt: skip


def _quicker(images: int, kept: bool) -> str | None:
    """Pick the backend that so many pictures are worth, None for ``eager``."""
    from imgsearch.encoders import backends

    if backends.openvino_is_there():
        return "openvino" if images >= (_LOADING if kept else _CONVERTING) else None
    return "compile" if images >= _COMPILING and backends.compiler_is_there() else None


def _runner(
    parts: _Parts, device: str, precision: _Choice, backend: _Choice
) -> tuple[Runner, str, str]:
    """Make what runs the network, and see that what was chosen here keeps the vectors.

    Lower precision costs some networks more than others (a MobileNetV2 falls to a cosine
    of 0.995 in bf16), and a conversion can go wrong: both are tried on a few pictures.
    """
    from imgsearch.encoders import backends

    crop, (least, most) = parts.preprocessing.crop, parts.batch

    def plain() -> bool:
        return (precision.value, backend.value) == ("fp32", "eager")

    pictures = backends.pictures(crop, max(least, min(3, most)))
    expected = None if plain() else _make(parts, "cpu", "fp32", "eager")(pictures)

    def agreement(run: Runner) -> float:
        if plain():
            return 1.0
        try:
            return backends.agreement(run(pictures), expected)
        except RuntimeError:  # a conversion that only fails when it runs
            return 0.0

    try:
        run = _make(parts, device, precision.value, backend.value)
        found = agreement(run)
    except EncoderError:
        if not backend.auto:
            raise
        run, found = None, 0.0
    if found < _AGREEMENT and precision.auto and precision.value != "fp32" and run is not None:
        precision = _Choice("fp32", auto=True)
        run = _make(parts, device, "fp32", backend.value)
        found = agreement(run)
    if found < _AGREEMENT and backend.auto and backend.value != "eager":
        backend = _Choice("eager", auto=True)
        run = _make(parts, device, "fp32" if precision.auto else precision.value, "eager")
        found = agreement(run)
    if found < _AGREEMENT and (precision.auto or precision.value == "fp32"):
        raise EncoderError(
            parts.name,
            f"gives other vectors on {device} with backend={backend.value!r} "
            f"(cosine {found:.4f} with torch on the CPU); use backend='eager', device='cpu'",
        )
    return run, run.precision, backend.value


def _make(parts: _Parts, device: str, precision: str, backend: str) -> Runner:
    from imgsearch.encoders import backends

    mean, std = parts.preprocessing.mean, parts.preprocessing.std
    if backend == "openvino":
        least, most = parts.batch
        model = backends.openvino_model(
            parts.network, mean, std, crop=parts.preprocessing.crop,
            batch=most if least == most else 0, cache=parts.kept,
        )  # fmt: skip
        return backends.OpenVinoRunner(model, precision=precision, split=least == 1)
    return backends.TorchRunner(
        parts.network, mean, std, device=device, precision=precision, cast=parts.cast,
        compiled=backend == "compile",
    )  # fmt: skip


def _resnet(name: str, weights: str | None, settings: Settings) -> _Parts:
    from imgsearch.encoders import resnet
    from imgsearch.encoders import weights as files

    network = resnet.resnet(name)
    if seed := _seed(weights):
        state = resnet.random_state(network, int(seed[1]))
    else:
        path = files.locate(name, file=weights, home=settings.imgsearch_home)
        state = files.read_state(path)
    files.fit(network, state, weights or name)
    sha256 = files.digest(state)
    full = f"{name}@{weights}" if weights else name
    return _Parts(full, name, resnet.fuse_conv_bn(network), network.dim, Preprocessing(), sha256)


def _program(path: str, weights: str | None) -> _Parts:
    from imgsearch.encoders import resnet

    if weights is not None:
        raise ConfigError("weights", "an exported program brings its own")
    program, card, sha256 = resnet.load_program(Path(path))
    preprocessing = Preprocessing(
        card.resize, card.crop, card.interpolation, tuple(card.mean), tuple(card.std)
    )
    return _Parts(
        path, card.name, program, card.dim, preprocessing, sha256,
        batch=(program.least, program.most), cast=False,
    )  # fmt: skip


def _mini(weights: str | None) -> _Parts:
    from imgsearch.encoders import mini, resnet
    from imgsearch.encoders import weights as files

    if weights is not None:
        raise ConfigError("weights", "the bundled encoder brings its own")
    network = mini.build().eval()
    spec = mini.SPEC
    path = Path(__file__).parent / spec.file
    if hashlib.sha256(path.read_bytes()).hexdigest() != spec.sha256:
        raise WeightsError("mini", f"{path} is damaged: install imgsearch again")
    state = files.read_state(path)
    files.fit(network, state, "mini")
    preprocessing = Preprocessing(
        spec.resize, spec.crop, spec.interpolation, tuple(spec.mean), tuple(spec.std)
    )
    return _Parts(
        "mini",
        spec.name,
        resnet.fuse_conv_bn(network),
        spec.dim,
        preprocessing,
        files.digest(state),
    )


def _timm(name: str, weights: str | None) -> _Parts:
    from imgsearch.encoders import resnet
    from imgsearch.encoders import weights as files

    try:
        import timm
    except Exception as error:  # beside another torch than its own, torchvision breaks in many ways
        raise EncoderError(
            name, f"timm cannot be imported ({error}): pip install 'imgsearch[timm]'"
        ) from None
    model = name.removeprefix("timm:")
    try:
        network = timm.create_model(model, pretrained=weights is None, num_classes=0).eval()
    except Exception as error:  # unknown names, no network, damaged downloads
        raise EncoderError(
            name, f"timm cannot make it: {' '.join(str(error).split())[:160]}"
        ) from None
    if weights is not None:
        seed = _seed(weights)
        state = (
            resnet.random_state(network, int(seed[1])) if seed
            else files.read_state(Path(weights))
        )  # fmt: skip
        heads = network.default_cfg.get("classifier") or "fc"
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        state = {k: v for k, v in state.items() if k.rpartition(".")[0] not in heads}
        files.fit(network, state, weights)
    state = {k: v.float() for k, v in network.state_dict().items() if v.is_floating_point()}
    config = timm.data.resolve_model_data_config(network)
    side = config["input_size"][-1]
    how = config["interpolation"] if config["interpolation"] in _RESAMPLING else "bicubic"
    preprocessing = Preprocessing(
        max(side, int(side / config["crop_pct"])), side, how,
        tuple(config["mean"]), tuple(config["std"]),
    )  # fmt: skip
    full = f"{name}@{weights}" if weights else name
    return _Parts(full, name, network, network.num_features, preprocessing, files.digest(state))
