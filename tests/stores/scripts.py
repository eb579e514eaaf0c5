"""Other processes that use the home of a test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What the other processes of these tests begin with. `say` tells the test something.
PRELUDE = """
import sys, time
from pathlib import Path
import numpy as np
from imgsearch.stores import embedded
from imgsearch.config import load_settings
from imgsearch.stores.locks import writing
from imgsearch.stores.vectors import IndexSpec, VectorStore
home = Path(sys.argv[1])
embedded.lease.__kwdefaults__["grace"] = 0.5
def say(*what): print(*what, flush=True)
"""


class Script:
    """A process of ours that runs some lines on a home."""

    def __init__(self, home: Path, code: str, *arguments: object):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, str(home), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def hear(self) -> str:
        line = self.process.stdout.readline()
        assert line, "the process ended too early"
        return line.strip()

    def end(self) -> list[str]:
        said = self.process.communicate(timeout=120)[0].splitlines()
        assert self.process.returncode == 0
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def writer_of(home: Path, name: str = "") -> Iterator[Script]:
    """Run a process that holds the write lock of a home, to write `name`, until it is killed."""
    writer = Script(home, f"with writing(home, name={name!r}): say('in'); time.sleep(600)")
    try:
        assert writer.hear() == "in"
        yield writer
    finally:
        writer.kill()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def gone(pid: int) -> bool:
    until = time.monotonic() + 60
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)
