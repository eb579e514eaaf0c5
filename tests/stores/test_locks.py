from __future__ import annotations

import logging
import os
import socket
import threading
import time

import pytest

from imgsearch.errors import StoreBusy
from imgsearch.stores import locks
from imgsearch.stores.locks import private_folder, writing
from tests.stores.scripts import Script, writer_of


def test_the_write_lock_is_reentrant_and_excludes_other_threads(tmp_path):
    order = []

    def other():
        with writing(tmp_path):
            order.append("other")

    thread = threading.Thread(target=other)
    with writing(tmp_path), writing(tmp_path, timeout=0):
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_the_holder_of_the_write_lock_is_named_and_its_death_releases_the_lock(tmp_path):
    with writer_of(tmp_path) as writer:
        with (
            pytest.raises(StoreBusy, match="another ingest") as caught,
            writing(tmp_path, 0.1),
        ):
            pass
        assert f"process {writer.process.pid} on {socket.gethostname()}" in caught.value.holder
    with writing(tmp_path, 30):
        pass


@pytest.fixture
def writer(tmp_path):
    """A process that holds the write lock until it is killed."""
    with writer_of(tmp_path, "photos") as writer:
        yield writer


@pytest.fixture
def on_wait():
    """Replace what is called while this thread waits."""
    before = locks.on_wait.get()
    yield locks.on_wait.set
    locks.on_wait.set(before)


def test_who_waits_is_told_who_holds_the_lock_and_when_the_wait_is_over(tmp_path, writer, on_wait):
    told = []

    def tell(text, seconds):
        told.append((text, seconds))
        if seconds == 2:
            writer.kill()

    on_wait(tell)
    with writing(tmp_path, 60):
        pass
    (text, first), again, end = told
    assert (text, first + 1) == again
    assert end == ("", 2)
    assert f"Waiting for embedded store {tmp_path}, for at most 60 s: held by" in text
    assert f"process {writer.process.pid} on {socket.gethostname()}, since 20" in text
    assert text.endswith(", writing photos")


def test_a_wait_can_be_ended(tmp_path, writer, on_wait):
    def stop(text, seconds):
        raise KeyboardInterrupt

    on_wait(stop)
    with pytest.raises(KeyboardInterrupt), writing(tmp_path, 60):
        pass
    writer.kill()
    with writing(tmp_path, 30):
        pass


def test_a_script_that_waits_logs_it_once(tmp_path, writer, on_wait, caplog):
    log = locks.on_wait.get()

    def tell(text, seconds):
        log(text, seconds)
        if seconds == 2:
            writer.kill()

    on_wait(tell)
    with writing(tmp_path, 60):
        pass
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("imgsearch.stores.locks", logging.WARNING)
    assert f"process {writer.process.pid} on" in record.getMessage()


def test_an_exception_releases_the_write_lock(tmp_path):
    with pytest.raises(RuntimeError), writing(tmp_path):
        raise RuntimeError
    done = threading.Event()

    def other():
        with writing(tmp_path, 0):
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert done.is_set()


def test_a_forked_child_does_not_keep_the_parents_lock(tmp_path):
    read, write = os.pipe()
    with writing(tmp_path):
        child = os.fork()
        if not child:
            os.read(read, 1)
            os._exit(0)
    try:
        taken = Script(tmp_path, "with writing(home, 0): say('in')")
        assert taken.end() == ["in"]
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)


def test_a_private_folder_is_for_its_owner_only_whatever_the_umask(tmp_path):
    """Attack row 5: with umask 022 the home and its files could be read by anybody."""
    before = os.umask(0)
    try:
        folder = private_folder(tmp_path / "home" / "embedded")
        (tmp_path / "old").mkdir(mode=0o755)
    finally:
        os.umask(before)
    for made in (folder, folder.parent, private_folder(tmp_path / "old")):
        assert made.stat().st_mode & 0o777 == 0o700
