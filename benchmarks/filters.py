"""Search under filters: what it costs and what it finds, by the share of images that fulfil them.

The vectors lie in clusters, as photographs of a few kinds of things do. A filter is met by images
that are scattered over all clusters, or by those only that are far from the query: it asks for
cars, and the query is a cat.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np

from benchmarks.common import (
    Options,
    Result,
    fill,
    image_rows,
    interleaved,
    median,
    photographs,
    ratio,
    recall,
    watch_server,
)
from benchmarks.search import PAUSE, TOP, milvus_server, until_idle

TITLE = "Filters"
KINDS, QUERIES = 50, 50
SHARES = {"50 %": 0.5, "10 %": 0.1, "2 %": 0.02, "0.1 %": 0.001}


def run(options: Options, result: Result) -> None:
    from imgsearch.config import load_settings
    from imgsearch.encoders import load_encoder

    size = 5_000 if options.quick else 20_000
    embedded = load_settings(imgsearch_home=options.work / "embedded", imgsearch_backend="auto")
    encoder = load_encoder("mini", settings=embedded)
    data = Clusters(size, encoder.dim)
    result.note(
        f"{size:,} vectors of {encoder.dim} numbers in {KINDS} clusters, top {TOP}, {QUERIES} "
        "queries that are not among them. 'scattered': the images that fulfil the filter are "
        "drawn from all clusters; 'apart': from those that are farthest from the query."
    )
    photos = [path.read_bytes() for path in photographs(options.photos, 30)]
    as_table(embedded, encoder, 10_000 if options.quick else 100_000, result)
    measure("embedded", embedded, encoder, data, photos, result, options.quick)
    if options.milvus is None:
        result.note("No Milvus server here (make .venv-milvus/stamp): the server is not measured.")
        return
    with milvus_server(options.work / "milvus", options.milvus) as milvus:
        server = load_settings(
            imgsearch_home=options.work / "server", milvus_uri=milvus.uri, imgsearch_backend="auto"
        )
        idle = lambda: until_idle(milvus.process.pid)  # noqa: E731
        measure("Milvus 2.3.5", server, encoder, data, photos, result, options.quick, idle)
        plain_milvus(milvus.uri, data, result, idle)


def as_table(settings, encoder, count: int, result: Result) -> None:
    """Make a DataFrame of a gallery, which reads no vectors: it has none here."""
    from imgsearch.gallery import Gallery

    with Gallery.open("table", create=True, encoder=encoder, settings=settings) as gallery:
        for at in range(0, count, 5_000):
            rows = [
                row._replace(
                    attributes={"kind": f"kind {row.image_id % KINDS}", "tags": ["a", "b"]}
                )
                for row in image_rows(range(at, at + 5_000))
            ]
            gallery.metadata.prepare(gallery.name, rows)
            gallery.metadata.commit(gallery.name, [row.path for row in rows])
        gallery.to_pandas(where={"kind": "kind 0"})  # imports pandas
        start = time.perf_counter()
        table = gallery.to_pandas()
        goal = {"most": 3} if count == 100_000 else {}
        result.add(f"to_pandas of {count:,} files", time.perf_counter() - start, "s", **goal)
        assert len(table) == count
        gallery.drop()


class Clusters:
    """Vectors in clusters, and filters of each share for each query."""

    def __init__(self, size: int, dim: int):
        random = np.random.default_rng(11)
        self.centres = random.standard_normal((KINDS, dim), dtype=np.float32)
        kinds = random.permutation(np.arange(size + QUERIES) % KINDS)
        spread = 0.7 * random.standard_normal((size + QUERIES, dim), dtype=np.float32)
        vectors = self.centres[kinds] + spread
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors, self.queries = vectors[QUERIES:], vectors[:QUERIES]
        self.kinds = kinds[QUERIES:]
        self.ranks = random.permutation(size)  # whoever is below a number is scattered
        # Numbers of the images of each kind, so that a filter can ask for a few of them.
        self.places = np.zeros(size, np.int64)
        for kind in range(KINDS):
            mine = np.flatnonzero(self.kinds == kind)
            self.places[mine] = np.arange(len(mine))

    def attributes(self, image: int) -> dict[str, int | str]:
        kind = f"kind {self.kinds[image]}"
        return {"kind": kind, "rank": int(self.ranks[image]), "place": int(self.places[image])}

    def scattered(self, query: int, share: float) -> tuple[dict, str, np.ndarray]:
        """A filter of ours, the same as an expression of Milvus, and who fulfils it."""
        most = round(share * len(self.ranks))
        return {"rank": {"<": most}}, f"rank < {most}", np.flatnonzero(self.ranks < most)

    def apart(self, query: int, share: float) -> tuple[dict, str, np.ndarray]:
        count = max(1, round(share * KINDS))
        far = np.argsort(self.centres @ self.queries[query])[:count]
        most = round(share * len(self.kinds) / count)
        fulfil = np.isin(self.kinds, far) & (self.places < most)
        where = {"kind": [f"kind {kind}" for kind in far], "place": {"<": most}}
        expression = f"kind in [{', '.join(map(str, far))}] and place < {most}"
        return where, expression, np.flatnonzero(fulfil)

    def exact(self, query: int, among: np.ndarray) -> np.ndarray:
        scores = self.vectors[among] @ self.queries[query]
        return among[np.argsort(-scores)[:TOP]]


def measure(
    what: str,
    settings,
    encoder,
    data: Clusters,
    photos: list[bytes],
    result: Result,
    quick: bool,
    idle: Callable[[], None] = lambda: None,
) -> None:
    from imgsearch.gallery import Gallery

    size = len(data.vectors)
    with Gallery.open("filters", create=True, encoder=encoder, settings=settings) as gallery:
        fill(gallery, data.vectors)
        if lease := gallery.vectors.connection.lease:
            watch_server(lease.pid)
        given = {image.path: data.attributes(image.image_id) for image in gallery}
        start = time.perf_counter()
        gallery.set_attributes(given)
        goal = {"most": 5} if gallery.vectors.embedded else {}
        result.add(
            f"{what}: attributes of {size:,} images", time.perf_counter() - start, "s", **goal
        )
        idle()
        everything = np.arange(size)
        found = [[h.image_id for h in gallery.search(q, TOP)] for q in data.queries]
        true = [data.exact(i, everything) for i in range(QUERIES)]
        result.add(f"{what}: recall@{TOP} without a filter", recall(found, true))
        for share, number in SHARES.items():
            for relation in ("scattered", "apart"):
                kind = f"{what}, {share} {relation}"
                filters = [getattr(data, relation)(i, number) for i in range(QUERIES)]
                hits = [
                    gallery.search(q, TOP, where=where)
                    for q, (where, _, _) in zip(data.queries, filters, strict=True)
                ]
                true = [data.exact(i, among) for i, (_, _, among) in enumerate(filters)]
                assert all(h.matched == len(f[2]) for h, f in zip(hits, filters, strict=True))
                share_found = recall([[h.image_id for h in one] for one in hits], true)
                ways = ", ".join(sorted({one.way for one in hits}))
                result.add(f"{kind}: recall@{TOP}", share_found, least=0.99, note=ways)
                if not gallery.vectors.embedded:
                    first = [
                        before_any_other(gallery, query, among)
                        for query, (_, _, among) in zip(data.queries[:5], filters, strict=False)
                    ]
                    result.add(f"{kind}: the first search by a vector", 1000 * median(first), "ms")
                times = timed(gallery, data, photos, filters[0][0], 4 if quick else 20)
                result.add(f"{kind}: who fulfils a new filter", 1000 * median(times["new"]), "ms")
                result.add(f"{kind}: search by a vector", 1000 * median(times["filtered"]), "ms")
                goal = {"most": 2} if gallery.vectors.embedded else {}
                for what_by, (filtered, plain) in {
                    "search by a vector": ("filtered", "plain"),
                    "search by a photograph": ("filtered photo", "photo"),
                    "search by a photograph under a new filter": ("new photo", "photo"),
                }.items():
                    times_as_long = ratio(times, filtered, plain)
                    text = f"{kind}: {what_by}, to one without a filter"
                    result.add(text, times_as_long, "×", **goal)
        gallery.drop()


def before_any_other(gallery, query: np.ndarray, among: np.ndarray) -> float:
    """Seconds of a search on a server of which no vectors are kept yet."""
    from imgsearch.stores.filtered import Filtered

    searches = Filtered(gallery.vectors)
    start = time.perf_counter()
    searches.search(gallery.name, query[None], TOP, among)
    seconds = time.perf_counter() - start
    searches.close()
    return seconds


def timed(gallery, data: Clusters, photos: list[bytes], where: dict, rounds: int) -> dict:
    """Seconds of searches under a filter that is kept, as in a session, and under new ones."""
    turn, number = itertools.cycle(photos), itertools.count(1)

    def search(photo: bool, where: dict | None) -> None:
        gallery.search(next(turn) if photo else data.queries[0], TOP, where=where)

    def new() -> dict:
        """Another filter for the same images: numbers of attributes are whole."""
        less = next(number) / 1e6
        return {
            name: {"<": test["<"] - less} if isinstance(test, dict) else test
            for name, test in where.items()
        }

    return interleaved(
        {
            "plain": lambda: search(False, None),
            "filtered": lambda: search(False, where),
            "new": lambda: gallery.metadata.matching(gallery.name, new()),
            "photo": lambda: search(True, None),
            "filtered photo": lambda: search(True, where),
            "new photo": lambda: search(True, new()),
        },
        rounds, warm=2, pause=PAUSE,
    )  # fmt: skip


def plain_milvus(uri: str, data: Clusters, result: Result, idle: Callable[[], None]) -> None:
    """The same searches as most programs do them: scalar fields, and an expression over them."""
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(uri)
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=data.vectors.shape[1])
    for name in ("kind", "rank", "place"):
        schema.add_field(name, DataType.INT64)
    index = client.prepare_index_params()
    build = {"M": 16, "efConstruction": 200}
    index.add_index("vector", index_type="HNSW", metric_type="COSINE", params=build)
    client.create_collection("plain", schema=schema, index_params=index)
    rows = [
        {"id": i, "vector": vector, "kind": int(k), "rank": int(r), "place": int(p)}
        for i, (vector, k, r, p) in enumerate(
            zip(data.vectors, data.kinds, data.ranks, data.places, strict=True)
        )
    ]
    for at in range(0, len(rows), 1_000):
        client.insert("plain", rows[at : at + 1_000])
    client.flush("plain")
    while client.describe_index("plain", "vector")["pending_index_rows"]:
        time.sleep(0.5)
    client.load_collection("plain")
    idle()

    def search(query: np.ndarray, expression: str) -> list[int]:
        (hits,) = client.search(
            "plain", data=[query], filter=expression, limit=TOP, output_fields=["id"],
            search_params={"metric_type": "COSINE", "params": {"ef": 128}},
            consistency_level="Session",
        )  # fmt: skip
        return [hit["id"] for hit in hits]

    everything = np.arange(len(rows))
    until, found = time.monotonic() + 120, 0.0
    while found < 0.99 and time.monotonic() < until:  # it goes on loading after it says it has
        true = [data.exact(i, everything) for i in range(QUERIES)]
        found = recall([search(query, "") for query in data.queries], true)
        idle()
    result.add(f"Milvus 2.3.5 by an expression: recall@{TOP} without a filter", found)
    for share, number in SHARES.items():
        for relation in ("scattered", "apart"):
            filters = [getattr(data, relation)(i, number) for i in range(QUERIES)]
            for _ in range(2):  # the first time, to warm up
                hits, seconds = [], []
                for query, (_, expression, _) in zip(data.queries, filters, strict=True):
                    start = time.perf_counter()
                    hits.append(search(query, expression))
                    seconds.append(time.perf_counter() - start)
            true = [data.exact(i, among) for i, (_, _, among) in enumerate(filters)]
            kind = f"Milvus 2.3.5 by an expression, {share} {relation}"
            result.add(f"{kind}: recall@{TOP}", recall(hits, true))
            result.add(f"{kind}: search by a vector", 1000 * median(seconds), "ms")
    client.drop_collection("plain")
