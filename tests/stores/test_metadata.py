from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import uuid
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from imgsearch.config import load_settings
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    StoreBusy,
    StoreError,
)
from imgsearch.stores import locks, metadata, schema
from imgsearch.stores.metadata import WITH_VECTOR, CollectionRow, ImageRow, MetadataStore

ROOT = Path(metadata.__file__).resolve().parents[2]
ROW = CollectionRow("c", "mini", {"dim": 8, "crop": [1, 2]}, "f00d", 8, "FLAT")
ODD_PATHS = [
    "/photos/🦊 fox é.jpg",
    "/photos/e\u0301 beside é.jpg",
    "/photos/trailing space .jpg ",
    "/photos/trailing space .jpg",
    "/photos/UPPER.JPG",
    "/photos/upper.jpg",
    "/photos/100%_'quoted' \"twice\" \\ back\nline.jpg",
    "/photos/日本語/\u202eright to left.png",
    os.fsdecode(b"/photos/latin-1 \xe9\xff.jpg"),
    "/" + "/".join(["d" * 250] * 16) + "/long.jpg",
]


def row(path: str, image_id: int = 1, **changes: object) -> ImageRow:
    base = ImageRow(
        path, image_id, f"{image_id:064x}", 10**12, 640, 480, "JPEG", 1_700_000_000_123_456_789
    )
    return base._replace(vector_crc=2**32 - 1, **changes)


@pytest.fixture(params=["sqlite", "mysql"])
def config(request, tmp_path):
    if request.param == "sqlite":
        yield load_settings(imgsearch_home=tmp_path / "home")
        return
    database = request.getfixturevalue("mariadb")
    name = f"t_{uuid.uuid4().hex[:12]}"
    yield load_settings(**database.settings(name))
    database.sql(f"DROP DATABASE IF EXISTS {name}")


@pytest.fixture
def store(config):
    with MetadataStore.open(config) as store:
        yield store


@pytest.fixture
def filled(store):
    """Three images under four paths, all ready."""
    store.create_collection(ROW)
    rows = [row("/a/1", 1), row("/a/2", 2), row("/b/2 again", 2), row("/b/3", 2**63 - 1)]
    store.prepare("c", rows)
    store.commit("c", [r.path for r in rows])
    return store


# ---------------------------------------------------------------- collections and images


def test_a_collection_survives_a_round_trip(store):
    before = datetime.now(UTC)
    store.create_collection(ROW)
    made = store.collection("c")
    assert made._replace(created_at=None, id=None) == ROW
    assert before - timedelta(seconds=1) <= made.created_at <= datetime.now(UTC)
    store.create_collection(ROW._replace(name="B", created_at=datetime(2020, 1, 2, tzinfo=UTC)))
    assert [c.name for c in store.collections()] == ["B", "c"]
    assert store.collection("B").created_at == datetime(2020, 1, 2, tzinfo=UTC)


def test_names_differ_by_case_and_the_same_collection_twice_is_no_error(store):
    store.create_collection(ROW)
    store.create_collection(ROW._replace(encoder="another name of the same"))
    assert store.collection("c").encoder == "mini"
    store.create_collection(ROW._replace(name="C"))
    assert len(store.collections()) == 2
    with pytest.raises(StoreError, match="f00d"):
        store.create_collection(ROW._replace(fingerprint="beef"))
    with pytest.raises(ConfigError):
        store.create_collection(ROW._replace(name="no name"))


def test_unknown_collections_are_named_with_those_there_are(filled):
    for call in (
        lambda: filled.collection("d"),
        lambda: filled.drop_collection("d"),
        lambda: filled.prepare("d", [row("/x")]),
        lambda: filled.commit("d", ["/x"]),
        lambda: filled.hide("d", "deleting", ["/x"]),
        lambda: filled.remove("d", ["/x"]),
        lambda: filled.unfinished("d"),
        lambda: filled.known("d"),
        lambda: filled.by_path("d", ["/x"]),
        lambda: filled.by_id("d", [1]),
        lambda: filled.ids("d"),
        lambda: filled.checksums("d"),
        lambda: filled.count("d"),
        lambda: filled.browse("d"),
        lambda: filled.matching("d", {"label": "cat"}),
        lambda: filled.attribute_values("d"),
        lambda: filled.set_attributes("d", {"/x": {"label": "cat"}}),
    ):
        with pytest.raises(CollectionNotFound) as caught:
            call()
        assert caught.value.known == ("c",)


