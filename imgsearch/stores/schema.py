"""Tables of the metadata store, and the migrations that bring older tables up to date.

To change the tables, change them here, add a function to `MIGRATIONS` that makes the
same change to existing tables, and extend ``tests/stores/test_schema.py``.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects import mysql


class _Bytes(sa.TypeDecorator[str]):
    """A text stored as bytes; for a path, these are the bytes in the file system."""

    impl = sa.LargeBinary(65_535)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> bytes | None:
        return None if value is None else value.encode("utf-8", "surrogateescape")

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else bytes(value).decode("utf-8", "surrogateescape")


class _Time(sa.TypeDecorator[datetime]):
    """A time, stored in UTC without a time zone."""

    impl = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class _Attributes(sa.TypeDecorator[dict]):
    """Attributes as JSON, or NULL if there are none."""

    impl = sa.JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: dict | None, dialect: sa.Dialect) -> dict | None:
        return value or None

    def process_result_value(self, value: dict | None, dialect: sa.Dialect) -> dict:
        return value or {}


def _now() -> datetime:
    return datetime.now(UTC)


tables = sa.MetaData()
_Text = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql")
_Key = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql")
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite autoincrements INTEGER only
_options = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}

schema = sa.Table(
    "imgsearch_schema", tables, sa.Column("version", sa.Integer, primary_key=True), **_options
)
collections = sa.Table(
    "imgsearch_collections",
    tables,
    sa.Column("id", _Id, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("encoder", _Text, nullable=False),
    sa.Column("identity", _Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("vector_index", sa.String(255), key="index", nullable=False),
    sa.Column("created_at", _Time, nullable=False, default=_now),
    # Counts changes of the images, which invalidate cached results of queries.
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"),
    sqlite_autoincrement=True,
    **_options,
)
images = sa.Table(
    "imgsearch_images",
    tables,
    sa.Column("collection_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("path_key", _Key, primary_key=True),
    sa.Column("path", _Bytes, nullable=False),
    sa.Column("image_id", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("format", sa.String(32), nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("added_at", _Time, nullable=False, default=_now),
    sa.Column("vector_crc", sa.BigInteger, nullable=False),
    # NULL if the file was read by version 2, or its Exif data do not contain the value.
    sa.Column("date_taken", sa.DateTime),
    sa.Column("camera", _Bytes),
    sa.Column("orientation", sa.Integer),
    sa.Column("has_gps", sa.Boolean),
    sa.Column("attributes", _Attributes),
    **_options,
)
# The last two columns are all that a filter needs, so that it need not read the table.
_images_by_id = sa.Index(
    "imgsearch_images_by_id",
    *(images.c[name] for name in ("collection_id", "image_id", "state", "path_key")),
)
attributes = sa.Table(
    "imgsearch_attributes",
    tables,
    sa.Column("collection_id", _Id, primary_key=True, autoincrement=False),
    sa.Column("path_key", _Key, primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.LargeBinary(65_535), nullable=False),
    sa.Index(
        "imgsearch_attributes_by_value", "collection_id", "name", "value", "path_key",
        mysql_length={"value": 64},
    ),
    sqlite_with_rowid=False,
    **_options,
)  # fmt: skip
"""The attributes of `images` again, as one row for each value, for use in filters."""

runs = sa.Table(
    "imgsearch_runs",
    tables,
    sa.Column("run_id", _Id, primary_key=True, autoincrement=True),
    sa.Column("collection", sa.String(64), nullable=False),
    sa.Column("folder", _Bytes, nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    *(
        sa.Column(name, sa.BigInteger, nullable=False, default=0)
        for name in ("total", "done", "encoded", "skipped", "failed")
    ),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("pid_started", sa.String(64), nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("started_at", _Time, nullable=False, default=_now),
    sa.Column("updated_at", _Time, nullable=False, default=_now, onupdate=_now),
    sa.Column("finished_at", _Time),
    sa.Column("error", _Text),
    sqlite_autoincrement=True,
    **_options,
)
topics = sa.Table(
    "imgsearch_topics",
    tables,
    sa.Column("topic_id", _Id, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(190), nullable=False, unique=True),
    sa.Column("query", _Text, nullable=False),
    sa.Column("collection", sa.String(64), nullable=False),
    sa.Column("created_at", _Time, nullable=False, default=_now),
    sa.Column("updated_at", _Time, nullable=False, default=_now, onupdate=_now),
    sqlite_autoincrement=True,
    **_options,
)
judgments = sa.Table(
    "imgsearch_judgments",
    tables,
    sa.Column("judgment_id", _Id, primary_key=True, autoincrement=True),
    sa.Column("topic_id", _Id, nullable=False, index=True),
    sa.Column("image_id", sa.BigInteger, nullable=False),
    sa.Column("value", sa.Integer, nullable=False),
    sa.Column("depth", sa.Integer),
    sa.Column("collection", sa.String(64), nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("judged_at", _Time, nullable=False, default=_now),
    sqlite_autoincrement=True,
    **_options,
)
_runs_by_collection = sa.Index("imgsearch_runs_by_collection", runs.c.collection)


def _index_runs_by_collection(link: sa.Connection) -> None:
    """Version 2: an index, to find the runs and folders of a collection without a full scan."""
    _runs_by_collection.create(link, checkfirst=True)


def _add_attributes(link: sa.Connection) -> None:
    """Version 3: attributes, and the columns of images that filters need."""
    for table in (collections, images):
        existing = {column["name"] for column in sa.inspect(link).get_columns(table.name)}
        for column in table.c:
            if column.name not in existing:
                added = sa.schema.CreateColumn(column).compile(dialect=link.dialect)
                link.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {added}")
    attributes.create(link, checkfirst=True)
    _images_by_id.drop(link, checkfirst=True)
    _images_by_id.create(link)


def _add_topics(link: sa.Connection) -> None:
    """Version 4: topics and relevance judgments."""
    for table in (topics, judgments):
        table.create(link, checkfirst=True)


MIGRATIONS = {2: _index_runs_by_collection, 3: _add_attributes, 4: _add_topics}
"""The migration to each version from the previous one. MySQL commits each change of a table
immediately, so a migration must be able to run again after an interruption."""

VERSION = max(MIGRATIONS)


def version(link: sa.Connection) -> int | None:
    """Return the version of the tables; None if there are none or creation was interrupted."""
    if not sa.inspect(link).has_table(schema.name):
        return None
    return link.scalar(sa.select(sa.func.max(schema.c.version)))


def upgrade(link: sa.Connection) -> None:
    """Create the tables, or apply the missing migrations, in the caller's transaction."""
    found = version(link)
    if found is None:
        tables.create_all(link)
        link.execute(sa.insert(schema).values(version=VERSION))
        return
    for number in range(found + 1, VERSION + 1):
        MIGRATIONS[number](link)
        link.execute(sa.insert(schema).values(version=number))
