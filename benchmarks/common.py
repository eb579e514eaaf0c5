"""What every benchmark uses: paired timing, photographs, vectors, and results on disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "torch", "openvino", "pillow", "towhee", "pymilvus", "milvus-lite", "faiss-cpu", "numpy",
)  # fmt: skip


@dataclass
class Options:
    """What the command line asked for."""

    photos: Path
    quick: bool
    work: Path  # a folder of this run, removed after it
    milvus: Path | None  # an environment with the `milvus` package, for a real server


@dataclass
class Row:
    """One line of the table: a figure, and what it was meant to be."""

    what: str
    value: float | str
    unit: str = ""
    goal: str = ""
    met: bool | None = None
    note: str = ""


@dataclass
class Result:
    """What a part measured."""

    part: str
    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    busy: float = 0.0
    seconds: float = 0.0

    def add(
        self,
        what: str,
        value: float | str,
        unit: str = "",
        *,
        least: float | None = None,
        most: float | None = None,
        note: str = "",
    ) -> None:
        """Add a figure; `least` or `most` is its goal."""
        goal, met = "", None
        if least is not None:
            goal, met = f"≥ {least:g}", value >= least
        if most is not None:
            goal, met = f"≤ {most:g}", value <= most
        self.rows.append(Row(what, value, unit, goal, met, note))
        print(f"  {what}: {shown(value)} {unit} {goal}", flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"  ({text})", flush=True)


def shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if value and abs(value) < 0.0995:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ---------------------------------------------------------------- timing


def interleaved(
    ways: Mapping[str, Callable[[], object]], rounds: int, *, warm: int = 1, pause: float = 0
) -> dict[str, list[float]]:
    """Seconds of each way, all of them in each round and in changing order.

    Other work on the machine so hits them alike; compare them by :func:`ratio`. Before
    each call there is a `pause`: numpy's threads go on turning for more than 50 ms after a
    product, and would take a processor from whatever comes next.
    """
    for _ in range(warm):
        for way in ways.values():
            way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(pause)
            start = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - start)
    return times


def in_blocks(
    ways: Mapping[str, Callable[[], object]], rounds: int, calls: int, *, pause: float
) -> dict[str, list[float]]:
    """Seconds of each way when it is called back to back, the median of a block in each round.

    How fast the memory of a rented machine is changes by a third within minutes, so only
    neighbouring blocks are compared, by :func:`ratio`.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            time.sleep(pause)
            block = interleaved({name: way}, calls)
            times[name].append(median(block[name]))
    return times


def ratio(times: Mapping[str, list[float]], a: str, b: str) -> float:
    """Median over the rounds of a's seconds to b's."""
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def median(times: list[float]) -> float:
    return statistics.median(times)


def _ticks() -> tuple[float, float]:
    """Seconds that all processors worked, and that this process and its children did."""
    with Path("/proc/stat").open() as file:
        user, nice, system, _, _, irq, soft, steal, *_ = map(int, file.readline().split()[1:])
    hertz = os.sysconf("SC_CLK_TCK")
    own = os.times()
    mine = own.user + own.system + own.children_user + own.children_system
    return (user + nice + system + irq + soft + steal) / hertz, mine


@contextmanager
def watched(result: Result) -> Iterator[None]:
    """Note how long it takes, and how many processors the rest of the machine used."""
    start = time.perf_counter()
    before = _ticks() if sys.platform == "linux" else (0, 0)
    others = _servers()
    try:
        yield
    finally:
        result.seconds = time.perf_counter() - start
        if sys.platform == "linux":
            after = _ticks()
            total, own = (b - a for a, b in zip(before, after, strict=True))
            own += _servers() - others
            result.busy = max(0.0, (total - own) / result.seconds)


_watched_pids: set[int] = set()


def watch_server(pid: int) -> None:
    """Count a server's processor time as this benchmark's own."""
    _watched_pids.add(pid)


def _servers() -> float:
    return sum(processor_seconds(pid) for pid in _watched_pids)


def processor_seconds(pid: int) -> float:
    """Processor time that a process has taken so far, 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int | str = "self") -> float:
    """MiB that a process holds."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith("VmRSS")), 0.0)


# ---------------------------------------------------------------- what is measured with


def photographs(folder: Path, limit: int | None = None) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"no photographs in {folder}")
    return files[:limit]


