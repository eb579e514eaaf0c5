"""The database under the metadata store: connections, transactions, locks and errors."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from imgsearch.config import Settings
from imgsearch.errors import (
    ConfigError,
    SchemaError,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from imgsearch.io import absolute
from imgsearch.stores import locks, schema

_ATTEMPTS = 4  # for a transaction that the server rolls back because of a deadlock
_NO_DATABASE = 1049
_DEADLOCK = (1205, 1213)
_ENDED = 1927  # an administrator closed the connection
_MYSQL_ERRORS: list[tuple[tuple[int, ...], type[StoreError], str]] = [
    (
        (_ENDED, 1053),
        StoreUnavailable,
        "does not answer, or closed the connection: check that it is running and not overloaded",
    ),
    (
        (2003, 2005),
        StoreUnavailable,
        "cannot be reached: check that it is running, the settings MYSQL_HOST and MYSQL_PORT or "
        "DATABASE_URL, and the firewall",
    ),
    ((1040,), StoreUnavailable, "has no free connections: close some notebooks"),
    (
        (1045, 1698),
        StoreError,
        "rejected user {user!r} or the password: check MYSQL_USER and MYSQL_PASSWORD, or "
        "DATABASE_URL",
    ),
    (
        (1044, 1142, 1227, 1370),
        StoreError,
        "user {user!r} lacks a privilege: {text}; ask an administrator to GRANT all privileges on "
        "{database}.*, or set MYSQL_DB to another database",
    ),
    ((3, 28, 1021, 1114), StoreError, "its disk is full: {text}"),
]

_connections = sa.table(
    "PROCESSLIST", sa.column("id"), sa.column("host"), schema="information_schema"
)

T = TypeVar("T")


class _Deadlock(StoreBusy):
    """The server rolled a transaction back in favour of another one; it can be repeated."""


class Database:
    """An SQLite file, or a database on a MySQL server, with tables of the current version.

    Threads may share it. A forked child opens its own connections.
    """

    def __init__(self, settings: Settings):
        url, timeout = settings.sql_url, settings.imgsearch_timeout
        self.sqlite = url.get_backend_name() == "sqlite"
        self._pid, self._thread = os.getpid(), threading.local()
        options: dict[str, Any] = {}
        if self.sqlite:
            name = url.database
            if not name or name == ":memory:" or name.startswith("file:"):
                raise ConfigError("DATABASE_URL", "must name a file: sqlite:////folder/file.sqlite")
            self._file = absolute(name)
            self._in_home = self._file.parent == settings.imgsearch_home
            url = url.set(database=str(self._file))
            self.where = f"metadata {self._file}"
            arguments: dict[str, Any] = {"timeout": timeout}
        else:
            if not url.database:
                raise ConfigError(
                    "DATABASE_URL", "names no database: end it with /imgsearch or another name"
                )
            self.where = (
                f"MySQL {url.username or ''}@{url.host or 'localhost'}:{url.port or 3306}"
                f"/{url.database}"
            )
            arguments = {
                "charset": "utf8mb4",
                "connect_timeout": max(1, round(timeout / 2)),  # a host may have two addresses
                "read_timeout": timeout,
                "write_timeout": timeout,
            }
            # The default, REPEATABLE READ, would show a reader the state at the start of its
            # transaction, and would lock gaps between rows into which other ingests write.
            options["isolation_level"] = "READ COMMITTED"
        self._url = url
        self._engine = sa.create_engine(
            url,
            connect_args=arguments,
            pool_pre_ping=True,  # a connection that the server dropped overnight is replaced
            pool_recycle=3600,
            hide_parameters=True,
            **options,
        )
        if self.sqlite:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self._engine, "handle_error", _give_up_after_silence)

    def open(self) -> None:
        """Connect, create missing tables, and migrate older ones."""
        if self.sqlite:
            self._create_file()
        with self._translated():
            try:
                found = self._call(schema.version)
            except sa.exc.OperationalError as error:
                if self.sqlite or _code(error) != _NO_DATABASE:
                    raise
                self._create_database()
                found = None
        if found is None or found < schema.VERSION:
            with self.lock("schema", 60, lambda: "another process that creates the tables"):
                self.write(schema.upgrade)
        elif found > schema.VERSION:
            raise SchemaError(
                self.where, f"its tables have version {found}, but this imgsearch supports up to "
                f"version {schema.VERSION}: update imgsearch, or use another database"
            )  # fmt: skip

    def close(self) -> None:
        """Close all connections. The next use connects again."""
        self._engine.dispose(close=self._pid == os.getpid())

    def read(self, query: sa.Select | sa.CompoundSelect) -> Sequence[sa.Row]:
        """Return all rows of a query."""
        return self.reading(lambda link: link.execute(query).all())

    def reading(self, work: Callable[[sa.Connection], T]) -> T:
        """Run queries, which on SQLite all see the same state of the database."""
        with self._translated():
            return self._call(work)

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in one transaction, so that either all of it happens or nothing."""
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(_Deadlock):
                return self._transact(work)
        return self._transact(work)

    def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        with self._translated(), self._connection() as link:
            link = link.execution_options(imgsearch_writes=True)
            with link.begin():
                return work(link)

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float, holder: Callable[[], str]) -> Iterator[None]:
        """Hold a lock against other threads, processes and machines; re-entrant in a thread.

        SQLite has one lock for the whole folder. `holder` returns a description of its holder.
        """
        if self.sqlite:
            with locks.writing(self._file.parent, timeout, name):
                yield
            return
        # MySQL's advisory lock is released when the connection closes, and so with the process.
        key = f"{self._url.database} {name}".encode()
        name = f"imgsearch {hashlib.sha256(key).hexdigest()[:40]}"  # 64 characters at most
        held = vars(self._thread).setdefault("held", {})
        if name in held:
            yield
            return
        with self._translated():
            link = self._connected().connect()
        try:
            with self._translated():
                locks.acquire(
                    lambda: bool(link.scalar(sa.select(sa.func.get_lock(name, 1)))),
                    self.where,
                    lambda: holder() or _connection_with_lock(link, name),
                    timeout,
                )
                link.commit()
            held[name] = link
            yield
        finally:
            held.pop(name, None)
            # Closing the connection releases the lock, whatever state the connection is in.
            link.invalidate()
            link.close()

    # ------------------------------------------------------------ connections

    def _connected(self) -> sa.Engine:
        if self._pid != os.getpid():
            self._engine.dispose(close=False)  # its connections belong to the parent process
            self._pid = os.getpid()
        return self._engine

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        """Yield a connection: the one that holds a lock for this thread, if there is one.

        If the lock is lost because the server restarted or closed the connection, no statement
        that relied on it can then run after those of another writer.
        """
        held = list(vars(self._thread).get("held", {}).values())
        if not held:
            with self._connected().connect() as link:
                yield link
            return
        link = held[-1]
        if link.invalidated:
            raise StoreUnavailable(
                self.where, "closed the connection that held the lock of the collection, so that "
                "others may now be writing to it: check that the server is running, and start again"
            )  # fmt: skip
        try:
            yield link
        finally:
            link.rollback()  # ends a transaction that was neither committed nor rolled back

    def _call(self, work: Callable[[sa.Connection], T]) -> T:
        with self._connection() as link:
            return work(link)

    # ------------------------------------------------------------ creation

    def _create_file(self) -> None:
        """Create the file, accessible to its owner only; SQLite's other files inherit its mode."""
        try:
            self._file.parent.mkdir(0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            if self._in_home:  # older versions created the file readable to everybody
                for ending in ("", "-wal", "-shm"):
                    path = Path(f"{self._file}{ending}")
                    with contextlib.suppress(OSError):  # missing, or not ours
                        if path.stat().st_mode & 0o077:
                            path.chmod(0o600)
        except OSError as error:
            raise StoreError(
                self.where, f"cannot be created ({error.strerror}): check the permissions of its "
                "folder, or set IMGSEARCH_HOME to another folder"
            ) from None  # fmt: skip

    def _create_database(self) -> None:
        """Create the MySQL database that the URL names."""
        engine = sa.create_engine(self._url.set(database=""), hide_parameters=True)
        try:
            with self._translated(), engine.begin() as link:
                link.execute(sa.schema.CreateSchema(self._url.database, if_not_exists=True))
        finally:
            engine.dispose()

    # ------------------------------------------------------------ errors

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate SQLAlchemy's errors to those of imgsearch, which never contain parameters."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise self._error(error) from None
        except sa.exc.TimeoutError:
            raise StoreBusy(
                self.where, "this process", "all its connections are in use: close some stores"
            ) from None

    def _error(self, error: sa.exc.DBAPIError) -> StoreError:
        return self._sqlite_error(error.orig) if self.sqlite else self._mysql_error(error)

    def _mysql_error(self, error: sa.exc.DBAPIError) -> StoreError:
        code, text = _code(error), str(error.orig.args[-1] if error.orig.args else error.orig)
        if code in _DEADLOCK:
            return _Deadlock(self.where, "other transactions", "the rows are locked")
        if error.connection_invalidated:
            code = _ENDED
        for codes, kind, reason in _MYSQL_ERRORS:
            if code in codes:
                user, database = self._url.username, self._url.database
                return kind(self.where, reason.format(user=user, database=database, text=text))
        return StoreError(self.where, f"{text} (MySQL error {code})")

    def _sqlite_error(self, error: BaseException) -> StoreError:
        code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return StoreDamaged(
                self.where, f"is a damaged SQLite database ({error}): move it away, and restore a "
                "copy or ingest again; then run `verify` and `repair` to make the stores agree"
            )  # fmt: skip
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreBusy(self.where, "another process", "the file is locked")
        if code == sqlite3.SQLITE_FULL:
            return StoreError(self.where, "its disk is full: free some space")
        if code == sqlite3.SQLITE_IOERR:  # also if there is no space for its shared memory
            return StoreError(self.where, f"its disk is full or failing ({error})")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StoreError(
                self.where, f"cannot be written ({error}): check the permissions of its folder, "
                "or set IMGSEARCH_HOME to another folder"
            )  # fmt: skip
        return StoreError(self.where, str(error))


def _code(error: sa.exc.DBAPIError) -> int | None:
    return error.orig.args[0] if error.orig is not None and error.orig.args else None


def _connection_with_lock(link: sa.Connection, name: str) -> str:
    """Describe the connection to the MySQL server that holds a lock."""
    number = link.scalar(sa.select(sa.func.is_used_lock(name)))
    host = link.scalar(sa.select(_connections.c.host).where(_connections.c.id == number))
    return f"connection {number} from {host}" if host else ""


def _give_up_after_silence(context: sa.engine.ExceptionContext) -> None:
    # SQLAlchemy replaces a connection whose ping fails. If the server does not answer, that
    # would take the time limit twice.
    if context.is_pre_ping and isinstance(context.original_exception.__context__, TimeoutError):
        context.is_disconnect = False


def _prepare_sqlite(link: Any, _: object) -> None:
    link.isolation_level = None  # _begin_sqlite begins transactions, not the driver
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        link.execute(f"PRAGMA {pragma}").close()
    link.create_function("substring_index", 3, _substring_index, deterministic=True)


def _substring_index(text: bytes, mark: bytes, count: int) -> bytes:
    """Return the text after the last mark, as MySQL's function does for a count of -1."""
    return text.rpartition(mark)[2]


def _begin_sqlite(link: sa.Connection) -> None:
    # A writer locks the file from the start: a transaction that turns from reading to writing
    # fails immediately, regardless of the timeout, if another one has written in between.
    writes = link.get_execution_options().get("imgsearch_writes")
    link.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
