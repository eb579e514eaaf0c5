"""Search at several sizes: the whole call, the vector part, and what storing costs."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from benchmarks.common import (
    Options,
    Result,
    fill,
    in_blocks,
    interleaved,
    lookalikes,
    median,
    memory,
    photographs,
    processor_seconds,
    ratio,
    recall,
    watch_server,
)
from tests.servers import Milvus

TITLE = "Search"
RESNET = "resnet50@random:0"
DIM, TOP, QUERIES = 2048, 10, 100
WHOLE = 17_125
PAUSE = 0.1  # seconds between two calls
EF = (32, 64, 128, 256, 512)


def run(options: Options, result: Result) -> None:
    from imgsearch.config import load_settings

    photos = photographs(options.photos)
    sizes = [1_000, WHOLE] if options.quick else [1_000, WHOLE, 100_000]
    real = features(photos, sizes[0 if options.quick else 1] + QUERIES, options)
    # Queries are of the same kind as the rest, and not among it.
    queries, every = real[:QUERIES], lookalikes(real[QUERIES:], sizes[-1])
    result.note(
        f"Vectors of {DIM} numbers, top {TOP}. {len(real) - QUERIES:,} of them are mini's, of "
        f"parts of {len(photos)} photographs, turned into that many dimensions; any others lie "
        f"between two of those, with noise. {QUERIES} other parts are the queries. Default "
        "index. The numpy product is exact. Searches and products take turns, each after a pause "
        f"of {PAUSE} s; back to back are blocks of 12 calls."
    )
    embedded = load_settings(imgsearch_home=options.work / "embedded")
    for size in sizes:
        vectors = every[:size]
        vector_part(f"embedded, {size:,}", embedded, vectors, queries, result,
                    most=1.2 if size == 100_000 else None)  # fmt: skip
        if size == WHOLE:
            whole_call(photos, vectors, options, result)
    peers(every, queries, sizes, result)
    if options.milvus is None:
        result.note("No Milvus server here (make .venv-milvus/stamp): the server is not measured.")
        return
    with milvus_server(options.work / "milvus", options.milvus) as milvus:
        server = load_settings(imgsearch_home=options.work / "embedded", milvus_uri=milvus.uri)
        for size in sizes:
            vector_part(f"Milvus 2.3.5, {size:,}", server, every[:size], queries, result,
                        most=0.1 if size == 100_000 else None, milvus=milvus)  # fmt: skip


def until_idle(pid: int) -> None:
    """Wait, two minutes at most, until a server has put in order what was written."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        before = processor_seconds(pid)
        time.sleep(5)
        if processor_seconds(pid) - before < 0.5:
            return