def copies(photos: list[Path], folder: Path, count: int) -> Path:
    """So many different files of those photographs: each has a comment of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = [path.read_bytes() for path in photos]
    for number in range(count):
        data = contents[number % len(contents)]
        comment = f"{number:08d}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"{number:06d}.jpg").write_bytes(data[:2] + segment + data[2:])
    return folder


def small_files(folder: Path, count: int) -> Path:
    """So many different JPEGs of a few hundred bytes."""
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (32, 32), (90, 120, 40)).save(buffer, "JPEG", quality=50)
    one = folder.parent / f"{folder.name}.jpg"
    one.write_bytes(buffer.getvalue())
    try:
        return copies([one], folder, count)
    finally:
        one.unlink()


def lookalikes(real: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Vectors as if of more photographs: between two real ones, and some noise.

    float32 (count, dim), of length 1. The first ones are the real ones.
    """
    random = np.random.default_rng(seed)
    n, dim = real.shape
    out = np.empty((count, dim), np.float32)
    out[: min(n, count)] = real[:count]
    spread = float(np.linalg.norm(real - real.mean(0), axis=1).mean()) / dim**0.5
    for start in range(n, count, 4096):
        stop = min(count, start + 4096)
        a, b = (real[random.integers(0, n, stop - start)] for _ in range(2))
        share = random.beta(0.5, 0.5, (stop - start, 1)).astype(np.float32)
        noise = random.standard_normal((stop - start, dim), dtype=np.float32)
        out[start:stop] = share * a + (1 - share) * b + 0.3 * spread * noise
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


def fill(gallery, vectors: np.ndarray) -> None:
    """Store vectors with rows of images that do not exist."""
    for at in range(0, len(vectors), 2_000):
        part = range(at, min(at + 2_000, len(vectors)))
        gallery.store(image_rows(part), {i: vectors[i] for i in part})
    gallery.flush()


def image_rows(numbers: range) -> list:
    """Rows of images that do not exist."""
    from imgsearch.stores.metadata import ImageRow

    return [
        ImageRow(f"/photos/{i:06d}.jpg", i, f"{i:064x}", 90_000, 500, 375, "JPEG", i)
        for i in numbers
    ]


