"""The Towhee pipeline that embeds the images of an ingest and of a search.

One row of the pipeline is one chunk of images. Errors travel through it as data, since
Towhee turns an exception into text and drops the row. The two steps are functions of this
module, so that Towhee never asks its hub for an operator.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from imgsearch import images
from imgsearch.encoders import Encoder
from imgsearch.encoders.base import root_logger_unchanged
from imgsearch.errors import ImageError
from imgsearch.images import Box, ImageInfo, Source

_LARGE = 32 * 2**20  # bytes for a picture


class Embedded(NamedTuple):
    """The vector of an image: float32 (dim,), of length 1. Only files have an `info`."""

    vector: np.ndarray
    info: ImageInfo | None


@dataclass
class _Chunk:
    """What passes through the pipeline: some sources, and what becomes of them."""

    sources: list[Source]
    box: Box | None
    results: list[Any] = field(default_factory=list)
    error: Exception | None = None


class Pipeline:
    """Embeds images chunk by chunk.

    Calls from two or three threads at once overlap the decoding of one chunk with the
    encoding of another. Together they decode no more at a time than fits into
    `images.MAX_MEMORY`.

    Parameters
    ----------
    encoder : Encoder
    workers : int, optional
        Threads that read and decode; as many as there are processors if not given.
    """

    def __init__(self, encoder: Encoder, workers: int | None = None):
        self.encoder = encoder
        if workers is None:
            affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
            workers = len(affinity(0)) if affinity else os.cpu_count() or 1
        self.workers = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._memory = _Budget(images.MAX_MEMORY)
        # Plain functions: Towhee copies a bound method together with its object.
        self._run = (
            _towhee_pipe()
            .input("chunk")
            .map("chunk", "decoded", _step(lambda chunk: self._decode(chunk)))
            .map("decoded", "embedded", _step(lambda chunk: self._embed(chunk)))
            .output("embedded")
        )

    def __call__(
        self, sources: Sequence[Source], *, box: Box | None = None
    ) -> list[Embedded | ImageError]:
        """Embed some images: 32 to 64 at a time are best.

        Parameters
        ----------
        sources : sequence of str, Path, bytes, PIL.Image.Image, numpy.ndarray or LoadedImage
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
            The encoder failed, which is not the fault of one image.
        """
        chunk = _Chunk(list(sources), box)
        if chunk.sources:
            (chunk,) = self._run(chunk).get()
        if chunk.error is not None:
            raise chunk.error
        return chunk.results

    def optimize_for(self, count: int) -> None:
        """Choose the encoder that takes the least time for so many images."""
        self.encoder = self.encoder.optimized_for(count)

    def _decode(self, chunk: _Chunk) -> None:
        chunk.results = list(
            self._threads.map(lambda source: self._prepare(source, chunk.box), chunk.sources)
        )

    def _prepare(
        self, source: Source, box: Box | None
    ) -> tuple[np.ndarray, ImageInfo | None] | ImageError:
        """Load, decode, resize and crop one image."""
        try:
            image = images.load(source)
            draft = self.encoder.preprocessing.draft
            memory = image.memory(box=box, draft=draft)
            with self._memory.reserve(memory):
                pixels = self.encoder.preprocess(image.decode(box=box, draft=draft))
                if memory > _LARGE:
                    _return_free_memory()
            return pixels, image.info
        except ImageError as error:
            # A new one: the traceback would keep the picture in memory.
            return ImageError(error.path, error.reason)
        except MemoryError:
            return ImageError(str(source)[:200], "not enough memory to read it")

    def _embed(self, chunk: _Chunk) -> None:
        good = [item for item in chunk.results if not isinstance(item, ImageError)]
        if good:
            vectors = iter(self.encoder.encode_batch([pixels for pixels, _ in good]))
            chunk.results = [
                item if isinstance(item, ImageError) else Embedded(next(vectors), item[1])
                for item in chunk.results
            ]


def _step(function: Callable[[_Chunk], None]) -> Callable[[_Chunk], _Chunk]:
    """A step of the pipeline that is passed over once a step before has failed."""

    def step(chunk: _Chunk) -> _Chunk:
        try:
            if chunk.error is None:
                function(chunk)
        except Exception as error:  # Towhee would keep its text only
            chunk.error = error
        return chunk

    return step


class _Budget:
    """Bytes that several threads share. Who asks first is served first."""

    def __init__(self, size: int):
        self._size = self._free = size
        self._queue = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Wait until so many bytes are free, and hold them; all there are if it is more."""
        amount = min(amount, self._size)
        with self._queue, self._changed:  # small pictures would keep a large one waiting for ever
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify()


def _return_free_memory() -> None:
    """Hand memory back that glibc keeps for the thread which freed it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _towhee_pipe() -> Any:
    with root_logger_unchanged():
        from towhee import pipe
    return pipe
