"""What an encoder is: a network, the preprocessing it was trained with, and what runs it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image

from imgsearch import images
from imgsearch.errors import EncoderError
from imgsearch.images import Box, Source

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_CROP_MODES = ("center", "squash", "border")
_STEP = 64  # pictures in one batch: larger ones gain nothing and take memory
NOT_STATED = "not stated"  # an unknown licence


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before the network sees it.

    The picture is resized as Pillow does it (with antialiasing), `crop` pixels in the middle
    are kept, scaled to [0, 1] and normalised. The defaults are those published with
    torchvision's ImageNet weights.

    Attributes
    ----------
    resize : int or tuple of int
        Pixels of the short side after resizing, or height and width to resize to.
    crop : int or tuple of int
        Side of the square in pixels, or height and width, that the network sees.
    interpolation : {"bilinear", "bicubic", "lanczos"}
    mean, std : tuple of float
        Normalisation of each channel, for values from 0 to 1.
    crop_mode : {"center", "squash", "border"}
        ``center`` keeps the aspect ratio and loses the borders of the picture; ``squash``
        resizes both sides to `resize`; ``border`` resizes the long side and fills what is
        missing with `mean`.

    Raises
    ------
    ValueError
        `crop` is larger than `resize`, or another value is not supported.
    """

    resize: int | tuple[int, int] = 256
    crop: int | tuple[int, int] = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_mode: str = "center"

    def __post_init__(self):
        resize, crop = _pair(self.resize), _pair(self.crop)
        if min(crop) < 1 or crop[0] > resize[0] or crop[1] > resize[1]:
            raise ValueError(f"crop {self.crop} must be between 1 and resize {self.resize}")
        if self.interpolation not in _RESAMPLING:
            names = ", ".join(_RESAMPLING)
            raise ValueError(f"interpolation {self.interpolation!r} is none of {names}")
        if self.crop_mode not in _CROP_MODES:
            raise ValueError(f"crop_mode {self.crop_mode!r} is none of {', '.join(_CROP_MODES)}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        return _pair(self.crop)

    @property
    def draft(self) -> int:
        """Minimum length of the short side of a decoded picture, in pixels."""
        return max(_pair(self.resize))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as they stand in an encoder's identity."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.crop_mode == "center":  # older fingerprints do not have it
            del fields["crop_mode"]
        return fields

    def apply(self, picture: Image.Image) -> np.ndarray:
        """Resize and crop; normalising is left to what runs the network.

        Parameters
        ----------
        picture : PIL.Image.Image
            Mode RGB.

        Returns
        -------
        numpy.ndarray
            uint8 (height, width, 3).
        """
        kept = self.size[::-1]
        scaled = self._scaled(*picture.size)
        left, upper = (_offset(s, k) for s, k in zip(scaled, kept, strict=True))
        low = max(left, 0), max(upper, 0)
        high = min(left + kept[0], scaled[0]), min(upper + kept[1], scaled[1])
        if scaled == picture.size:
            part = picture.crop((*low, *high))
        else:
            # Only what is kept is computed: a third less work, and a line of pixels that is
            # resized whole would become gigabytes.
            across, down = (p / s for p, s in zip(picture.size, scaled, strict=True))
            box = (
                low[0] * across, low[1] * down,
                min(high[0] * across, picture.width), min(high[1] * down, picture.height),
            )  # fmt: skip
            size = high[0] - low[0], high[1] - low[1]
            part = picture.resize(size, _RESAMPLING[self.interpolation], box=box)
        if part.size != kept:
            canvas = Image.new("RGB", kept, tuple(round(255 * value) for value in self.mean))
            canvas.paste(part, (max(-left, 0), max(-upper, 0)))
            part = canvas
        return np.asarray(part)

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, rounded as torchvision and timm round them."""
        rows, columns = _pair(self.resize)
        if self.crop_mode == "squash":
            return columns, rows
        if self.crop_mode == "center" and rows == columns:
            if width <= height:
                return rows, int(rows * height / width)
            return int(rows * width / height), rows
        ratios = height / rows, width / columns
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _offset(scaled: int, kept: int) -> int:
    """Where a crop begins; negative where the picture is smaller and a border is added."""
    return round((scaled - kept) / 2.0) if scaled >= kept else -((kept - scaled) // 2)


class Runner(Protocol):
    """Computes features: uint8 (n, height, width, 3) to float32 (n, dim), from any thread."""

    precision: str

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Compute the features of a batch."""


class Plan(NamedTuple):
    """Where and how to run a network."""

    device: str
    precisions: tuple[str, ...]  # to be tried in this order
    backend: str
    may_change: bool  # to another backend, for a long job

    @classmethod
    def make(cls, device: str, precision: str, lower: str, backend: str, plain: str) -> Plan:
        """Fill in what is ``auto``: the `lower` precision if it is good enough, and `plain`."""
        precisions = tuple(dict.fromkeys((lower, "fp32"))) if precision == "auto" else (precision,)
        auto = backend == "auto"
        return cls(device, precisions, plain if auto else backend, auto and device == "cpu")


@dataclass
class Model:
    """A network and what an encoder must know about it; each family of encoders has a subclass."""

    backbone: str
    dim: int
    preprocessing: Preprocessing
    sha256: str
    license: str = NOT_STATED
    name: str = ""  # what load_encoder takes
    batch: int = 0  # the only size of a batch that the network takes; 0 if it takes any
    cache: Path | None = None  # where a converted network may be kept

    backends: ClassVar[tuple[str, ...]] = ()
    text: ClassVar[bool] = False  # whether it has a text tower

    @property
    def identity(self) -> dict[str, Any]:
        """What the vectors mean."""
        return {
            "backbone": self.backbone,
            "weights_sha256": self.sha256,
            "preprocessing": self.preprocessing.to_dict(),
            "dim": self.dim,
            "normalisation": "l2",
        }

    @classmethod
    def load(cls, name: str, weights: str | None, home: Path) -> Model:
        """Make the model; `weights` is ``random:SEED`` or the absolute path of a file."""
        raise NotImplementedError

    @classmethod
    def license_of(cls, name: str) -> str:
        """Licence of the published weights of `name`, where the registry does not say it."""
        return NOT_STATED

    @classmethod
    def plan(cls, device: str, precision: str, backend: str) -> Plan:
        """Choose for each ``auto``; a ConfigError says what cannot be had."""
        raise NotImplementedError

    def runner(self, device: str, precision: str, backend: str) -> Runner:
        """Make what runs the network."""
        raise NotImplementedError

    def backend_for(self, n: int) -> str | None:
        """Return the backend that `n` pictures on a CPU are worth, None for the present one."""
        return None

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Return features of texts, float32 (n, dim), in one space with those of pictures."""
        raise EncoderError(
            self.name, "has no text tower: it cannot search by text. Encoders that can: mini, "
            "clip:PE-Core-B-16 and every other clip:NAME (see imgsearch.encoders.list())"
        )  # fmt: skip


def fingerprint_of(identity: dict[str, Any]) -> str:
    """Return 16 hex digits of the SHA-256 of an identity."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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


@contextmanager
def root_logger_unchanged() -> Iterator[None]:
    """Keep libraries from adding a handler to a root logger that has none."""
    root, last = logging.getLogger(), logging.lastResort
    guarded = not root.handlers and last is not None
    if guarded:
        root.addHandler(last)  # it handles the records of a logger without handlers anyway
    try:
        yield
    finally:
        if guarded:
            root.removeHandler(last)


def short(error: Exception) -> str:
    """Return an error's text on one line of at most 160 characters."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return (text or type(error).__name__)[:160]


class Encoder:
    """Turns images into vectors. Made by :func:`load_encoder`.

    It is immutable, and may be used from any thread.

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
    license : str
        Licence of the weights, or ``"not stated"``.
    text : bool
        Whether it has a text tower, so that :meth:`encode_text` works.
    device, precision, backend : str
        What really runs: ``"cpu"`` or ``"cuda:0"``; ``"fp32"``, ``"bf16"`` or ``"fp16"``;
        ``"eager"``, ``"compile"``, ``"openvino"`` or ``"onnxruntime"``. For a function, the
        backend is ``"python"`` and the others are None.
    """

    def __init__(
        self,
        model: Model,
        run: Runner,
        device: str | None,
        backend: str,
        faster: Callable[[int], Encoder | None] = lambda n: None,
    ):
        self.name, self.dim, self.preprocessing = model.name, model.dim, model.preprocessing
        self.license, self.text = model.license, model.text
        self.identity = model.identity
        self.fingerprint = fingerprint_of(self.identity)
        self.device, self.precision, self.backend = device, run.precision, backend
        self._model, self._run, self._faster = model, run, faster
        self._optimized: Callable[[], Encoder | None] = lambda: None
        self._choosing = threading.Lock()

    def __repr__(self) -> str:
        ran = " ".join(filter(None, (self.device, self.precision, self.backend)))
        return f"<Encoder {self.name} ({self.fingerprint}), {self.dim} dimensions, {ran}>"

    def describe(self) -> dict[str, str | int]:
        """Return name, dim, fingerprint, license, device, precision and backend, if known."""
        keys = ("name", "dim", "fingerprint", "license", "device", "precision", "backend")
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    def optimized_for(self, n: int) -> Encoder:
        """Return the encoder to use for a job of `n` pictures, which may be this one.

        An encoder whose backend was ``auto`` uses the one that starts at once, which is best
        for a few queries. A long job is worth a faster one, which takes up to half a minute
        to prepare the first time. This encoder stays as it is.

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
            found = self._optimized() or self._faster(n)
            if found is None:
                return self
            self._optimized = weakref.ref(found)
            return found

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Resize and crop one picture, in any thread.

        Parameters
        ----------
        image : PIL.Image.Image
            Mode RGB, as from :func:`imgsearch.images.decode`.

        Returns
        -------
        numpy.ndarray
            uint8 (height, width, 3).
        """
        return self.preprocessing.apply(image)

    def features(self, batch: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Return the network's output for preprocessed pictures, not normalised.

        Parameters
        ----------
        batch : numpy.ndarray or sequence of numpy.ndarray
            uint8 (n, height, width, 3); n may be 0 in an array.

        Returns
        -------
        numpy.ndarray
            float32 (n, dim).

        Raises
        ------
        ValueError
            `batch` has another shape or type.
        """
        batch = batch if isinstance(batch, np.ndarray) else np.stack(batch)
        shape = (*self.preprocessing.size, 3)
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != shape:
            raise ValueError(
                f"preprocessed pictures are uint8 of shape (n, {', '.join(map(str, shape))}), "
                f"not {batch.dtype} of shape {batch.shape}"
            )
        features = np.empty((len(batch), self.dim), dtype=np.float32)
        fixed = self._model.batch
        step = fixed or _STEP
        for start in range(0, len(batch), step):
            part = np.ascontiguousarray(batch[start : start + step])
            count = len(part)
            if count < fixed:
                part = np.concatenate([part, np.repeat(part[-1:], fixed - count, axis=0)])
            features[start : start + count] = self._run(part)[:count]
        return features

    def encode_batch(self, batch: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Return vectors of preprocessed pictures, from any thread.

        Parameters
        ----------
        batch : numpy.ndarray or sequence of numpy.ndarray
            What :meth:`preprocess` returned: uint8 (height, width, 3) each, any number.

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
        return self._normalised(self.features(batch) if len(batch) else ())

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Return vectors of texts, to be compared with those of pictures.

        Parameters
        ----------
        texts : str or sequence of str
            Words or sentences; an encoder reads the first few dozen words of each.

        Returns
        -------
        numpy.ndarray
            float32 (n, dim), finite, each of length 1.

        Raises
        ------
        EncoderError
            This encoder has no text tower (:attr:`text` is False), or cannot encode a text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self._normalised(self._model.encode_text(texts))

    def _normalised(self, features: np.ndarray | Sequence) -> np.ndarray:
        features = np.asarray(features, np.float32).reshape(-1, self.dim)
        lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            how = f"{self.precision} on {self.device}; try precision='fp32'"
            raise EncoderError(
                self.name,
                f"gives vectors that are zero or not finite{f' in {how}' if self.device else ''}",
            )
        return (features / lengths).astype(np.float32)

    def encode(self, sources: Source | Sequence[Source], *, box: Box | None = None) -> np.ndarray:
        """Return vectors of one or a few images; many go through a pipeline.

        Parameters
        ----------
        sources : str, Path, bytes, PIL.Image.Image, or a sequence of these and of numpy.ndarray
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
        if isinstance(sources, str | Path | bytes | Image.Image):
            sources = [sources]
        draft = self.preprocessing.draft
        pictures = [images.decode(source, box=box, draft=draft) for source in sources]
        return self.encode_batch([self.preprocess(picture) for picture in pictures])
