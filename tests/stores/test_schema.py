from __future__ import annotations

import hashlib
import uuid
from concurrent import futures
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from imgsearch.config import load_settings
from imgsearch.errors import SchemaError
from imgsearch.stores import schema
from imgsearch.stores.metadata import MetadataStore

VERSION_1 = {
    "sqlite": """
CREATE TABLE imgsearch_schema (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE imgsearch_collections (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, name VARCHAR(64) NOT NULL,
    encoder TEXT NOT NULL, identity TEXT NOT NULL, fingerprint VARCHAR(64) NOT NULL,
    dim INTEGER NOT NULL, vector_index VARCHAR(255) NOT NULL, created_at DATETIME NOT NULL,
    UNIQUE (name));
CREATE TABLE imgsearch_images (
    collection_id INTEGER NOT NULL, path_key BLOB NOT NULL, path BLOB NOT NULL,
    image_id BIGINT NOT NULL, sha256 VARCHAR(64) NOT NULL, size BIGINT NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, format VARCHAR(32) NOT NULL,
    mtime_ns BIGINT NOT NULL, state VARCHAR(8) NOT NULL, added_at DATETIME NOT NULL,
    vector_crc BIGINT NOT NULL, PRIMARY KEY (collection_id, path_key));
CREATE INDEX imgsearch_images_by_id ON imgsearch_images (collection_id, image_id);
CREATE TABLE imgsearch_runs (
    run_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, collection VARCHAR(64) NOT NULL,
    folder BLOB NOT NULL, state VARCHAR(8) NOT NULL, total BIGINT NOT NULL,
    done BIGINT NOT NULL, encoded BIGINT NOT NULL, skipped BIGINT NOT NULL,
    failed BIGINT NOT NULL, host VARCHAR(255) NOT NULL, pid BIGINT NOT NULL,
    pid_started VARCHAR(64) NOT NULL, who VARCHAR(255) NOT NULL, started_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL, finished_at DATETIME, error TEXT);
""",
    "mysql": """
CREATE TABLE imgsearch_schema (version INTEGER NOT NULL AUTO_INCREMENT, PRIMARY KEY (version))
    ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;
CREATE TABLE imgsearch_collections (
    id BIGINT NOT NULL AUTO_INCREMENT, name VARCHAR(64) NOT NULL,
    encoder MEDIUMTEXT NOT NULL, identity MEDIUMTEXT NOT NULL,
    fingerprint VARCHAR(64) NOT NULL, dim INTEGER NOT NULL,
    vector_index VARCHAR(255) NOT NULL, created_at DATETIME(6) NOT NULL,
    PRIMARY KEY (id), UNIQUE (name)) ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;
CREATE TABLE imgsearch_images (
    collection_id BIGINT NOT NULL, path_key BINARY(32) NOT NULL, path BLOB(65535) NOT NULL,
    image_id BIGINT NOT NULL, sha256 VARCHAR(64) NOT NULL, size BIGINT NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, format VARCHAR(32) NOT NULL,
    mtime_ns BIGINT NOT NULL, state VARCHAR(8) NOT NULL, added_at DATETIME(6) NOT NULL,
    vector_crc BIGINT NOT NULL, PRIMARY KEY (collection_id, path_key))
    ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;
CREATE INDEX imgsearch_images_by_id ON imgsearch_images (collection_id, image_id);
CREATE TABLE imgsearch_runs (
    run_id BIGINT NOT NULL AUTO_INCREMENT, collection VARCHAR(64) NOT NULL,
    folder BLOB(65535) NOT NULL, state VARCHAR(8) NOT NULL, total BIGINT NOT NULL,
    done BIGINT NOT NULL, encoded BIGINT NOT NULL, skipped BIGINT NOT NULL,
    failed BIGINT NOT NULL, host VARCHAR(255) NOT NULL, pid BIGINT NOT NULL,
    pid_started VARCHAR(64) NOT NULL, who VARCHAR(255) NOT NULL, started_at DATETIME(6) NOT NULL,
    updated_at DATETIME(6) NOT NULL, finished_at DATETIME(6), error MEDIUMTEXT,
    PRIMARY KEY (run_id)) ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;
""",
}
ROWS = [
    "INSERT INTO imgsearch_schema VALUES (1)",
    "INSERT INTO imgsearch_collections VALUES"
    " (7, 'old', 'mini', '{\"dim\": 8}', 'f00d', 8, 'FLAT', '2025-01-02 03:04:05.000006')",
    "INSERT INTO imgsearch_images VALUES (7, X'{key}', X'2f612f312e6a7067', 5, '{sha}', 10, 20,"
    " 30, 'JPEG', 40, 'ready', '2025-01-02 03:04:05.000006', 4294967295)".format(
        key=hashlib.sha256(b"/a/1.jpg").hexdigest(), sha="05" * 32
    ),
    "INSERT INTO imgsearch_runs VALUES (3, 'old', X'2f61', 'done', 1, 1, 1, 0, 0, 'host', 9, '77',"
    " 'me', '2025-01-02 03:04:05.000006', '2025-01-02 03:04:05.000006',"
    " '2025-01-02 03:04:05.000006', NULL)",
]


