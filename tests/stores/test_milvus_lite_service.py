"""Which errors are damage, and locks that all threads share."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from concurrent import futures

import pyarrow as pa
import pytest

from imgsearch.stores import milvus_lite_service


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 819200 failed"),
        pa.ArrowException("Unknown error: Failed to launch worker thread"),
        pa.ArrowException("Unknown error: std::bad_alloc"),
        ImportError("failed to map segment from shared object"),
        AttributeError("module has no attribute"),
        RuntimeError("can't start new thread"),
        OSError("ZSTD decompression failed: not enough memory"),
        *(
            OSError(number, os.strerror(number))
            for number in (
                errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES,
                errno.ENOMEM,
            )
        ),
    ],
    ids=str,
)  # fmt: skip
def test_errors_of_the_system_are_not_damage(error):
    """Attack row 1, review 8.1: a server short of memory made `repair` delete 25,000 rows."""
    assert not milvus_lite_service.from_content(error)


@pytest.mark.parametrize(
    "error",
    [
        pa.ArrowInvalid("Parquet magic bytes not found in footer"),
        OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        json.JSONDecodeError("Expecting value", "", 0),
        KeyError("fields"),
    ],
    ids=str,
)
def test_errors_about_content_are_damage(error):
    assert milvus_lite_service.from_content(error)


def test_concurrent_threads_get_the_same_lock():
    """Review 8.7: two threads could get two gates, and a reader came beside a writer."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with futures.ThreadPoolExecutor(8) as pool:
            for _ in range(300):
                gates, ready = milvus_lite_service.Gates(), threading.Barrier(8)

                def ask(gates=gates, ready=ready):
                    ready.wait()
                    return id(gates["c"])

                assert len({one.result() for one in [pool.submit(ask) for _ in range(8)]}) == 1
    finally:
        sys.setswitchinterval(interval)
