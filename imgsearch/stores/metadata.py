"""Everything but the vectors, in MySQL or SQLite.

Nothing else in the package knows SQL. Paths are kept as the bytes that the file
system holds, so any path comes back as it was, emoji or no UTF-8 at all; a row
is known by the SHA-256 of those bytes, so long paths and trailing spaces are no
trouble either.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, sqlite

from imgsearch.config import Settings, collection_name
from imgsearch.errors import (
    CollectionNotFound,
    ConfigError,
    SchemaError,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from imgsearch.stores import locks

SCHEMA_VERSION = 1
QUIET = timedelta(minutes=2)  # without a sign of life an ingest counts as stale
_SLICES = 64  # of a collection that is changed as a whole
_AT_ONCE = 500  # values in one IN (...)
_LEAST_FREE = 64 * 1024  # bytes that SQLite asks of the disk at once, and some more
_ATTEMPTS = 4  # of a transaction that the server ended because of another one

T = TypeVar("T")

_tables = sa.MetaData()
_Bytes = sa.LargeBinary(65_535)
_Text = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql")
_When = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")  # UTC, without saying so
_Key = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql")
_Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # counts up by itself there
_options = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}

_schema = sa.Table(
    "imgsearch_schema", _tables, sa.Column("version", sa.Integer, primary_key=True), **_options
)
_collections = sa.Table(
    "imgsearch_collections",
    _tables,
    sa.Column("id", _Number, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("encoder", _Text, nullable=False),
    sa.Column("identity", _Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("vector_index", sa.String(255), nullable=False),
    sa.Column("created_at", _When, nullable=False),
    sqlite_autoincrement=True,
    **_options,
)
_images = sa.Table(
    "imgsearch_images",
    _tables,
    sa.Column("collection_id", _Number, primary_key=True, autoincrement=False),
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
    sa.Column("added_at", _When, nullable=False),
    sa.Column("vector_crc", sa.BigInteger, nullable=False),
    sa.Index("imgsearch_images_by_id", "collection_id", "image_id"),
    **_options,
)
_runs = sa.Table(
    "imgsearch_runs",
    _tables,
    sa.Column("run_id", _Number, primary_key=True, autoincrement=True),
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
    sa.Column("started_at", _When, nullable=False),
    sa.Column("updated_at", _When, nullable=False),
    sa.Column("finished_at", _When),
    sa.Column("error", _Text),
    sqlite_autoincrement=True,
    **_options,
)
_COUNTS = ("total", "done", "encoded", "skipped", "failed")


class ImageRow(NamedTuple):
    """An image file of a collection.

    Attributes
    ----------
    path : str
        The file; bytes that are no UTF-8 are surrogate escapes, as from ``os``.
    image_id : int
        63-bit id made of its content; its key among the vectors.
    sha256 : str
        Of the file's bytes, in hex.
    size : int
        Bytes.
    width, height : int
        Pixels, upright.
    format : str
        ``JPEG``, ``PNG``, ….
    mtime_ns : int
        Modification time of the file, nanoseconds.
    state : str
        ``pending``, ``ready`` or ``deleting``. Ignored when a row is written.
    added_at : datetime or None
        When it was first announced, UTC. Ignored when a row is written.
    vector_crc : int
        CRC-32 of the vector that was written for it.
    """

    path: str
    image_id: int
    sha256: str
    size: int
    width: int
    height: int
    format: str
    mtime_ns: int
    state: str = "pending"
    added_at: datetime | None = None
    vector_crc: int = 0


class CollectionRow(NamedTuple):
    """A collection and the encoder that it belongs to.

    Attributes
    ----------
    name : str
        Its name.
    encoder : str
        What to load to encode for it.
    identity : dict
        What its vectors mean; JSON-able.
    fingerprint : str
        Digest of `identity`.
    dim : int
        Length of its vectors.
    index : str
        Its index, as :class:`imgsearch.stores.vectors.IndexSpec` writes it.
    created_at : datetime or None
        UTC; None for now.
    """

    name: str
    encoder: str
    identity: dict
    fingerprint: str
    dim: int
    index: str
    created_at: datetime | None = None


class RunRow(NamedTuple):
    """An ingest, running or past.

    Attributes
    ----------
    run_id : int
        Its number.
    collection, folder : str
        Where to and where from.
    state : str
        ``running``, ``done``, ``stopped``, ``failed``; or ``stale``, where it
        says ``running`` and its process is gone, or has been quiet for two minutes.
    total, done, encoded, skipped, failed : int
        Files found, dealt with, encoded, unchanged, and unreadable.
    host, pid, who : str, int, str
        The process, and its user.
    started_at, updated_at, finished_at : datetime
        UTC; `finished_at` is None while it runs.
    error : str or None
        Why it failed.
    """

    run_id: int
    collection: str
    folder: str
    state: str
    total: int
    done: int
    encoded: int
    skipped: int
    failed: int
    host: str
    pid: int
    who: str
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    error: str | None


class Known(NamedTuple):
    """What tells whether a file has changed since it was ingested."""

    size: int
    mtime_ns: int
    image_id: int
    state: str


class Counts(NamedTuple):
    """How much a collection holds.

    Attributes
    ----------
    images : int
        Different images that are ready.
    paths : int
        Files that are ready; more than `images` where one lies in two places.
    pending, deleting : int
        Files that an interrupted ingest or deletion left behind.
    """

    images: int
    paths: int
    pending: int
    deleting: int


class MetadataStore:
    """Collections, images and ingest runs. Made by :meth:`open`.

    One store may be used by several threads. A forked child connects for itself.

    Attributes
    ----------
    where : str
        The store in words, without the password.
    """

    def __init__(self, settings: Settings):
        self._url = settings.sql_url
        self._sqlite = self._url.get_backend_name() == "sqlite"
        self._pid = os.getpid()
        self._turns = threading.local()
        self._timeout = timeout = settings.imgsearch_timeout
        if self._sqlite:
            name = self._url.database
            if not name or name == ":memory:" or name.startswith("file:"):
                raise ConfigError("DATABASE_URL", "must name a file: sqlite:////folder/file.sqlite")
            self._file = Path(name).absolute()
            self.where = f"metadata {self._file}"
            arguments: dict[str, Any] = {"timeout": timeout}
        else:
            if not self._url.database:
                raise ConfigError(
                    "DATABASE_URL", "names no database: end it with /imgsearch or another name"
                )
            self.where = (
                f"MySQL {self._url.username or ''}@{self._url.host or 'localhost'}:"
                f"{self._url.port or 3306}/{self._url.database}"
            )
            arguments = {
                "charset": "utf8mb4",
                "connect_timeout": max(1, round(timeout / 2)),
                "read_timeout": timeout / 2,  # of the greeting; see _new_engine
                "write_timeout": timeout,
            }
        self._engine = self._new_engine(self._url, arguments)

    def _new_engine(self, url: sa.URL, arguments: dict) -> sa.Engine:
        engine = sa.create_engine(
            url,
            connect_args=arguments,
            pool_pre_ping=True,  # a connection that the server dropped overnight is replaced
            pool_recycle=3600,
            hide_parameters=True,
        )
        if self._sqlite:
            sa.event.listen(engine, "connect", _prepare_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
        else:
            # A server that is silent costs a ping of an old connection and the greeting of a
            # new one: half of the time each. A statement has all of it.
            timeout = self._timeout
            sa.event.listen(engine, "checkin", lambda link, _: _wait_at_most(link, timeout / 2))
            sa.event.listen(engine, "checkout", lambda link, *_: _wait_at_most(link, timeout))
            # The default would show a reader what was true when its transaction began, and
            # lock gaps between rows that other ingests write to.
            engine = engine.execution_options(isolation_level="READ COMMITTED")
        return engine

    @classmethod
    def open(cls, settings: Settings) -> MetadataStore:
        """Connect, and make the tables where there are none.

        Parameters
        ----------
        settings : Settings
            SQLite file of the home, or what ``DATABASE_URL`` or ``MYSQL_…`` name.

        Returns
        -------
        MetadataStore

        Raises
        ------
        ConfigError
            The URL cannot be used.
        StoreUnavailable
            The server cannot be reached within ``imgsearch_timeout`` seconds.
        StoreDamaged
            The file is no SQLite database, or a broken one.
        SchemaError
            The tables were made by a newer imgsearch.
        StoreError
            Wrong user, password or database, or a folder that cannot be written.
        """
        store = cls(settings)
        try:
            store._make_schema()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Disconnect. The store connects again if it is used after that."""
        self._engine.dispose(close=self._pid == os.getpid())

    def __enter__(self) -> MetadataStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ collections

    def create_collection(self, row: CollectionRow) -> None:
        """Add a collection.

        Parameters
        ----------
        row : CollectionRow
            Its name, encoder, identity, dimension and index.

        Raises
        ------
        StoreError
            There is one of this name, made with something else. The same one
            again is no error.
        """
        collection_name(row.name)
        values = {
            "name": row.name,
            "encoder": row.encoder,
            "identity": json.dumps(row.identity, sort_keys=True),
            "fingerprint": row.fingerprint,
            "dim": row.dim,
            "vector_index": row.index,
            "created_at": _naive(row.created_at),
        }
        self._write(lambda link: link.execute(self._ignoring(_collections), values))
        there = self.collection(row.name)
        if (there.fingerprint, there.dim) != (row.fingerprint, row.dim):
            raise StoreError(
                self.where, f"collection {row.name!r} is there already, with encoder "
                f"{there.encoder} ({there.fingerprint}) and vectors of {there.dim} numbers"
            )  # fmt: skip

    def collection(self, name: str) -> CollectionRow:
        """One collection.

        Parameters
        ----------
        name : str
            Its name.

        Returns
        -------
        CollectionRow

        Raises
        ------
        CollectionNotFound
            There is none of this name.
        """
        for row in self._read(sa.select(_collections).where(_collections.c.name == name)):
            return _collection(row)
        raise CollectionNotFound(name, [c.name for c in self.collections()])

    def collections(self) -> list[CollectionRow]:
        """All collections, by name."""
        rows = self._read(sa.select(_collections))
        return sorted((_collection(row) for row in rows), key=lambda c: c.name)

    def drop_collection(self, name: str) -> None:
        """Remove a collection and its images' rows. Its ingest runs stay as history.

        Parameters
        ----------
        name : str
            Its name.

        Raises
        ------
        CollectionNotFound
            There is none of this name.
        """
        number = self._id(name)
        for slice_ in _slices(number):
            self._write(lambda link, slice_=slice_: link.execute(sa.delete(_images).where(slice_)))
        self._write(
            lambda link: link.execute(sa.delete(_collections).where(_collections.c.id == number))
        )

    @contextlib.contextmanager
    def exclusive(self, collection: str, timeout: float = 600.0) -> Iterator[None]:
        """Be the only one that changes a collection, for a while.

        Excludes other processes, other machines on the same server, and other
        threads; a thread that holds it already just goes on.

        Parameters
        ----------
        collection : str
            The collection.
        timeout : float
            Seconds to wait for one's turn.

        Yields
        ------
        None

        Raises
        ------
        StoreBusy
            Somebody else still holds it after `timeout`.
        """
        if self._sqlite:
            with locks.writing(self._file.parent, timeout):
                yield
            return
        # The server's own advisory lock: it goes with the connection, so with the process.
        key = f"{self._url.database} {collection}".encode()
        name = f"imgsearch {hashlib.sha256(key).hexdigest()[:40]}"  # 64 characters at most
        held = vars(self._turns).setdefault("links", {})
        if name in held:
            yield
            return
        with self._translating():
            link = self._connected().connect()
        try:
            end = time.monotonic() + timeout
            with self._translating():
                while not link.scalar(sa.select(sa.func.get_lock(name, 1))):
                    if time.monotonic() > end:
                        number = link.scalar(sa.select(sa.func.is_used_lock(name)))
                        raise StoreBusy(
                            self.where,
                            self._writers(collection) or f"connection {number}",
                            f"another ingest or deletion is writing, and still was after "
                            f"{timeout:g} s; wait for it, or stop it",
                        )
                link.commit()
            held[name] = link
            yield
        finally:
            held.pop(name, None)
            # Closing for good gives the lock back, whatever state the connection is in.
            link.invalidate()
            link.close()

    def _writers(self, collection: str) -> str:
        me = socket.gethostname()[:255], os.getpid()
        others = [
            r for r in self.runs(collection) if r.state == "running" and (r.host, r.pid) != me
        ]
        return ", ".join(f"process {r.pid} of {r.who} on {r.host}" for r in others)

    @contextlib.contextmanager
    def _link(self) -> Iterator[sa.Connection]:
        """Lend a connection: the one that holds the collection for this thread, if one does.

        A lock that is lost, since its server restarted or cut the connection, then takes
        with it every statement that relied on it: none comes after another writer's.
        """
        held = list(vars(self._turns).get("links", {}).values())
        if not held:
            with self._connected().connect() as link:
                yield link
            return
        link = held[-1]
        if link.invalidated:
            raise StoreUnavailable(
                self.where, "ended the connection that held the collection, so that others may "
                "write to it now: check that the server runs, and begin again"
            )  # fmt: skip
        try:
            yield link
        finally:
            link.rollback()  # of a transaction that was committed or undone already: nothing

    # ------------------------------------------------------------ images

    def prepare(self, collection: str, rows: Sequence[ImageRow]) -> None:
        """Say that images are about to be stored: their rows become ``pending``.

        A row that is ready, of the same content and with the same vector, stays ready.

        Parameters
        ----------
        collection : str
            The collection.
        rows : sequence of ImageRow
            One for each path; what was there under the same path is replaced.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        number, now = self._id(collection), _naive(None)
        values = {}
        for row in rows:
            path = _stored(row.path)
            values[_key(path)] = {
                **row._asdict(),
                "collection_id": number,
                "path_key": _key(path),
                "path": path,
                "state": "pending",
                "added_at": now,
            }
        if values:
            ordered = [values[key] for key in sorted(values)]  # the same order for all: no deadlock
            self._write(lambda link: link.execute(self._upserting(), ordered))

    def commit(self, collection: str, paths: Iterable[str]) -> None:
        """Say that the vectors of pending images are stored: they become ``ready``.

        Parameters
        ----------
        collection : str
            The collection.
        paths : iterable of str
            Which ones; those that are not there are passed over.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        number = self._id(collection)

        def commit(link: sa.Connection) -> None:
            for chosen in _chosen(number, paths=paths):
                pending = _images.c.state == "pending"
                link.execute(sa.update(_images).where(chosen, pending).values(state="ready"))

        self._write(commit)

    def mark_deleting(self, collection: str, paths: Iterable[str] | None = None) -> None:
        """Say that images are about to be deleted: no search shows them from now on.

        Parameters
        ----------
        collection : str
            The collection.
        paths : iterable of str, optional
            Which ones; all of them if left out.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        number = self._id(collection)
        change = sa.update(_images).values(state="deleting")
        if paths is None:
            for slice_ in _slices(number):
                self._write(lambda link, slice_=slice_: link.execute(change.where(slice_)))
            return

        def mark(link: sa.Connection) -> None:
            for chosen in _chosen(number, paths=paths):
                link.execute(change.where(chosen))

        self._write(mark)

    def remove(self, collection: str, paths: Iterable[str]) -> None:
        """Remove rows by path, in whatever state.

        Parameters
        ----------
        collection : str
            The collection.
        paths : iterable of str
            Which ones; those that are not there are passed over.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        number = self._id(collection)

        def remove(link: sa.Connection) -> None:
            for chosen in _chosen(number, paths=paths):
                link.execute(sa.delete(_images).where(chosen))

        self._write(remove)

    def unfinished(self, collection: str) -> list[ImageRow]:
        """Rows that are ``pending`` or ``deleting``.

        Parameters
        ----------
        collection : str
            The collection.

        Returns
        -------
        list of ImageRow

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        return self._images(
            [sa.and_(_images.c.collection_id == self._id(collection), _images.c.state != "ready")]
        )

    def checksums(self, collection: str) -> dict[int, int]:
        """What the vector of each ready image should be.

        Parameters
        ----------
        collection : str
            The collection.

        Returns
        -------
        dict of int to int
            CRC-32 of the vector by image id.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        query = sa.select(_images.c.image_id, _images.c.vector_crc).where(
            _images.c.collection_id == self._id(collection), _images.c.state == "ready"
        )
        return {row[0]: row[1] for row in self._read(query)}

    def known(self, collection: str, prefix: str | None = None) -> dict[str, Known]:
        """Tell what is known of every file, so that an ingest can pass over the unchanged.

        Parameters
        ----------
        collection : str
            The collection.
        prefix : str, optional
            Only paths that begin so.

        Returns
        -------
        dict of str to Known
            Size, modification time, image id and state by path, in any state.
        """
        query = sa.select(
            _images.c.path,
            _images.c.size,
            _images.c.mtime_ns,
            _images.c.image_id,
            _images.c.state,
        ).where(_images.c.collection_id == self._id(collection))
        if prefix:
            start = _stored(prefix)
            query = query.where(sa.func.substr(_images.c.path, 1, len(start)) == start)
        return {_text(row[0]): Known(*row[1:]) for row in self._read(query)}

    def by_path(self, collection: str, paths: Iterable[str]) -> dict[str, ImageRow]:
        """Rows by path, in any state.

        Parameters
        ----------
        collection : str
            The collection.
        paths : iterable of str
            Which ones; those that are not there are passed over.

        Returns
        -------
        dict of str to ImageRow
            What is not there is left out.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        rows = self._images(_chosen(self._id(collection), paths=paths))
        return {row.path: row for row in rows}

    def by_id(
        self,
        collection: str,
        image_ids: Iterable[int],
        *,
        states: Sequence[str] = ("ready",),
    ) -> dict[int, list[ImageRow]]:
        """Rows by image id, those of one image sorted by path.

        Parameters
        ----------
        collection : str
            The collection.
        image_ids : iterable of int
            Which ones.
        states : sequence of str
            Only rows in one of these.

        Returns
        -------
        dict of int to list of ImageRow
            Ids without such a row are left out.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        found: dict[int, list[ImageRow]] = {}
        for row in self._images(_chosen(self._id(collection), image_ids=image_ids)):
            if row.state in states:
                found.setdefault(row.image_id, []).append(row)
        for rows in found.values():
            rows.sort(key=lambda row: _stored(row.path))
        return found

    def ids(self, collection: str, state: str | None = "ready") -> np.ndarray:
        """Image ids in a state.

        Parameters
        ----------
        collection : str
            The collection.
        state : str or None
            The state; None for any.

        Returns
        -------
        numpy.ndarray
            int64, shape ``(n,)``, ascending, each once.

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        query = (
            sa.select(_images.c.image_id)
            .where(_images.c.collection_id == self._id(collection))
            .distinct()
        )
        if state is not None:
            query = query.where(_images.c.state == state)
        return np.unique(np.asarray([row[0] for row in self._read(query)], np.int64))

    def count(self, collection: str) -> Counts:
        """How much a collection holds.

        Parameters
        ----------
        collection : str
            The collection.

        Returns
        -------
        Counts

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        query = (
            sa.select(
                _images.c.state, sa.func.count(), sa.func.count(sa.distinct(_images.c.image_id))
            )
            .where(_images.c.collection_id == self._id(collection))
            .group_by(_images.c.state)
        )
        found = {state: (rows, images) for state, rows, images in self._read(query)}
        ready, pending, deleting = (found.get(s, (0, 0)) for s in ("ready", "pending", "deleting"))
        return Counts(ready[1], ready[0], pending[0], deleting[0])

    def browse(
        self,
        collection: str,
        *,
        offset: int = 0,
        limit: int = 100,
        like: str | None = None,
        since: datetime | None = None,
    ) -> list[ImageRow]:
        """List a page of the ready images, sorted by path.

        Parameters
        ----------
        collection : str
            The collection.
        offset, limit : int
            Which page.
        like : str, optional
            Only paths that contain this, upper and lower case being different.
        since : datetime, optional
            Only images that were added then or later.

        Returns
        -------
        list of ImageRow

        Raises
        ------
        CollectionNotFound
            There is no such collection.
        """
        query = sa.select(_images).where(
            _images.c.collection_id == self._id(collection), _images.c.state == "ready"
        )
        if like:
            query = query.where(sa.func.instr(_images.c.path, _stored(like)) > 0)
        if since is not None:
            query = query.where(_images.c.added_at >= _naive(since))
        query = query.order_by(_images.c.path).limit(max(0, limit)).offset(max(0, offset))
        return [_image(row) for row in self._read(query)]

    # ------------------------------------------------------------ ingest runs

    def start_run(self, collection: str, folder: str | Path, total: int = 0) -> int:
        """Write down that an ingest by this process begins.

        Parameters
        ----------
        collection : str
            The collection.
        folder : str or Path
            Where the images come from.
        total : int
            Files found there.

        Returns
        -------
        int
            Its number, for :meth:`update_run` and :meth:`finish_run`.
        """
        now = _naive(None)
        values = {
            "collection": collection,
            "folder": _stored(str(folder)),
            "state": "running",
            "total": total,
            "host": socket.gethostname()[:255],
            "pid": os.getpid(),
            "pid_started": _process_start(os.getpid()),
            "who": _user(),
            "started_at": now,
            "updated_at": now,
        }
        return self._write(
            lambda link: int(link.execute(sa.insert(_runs), values).inserted_primary_key[0])
        )

    def update_run(self, run_id: int, **counts: int) -> None:
        """Write progress down, which is a sign of life too.

        Parameters
        ----------
        run_id : int
            The run.
        **counts : int
            Any of ``total``, ``done``, ``encoded``, ``skipped``, ``failed``.
        """
        if unknown := set(counts) - set(_COUNTS):
            raise TypeError(f"a run has no {', '.join(sorted(unknown))}")
        self._change_run(run_id, **counts)

    def finish_run(
        self, run_id: int, state: str, *, error: str | None = None, **counts: int
    ) -> None:
        """Write down how an ingest ended.

        Parameters
        ----------
        run_id : int
            The run.
        state : str
            ``done``, ``stopped`` or ``failed``.
        error : str, optional
            Why it failed.
        **counts : int
            As for :meth:`update_run`.
        """
        if state not in ("done", "stopped", "failed"):
            raise ValueError(f"a run ends as done, stopped or failed, not {state!r}")
        text = None if error is None else error.encode("utf-8", "backslashreplace").decode()
        self._change_run(run_id, state=state, error=text, finished_at=_naive(None), **counts)

    def _change_run(self, run_id: int, **values: object) -> None:
        change = sa.update(_runs).where(_runs.c.run_id == run_id)
        self._write(lambda link: link.execute(change.values(updated_at=_naive(None), **values)))

    def runs(self, collection: str | None = None, limit: int = 50) -> list[RunRow]:
        """Ingest runs, newest first.

        Parameters
        ----------
        collection : str, optional
            Only those of one collection.
        limit : int
            How many.

        Returns
        -------
        list of RunRow
        """
        query = sa.select(_runs).order_by(_runs.c.run_id.desc()).limit(max(0, limit))
        if collection is not None:
            query = query.where(_runs.c.collection == collection)
        return [_run(row) for row in self._read(query)]

    # ------------------------------------------------------------ inside

    def _id(self, collection: str) -> int:
        # Always asked: another process may have dropped and made the collection again.
        query = sa.select(_collections.c.id).where(_collections.c.name == collection)
        for row in self._read(query):
            return int(row[0])
        raise CollectionNotFound(collection, [c.name for c in self.collections()])

    def _images(self, choices: Iterable[sa.ColumnElement[bool]]) -> list[ImageRow]:
        return [_image(row) for c in choices for row in self._read(sa.select(_images).where(c))]

    def _ignoring(self, table: sa.Table) -> Any:
        if self._sqlite:
            return sqlite.insert(table).on_conflict_do_nothing()
        return mysql.insert(table).prefix_with("IGNORE")

    def _upserting(self) -> Any:
        query = sqlite.insert(_images) if self._sqlite else mysql.insert(_images)
        new = query.excluded if self._sqlite else query.inserted
        ready = sa.literal_column("'ready'")  # PyMySQL joins rows only where no value follows
        same = sa.and_(
            _images.c.state == ready,
            _images.c.image_id == new.image_id,
            _images.c.vector_crc == new.vector_crc,
        )
        # The state comes first, because MySQL would compare with what it has just assigned.
        kept = {"collection_id", "path_key", "added_at", "state"}
        changed = [("state", sa.case((same, ready), else_=new.state))]
        changed += [(c.name, new[c.name]) for c in _images.c if c.name not in kept]
        if self._sqlite:
            return query.on_conflict_do_update(
                index_elements=["collection_id", "path_key"], set_=dict(changed)
            )
        return query.on_duplicate_key_update(changed)

    def _read(self, query: sa.Select) -> Sequence[sa.Row]:
        with self._translating(), self._link() as link:
            return link.execute(query).all()

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        """Do all of it in one transaction, or nothing."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                with self._translating(), self._link() as link:
                    link = link.execution_options(imgsearch_writes=True)
                    with link.begin():
                        return work(link)
            except _Deadlock:
                if not left:
                    raise StoreBusy(
                        self.where, "other transactions", "rows are being written by others"
                    ) from None
        raise AssertionError("unreachable")

    def _connected(self) -> sa.Engine:
        if self._pid != os.getpid():
            self._engine.dispose(close=False)  # those connections are the parent's
            self._pid = os.getpid()
        return self._engine

    def _make_schema(self) -> None:
        if self._sqlite:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(
                    self.where, f"its folder cannot be made: {error.strerror}; check IMGSEARCH_HOME"
                ) from None
        try:
            version = self._version()
        except _NoDatabase:
            self._make_database()
            version = None
        if version is None:
            self._write(self._make_tables)
            version = self._version()
        if version != SCHEMA_VERSION:
            newer = (version or 0) > SCHEMA_VERSION
            raise SchemaError(
                self.where, f"its tables have version {version}, this imgsearch knows version "
                f"{SCHEMA_VERSION}: " + ("update imgsearch" if newer else "use another database")
            )  # fmt: skip

    def _version(self) -> int | None:
        try:
            rows = self._read(sa.select(sa.func.max(_schema.c.version)))
        except _NoTable:
            return None
        return rows[0][0]

    def _make_tables(self, link: sa.Connection) -> None:
        # SQLite: this transaction holds the file. MySQL: its tables know no transaction.
        if not self._sqlite:
            name = f"imgsearch {self._url.database}"[:64]
            if not link.scalar(sa.select(sa.func.get_lock(name, 10))):
                raise StoreBusy(self.where, "another process", "its tables are being made")
        try:
            _tables.create_all(link)
            link.execute(self._ignoring(_schema), {"version": SCHEMA_VERSION})
        finally:
            if not self._sqlite:
                link.scalar(sa.select(sa.func.release_lock(name)))

    def _make_database(self) -> None:
        """Make the MySQL database that the URL names."""
        name = self._url.database
        engine = self._new_engine(
            self._url.set(database=""), {"connect_timeout": 5, "charset": "utf8mb4"}
        )
        quoted = engine.dialect.identifier_preparer.quote_identifier(name)
        make = f"CREATE DATABASE IF NOT EXISTS {quoted} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
        try:
            with self._translating(), engine.begin() as link:
                link.exec_driver_sql(make.replace("%", "%%"))
        except StoreUnavailable:
            raise
        except StoreError:
            raise StoreError(
                self.where, f"there is no database {name!r}, and user {self._url.username!r} may "
                f"not make it: have an administrator run {make}, or name another in MYSQL_DB"
            ) from None  # fmt: skip
        finally:
            engine.dispose()

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        """Turn whatever SQLAlchemy raises into an error of ours, without its parameters."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise self._translated(error.orig) from None
        except sa.exc.TimeoutError:
            raise StoreBusy(
                self.where, "this process", "all its connections are in use: close some stores"
            ) from None
        except sqlite3.Error as error:  # raised while a connection is prepared
            raise self._translated(error) from None

    def _translated(self, error: BaseException | None) -> Exception:
        if self._sqlite:
            return self._of_sqlite(error)
        code = error.args[0] if error is not None and error.args else None
        text = str(error.args[1]) if error is not None and len(error.args) > 1 else str(error)
        user = self._url.username
        if code == 1049:
            return _NoDatabase(text)
        if code == 1146:
            return _NoTable(text)
        if code in (1205, 1213):
            return _Deadlock(text)
        if code in (1045, 1698):
            return StoreError(
                self.where, f"refuses user {user!r} or the password: check MYSQL_USER and "
                "MYSQL_PASSWORD, or DATABASE_URL"
            )  # fmt: skip
        if code in (1044, 1142, 1227, 1370):
            return StoreError(
                self.where, f"user {user!r} may not do this: {text}; have an administrator GRANT "
                f"all privileges on {self._url.database}.*"
            )  # fmt: skip
        if code in (2003, 2005):
            return StoreUnavailable(
                self.where, "cannot be reached: check that it runs, MYSQL_HOST and MYSQL_PORT or "
                "DATABASE_URL, and the firewall"
            )  # fmt: skip
        if code in (2006, 2013, 2055, 0, 1053, 1927) or isinstance(error, TimeoutError):
            return StoreUnavailable(
                self.where, "does not answer, or ended the connection: check that it runs, and "
                "is not overloaded"
            )  # fmt: skip
        if code in (1021, 1114, 3, 28):
            return StoreError(self.where, f"its disk is full: {text}")
        if code == 1040:
            return StoreUnavailable(self.where, "has no connection left: close some notebooks")
        return StoreError(self.where, f"{text} (MySQL error {code})")

    def _of_sqlite(self, error: BaseException | None) -> Exception:
        code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
        if "no such table" in str(error):
            return _NoTable(str(error))
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return StoreDamaged(
                self.where, f"is no sound SQLite database ({error}): move it away and restore a "
                "copy, or ingest again; `verify` and `repair` then put the stores right"
            )  # fmt: skip
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreBusy(self.where, "another process", "it is being written")
        # Without room for its shared memory, SQLite calls a full disk a failing one.
        full = code == sqlite3.SQLITE_IOERR and _free(self._file.parent) < _LEAST_FREE
        if code == sqlite3.SQLITE_FULL or full:
            return StoreError(self.where, "its disk is full: free some space")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StoreError(
                self.where, f"cannot be written ({error}): check the permissions of its folder, "
                "or set IMGSEARCH_HOME to another"
            )  # fmt: skip
        if code == sqlite3.SQLITE_IOERR:
            return StoreError(self.where, f"its disk fails ({error}): check space and hardware")
        return StoreError(self.where, str(error))


