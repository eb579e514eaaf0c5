"""File locks that are released when their holder dies, and the write lock of an embedded home."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from imgsearch.errors import StoreBusy, StoreError

FOLDER = "embedded"
WRITE_TIMEOUT = 60.0  # seconds to wait for the write lock

_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _log(text: str, seconds: int) -> None:
    if text and (seconds == 1 or seconds % 60 == 0):
        logging.getLogger(__name__).warning(text)


on_wait: ContextVar[Callable[[str, int], None]] = ContextVar("on_wait", default=_log)
"""Called after each second that this thread waits for a writer, with a text that names it and the
number of seconds, and with an empty text at the end. If it raises an exception, the wait ends."""


def acquire(
    take: Callable[[], bool], where: str, holder: Callable[[], str], timeout: float
) -> None:
    """Call `take` until it succeeds; StoreBusy, which names the holder, after `timeout` s."""
    start, told = time.monotonic(), 0
    while not take():
        waited = time.monotonic() - start
        if waited >= timeout:
            raise StoreBusy(
                where,
                holder() or "unknown",
                f"another ingest or deletion is still writing after {timeout:g} s: wait for it, or "
                "stop it",
            )
        if waited >= told + 1:
            told += 1
            by = holder() or "another writer"
            on_wait.get()(f"Waiting for {where}, for at most {timeout:g} s: held by {by}", told)
        time.sleep(0.01)
    if told:
        on_wait.get()("", told)


def private_folder(folder: Path) -> Path:
    """Create a folder and its missing parents, accessible to their owner only."""
    for above in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
        above.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder


class FileLock:
    """An ``flock`` on a file of its own, which excludes other processes and other threads."""

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
        """Lock, waiting at most `timeout` seconds."""
        end = time.monotonic() + timeout
        while not self.take(shared=shared):
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        return True

    def release(self) -> None:
        """Unlock, but keep the file open."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which releases the lock unless a fork has the same file open."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Write the holder of the lock into its file, unless the disk is full."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, text.encode(), 0)

    def read(self) -> str:
        """Return the holder of the lock, as written in its file."""
        return os.pread(self.fd, 4096, 0).decode("utf-8", "replace")


def _forget_locks_of_parent() -> None:
    # Closing them here does not release the parent's locks; keeping them open would let a
    # forgotten worker hold these locks after the parent has ended.
    for lock in list(_held):
        lock.close()
    _held.clear()
    _turns.clear()


os.register_at_fork(after_in_child=_forget_locks_of_parent)


def _this_process() -> str:
    program = Path(sys.argv[0] or sys.executable).name if sys.argv else "python"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{program}, process {os.getpid()} on {socket.gethostname()}, since {now}"


_turns: dict[tuple[Path, int], list] = {}  # (home, thread) -> [lock, depth]


@contextlib.contextmanager
def writing(home: Path, timeout: float = WRITE_TIMEOUT, name: str = "") -> Iterator[None]:
    """Hold the write lock of an embedded home, to write `name`; re-entrant within a thread.

    After `timeout` seconds it raises :class:`StoreBusy`, which names the holder.
    """
    key = (home, threading.get_ident())
    turn = _turns.get(key)
    if turn is None:
        lock = FileLock(home / FOLDER / "write.lock")
        try:
            acquire(lock.take, f"embedded store {home}", lock.read, timeout)
        except BaseException:
            lock.close()
            raise
        lock.note(_this_process() + (f", writing {name}" if name else ""))
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
