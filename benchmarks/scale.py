"""What the search part measured, fitted and carried on to larger collections."""

from __future__ import annotations

import json
import re

import numpy as np

from benchmarks.common import RESULTS, Options, Result

TITLE = "Scale"
SIZES = (10**6, 10**7, 10**9)
DIM = 2048


def run(options: Options, result: Result) -> None:
    path = RESULTS / "search.json"
    if not path.exists():
        raise RuntimeError("run the part 'search' first: its figures are fitted here")
    rows = json.loads(path.read_text())["rows"]
    result.note(
        "Least-squares lines through the logarithms of what the part `search` measured, and what "
        "they would give beyond; `docs/scaling.md` says what a cluster needs instead."
    )
    for store in ("embedded", "Milvus 2.3.5"):
        for what in ("one search", "flush and index", "memory of the store", "disk"):
            points = {}
            for row in rows:
                found = re.fullmatch(rf"{re.escape(store)}, ([\d,]+): {what}", row["what"])
                if found and row["value"] > 0:
                    points[int(found[1].replace(",", ""))] = (row["value"], row["unit"])
            if len(points) < 2:
                continue
            sizes = np.log([float(size) for size in points])
            values = np.log([value for value, _ in points.values()])
            slope, base = np.polyfit(sizes, values, 1)
            unit = next(iter(points.values()))[1]
            result.add(f"{store}: {what} grows as size to the power", float(slope))
            measured = ", ".join(f"{n:,}: {v:.3g} {unit}" for n, (v, _) in points.items())
            beyond = ", ".join(
                f"{n:,}: {float(np.exp(base + slope * np.log(n))):,.3g} {unit}" for n in SIZES[:2]
            )
            result.note(f"{store}, {what}: measured {measured}; the line gives {beyond}.")
    for size in SIZES:
        raw = size * DIM * 4 / 2**30
        graph = size * (2 * 16 * 4 * 1.1 + 8) / 2**30
        result.add(f"{size:,} vectors: raw float32", raw, "GiB")
        result.add(f"{size:,} vectors: in memory as HNSW (M = 16)", raw + graph, "GiB")
