"""Measure what the README reports: ``python -m benchmarks [part ...]``, or ``make bench``."""

from __future__ import annotations

import argparse
import importlib
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from benchmarks import common

PARTS = [
    "encode", "ingest", "search", "batches", "filters", "start", "scale", "judging", "server",
    "words", "feedback",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    shared = common.ROOT.parent / "shared" / "voc" / "VOC2012" / "JPEGImages"
    sample = common.ROOT / "data" / "VOCsample" / "JPEGImages"
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs: ../shared's, else data's")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes")
    parser.add_argument("--milvus", type=Path, help="environment with milvus==2.3.5: .venv-milvus")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for a part: 1800")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    photos = (given.photos or (shared if shared.is_dir() else sample)).absolute()
    if given.here:
        return _measure(given.parts[0], photos, given.quick, given.milvus)
    # Each part has a process of its own: threads, caches and a crash of one stay its own.
    failed = []
    for part in given.parts or PARTS:
        print(f"{part}:", flush=True)
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks", part, "--here"]
        command += ["--photos", str(photos)]
        command += ["--quick"] if given.quick else []
        command += ["--milvus", str(given.milvus)] if given.milvus else []
        process = subprocess.Popen(command, cwd=common.ROOT)
        try:
            code = process.wait(given.limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # it writes down what it has
            code = process.wait()
        if code:
            failed.append(part)
        common.write_down(PARTS)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def _measure(part: str, photos: Path, quick: bool, milvus: Path | None) -> int:
    milvus = milvus.absolute() if milvus else common.ROOT / ".venv-milvus"
    here = Path(tempfile.mkdtemp(prefix=f"imgsearch-{part}-"))
    options = common.Options(
        photos, quick, here, milvus if (milvus / "bin" / "python").exists() else None
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("this part took too long"))
    module = importlib.import_module(f"benchmarks.{part}")
    result = common.Result(part, module.TITLE)
    try:
        with common.watched(result):
            module.run(options, result)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        result.note(f"Broke off: {type(error).__name__}: {error}")
        return 1
    finally:
        count = len(common.photographs(photos))
        named = "VOC2012" if "VOC2012" in photos.parts else photos.parent.name
        about = {
            "photos": f"{count} of {named}", "quick": quick, "machine": common.machine(),
        }  # fmt: skip
        common.save(result, about)
        shutil.rmtree(here, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
