"""File locks that end with their holder, and the lock of the only writer of an embedded home."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from imgsearch.errors import StoreBusy, StoreError

FOLDER = "embedded"
WRITE_TIMEOUT = 60.0  # seconds to wait for the lock of the writer

_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def private_folder(folder: Path) -> Path:
    """Make a folder, and those above it that are missing, that only their owner may enter."""
    for above in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
        above.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder


class FileLock:
    """An ``flock`` of its own: excludes other processes and other threads alike."""

    def __init__(self, path: Path):
        self.path = path
        self.fd: int | None = None
        try:
            private_folder(path.parent)
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                str(path.parent), f"cannot be written: {error.strerror}; check IMGSEARCH_HOME"
            ) from None
        _held.add(self)

    def take(self, *, shared: bool = False) -> bool:
        """Try to lock, without waiting."""
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self.fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StoreError(str(self.path), f"cannot be locked: {error.strerror}") from None
        return True

    def wait(self, timeout: float, *, shared: bool = False) -> bool:
        """Lock, waiting so many seconds at most."""
        end = time.monotonic() + timeout
        while not self.take(shared=shared):
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        return True

    def release(self) -> None:
        """Unlock, and keep the file open."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; the lock goes when no fork holds the same file open."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Write who holds the lock, if the disk has room for it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, text.encode(), 0)

    def read(self) -> str:
        """Read who holds the lock."""
        return os.pread(self.fd, 4096, 0).decode("utf-8", "replace")


def _forget_locks_of_parent() -> None:
    # Closing does not unlock what the parent still holds open; keeping the files open would let
    # a forgotten worker hold the parent's locks after the parent's end.
    for lock in list(_held):
        lock.close()
    _held.clear()
    _turns.clear()


os.register_at_fork(after_in_child=_forget_locks_of_parent)


def _me() -> str:
    program = Path(sys.argv[0] or sys.executable).name if sys.argv else "python"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{program}, process {os.getpid()} on {socket.gethostname()}, since {now}"


_turns: dict[tuple[Path, int], list] = {}  # (home, thread) -> [lock, depth]


@contextlib.contextmanager
def writing(home: Path, timeout: float = WRITE_TIMEOUT) -> Iterator[None]:
    """Be the only writer of an embedded home, re-entrantly for the thread that is it already.

    Raises :class:`StoreBusy`, which names the holder, after so many seconds.
    """
    key = (home, threading.get_ident())
    turn = _turns.get(key)
    if turn is None:
        lock = FileLock(home / FOLDER / "write.lock")
        if not lock.wait(timeout):
            holder = lock.read() or "unknown"
            lock.close()
            raise StoreBusy(
                f"embedded store {home}",
                holder,
                f"another ingest or deletion is writing, and still was after {timeout:g} s; "
                "wait for it, or stop it",
            )
        lock.note(_me())
        turn = _turns[key] = [lock, 0]
    turn[1] += 1
    try:
        yield
    finally:
        turn[1] -= 1
        if turn[1] == 0 and _turns.get(key) is turn:
            del _turns[key]
            turn[0].note("")
            turn[0].close()
