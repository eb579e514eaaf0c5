"""User functions as encoders: anything that maps a list of pictures to an array."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from imgsearch.encoders.base import NOT_STATED, Encoder, Model, sample_pictures, short
from imgsearch.errors import ConfigError, EncoderError


@dataclass(frozen=True)
class Whole:
    """Preprocessing of a function: the whole picture, reduced where it is larger than `size`."""

    size: int

    @property
    def draft(self) -> int:
        """Minimum length of the short side of a decoded picture, in pixels."""
        return self.size

    def to_dict(self) -> dict[str, int]:
        """Return the fields as they stand in an encoder's identity."""
        return {"long_side": self.size}

    def apply(self, picture: Image.Image) -> np.ndarray:
        """Reduce a picture so that its long side is at most `size` pixels."""
        ratio = self.size / max(picture.size)
        if ratio < 1:
            size = [max(1, round(side * ratio)) for side in picture.size]
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(picture)


@dataclass
class FunctionModel(Model):
    """What an encoder must know about a function."""

    version: str = "0"

    @property
    def identity(self) -> dict[str, Any]:
        """What the vectors mean, as far as their author states it."""
        return {
            "function": self.backbone,
            "version": self.version,
            "preprocessing": self.preprocessing.to_dict(),
            "dim": self.dim,
            "normalisation": "l2",
        }


class FunctionRunner:
    """Calls a function, one call at a time, and checks what it returns."""

    precision = None  # nobody but the function knows

    def __init__(self, function: Callable, name: str):
        self._function, self._name, self._lock = function, name, threading.Lock()
        self.dim: int | None = None

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Compute the features of pictures of any sizes."""
        try:
            with self._lock:
                given = self._function([Image.fromarray(pixels) for pixels in pictures])
            with np.errstate(over="ignore"):  # infinity is refused later
                features = np.asarray(given, dtype=np.float32)
        except Exception as error:
            raise EncoderError(self._name, f"the function failed: {short(error)}") from error
        rows, dim = features.shape if features.ndim == 2 else (0, 0)
        if rows != len(pictures) or dim == 0 or dim != (self.dim or dim):
            raise EncoderError(
                self._name,
                f"the function returned an array of shape {features.shape} for {len(pictures)} "
                f"pictures; it must be ({len(pictures)}, {self.dim or 'dim'})",
            )
        return features


class FunctionEncoder(Encoder):
    """An encoder whose pictures may have any size. Made by :func:`from_callable`."""

    def features(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """Return what the function gives for pictures, uint8 (height, width, 3) each."""
        return self._run(batch)


def identify(function: Callable, name: str | None, version: str) -> tuple[str, str]:
    """Name and version of a function, checked."""
    if name is None:
        name = getattr(function, "__qualname__", "<>")
        if "<" in name:  # a lambda, a closure or an object: others have the same name
            reason = "needs a name: encoders.from_callable(function, name='mine', version='1')"
            raise ConfigError("encoder", reason)
        name = f"{function.__module__}.{name}"
    for key, value in (("name", name), ("version", version)):
        if not isinstance(value, str) or not re.fullmatch(r"[^@\x00-\x1f]{1,200}", value):
            raise ConfigError(key, f"{value!r} must be text without @, of 200 characters at most")
    return name, version


def from_callable(
    function: Callable[[list[Image.Image]], np.ndarray],
    *,
    name: str | None = None,
    version: str = "0",
    size: int = 768,
    license: str = NOT_STATED,
) -> Encoder:
    """Make an encoder of a function.

    A collection remembers name and version, and can be opened again with a function of the
    same name and version: pass it as ``encoder``, or :func:`register` it first. Its code is
    not compared. Whoever changes what the vectors mean must change the version too.

    Parameters
    ----------
    function : callable
        Takes a list of upright RGB pictures of any sizes, and returns an array of finite float
        or int, shape (n, dim), one row for each picture. It is called from one thread at
        a time, here with two generated pictures to find `dim`.
    name : str, optional
        Its module and qualified name if left out.
    version : str
        To be changed when the vectors change.
    size : int
        Pictures whose long side has more pixels are reduced to it.
    license : str
        Licence of the weights, for reports.

    Returns
    -------
    Encoder
        The vectors are L2-normalised.

    Raises
    ------
    ConfigError
        `name` or `version` cannot be used, or `name` is missing for a lambda, a nested
        function or an object.
    EncoderError
        The function failed, or what it returned is not such an array.

    Examples
    --------
    >>> def colours(pictures):
    ...     return np.array([np.asarray(each).mean((0, 1)) + 1 for each in pictures])
    >>> from_callable(colours, name="colours", version="1").dim
    3
    """
    name, version = identify(function, name, version)
    run = FunctionRunner(function, f"{name}@{version}")
    run.dim = run(sample_pictures((224, 224), 2)).shape[1]
    model = FunctionModel(
        name, run.dim, Whole(size), "", license, f"{name}@{version}", version=version
    )
    return FunctionEncoder(model, run, None, "python")
