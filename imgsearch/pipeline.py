"""The Towhee pipeline that ingest and search run, and the operators it is made of.

One row of the pipeline is one chunk of images. Errors of single images travel through it
as data, since Towhee turns an exception into text and drops the whole row. Every operator
is registered here: Towhee would ask its hub for an unknown one, and run pip.
"""

from __future__ import annotations

import logging
import os
import uuid
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgsearch import images
from imgsearch.encoders.base import Encoder, load_encoder
from imgsearch.errors import EncoderError, ImageError
from imgsearch.images import Box, ImageInfo, Source

OPERATORS = (
    "imgsearch/image-decode",
    "imgsearch/image-embedding",
    "image-decode/cv2",
    "image-decode/cv2-rgb",
    "image-embedding/timm",
    "towhee/np-normalize",
)
"""Names that resolve here: ours, and those of the hub that the original demo used."""


class Embedded(NamedTuple):
    """What became of one image.

    ``vector`` is float32 (dim,), of length 1. ``facts`` is None for a picture or an array,
    which has no file.
    """

    vector: np.ndarray
    facts: ImageInfo | None


class Pipeline:
    """Images in, vectors and facts out, chunk by chunk.

    Calls from two or three threads at once overlap the decoding of one chunk with the
    encoding of another.

    Parameters
    ----------
    encoder : Encoder
    workers : int, optional
        Threads that read and decode; as many as there are processors if not given.
    formats : sequence of str
        What to accept, as in :func:`imgsearch.images.decode`.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        workers: int | None = None,
        formats: Sequence[str] = images.FORMATS,
    ):
        from towhee import ops, pipe

        register()
        self.encoder, self.formats = encoder, tuple(formats)
        if workers is None:  # macOS does not tell which processors are ours
            ours = getattr(os, "sched_getaffinity", None)
            workers = len(ours(0)) if ours else os.cpu_count() or 1
        self.workers = workers
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        # Towhee copies what an operator is made with: hand it a name, never the encoder
        name = uuid.uuid4().hex
        _pipelines[name] = self
        self._run = (
            pipe.input("chunk")
            .map("chunk", "prepared", ops.imgsearch.image_decode(name))
            .map("prepared", "embedded", ops.imgsearch.image_embedding(name))
            .output("embedded")
        )

    def __call__(
        self, chunk: Sequence[Source], *, box: Box | None = None
    ) -> list[Embedded | ImageError]:
        """Embed a chunk of images: 32 to 64 are best.

        Parameters
        ----------
        chunk : sequence of str, Path, bytes, PIL.Image.Image or numpy.ndarray
        box : tuple of int, optional
            Left, upper, right, lower in pixels of the upright picture: the part to encode
            of each image.

        Returns
        -------
        list of Embedded or ImageError
            One for each image, in the same order.

        Raises
        ------
        EncoderError
            The encoder failed, which is no fault of one image.
        """
        sources = list(chunk)
        if not sources:
            return []
        result = self._run((sources, box)).get()[0]
        if isinstance(result, _Failure):
            raise result.error
        return result

    def optimize_for(self, n: int) -> None:
        """Encode with the backend that suits a job of `n` pictures; the encoder given stays."""
        self.encoder = self.encoder.optimized_for(n)

    def _prepare(self, source: Source, box: Box | None) -> tuple[np.ndarray, ImageInfo | None]:
        """Read once, then hash, decode, resize and crop."""
        facts, path = None, None
        preprocessing = self.encoder.preprocessing
        if isinstance(source, str | Path):
            path, source = source, images.read(source)
        if isinstance(source, bytes):
            facts = images.probe(source, path=path or "uploaded bytes", formats=self.formats)
        picture = images.decode(
            source, box=box, formats=self.formats, draft=preprocessing.resize, path=path
        )
        return self.encoder.preprocess(picture), facts

    def _attempt(self, item: tuple[Source, Box | None]) -> Any:
        try:
            return self._prepare(*item)
        except ImageError as error:
            return error
        except MemoryError:
            return ImageError(str(item[0])[:200], "not enough memory to decode it")


class _Failure(NamedTuple):
    """An exception as data, on its way through Towhee."""

    error: Exception


_pipelines: weakref.WeakValueDictionary[str, Pipeline] = weakref.WeakValueDictionary()


class ImageDecode:
    """Operator ``imgsearch/image_decode``: a chunk to prepared pictures and errors.

    Parameters
    ----------
    pipeline : str
        Name of a :class:`Pipeline` of this process.
    """

    def __init__(self, pipeline: str):
        self._pipeline = pipeline

    def __call__(self, chunk: tuple[list[Source], Box | None]) -> list[Any] | _Failure:
        """Decode a chunk, in order; see :meth:`Pipeline.__call__`.

        Parameters
        ----------
        chunk : tuple
            Sources, and the box or None.

        Returns
        -------
        list
            For each source, pixels (uint8, shape ``(crop, crop, 3)``) with facts, or an error.
        """
        try:
            pipeline = _pipelines[self._pipeline]
            sources, box = chunk
            items = [(source, box) for source in sources]
            return list(pipeline._threads.map(pipeline._attempt, items))
        except Exception as error:  # Towhee would keep its text only
            return _Failure(error)


class ImageEmbedding:
    """Operator ``imgsearch/image_embedding``: prepared pictures to vectors; errors go through.

    Parameters
    ----------
    pipeline : str
        Name of a :class:`Pipeline` of this process.
    """

    def __init__(self, pipeline: str):
        self._pipeline = pipeline

    def __call__(self, prepared: list[Any] | _Failure) -> list[Embedded | ImageError] | _Failure:
        """Encode a chunk in one go; see :meth:`Pipeline.__call__`.

        Parameters
        ----------
        prepared : list
            From :class:`ImageDecode`.

        Returns
        -------
        list of Embedded or ImageError
            One for each source.
        """
        if isinstance(prepared, _Failure):
            return prepared
        try:
            encoder = _pipelines[self._pipeline].encoder
            good = [item for item in prepared if not isinstance(item, ImageError)]
            if not good:
                return prepared
            vectors = iter(encoder.encode_batch(np.stack([pixels for pixels, _ in good])))
            return [
                item if isinstance(item, ImageError) else Embedded(next(vectors), item[1])
                for item in prepared
            ]
        except Exception as error:  # Towhee would keep its text only
            return _Failure(error)


# ------------------------------------------------------- the original demo's operators


class DecodeCv2:
    """Operators ``image-decode/cv2`` and ``image-decode/cv2_rgb``: a file to an array.

    Parameters
    ----------
    mode : str
        ``RGB`` or ``BGR``, in capitals or not.
    """

    default = "BGR"

    def __init__(self, mode: str | None = None):
        self._mode = (mode or self.default).upper()
        if self._mode not in ("RGB", "BGR"):
            raise ValueError(f"mode {mode!r}: RGB or BGR")

    def __call__(self, source: Source) -> np.ndarray:
        """Decode one image.

        Parameters
        ----------
        source : path, bytes, PIL.Image.Image or numpy.ndarray
            The image.

        Returns
        -------
        towhee.types.Image
            uint8, shape ``(height, width, 3)``.

        Raises
        ------
        ImageError
            It cannot be read.
        """
        from towhee.types import Image

        pixels = np.asarray(images.decode(source))
        if self._mode == "BGR":
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        return Image(pixels, self._mode)


class DecodeCv2Rgb(DecodeCv2):
    """Operator ``image-decode/cv2_rgb``."""

    default = "RGB"


class EmbedTimm:
    """Operator ``image-embedding/timm``: an array to features that are not yet normalised.

    Parameters
    ----------
    model_name : str
        An encoder's name; names that are not ours are looked for in timm.
    device : str, optional
    num_classes, skip_preprocess
        Taken for the sake of old pipelines; the features do not depend on the number of
        classes, and preprocessing cannot be skipped.

    Raises
    ------
    EncoderError
        `skip_preprocess` is asked for.
    """

    def __init__(
        self,
        model_name: str,
        num_classes: int = 1000,
        skip_preprocess: bool = False,
        device: str | None = None,
    ):
        if skip_preprocess:
            raise EncoderError(model_name, "skip_preprocess is not supported: leave it out")
        self._name, self._device = model_name, device or "auto"

    def __call__(self, picture: Any) -> Any:
        """Embed one array, or each of a list.

        Parameters
        ----------
        picture : numpy.ndarray or list of numpy.ndarray
            uint8, shape ``(height, width, 3)``.

        Returns
        -------
        numpy.ndarray or list of numpy.ndarray
            float32, shape ``(dim,)``, not normalised.
        """
        encoder = self._encoder()
        many = picture if isinstance(picture, list) else [picture]
        batch = np.stack([encoder.preprocess(self._decoded(each)) for each in many])
        features = list(encoder.features(batch))
        return features if isinstance(picture, list) else features[0]

    def _encoder(self) -> Encoder:
        try:
            return load_encoder(self._name, device=self._device)
        except EncoderError:
            if ":" in self._name or "/" in self._name:
                raise
            return load_encoder(f"timm:{self._name}", device=self._device)

    @staticmethod
    def _decoded(picture: Any) -> Any:
        if getattr(picture, "mode", "RGB") == "BGR" and isinstance(picture, np.ndarray):
            picture = np.asarray(picture)[:, :, ::-1]
        return images.decode(np.asarray(picture) if isinstance(picture, np.ndarray) else picture)


class NpNormalize:
    """Operator ``towhee/np_normalize``: a vector to one of length 1.

    Parameters
    ----------
    axis : int, optional
        Along which lengths are taken; over everything if not given.
    """

    def __init__(self, axis: int | None = None):
        self._axis = axis

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        """Divide by the Euclidean length.

        Parameters
        ----------
        vector : numpy.ndarray
            float32, shape ``(dim,)``.

        Returns
        -------
        numpy.ndarray
            float32, shape ``(dim,)``.
        """
        return vector / np.linalg.norm(vector, axis=self._axis, keepdims=self._axis is not None)


def register() -> None:
    """Make every operator of `OPERATORS` known to Towhee, here and not in its hub.

    Call it before building a pipeline of your own; :class:`Pipeline` does so by itself.

    Raises
    ------
    RuntimeError
        An operator does not resolve locally.
    """
    from towhee import register as registered
    from towhee.runtime.operator_manager import OperatorRegistry
    from towhee.utils.log import FORMAT

    root = logging.getLogger()
    for handler in root.handlers[:]:  # Towhee puts one there when it is imported
        if handler.formatter is not None and handler.formatter._fmt == FORMAT:
            root.removeHandler(handler)
    classes = (ImageDecode, ImageEmbedding, DecodeCv2, DecodeCv2Rgb, EmbedTimm, NpNormalize)
    for name, operator in zip(OPERATORS, classes, strict=True):
        if OperatorRegistry.resolve(name) is not operator:
            registered(name=name)(operator)
        if OperatorRegistry.resolve(name) is not operator:
            raise RuntimeError(f"Towhee does not find {name} here and would ask its hub")
