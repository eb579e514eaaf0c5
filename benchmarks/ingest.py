"""Ingest of JPEGs of VOC's size: against what the processors allow, and the usual way."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.common import (
    ROOT,
    Options,
    Result,
    cold,
    copies,
    median,
    photographs,
    processor_seconds,
    small_files,
    watch_server,
)
from benchmarks.encode import RESNET, plain

TITLE = "Ingest"
SECOND = 17_125  # files of VOC2012
PEERS = ROOT / ".peers"


def run(options: Options, result: Result) -> None:
    from imgsearch import gallery
    from imgsearch.config import load_settings
    from imgsearch.encoders import load_encoder
    from imgsearch.ingestion import ingest

    home = load_settings(imgsearch_home=options.work / "home", imgsearch_backend="auto")
    photos = photographs(options.photos)
    sizes = {RESNET: (480, 48, 3), "mini": (2_400, 96, 3)}
    if options.quick:
        sizes = {RESNET: (64, 32, 1), "mini": (320, 64, 1)}
    for name, (count, few, rounds) in sizes.items():
        loaded = load_encoder(name, settings=home)
        # The folders here are short and VOC is not: ingest finds this one in use and takes it.
        encoder = loaded.optimized_for(SECOND)
        folders = [
            copies(photos[turn * 7 :] + photos[: turn * 7], options.work / f"{name}{turn}", count)
            for turn in range(rounds)
        ]
        ours, limits, usual, cost, theirs = [], [], [], [], []
        for turn, folder in enumerate(folders):
            encode, decode = parts(encoder, folder)
            target = f"bench{turn}"
            with gallery.Gallery.open(
                target, create=True, encoder=encoder, settings=home
            ) as opened:  # starting the store's server is not what is measured
                server = opened.vectors.connection.lease.pid
                watch_server(server)
                before = processor_seconds(server)
                opened.ensure_vectors()
                start, spent = time.perf_counter(), time.process_time()
                report = ingest(folder, target, encoder=encoder, settings=home)
                ours.append(report.encoded / (time.perf_counter() - start))
                spent = time.process_time() - spent + processor_seconds(server) - before
                opened.drop()
            again = parts(encoder, folder)
            encode, decode = (encode + again[0]) / 2, (decode + again[1]) / 2
            limits.append(1 / (1 / encode + 1 / decode))
            cost.append(spent / report.encoded)
            usual.append(the_usual_way(encoder, folder, few, options.work / f"usual-{name}{turn}"))
            if name == RESNET and PEERS.is_dir():
                theirs.append(imagededup(folder, few, options.work / f"imagededup{turn}"))
        result.note(
            f"{name}: {count} different JPEGs in each of {rounds} rounds; ran with "
            f"{encoder.backend} in {encoder.precision}. Encode alone {encode:.1f}/s, decode "
            f"alone on all processors {decode:.0f}/s, {1000 * median(cost):.1f} ms of "
            "processor time for each image with everything."
        )
        result.add(f"{name}: ingest", median(ours), "images/s")
        result.add(f"{name}: what encode and decode allow", median(limits), "images/s")
        result.add(
            f"{name}: ingest to that limit",
            median([a / b for a, b in zip(ours, limits, strict=True)]), "×", least=0.9,
        )  # fmt: skip
        # What was asked for is 7 times, where the processor has bf16 units.
        goal = {"least": 7} if name == RESNET and encoder.precision == "bf16" else {}
        result.add(
            f"{name}: ingest to the usual way",
            median([a / b for a, b in zip(ours, usual, strict=True)]), "×", **goal,
            note=f"{few} images the usual way",
        )  # fmt: skip
        if theirs:
            result.add("imagededup, the same ResNet-50", median(theirs), "images/s")
            result.add(
                f"{name}: ingest to imagededup, which stores nothing",
                median([a / b for a, b in zip(ours, theirs, strict=True)]), "×",
                note=f"{few} images with imagededup",
            )  # fmt: skip
        if name == RESNET:
            agreement(encoder, photos[: 64 if options.quick else 128], result)
    second(home, options, result)
    if not PEERS.is_dir():
        result.note("imagededup is not installed (make .peers/stamp): not compared.")


def parts(encoder, folder: Path) -> tuple[float, float]:
    """Images a second that encoding alone and decoding alone reach."""
    from concurrent.futures import ThreadPoolExecutor

    from imgsearch.pipeline import Pipeline

    pipeline = Pipeline(encoder)
    files = sorted(folder.iterdir())[:192]
    with ThreadPoolExecutor(pipeline.workers) as pool:
        start = time.perf_counter()
        prepared = [pixels for pixels, _ in pool.map(lambda f: pipeline._prepare(f, None), files)]
        decode = len(files) / (time.perf_counter() - start)
    batch = np.stack(prepared[:64])
    encoder.encode_batch(batch[:32])
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 3:
        encoder.encode_batch(batch[:32])
        count += 32
    return count / (time.perf_counter() - start), decode


def the_usual_way(encoder, folder: Path, count: int, store: Path) -> float:
    """Images a second as in the original demo: one image a Towhee call, everything at the end.

    A pipeline of decode, embed (the network as it comes: torch, fp32) and normalise runs
    once for each file; ids and vectors pile up in lists, and go into a fresh embedded Milvus
    in one insert.
    """
    from PIL import Image
    from pymilvus import DataType, MilvusClient
    from towhee import pipe

    from imgsearch import images

    network = plain(encoder.name)

    def features(pixels: np.ndarray) -> np.ndarray:
        return network(encoder.preprocess(Image.fromarray(pixels))[None])[0]

    embed = (
        pipe.input("path")
        .map("path", "picture", lambda path: np.asarray(images.decode(path)))
        .map("picture", "features", features)
        .map("features", "vector", lambda vector: vector / np.linalg.norm(vector))
        .output("vector")
    )
    files = [str(path) for path in sorted(folder.iterdir())[: count + 2]]
    for path in files[:2]:
        embed(path).get()
    client = MilvusClient(f"{store}.db")
    schema = client.create_schema(auto_id=True)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("path", DataType.VARCHAR, max_length=500)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=encoder.dim)
    client.create_collection("usual", schema=schema)
    start = time.perf_counter()
    rows = [{"path": path, "vector": embed(path).get()[0]} for path in files[2:]]
    client.insert("usual", rows)
    client.flush("usual")
    seconds = time.perf_counter() - start
    client.close()
    return len(rows) / seconds


def imagededup(folder: Path, count: int, part: Path) -> float:
    """Images a second of imagededup's CNN path, in a process of its own."""
    part.mkdir()
    for path in sorted(folder.iterdir())[:count]:
        (part / path.name).symlink_to(path)
    code = "import sys, pathlib, benchmarks.peer as p; p.main(pathlib.Path(sys.argv[1]))"
    return float(cold(code, env={"PYTHONPATH": str(PEERS)}, args=(str(part),)))


