"""Errors of the database, and the permissions of its files."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import subprocess
import sys
import traceback
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa

from imgsearch.config import load_settings
from imgsearch.errors import (
    ConfigError,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from imgsearch.stores.metadata import MetadataStore
from tests.conftest import ROOT
from tests.servers import free_port
from tests.stores.test_metadata import ROW, row


def test_a_connection_that_the_server_closed_is_replaced(own_mariadb):
    name = f"t_{uuid.uuid4().hex[:12]}"
    with MetadataStore.open(load_settings(**own_mariadb.settings(name))) as store:
        store.create_collection(ROW)
        for (number,) in own_mariadb.sql(
            f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"
        ):
            own_mariadb.sql(f"KILL {number}")
        assert store.collection("c").dim == 8
        own_mariadb.restart()
        assert store.collection("c").dim == 8
    own_mariadb.sql(f"DROP DATABASE {name}")


def test_a_server_that_cannot_be_reached_is_named(mariadb):
    port = free_port()
    given = mariadb.settings("x") | {"mysql_port": port}
    with pytest.raises(StoreUnavailable, match=f"tester@127.0.0.1:{port}/x.*MYSQL_HOST") as caught:
        MetadataStore.open(load_settings(**given))
    assert mariadb.password not in str(caught.value)


def test_a_silent_server_is_an_error_in_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}"):
            MetadataStore.open(
                load_settings(mysql_host="127.0.0.1", mysql_port=port, imgsearch_timeout=1)
            )


@pytest.mark.parametrize(
    ("changes", "blamed"),
    [
        ({"mysql_password": "wr0ng-Pa55"}, "MYSQL_PASSWORD"),
        ({"mysql_user": "nobody"}, "'nobody'.*MYSQL_USER"),
    ],
)
def test_wrong_credentials_are_refused_and_never_shown(mariadb, changes, blamed, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(StoreError, match=blamed) as caught:
        MetadataStore.open(load_settings(**mariadb.settings("x") | changes))
    shown = str(caught.value) + caught.value.where + caplog.text
    shown += "".join(traceback.format_exception(caught.value))
    assert mariadb.password not in shown
    assert "wr0ng" not in shown


def test_a_database_that_the_user_may_not_create_or_use_is_explained(mariadb):
    mariadb.sql(
        "CREATE USER IF NOT EXISTS small@'127.0.0.1' IDENTIFIED BY 'x'",
        "GRANT ALL ON small_ones.* TO small@'127.0.0.1'",
    )
    given = mariadb.settings("forbidden") | {"mysql_user": "small", "mysql_password": "x"}
    with pytest.raises(StoreError, match="'small'"):
        MetadataStore.open(load_settings(**given))
    with MetadataStore.open(load_settings(**given | {"mysql_db": "small_ones"})) as store:
        assert store.collections() == []
    mariadb.sql(
        "DROP DATABASE small_ones",
        "CREATE DATABASE readable",
        "GRANT SELECT ON readable.* TO small@'127.0.0.1'",
    )
    with pytest.raises(StoreError, match="GRANT"):
        MetadataStore.open(load_settings(**given | {"mysql_db": "readable"}))
    mariadb.sql("DROP DATABASE readable")


def test_a_database_url_without_database_or_file_is_refused():
    for url in ("mysql://u:secret@127.0.0.1", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigError, match="DATABASE_URL") as caught:
            MetadataStore.open(load_settings(database_url=url))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no database", "cut", "scrambled"])
def test_a_damaged_file_is_named_and_not_changed(tmp_path, damage):
    file = tmp_path / "metadata.sqlite"
    config = load_settings(database_url=f"sqlite:///{file}")
    with MetadataStore.open(config) as store:
        store.create_collection(ROW)
        store.prepare("c", [row(f"/{i}", i) for i in range(2_000)])
    data = file.read_bytes()
    file.write_bytes(
        {
            "no database": b"something else" * 1_000,
            "cut": data[: len(data) // 2],
            "scrambled": data[:4_096] + os.urandom(len(data) - 4_096),
        }[damage]
    )
    before = file.read_bytes()
    with (
        pytest.raises(StoreDamaged, match="repair") as caught,
        MetadataStore.open(config) as store,
    ):
        store.known("c")
    assert str(file) in str(caught.value)
    assert file.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="IMGSEARCH_HOME"):
        MetadataStore.open(load_settings(imgsearch_home=blocked / "home"))
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    if os.getuid() == 0:  # whom no mode stops
        folder = Path("/proc")
    with pytest.raises(StoreError, match="permissions"):
        MetadataStore.open(load_settings(database_url=f"sqlite:///{folder / 'm.sqlite'}"))


def test_a_file_that_may_only_be_read_is_an_error(tmp_path):
    url = f"sqlite:///{tmp_path / 'm.sqlite'}"
    with MetadataStore.open(load_settings(database_url=url)) as store:
        store.create_collection(ROW)
        sa.event.listen(
            store._sql._engine, "connect", lambda link, _: link.execute("PRAGMA query_only=1")
        )
        store.close()
        assert store.collection("c").dim == 8
        with pytest.raises(StoreError, match="permissions"):
            store.prepare("c", [row("/1")])


def test_a_full_disk_is_an_error_and_what_was_stored_stays(tmp_path):
    config = load_settings(database_url=f"sqlite:///{tmp_path / 'm.sqlite'}")
    with MetadataStore.open(config) as store:
        store.create_collection(ROW)
        store.prepare("c", [row("/kept", 1)])
        sa.event.listen(
            store._sql._engine, "connect", lambda link, _: link.execute("PRAGMA max_page_count=20")
        )
        store.close()
        with pytest.raises(StoreError, match="disk is full"):
            store.prepare("c", [row(f"/{i}", i) for i in range(5_000)])
        assert list(store.known("c")) == ["/kept"]


def test_a_file_that_another_program_locks_is_busy(tmp_path):
    file = tmp_path / "m.sqlite"
    config = load_settings(database_url=f"sqlite:///{file}", imgsearch_timeout=0.3)
    with MetadataStore.open(config) as store:
        store.create_collection(ROW)
        holder = sqlite3.connect(file, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy, match="file is locked"):
            store.prepare("c", [row("/1")])
        assert store.count("c").paths == 0  # readers go on
        holder.execute("ROLLBACK")
        holder.close()
        store.prepare("c", [row("/1")])


def test_a_database_name_with_a_percent_sign_is_created(mariadb):
    """Attack row 10: MYSQL_DB with % ended in an error of a private class."""
    name = f"odd%s %name_{uuid.uuid4().hex[:8]}"
    for _ in range(2):
        with MetadataStore.open(load_settings(**mariadb.settings(name))) as store:
            store.create_collection(ROW)
            assert store.collection("c").dim == 8
    mariadb.sql(f"DROP DATABASE `{name}`")


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_the_home_and_its_files_are_private_whatever_the_umask(tmp_path, umask):
    """Attack row 5: with umask 022 anybody could read metadata.sqlite."""
    code = """