class _NoTable(Exception):
    """The tables are not there yet."""


class _NoDatabase(Exception):
    """The MySQL database is not there yet."""


class _Deadlock(Exception):
    """Another transaction was in the way, and this one was undone."""


def _wait_at_most(link: Any, seconds: float) -> None:
    if link is not None:  # a connection that broke is handed back as None
        link._read_timeout = seconds  # PyMySQL reads it before every answer


def _prepare_sqlite(link: Any, _: object) -> None:
    link.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        link.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(link: sa.Connection) -> None:
    # A writer takes the file at once: one that turns from reader to writer on the way
    # fails at once where another has written meanwhile, however long it may wait.
    writes = link.get_execution_options().get("imgsearch_writes")
    link.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _chosen(
    collection: int, *, image_ids: Iterable[int] = (), paths: Iterable[str] = ()
) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions that choose rows, a few hundred at a time."""
    keys = sorted({_key(_stored(path)) for path in paths})
    numbers = sorted({int(i) for i in image_ids})
    for column, values in ((_images.c.path_key, keys), (_images.c.image_id, numbers)):
        for start in range(0, len(values), _AT_ONCE):
            part = column.in_(values[start : start + _AT_ONCE])
            yield sa.and_(_images.c.collection_id == collection, part)


def _slices(collection: int) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions that choose all rows of a collection, a part at a time.

    A million rows in one statement would take a server longer than it may be silent.
    """
    step = 256 // _SLICES
    for first in range(0, 256, step):
        slice_ = sa.and_(
            _images.c.collection_id == collection, _images.c.path_key >= bytes([first])
        )
        last = first + step
        yield slice_ if last == 256 else sa.and_(slice_, _images.c.path_key < bytes([last]))