def test_every_path_comes_back_and_differs_from_all_others(store):
    store.create_collection(ROW)
    store.prepare("c", [row(path, i) for i, path in enumerate(ODD_PATHS)])
    store.commit("c", ODD_PATHS)
    assert store.count("c").paths == len(ODD_PATHS)
    assert {p: r.image_id for p, r in store.by_path("c", ODD_PATHS).items()} == {
        path: i for i, path in enumerate(ODD_PATHS)
    }
    assert set(store.known("c")) == set(ODD_PATHS)
    assert [r.path for r in store.browse("c")] == sorted(ODD_PATHS, key=os.fsencode)
    for path in ODD_PATHS:
        assert [r.path for r in store.browse("c", like=path[-20:])][:1]
        assert path in store.known("c", path)
    assert list(store.known("c", "/photos/100%")) == [ODD_PATHS[6]]
    assert [r.path for r in store.browse("c", like="%_'q")] == [ODD_PATHS[6]]
    with pytest.raises(ConfigError, match="not a valid file name"):
        store.by_path("c", ["\ud800"])


def test_states_go_from_pending_to_ready_to_deleting_to_gone(store):
    store.create_collection(ROW)
    store.prepare("c", [row("/1", 1), row("/2", 2)])
    assert store.count("c") == (0, 0, 2, 0)
    assert store.by_id("c", [1, 2]) == {}
    store.commit("c", ["/1", "/absent"])
    assert store.count("c") == (1, 1, 1, 0)
    assert list(store.by_id("c", [1, 2])) == [1]
    assert [r.path for r in store.unfinished("c")] == ["/2"]
    store.hide("c", "deleting", ["/1"])
    store.commit("c", ["/1"])  # what is being deleted does not come back
    assert store.count("c") == (0, 0, 1, 1)
    assert list(store.by_id("c", [1, 2], states=("pending", "deleting"))) == [1, 2]
    store.remove("c", ["/1", "/2", "/absent"])
    assert store.count("c") == (0, 0, 0, 0)


def test_preparing_again_replaces_the_row_and_keeps_its_time_of_addition(filled):
    old = filled.by_path("c", ["/a/1"])["/a/1"]
    filled.prepare("c", [row("/a/1", 7, size=5), row("/a/1", 8, size=6)])
    new = filled.by_path("c", ["/a/1"])["/a/1"]
    assert (new.image_id, new.size, new.state) == (8, 6, "pending")
    assert new.added_at == old.added_at
    assert old._replace(added_at=None) == row("/a/1", state="ready")


def test_ids_and_rows_of_content_in_two_places(filled):
    assert filled.ids("c").tolist() == [1, 2, 2**63 - 1]
    assert filled.ids("c").dtype == "int64"
    assert filled.ids("c", ("pending",)).tolist() == []
    assert filled.ids("c", WITH_VECTOR).tolist() == [1, 2, 2**63 - 1]
    assert filled.count("c") == (3, 4, 0, 0)
    assert [r.path for r in filled.by_id("c", [2, 9])[2]] == ["/a/2", "/b/2 again"]
    assert filled.checksums("c") == dict.fromkeys([1, 2, 2**63 - 1], 2**32 - 1)
    assert filled.known("c", "/a/") == {
        f"/a/{i}": (10**12, 1_700_000_000_123_456_789, i, "ready", None) for i in (1, 2)
    }


def test_more_rows_than_fit_into_one_statement(store):
    store.create_collection(ROW)
    paths = [f"/many/{i:05d}" for i in range(2_300)]
    store.prepare("c", [row(path, i) for i, path in enumerate(paths)])
    store.commit("c", paths[:2_200])
    assert store.count("c") == (2_200, 2_200, 100, 0)
    assert len(store.by_id("c", range(2_300))) == 2_200
    assert len(store.by_path("c", paths)) == 2_300
    assert [r.path for r in store.browse("c", offset=1_000, limit=2)] == paths[1_000:1_002]
    store.hide("c", "deleting")
    assert store.count("c") == (0, 0, 0, 2_300)
    store.remove("c", paths)
    assert store.count("c") == (0, 0, 0, 0)


def test_dropping_takes_the_images_and_leaves_other_collections_and_history(filled):
    filled.create_collection(ROW._replace(name="d"))
    filled.prepare("d", [row("/a/1", 5)])
    run = filled.start_run("c", "/a")
    filled.drop_collection("c")
    filled.create_collection(ROW)
    assert filled.count("c") == (0, 0, 0, 0)
    assert filled.count("d").pending == 1
    assert [r.run_id for r in filled.runs("c")] == [run]