def recall(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """Share of the exact hits that were found."""
    pairs = zip(found, exact, strict=True)
    return float(np.mean([len(set(f) & set(e)) / len(e) for f, e in pairs]))


def cold(code: str, *, env: Mapping[str, str] | None = None, args: tuple[str, ...] = ()) -> str:
    """What a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *args],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "it failed")
    return done.stdout


# ---------------------------------------------------------------- results


def machine() -> dict[str, object]:
    """What it ran on."""
    linux = hasattr(os, "sched_getaffinity")
    processors = len(os.sched_getaffinity(0)) if linux else os.cpu_count()
    name = platform.processor() or platform.machine()
    flags: set[str] = set()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
        flags = set(next((x for x in lines if x.startswith("flags")), "").split())
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": name,
        "processors": processors,
        "units": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def save(result: Result, about: dict) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = {
        "part": result.part,
        "title": result.title,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(result.seconds, 1),
        "processors_used_by_others": round(result.busy, 2),
        "rows": [vars(row) for row in result.rows],
        "notes": result.notes,
        **about,
    }
    path = RESULTS / f"{result.part}.json"
    path.write_text(json.dumps(text, indent=1, ensure_ascii=False, default=float) + "\n")


def table(order: list[str]) -> str:
    """The Markdown of every part that has results."""
    lines = ["# Measured", "", "Made by `make bench`; every figure of a part is of one run.", ""]
    for part in order:
        path = RESULTS / f"{part}.json"
        if not path.exists():
            continue
        got = json.loads(path.read_text())
        if "rows" not in got:
            continue
        where = got["machine"]
        units = ", ".join(where["units"]) or "none of avx2, avx512, bf16"
        lines += [
            f"## {got['title']}",
            "",
            f"{where['processor']}, {where['processors']} processors ({units}), "
            f"{where['memory_gib']} GiB, {where['system']}, Python {where['python']}; "
            + ", ".join(f"{k} {v}" for k, v in where["versions"].items())
            + f". {got['when']}, {got['seconds']:.0f} s; other programs used "
            f"{got['processors_used_by_others']:.2f} processors meanwhile. "
            f"Photographs: {got['photos']}." + (" Quick." if got.get("quick") else ""),
            "",
            "| what | measured | goal | |",
            "| --- | --- | --- | --- |",
        ]
        for row in got["rows"]:
            met = {True: "met", False: "**missed**", None: ""}[row["met"]]
            note = " ".join(x for x in (met, row["note"]) if x)
            value = f"{shown(row['value'])} {row['unit']}".strip()
            lines.append(f"| {row['what']} | {value} | {row['goal']} | {note} |")
        lines += [""] + [f"- {note}" for note in got["notes"]] + [""]
    return "\n".join(lines).rstrip() + "\n"


HEADLINES = [
    (
        "encode",
        r"resnet50.*: imgsearch to plain torch fp32",
        "ResNet-50: times as fast as plain torch (fp32, eager)",
    ),
    (
        "encode",
        r"resnet50.*to the best .*",
        "ResNet-50: times as fast as the best of torch and OpenVINO alone",
    ),
    (
        "ingest",
        r"resnet50.*: ingest to that limit",
        "ingest: share of what decoding and encoding allow",
    ),
    (
        "ingest",
        r"resnet50.*: ingest to the usual way",
        "ingest: times as fast as the original demo's way",
    ),
    (
        "ingest",
        r".*: ingest to imagededup.*",
        "ingest: times as fast as imagededup's encoding, the same network",
    ),
    (
        "ingest",
        r"second ingest of 17,125 files",
        "second ingest of 17,125 files",
    ),
    (
        "search",
        r"whole call, 17,125, .*: whole call to that",
        "search in 17,125, whole call: times encoding and an exact product",
    ),
    (
        "search",
        r"embedded, 100,000, back to back: search to exact product",
        "search in 100,000 vectors, back to back: times an exact product",
    ),
    (
        "search",
        r"embedded, 100,000: search to exact product",
        "… each after a pause of 0.1 s",
    ),
    (
        "search",
        r"embedded, 100,000: recall@10",
        "… and its recall@10",
    ),
    (
        "search",
        r"Milvus 2.3.5, 100,000, back to back: search to exact product",
        "the same on a Milvus 2.3.5 server, back to back: times an exact product",
    ),
    (
        "search",
        r"Milvus 2.3.5, 100,000: search to exact product",
        "… each after a pause of 0.1 s",
    ),
    (
        "search",
        r"Milvus 2.3.5, 100,000: recall@10",
        "… and its recall@10",
    ),
    (
        "start",
        r"mini: cold Jupyter kernel to first result",
        "fresh kernel to first result, `mini`",
    ),
    (
        "server",
        r"64 clients to one",
        "web server: requests answered for 64 clients, times those for one",
    ),
    (
        "start",
        r"`make app`, page: first paint",
        "page of `make app`: first paint",
    ),
    (
        "start",
        r"`make app`, results of a stored picture",
        "… results of a stored picture after a click",
    ),
    (
        "judging",
        r"leave-one-out of 11,540.*",
        "evaluation, 11,540 queries in 11,540 images, 2048-d, all metrics",
    ),
    (
        "judging",
        r"pytrec_eval's seconds to ours.*",
        "evaluation: times as fast as pytrec_eval",
    ),
    (
        "words",
        r"mean P@10 of cat, .*",
        "words of `mini`: P@10, mean of eight classes of VOC",
    ),
    (
        "feedback",
        r"P@20 among all images.*",
        "relevance feedback: gain in P@20 by 3 rounds of 5 judgments",
    ),
]
"""Part, row and words of the figures that the README shows."""


def headlines() -> str:
    """The README's table, of the parts that were measured in full."""
    lines = ["| what | measured |", "| --- | --- |"]
    for part, pattern, words in HEADLINES:
        path = RESULTS / f"{part}.json"
        got = json.loads(path.read_text()) if path.exists() else {"rows": []}
        if got.get("quick"):
            continue
        for row in got["rows"]:
            if re.fullmatch(pattern, row["what"]):
                lines.append(f"| {words} | {shown(row['value'])} {row['unit']}".rstrip() + " |")
    return "\n".join(lines) + "\n"


def write_down(parts: list[str]) -> None:
    """Write the tables of all results: everything, and the README's few."""
    (ROOT / "benchmarks" / "RESULTS.md").write_text(table(parts), encoding="utf-8")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition("<!-- figures of make bench -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if begin and end:
        readme.write_text(f"{before}{begin}{headlines()}{end}{after}", encoding="utf-8")