def _stored(path: str) -> bytes:
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError("path", f"{ascii(path)[:200]} is no path of this machine") from None


def _text(path: bytes) -> str:
    return bytes(path).decode("utf-8", "surrogateescape")


def _key(path: bytes) -> bytes:
    return hashlib.sha256(path).digest()


def _naive(when: datetime | None) -> datetime:
    return (when or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None)


def _utc(when: datetime | None) -> datetime | None:
    return None if when is None else when.replace(tzinfo=UTC)


def _collection(row: sa.Row) -> CollectionRow:
    return CollectionRow(
        row.name,
        row.encoder,
        json.loads(row.identity),
        row.fingerprint,
        row.dim,
        row.vector_index,
        _utc(row.created_at),
    )


def _image(row: sa.Row) -> ImageRow:
    return ImageRow(
        _text(row.path),
        row.image_id,
        row.sha256,
        row.size,
        row.width,
        row.height,
        row.format,
        row.mtime_ns,
        row.state,
        _utc(row.added_at),
        row.vector_crc,
    )


def _run(row: sa.Row) -> RunRow:
    state = row.state
    if state == "running":
        quiet = _naive(None) - row.updated_at > QUIET
        here = row.host == socket.gethostname()[:255]
        gone = here and _process_start(row.pid) != row.pid_started
        state = "stale" if quiet or gone else state
    return RunRow(
        row.run_id,
        row.collection,
        _text(row.folder),
        state,
        *(getattr(row, name) for name in _COUNTS),
        row.host,
        row.pid,
        row.who,
        _utc(row.started_at),
        _utc(row.updated_at),
        _utc(row.finished_at),
        row.error,
    )


def _process_start(pid: int) -> str:
    """Something that tells a process from a later one of the same number; empty if gone."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return ""
        facts = stat.rpartition(")")[2].split()
        # A zombie is dead, though nobody has asked for its end. Clock ticks since boot.
        return "" if facts[0] in "ZX" else facts[19]
    shown = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip()


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _user() -> str:
    try:
        return getpass.getuser()[:255]
    except (KeyError, OSError):  # a container without this user
        return f"user {os.getuid()}"
