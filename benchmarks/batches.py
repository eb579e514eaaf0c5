"""Many queries at once, and one query after the other, with the bundled encoder."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.common import (
    Options,
    Result,
    copies,
    fill,
    interleaved,
    lookalikes,
    median,
    photographs,
    ratio,
)
from benchmarks.search import PAUSE, TOP, exact

TITLE = "Batches and repeated searches"
SIZES = (655, 20_000)


def run(options: Options, result: Result) -> None:
    from imgsearch.config import load_settings
    from imgsearch.encoders import load_encoder
    from imgsearch.gallery import REPEATED, Gallery

    home = load_settings(imgsearch_home=options.work / "home", imgsearch_backend="auto")
    photos = photographs(options.photos)
    count = 200 if options.quick else 1_000
    files = sorted(copies(photos, options.work / "queries", count).iterdir())
    encoder = load_encoder("mini", settings=home)
    kept = encoder.optimized_for(1_000)  # converts the network once, as an ingest does
    real = np.concatenate([kept.encode(photos[i : i + 64]) for i in range(0, len(photos), 64)])
    result.note(
        f"mini, top {TOP}; vectors of {len(photos)} photographs, and others between two of those. "
        f"Encoding alone and the exact product of all vectors by numpy are the measure; "
        f"searches with one picture run on {encoder.backend} at first, and after {REPEATED} of "
        f"them on {kept.backend}."
    )
    for size in SIZES:
        vectors = lookalikes(real, size)
        name = f"of_{size}"
        with Gallery.open(name, create=True, encoder=encoder, settings=home) as gallery:
            fill(gallery, vectors)
            repeated(gallery, photos, vectors, {"": encoder, "the same": kept}, options, result)
            if size == SIZES[-1]:
                batch(gallery, files, vectors, result, options)


def repeated(
    gallery, photos: list[Path], vectors: np.ndarray, encoders: dict, options: Options, result
) -> None:
    """Searches with one picture, once the faster backend was loaded in the background."""
    contents = [path.read_bytes() for path in photos[:50]]
    turn = iter(np.resize(np.arange(len(contents)), 10**6))
    at_first = gallery.pipeline.encoder
    slowest = 0.0
    for _ in range(1_000):
        start = time.perf_counter()
        hits = gallery.search(contents[next(turn)], TOP)
        slowest = max(slowest, time.perf_counter() - start)
        if gallery.pipeline.encoder is not at_first:
            break
    ways = {"ours": lambda: gallery.search(contents[next(turn)], TOP)}
    for name, encoder in encoders.items():
        ways[f"least {name}"] = lambda encoder=encoder: exact(
            vectors, encoder.encode([contents[next(turn)]])[0]
        )
    times = interleaved(ways, 15 if options.quick else 40, warm=3, pause=PAUSE)
    hits = gallery.search(contents[next(turn)], TOP)
    what = f"repeated search in {len(vectors):,}"
    result.add(f"{what}: from bytes to hits with paths", 1000 * median(times["ours"]), "ms")
    result.add(f"{what}: encode and exact product", 1000 * median(times["least "]), "ms")
    result.add(f"{what}: whole call to that", ratio(times, "ours", "least "), "×", most=1.2)
    share = ratio(times, "ours", "least the same")
    result.add(f"{what}: whole call to that with {hits.encoder['backend']}", share, "×")
    result.add(f"{what}: slowest while it changed the backend", 1000 * slowest, "ms")


def batch(gallery, files: list[Path], vectors: np.ndarray, result: Result, options) -> None:
    """All of the files in one call, and in a loop."""
    from imgsearch.gallery import CHUNK

    encode = gallery.pipeline

    def least() -> np.ndarray:
        chunks = (files[at : at + CHUNK] for at in range(0, len(files), CHUNK))
        queries = np.stack([made.vector for chunk in chunks for made in encode(chunk)])
        scores = queries @ vectors.T
        best = np.argpartition(scores, -TOP, axis=1)[:, -TOP:]
        return np.take_along_axis(
            best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), axis=1
        )

    def ours() -> list:
        return gallery.search(files, TOP)

    def loop() -> list:
        return [gallery.search(path, TOP) for path in files]

    found = [[hit.image_id for hit in hits] for hits in ours()]
    assert [ids[0] for ids in found] == least()[:, 0].tolist()
    times = interleaved({"ours": ours, "least": least, "loop": loop}, 2 if options.quick else 5)
    what = f"{len(files):,} files in {len(vectors):,}"
    result.add(f"{what}: one call", median(times["ours"]), "s")
    result.add(f"{what}: encoding in batches and one product", median(times["least"]), "s")
    result.add(f"{what}: one call to that", ratio(times, "ours", "least"), "×", most=1.2)
    result.add(f"{what}: a loop to one call", ratio(times, "loop", "ours"), "×", least=2.5)