@pytest.fixture(params=["sqlite", "mysql"])
def kind(request):
    return request.param


@pytest.fixture
def config(kind, request, tmp_path):
    if kind == "sqlite":
        yield load_settings(database_url=f"sqlite:///{tmp_path / 'old.sqlite'}")
        return
    database = request.getfixturevalue("mariadb")
    name = f"t_{uuid.uuid4().hex[:12]}"
    database.sql(f"CREATE DATABASE {name}")
    yield load_settings(**database.settings(name))
    database.sql(f"DROP DATABASE {name}")


@pytest.fixture
def engine(config):
    engine = sa.create_engine(config.sql_url)
    yield engine
    engine.dispose()


@pytest.fixture
def old(kind, engine):
    """A database as version 1 made it, with a collection, an image and a run in it."""
    with engine.begin() as link:
        for statement in [*VERSION_1[kind].strip().rstrip(";").split(";"), *ROWS]:
            link.exec_driver_sql(statement)


def described(engine):
    """Columns and indexes of all tables."""
    inspector = sa.inspect(engine)
    return {
        name: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)],
            sorted((i["name"], i["column_names"]) for i in inspector.get_indexes(name)),
            inspector.get_pk_constraint(name)["constrained_columns"],
        )
        for name in inspector.get_table_names()
    }


def versions(engine):
    with engine.connect() as link:
        return list(link.scalars(sa.select(schema.schema.c.version)))


def test_a_database_of_version_1_is_migrated_and_keeps_its_rows(config, engine, old):
    when = datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    with MetadataStore.open(config) as store:
        collection = store.collection("old")
        assert (collection.id, collection.identity, collection.created_at) == (7, {"dim": 8}, when)
        (row,) = store.browse("old")
        assert (row.path, row.image_id, row.vector_crc) == ("/a/1.jpg", 5, 2**32 - 1)
        assert (row.attributes, row.has_gps) == ({}, None)
        assert store.set_attributes("old", {"/a/1.jpg": {"label": "cat"}}) == 1
        assert store.matching("old", {"label": "cat", "has_gps": {"exists": False}}).tolist() == [5]
        assert [run.run_id for run in store.runs("old")] == [3]
        assert store.folders("old") == ["/a"]
    assert versions(engine) == [*range(1, schema.VERSION + 1)]
    before = described(engine)
    MetadataStore.open(config).close()
    assert versions(engine) == [*range(1, schema.VERSION + 1)]
    assert described(engine) == before


def test_a_migrated_database_has_the_tables_of_a_new_one(config, engine, old, kind, tmp_path):
    MetadataStore.open(config).close()
    migrated = described(engine)
    with engine.begin() as link:
        schema.tables.drop_all(link)
    MetadataStore.open(config).close()
    assert described(engine) == migrated


def test_an_interrupted_migration_is_repeated(config, engine, old):
    """MySQL commits a change of a table at once: a crash may come before its version is noted."""
    with engine.begin() as link:
        for number in range(2, schema.VERSION + 1):
            schema.MIGRATIONS[number](link)
    MetadataStore.open(config).close()
    assert versions(engine) == [*range(1, schema.VERSION + 1)]


def test_a_migration_that_fails_changes_nothing(config, engine, old, kind, monkeypatch):
    if kind == "mysql":
        pytest.skip("MySQL has no transactions for changes of tables")
    before = described(engine)

    def fail(link):
        link.execute(sa.DDL("ALTER TABLE imgsearch_runs ADD COLUMN more TEXT"))
        raise RuntimeError("on the way")

    with monkeypatch.context() as patch:
        patch.setitem(schema.MIGRATIONS, 2, fail)
        with pytest.raises(RuntimeError, match="on the way"):
            MetadataStore.open(config)
    assert described(engine) == before
    assert versions(engine) == [1]


def test_processes_that_open_an_old_database_together_migrate_it_once(config, engine, old):
    with futures.ThreadPoolExecutor(6) as pool:
        opened = [pool.submit(MetadataStore.open, config) for _ in range(6)]
        for store in opened:
            store.result(60).close()
    assert versions(engine) == [*range(1, schema.VERSION + 1)]


def test_a_newer_database_is_left_alone(config, engine):
    MetadataStore.open(config).close()
    with engine.begin() as link:
        link.execute(sa.insert(schema.schema).values(version=99))
    before = described(engine)
    with pytest.raises(SchemaError, match=r"version 99.*update imgsearch"):
        MetadataStore.open(config)
    assert described(engine) == before