import os, sys
os.umask(int(sys.argv[1]))
from imgsearch.config import load_settings
from imgsearch.stores.metadata import CollectionRow, MetadataStore
with MetadataStore.open(load_settings()) as store:
    store.create_collection(CollectionRow("c", "mini", {}, "f00d", 8, "FLAT"))
    home = load_settings().imgsearch_home
    for path in (home, *sorted(home.glob("metadata*"))):
        print(path.name, oct(path.stat().st_mode & 0o777))
assert os.umask(0) == int(sys.argv[1])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IMGSEARCH_HOME": str(tmp_path / "h")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(umask)],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[:-1] == [
        "h 0o700",
        *(f"metadata.sqlite{ending} 0o600" for ending in ("", "-shm", "-wal")),
    ]


def test_files_that_an_older_version_left_readable_become_private(tmp_path):
    """Attack row 5: a home that was made before keeps no file that others can read."""
    home = tmp_path / "home"
    with MetadataStore.open(load_settings(imgsearch_home=home)) as first:
        first.create_collection(ROW)
        for path in home.glob("metadata*"):
            path.chmod(0o644)
        with MetadataStore.open(load_settings(imgsearch_home=home)):
            assert {oct(p.stat().st_mode & 0o777) for p in home.glob("metadata*")} == {"0o600"}


def test_a_relative_database_url_names_one_file_wherever_the_program_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with MetadataStore.open(load_settings(database_url="sqlite:///here.sqlite")) as store:
        store.create_collection(ROW)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.close()
        assert store.collection("c").dim == 8
    assert (tmp_path / "here.sqlite").exists()


def test_a_file_on_a_read_only_disk_is_an_error_and_stays_unchanged(tmp_path):
    """Attack row 1: a read-only disk was called damage."""
    home = tmp_path / "home"
    with MetadataStore.open(load_settings(imgsearch_home=home)) as store:
        store.create_collection(ROW)
    before = (home / "metadata.sqlite").read_bytes()
    command = ["mount", "--bind", "-o", "ro", home, home]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a read-only mount needs root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", home], check=True)
        with pytest.raises(StoreError, match="permissions") as caught:
            MetadataStore.open(load_settings(imgsearch_home=home)).collections()
        assert type(caught.value) is StoreError
    finally:
        subprocess.run(["umount", home], check=True)
    assert (home / "metadata.sqlite").read_bytes() == before