def agreement(encoder, photos: list[Path], result: Result) -> None:
    """Vectors of this decoder and resize, against the published preprocessing."""
    from PIL import Image

    from imgsearch.images import decode

    spec = encoder.preprocessing

    def published(path: Path) -> np.ndarray:
        picture = Image.open(path).convert("RGB")
        width, height = picture.size
        scale = spec.resize / min(width, height)
        size = (spec.resize, int(scale * height)) if width <= height else (
            int(scale * width), spec.resize)  # fmt: skip
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        left, upper = (round((side - spec.crop) / 2) for side in picture.size)
        return np.asarray(picture.crop((left, upper, left + spec.crop, upper + spec.crop)))

    ours = np.stack([encoder.preprocess(decode(p, draft=spec.resize)) for p in photos])
    theirs = np.stack([published(path) for path in photos])
    cosine = (encoder.encode_batch(ours) * encoder.encode_batch(theirs)).sum(axis=1)
    least = float(cosine.min())
    result.add(
        f"least cosine with the published preprocessing, {len(photos)} photographs", f"{least:.6f}"
    )
    result.rows[-1].goal, result.rows[-1].met = "≥ 0.999", least >= 0.999


def second(home, options: Options, result: Result) -> None:
    """The same files again: nothing is read, nothing encoded."""
    from imgsearch import images
    from imgsearch.collection import new_row
    from imgsearch.config import load_settings
    from imgsearch.encoders import load_encoder
    from imgsearch.gallery import Gallery
    from imgsearch.ingestion import ingest

    home = load_settings(imgsearch_home=options.work / "second")
    folder = small_files(options.work / "many", SECOND)
    encoder = load_encoder("mini", settings=home)
    one = encoder.encode([next(folder.iterdir())])[0]
    # What a first ingest would leave behind, without its minutes: rows and vectors.
    random = np.random.default_rng(0)
    with Gallery.open(
        "second", create=True, encoder=encoder, index="FLAT", settings=home
    ) as gallery:
        batch, vectors = [], {}
        for found in images.find(folder):
            facts = images.probe(found.path.read_bytes())
            batch.append(new_row(found, facts))
            noisy = one + 0.5 * random.standard_normal(len(one), dtype=np.float32)
            vectors[facts.image_id] = noisy / np.linalg.norm(noisy)
            if len(batch) == 2000:
                gallery.store(batch, vectors)
                batch, vectors = [], {}
        gallery.store(batch, vectors)
        gallery.flush()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        report = ingest(folder, "second", settings=home)
        times.append(time.perf_counter() - start)
        if report.unchanged != SECOND:
            raise RuntimeError(f"{report.unchanged} of {SECOND} were passed over")
    result.add(f"second ingest of {SECOND:,} files", median(times), "s", most=5)
