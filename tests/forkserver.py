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

# Forks a process for each connection. It has no other thread when it forks. A request is a line of
# JSON; where it comes with standard streams, the process takes them and ends with its connection.
_SERVER = r"""
import atexit, json, os, signal, socket, sys, threading, time
import ipywidgets, pandas, pymilvus, torch, towhee
import ipykernel.kernelapp
import imgsearch.encoders, imgsearch.ingestion, imgsearch.maintenance, imgsearch.stores.embedded
torch.set_num_threads(1)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
while True:
    connection, _ = listener.accept()
    message, streams = b"", []
    while not message.endswith(b"\n"):
        part, more, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not part:
            break
        message, streams = message + part, streams + more
    if not message or os.fork():
        for stream in streams: os.close(stream)
        connection.close()
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener.close()
    request = json.loads(message)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    output = open(request["output"], "w", buffering=1)
    for number in range(3):
        os.dup2(streams[number] if streams else output.fileno(), number)
    connection.sendall(str(os.getpid()).encode() + b"\n")
    if streams:
        def follow(): connection.recv(1); os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=follow, daemon=True).start()
    else:
        connection.close()
    # One call, and a line of its own, whatever other threads print in the meantime.
    def report(**facts): os.write(output.fileno(), f"\n{json.dumps(facts)}\n".encode())
    try:
        exec(request["code"], {"report": report, "arguments": request["arguments"]})
        report(end="done")
        if streams: atexit._run_exitfuncs()
    except BaseException as error:
        report(end=type(error).__name__, text=str(error))
    finally:
        os._exit(0)
"""

# Stands for a Jupyter kernel: it asks for a fork, hands its streams over, and lives as long.
_KERNEL = r"""
import json, os, signal, socket, sys
address, *arguments = sys.argv[1:]
code = "import sys, ipykernel.kernelapp as app; sys.argv[1:] = arguments; app.launch_new_instance()"
request = {"code": code, "environment": dict(os.environ), "folder": os.getcwd(),
           "output": os.devnull, "arguments": arguments}
connection = socket.socket(socket.AF_UNIX)
connection.connect(address)
message = json.dumps(request).encode() + b"\n"
connection.sendall(message[socket.send_fds(connection, [message], [0, 1, 2]):])
pid = int(connection.makefile().readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(pid, number))
connection.recv(1)
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
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

        def ready() -> bool:
            with socket.socket(socket.AF_UNIX) as connection:
                return connection.connect_ex(str(address)) == 0

        wait_until_ready(process, ready, log)
        return process, {"address": str(address)}

    def run(self, code: str, env: dict[str, str], **arguments: object) -> Child:
        """Run code in a process with some environment.

        The code finds ``arguments``, and calls ``report(name=value)``.
        """
        output = self._folder / uuid.uuid4().hex
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "IMGSEARCH_BACKEND": "eager", **env}
        request = {
            "code": code,
            "environment": environment,
            "folder": str(ROOT),
            "output": str(output),
            "arguments": arguments,
        }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(self._address)
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                return Child(int(stream.readline()), output)

    def install_kernel(self, folder: Path) -> None:
        """Write a kernel spec named ``python3`` whose kernels are forks.

        It is found where ``JUPYTER_PATH`` names the folder.
        """
        spec = {
            "argv": [
                *(sys.executable, "-S", "-E", "-c", _KERNEL),
                *(self._address, "-f", "{connection_file}"),
            ],
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
        }
        kernel = folder / "kernels" / "python3" / "kernel.json"
        kernel.parent.mkdir(parents=True)
        kernel.write_text(json.dumps(spec))