def of_its_own(milvus) -> tuple[float, float]:
    """Milliseconds that a server's proxy took for all searches so far, and how many they were."""
    with urlopen(f"http://127.0.0.1:{milvus.health}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = [0.0, 0.0]
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith("milvus_proxy_sq_latency_") and 'query_type="search"' in name:
            for place, kind in enumerate(("_sum{", "_count{")):
                found[place] += float(value) if kind in name else 0
    return found[0], found[1]


def features(photos: list[Path], count: int, options: Options) -> np.ndarray:
    """mini's vectors of so many parts of the photographs, turned into `DIM` dimensions."""
    from imgsearch.config import load_settings
    from imgsearch.encoders import load_encoder
    from imgsearch.images import decode

    encoder = load_encoder("mini", settings=load_settings(imgsearch_home=options.work / "home"))
    encoder = encoder.optimized_for(count)
    random, found, opened = np.random.default_rng(3), [], lru_cache(1)(decode)
    for rows in np.array_split(np.arange(count), max(1, count // 256)):
        prepared = []
        for photo in rows * len(photos) // count:
            picture = opened(photos[photo])
            across, down = random.uniform(0.25, 1, 2) * picture.size
            left, upper = random.uniform(0, 1, 2) * (picture.width - across, picture.height - down)
            box = [round(side) for side in (left, upper, left + across, upper + down)]
            prepared.append(encoder.preprocess(picture.crop(box)))
        found.append(encoder.encode_batch(np.stack(prepared)))
    turn = random.standard_normal((DIM, encoder.dim), dtype=np.float32)
    return random.permutation(np.concatenate(found)) @ np.linalg.qr(turn)[0].T


def exact(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    scores = vectors @ query
    best = np.argpartition(scores, -TOP)[-TOP:]
    return best[np.argsort(-scores[best])]


def vector_part(
    what: str,
    where,
    vectors: np.ndarray,
    queries: np.ndarray,
    result: Result,
    *,
    most: float | None,
    milvus: Milvus | None = None,
) -> None:
    from imgsearch.stores.vectors import IndexSpec, VectorStore

    name, size = f"v{len(vectors)}", len(vectors)
    with VectorStore.open(where) as store:
        pid = store.connection.lease.pid if store.connection.lease else None
        if pid:
            watch_server(pid)
        empty = memory(pid) if pid else 0
        index = IndexSpec.parse("auto", embedded=where.embedded_vectors)
        exactly = index.kind == "FLAT"
        store.create(name, vectors.shape[1], index)
        start = time.perf_counter()
        for at in range(0, size, 5_000):
            store.upsert(name, np.arange(at, min(at + 5_000, size)), vectors[at : at + 5_000])
        written = time.perf_counter()
        store.flush(name)
        indexed = time.perf_counter()
        turn = iter(np.resize(np.arange(len(queries)), 10**6))

        def ours():
            q = queries[next(turn)]
            return store.search(name, q[None], TOP)

        ways = {"ours": ours, "exact": lambda: exact(vectors, queries[next(turn)])}
        if milvus:
            until_idle(milvus.process.pid)
        before = of_its_own(milvus) if milvus else ()
        times = interleaved(ways, 60, warm=5, pause=PAUSE)
        steady = in_blocks(ways, 10, 12, pause=3 * PAUSE)
        if milvus:
            spent, calls = np.subtract(of_its_own(milvus), before)
            result.add(f"{what}: one search as the server counts it", spent / calls, "ms")
        true = [exact(vectors, q) for q in queries]
        found = [ids for ids, _ in store.search(name, queries, TOP)]
        result.add(f"{what}: writing", size / (written - start), "rows/s")
        goal = {"most": 5} if exactly else {}
        result.add(f"{what}: flush and index", indexed - written, "s", **goal)
        result.add(f"{what}: one search", 1000 * median(times["ours"]), "ms")
        result.add(f"{what}: exact numpy product", 1000 * median(times["exact"]), "ms")
        result.add(f"{what}: search to exact product", ratio(times, "ours", "exact"), "×")
        steadily = f"{what}, back to back"
        result.add(f"{steadily}: one search", 1000 * median(steady["ours"]), "ms")
        result.add(f"{steadily}: exact numpy product", 1000 * median(steady["exact"]), "ms")
        result.add(
            f"{steadily}: search to exact product", ratio(steady, "ours", "exact"), "×",
            **({"most": most} if most else {}),
        )  # fmt: skip
        result.add(f"{what}: recall@{TOP}", recall(found, true), least=1 if exactly else 0.99)
        by_ef = {}
        for ef in () if exactly else EF:
            given = {"ef": ef}
            hits = [ids for ids, _ in store.search(name, queries, TOP, search_params=given)]
            ways = {"": lambda g=given: store.search(name, queries[:1], TOP, search_params=g)}
            by_ef[ef] = recall(hits, true), 1000 * median(interleaved(ways, 30)[""])
        if by_ef:
            result.note(
                f"{what}, recall@{TOP} and milliseconds by ef: "
                + "; ".join(f"{ef}: {share:.3f}, {ms:.3g}" for ef, (share, ms) in by_ef.items())
                + "."
            )
        if pid:
            most = 2 * vectors.nbytes / 2**20 + 200
            result.add(f"{what}: memory of the store", memory(pid) - empty, "MiB", most=most)
            folder = where.imgsearch_home / "vectors.db" / "collections" / name
            disk = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            result.add(f"{what}: disk", disk / 2**20, "MiB")
        store.drop(name)


def whole_call(photos: list[Path], vectors: np.ndarray, options: Options, result: Result) -> None:
    """From the bytes of a photograph to hits with their paths."""
    from imgsearch.config import load_settings
    from imgsearch.encoders import load_encoder
    from imgsearch.gallery import Gallery

    home = load_settings(imgsearch_home=options.work / "whole", imgsearch_backend="auto")
    name = RESNET
    encoder = load_encoder(name, settings=home)
    with Gallery.open("whole", create=True, encoder=encoder, settings=home) as gallery:
        fill(gallery, vectors)
        contents = [path.read_bytes() for path in photos[:50]]
        turn = iter(np.resize(np.arange(len(contents)), 10**6))

        def ours():
            return gallery.search(contents[next(turn)], TOP)

        def least():
            return exact(vectors, encoder.encode([contents[next(turn)]])[0])

        rounds = 15 if options.quick else 40
        times = interleaved({"ours": ours, "least": least}, rounds, warm=3, pause=PAUSE)
        hits = ours()
        assert len(hits) == TOP
        assert hits[0].path.endswith(".jpg")
    what = f"whole call, {len(vectors):,}, {name} {encoder.backend}"
    result.add(f"{what}: from bytes to hits with paths", 1000 * median(times["ours"]), "ms")
    result.add(f"{what}: encode and exact product", 1000 * median(times["least"]), "ms")
    result.add(f"{what}: whole call to that", ratio(times, "ours", "least"), "×", most=1.15)
    spent = ", ".join(f"{k} {1000 * v:.1f}" for k, v in hits.seconds.items())
    result.note(f"Where one such call goes (ms): {spent}.")


def peers(every: np.ndarray, queries: np.ndarray, sizes: list[int], result: Result) -> None:
    try:
        import faiss
    except ImportError:
        result.note("FAISS is not installed: not compared.")
        return
    for size in sizes[1:]:
        vectors, kinds = every[:size], {"flat": faiss.IndexFlatIP(DIM)}
        if size == WHOLE:
            kinds["HNSW"] = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
            kinds["HNSW"].hnsw.efConstruction, kinds["HNSW"].hnsw.efSearch = 200, 64
        turn = iter(np.resize(np.arange(len(queries)), 10**6))
        ways = {"exact": lambda v=vectors, t=turn: exact(v, queries[next(t)])}
        for kind, index in kinds.items():
            start = time.perf_counter()
            index.add(vectors)
            if kind == "HNSW":
                result.add(f"FAISS HNSW, {size:,}: index", time.perf_counter() - start, "s")
            ways[kind] = lambda i=index, t=turn: i.search(queries[next(t)][None], TOP)
        times = interleaved(ways, 30, warm=3, pause=PAUSE)
        for kind in kinds:
            result.add(f"FAISS {kind}, {size:,}: one search", 1000 * median(times[kind]), "ms")
            share = ratio(times, kind, "exact")
            result.add(f"FAISS {kind}, {size:,}: search to exact product", share, "×")


@contextlib.contextmanager
def milvus_server(folder: Path, venv: Path) -> Iterator[Milvus]:
    """A real Milvus server on loopback, with the rhythms that it has by itself."""
    Path("/tmp/milvus").mkdir(exist_ok=True)
    folder.mkdir()
    server = Milvus(folder, venv, short_intervals=False)
    watch_server(server.process.pid)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