def test_a_transaction_that_fails_leaves_nothing_behind(filled):
    good, bad = row("/z", 4), row("/zz", 5, size="not a number" if _is_mysql(filled) else object())
    with pytest.raises(StoreError):
        filled.prepare("c", [good, bad])
    assert filled.by_path("c", ["/z", "/zz"]) == {}


def _is_mysql(store: MetadataStore) -> bool:
    return store.where.startswith("MySQL")


# ---------------------------------------------------------------- ingest runs


def test_a_run_is_followed_from_its_start_to_its_end(store):
    first = store.start_run("c", ODD_PATHS[8], 10)
    second = store.start_run("d", Path("/b"))
    store.update_run(first, done=3, encoded=1, skipped=1, failed=1)
    running = store.runs("c")[0]
    assert (running.state, running.folder, running.total) == ("running", ODD_PATHS[8], 10)
    assert running[5:9] == (3, 1, 1, 1)
    assert (running.host, running.pid) == (socket.gethostname(), os.getpid())
    assert running.finished_at is None
    store.finish_run(first, "failed", error="why \ud800 🦊", done=4)
    ended = store.runs("c")[0]
    assert (ended.state, ended.done, ended.error) == ("failed", 4, "why \\ud800 🦊")
    assert running.started_at <= ended.updated_at
    assert ended.finished_at.tzinfo is UTC
    assert [r.run_id for r in store.runs()] == [second, first]
    assert [r.run_id for r in store.runs(limit=1)] == [second]


def test_a_run_whose_process_is_gone_or_quiet_is_stale(config):
    code = """
from imgsearch.stores.metadata import MetadataStore
from imgsearch.config import load_settings
MetadataStore.open(load_settings()).start_run("c", "/a")
"""
    url = config.sql_url.render_as_string(hide_password=False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": url}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    with MetadataStore.open(config) as store:
        assert store.runs()[0].state == "stale"
        mine = store.start_run("c", "/a")
        assert store.runs()[0].state == "running"
        quiet = datetime.now(UTC) - timedelta(minutes=3)
        elsewhere = {"host": "elsewhere"}
        store._sql.write(lambda link: link.execute(sa.update(schema.runs).values(**elsewhere)))
        assert [r.state for r in store.runs()] == ["running", "running"]  # nobody can know
        old = {"updated_at": quiet}
        store._sql.write(lambda link: link.execute(sa.update(schema.runs).values(**old)))
        assert [r.state for r in store.runs()] == ["stale", "stale"]
        store.update_run(mine, done=1)
        assert [r.state for r in store.runs()] == ["running", "stale"]


# ---------------------------------------------------------------- several at once


def _open_and_write(config, number):
    with MetadataStore.open(config) as store:
        store.create_collection(ROW)
        for i in range(20):
            paths = [f"/shared/{(number * 7 + i * 3 + j) % 50}" for j in range(10)]
            store.prepare("c", [row(path, number) for path in paths])
            store.commit("c", paths)


def test_processes_that_make_the_schema_and_write_the_same_rows_at_once(config):
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(3, mp_context=context) as pool:
        for done in [pool.submit(_open_and_write, config, i) for i in range(3)]:
            done.result(timeout=120)
    with MetadataStore.open(config) as store:
        assert store.count("c").paths == 50
        assert store.count("c").pending == 0


def test_threads_share_a_store(filled):
    def write(number):
        paths = [f"/t{number}/{i}" for i in range(20)]
        filled.prepare("c", [row(path, number) for path in paths])
        filled.commit("c", paths)
        return len(filled.by_id("c", [number])[number])

    with futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(100, 116))) == [20] * 16


def test_one_holds_a_collection_at_a_time(config, filled):
    order, waiting = [], threading.Event()

    def other():
        with MetadataStore.open(config) as second:
            waiting.set()
            with second.exclusive("c"):
                order.append("other")

    thread = threading.Thread(target=other)
    with filled.exclusive("c"), filled.exclusive("c"):
        thread.start()
        assert waiting.wait(60)
        with MetadataStore.open(config) as third, futures.ThreadPoolExecutor(1) as pool:

            def try_it():
                with third.exclusive("c", 0.3):
                    order.append("never")

            with pytest.raises(StoreBusy, match="another ingest"):
                pool.submit(try_it).result()
        order.append("first")
    thread.join(60)
    assert order == ["first", "other"]


def test_who_waits_for_a_collection_is_told_who_holds_it(config, filled):
    told, waiting = [], threading.Event()

    def tell(text, _):
        told.append(text)
        waiting.set()

    def other():
        locks.on_wait.set(tell)
        with MetadataStore.open(config) as second, second.exclusive("c", 60):
            told.append("has it")

    thread = threading.Thread(target=other)
    with filled.exclusive("c"):
        thread.start()
        assert waiting.wait(60)
    thread.join(60)
    sqlite = config.sql_url.get_backend_name() == "sqlite"
    assert (f", process {os.getpid()} on " if sqlite else " held by connection ") in told[0]
    assert ", for at most 60 s: held by " in told[0]
    assert told[-2:] == ["", "has it"]


