"""Processes that start at once: forks of one process that has imported torch and the stores."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.servers import shared, wait_until_ready

ROOT = Path(__file__).resolve().parent.parent

# Forks a process for each connection and sends its number back. It has no other thread when it
# forks. A process reports to its test by lines of JSON in a file.
_SERVER = """
import json, os, signal, socket, sys, threading, time
import torch, towhee, pymilvus
import imgsearch.encoders, imgsearch.ingest, imgsearch.maintenance, imgsearch.stores.embedded
torch.set_num_threads(1)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
while True:
    connection, _ = listener.accept()
    with connection.makefile("rw") as stream:
        order = json.loads(stream.readline())
        pid = os.fork()
        if pid:
            stream.write(f"{pid}\\n")
    connection.close()
    if pid:
        continue
    listener.close()
    output = open(order["output"], "w", buffering=1)
    os.dup2(output.fileno(), 1); os.dup2(output.fileno(), 2)
    os.environ.update(order["env"])
    def report(**facts): output.write(json.dumps(facts) + "\\n")
    try:
        exec(order["code"], {"report": report, "arguments": order["arguments"]})
        report(end="done")
    except BaseException as error:
        report(end=type(error).__name__, text=str(error))
    finally:
        os._exit(0)
"""


class Child:
    """A process that runs a piece of code and reports."""

    def __init__(self, pid: int, output: Path):
        self.pid, self._output = pid, output

    @property
    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    @property
    def reports(self) -> list[dict]:
        lines = self.output.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def reported(self, name: str) -> list:
        """Return every value that was reported under a name."""
        return [line[name] for line in self.reports if name in line]

    @property
    def alive(self) -> bool:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] not in "ZX"

    def wait_for(self, name: str, seconds: float = 120) -> None:
        """Wait until something is reported under a name."""
        until = time.monotonic() + seconds
        while not self.reported(name):
            if not self.alive or time.monotonic() > until:
                raise AssertionError(f"{name!r} was not reported: {self.output[-2000:]}")
            time.sleep(0.01)

    def wait(self, seconds: float = 170) -> dict:
        """Wait for the end and return the last report."""
        until = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > until:
                self.kill()
                raise AssertionError(f"the process hangs: {self.output[-2000:]}")
            time.sleep(0.02)
        return (self.reports or [{}])[-1]

    def kill(self, number: int = signal.SIGKILL) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return
        while number == signal.SIGKILL and self.alive:
            time.sleep(0.005)


class ForkServer:
    """Starts processes; itself it is started once for all processes of the test run."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._address = shared("forkserver", self._start)["address"]

    @staticmethod
    def _start(folder: Path) -> tuple[subprocess.Popen, dict]:
        address, log = folder / "s", folder / "log"
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _SERVER, address],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log.open("ab"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "IMGSEARCH_BACKEND": "eager"},
        )
        wait_until_ready(process, address.exists, log)
        return process, {"address": str(address)}

    def run(self, code: str, env: dict[str, str], **arguments: object) -> Child:
        """Run code in a process with some environment.

        The code finds ``arguments``, and calls ``report(name=value)``.
        """
        output = self._folder / uuid.uuid4().hex
        order = {"code": code, "env": env, "output": str(output), "arguments": arguments}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            while True:
                try:
                    connection.connect(self._address)
                    break
                except ConnectionRefusedError:  # it is bound, and does not listen yet
                    time.sleep(0.01)
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(order) + "\n")
                stream.flush()
                return Child(int(stream.readline()), output)