def test_a_forked_child_connects_for_itself(filled):
    def child(answers):
        answers.put(filled.count("c").paths)

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    assert answers.get(timeout=60) == 4
    process.join()
    assert filled.count("c").paths == 4


# ---------------------------------------------------------------- what must not be stored


@pytest.mark.parametrize(
    "path",
    [
        "",
        "relative.jpg",
        "/a/../b.jpg",
        "/a/./b.jpg",
        "/a//b.jpg",
        "~/a.jpg",
        "/a\0.jpg",
        "/\ud800",
    ],
)
def test_only_absolute_normalised_paths_are_stored(filled, path):
    """Attack row 3: an archive could bring "", "../..", NUL or one file under two spellings."""
    with pytest.raises(ConfigError, match="path"):
        filled.prepare("c", [row("/good", 7), row(path, 8)])
    with pytest.raises(ConfigError, match="path"):
        filled.start_run("c", path)
    assert filled.count("c").pending == 0
    assert filled.runs("c") == []


def test_every_folder_that_was_ever_ingested_is_known(filled):
    """Review 8.3, attack row 7: the 50 latest runs hid the folders of older ones."""
    first = filled.start_run("c", ODD_PATHS[8])
    for _ in range(60):
        filled.finish_run(filled.start_run("c", "/nightly"), "done")
    filled.start_run("d", "/other")
    assert filled.folders("c") == sorted([ODD_PATHS[8], "/nightly"])
    assert first not in {run.run_id for run in filled.runs("c")}
    assert filled.folders("never") == []


# ---------------------------------------------------------------- statements


@pytest.fixture
def statements():
    """SQL statements as they are sent, without BEGIN."""
    seen: list[str] = []

    def listen(link, cursor, statement, parameters, context, executemany):
        if not statement.startswith("BEGIN"):
            seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    yield seen
    sa.event.remove(sa.Engine, "before_cursor_execute", listen)


def test_one_statement_finds_rows_by_ids_and_paths(filled, statements):
    collection, rows = filled.lookup("c", image_ids=[2, 99], paths=["/a/1", "/a/2", "/nowhere"])
    assert len(statements) == 1
    assert collection == filled.collection("c")
    assert sorted(r.path for r in rows) == ["/a/1", "/a/2", "/b/2 again"]
    assert filled.lookup("c", image_ids=[99]) == (collection, [])
    assert filled.lookup("c") == (collection, [])
    with pytest.raises(CollectionNotFound):
        filled.lookup("d", image_ids=[2])


def test_a_query_for_many_rows_uses_the_indexes(mariadb, tmp_path):
    """Two lists of 500 keys among 20,000 rows must not read the whole collection."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    plans = {}
    for kind, config in {
        "sqlite": load_settings(database_url=f"sqlite:///{tmp_path / 'm.sqlite'}"),
        "mysql": load_settings(**mariadb.settings(name)),
    }.items():
        with MetadataStore.open(config) as store:
            store.create_collection(ROW)
            store.prepare("c", [row(f"/many/{i}", i) for i in range(20_000)])
            seen = []

            def listen(link, cursor, statement, parameters, *_, seen=seen):
                seen.append((statement, parameters))

            engine = store._sql._engine
            if kind == "mysql":  # its statistics may be those of the empty table
                mariadb.sql(f"ANALYZE TABLE {name}.imgsearch_images")
            sa.event.listen(engine, "before_cursor_execute", listen)
            store.lookup("c", image_ids=range(500), paths=[f"/many/{i}" for i in range(500)])
            sa.event.remove(engine, "before_cursor_execute", listen)
            ((statement, parameters),) = [s for s in seen if s[0].startswith("SELECT")]
            explain = "EXPLAIN QUERY PLAN " if kind == "sqlite" else "EXPLAIN "
            with engine.connect() as link:
                plans[kind] = link.exec_driver_sql(explain + statement, parameters).all()
    mariadb.sql(f"DROP DATABASE {name}")
    assert not [step for step in plans["sqlite"] if step[3].startswith("SCAN")]
    assert [step for step in plans["mysql"] if step.table == "imgsearch_images"]
    for step in plans["mysql"]:
        if step.table == "imgsearch_images":
            assert step.type == "range"
            assert int(step.rows) < 2_000
