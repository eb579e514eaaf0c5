"""Everything but the vectors, in MySQL or SQLite.

Paths are kept as the bytes that the file system holds, so every path comes back as it
was, valid UTF-8 or not. The key of a row is the SHA-256 of those bytes, so that neither
long paths nor trailing spaces are a problem.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, sqlite

from imgsearch.config import Settings, collection_name
from imgsearch.errors import CollectionNotFound, ConfigError, StoreError, printable
from imgsearch.filters import Filter, check_attributes, parse
from imgsearch.io import absolute
from imgsearch.stores import attributes as values
from imgsearch.stores.schema import attributes, collections, images, runs
from imgsearch.stores.sql import Database
from imgsearch.stores.topics import Topics

QUIET = timedelta(minutes=2)
"""A running ingest that has not updated its row for so long is stale."""

WITH_VECTOR = ("ready", "pending", "deleting", "replaced")
"""States of rows that may have a vector."""

REMEMBERED = 8
"""How many results of queries are remembered: images of filters, and files of collections."""

_AT_ONCE = 500  # values in one IN (...)
_SLICE = 4  # first bytes of the keys that one statement for a whole collection changes

T = TypeVar("T")


class ImageRow(NamedTuple):
    """One file of a collection.

    `path` holds surrogate escapes for bytes that are not UTF-8. `image_id` and `sha256`
    are of its content, `width` and `height` those of the upright image, `state` is
    ``pending``, ``ready``, ``deleting``, ``replaced`` (another content is about to be written)
    or ``lost`` (it has no vector, and stays for its attributes only). `vector_crc` is the
    CRC-32 of its vector.
    `date_taken` (local time), `camera`, `orientation` and `has_gps` are of the Exif data;
    the latter two are None where the file was not read for them yet.
    When a row is written, the store sets `state` and `added_at` itself, and adds the
    `attributes` to those that the path has.
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
    date_taken: datetime | None = None
    camera: str | None = None
    orientation: int | None = None
    has_gps: bool | None = None
    attributes: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


class CollectionRow(NamedTuple):
    """A collection and the encoder that it belongs to.

    `encoder` is what :func:`load_encoder` takes, `fingerprint` the digest of `identity`,
    `index` is written as by :class:`imgsearch.stores.vectors.IndexSpec`. The store sets
    `id`, and `created_at` (UTC) where it is None. An id is never used again.
    """

    name: str
    encoder: str
    identity: dict
    fingerprint: str
    dim: int
    index: str
    created_at: datetime | None = None
    id: int | None = None


class RunRow(NamedTuple):
    """An ingest, running or past.

    `state` is ``running``, ``done``, ``stopped``, ``failed`` or ``stale``: the row says
    that it runs, but its process is gone or has been quiet for two minutes. `skipped`
    counts the files that were unchanged or no images. Times are UTC.
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


class FileState(NamedTuple):
    """What shows whether a file has changed since it was ingested.

    `has_gps` is None where the file was not read for its Exif data yet.
    """

    size: int
    mtime_ns: int
    image_id: int
    state: str
    has_gps: bool | None


class Counts(NamedTuple):
    """Ready images by content and by path, and paths that an interruption left behind."""

    images: int
    paths: int
    pending: int
    deleting: int


class MetadataStore:
    """Collections, images and ingest runs. Made by :meth:`open`.

    Methods raise CollectionNotFound where the collection is missing. Several threads may
    use one store; a forked child connects for itself.
    """

    def __init__(self, settings: Settings):
        self._sql = Database(settings)
        self.where, self.topics = self._sql.where, Topics(self._sql)
        self._remembered: dict[tuple[int, str], tuple[int, Any]] = {}

    @classmethod
    def open(cls, settings: Settings) -> MetadataStore:
        """Connect, and create the tables or bring them up to date."""
        store = cls(settings)
        try:
            store._sql.open()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Disconnect. The store connects again if it is used after that."""
        self._sql.close()

    def __enter__(self) -> MetadataStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exclusive(self, collection: str, timeout: float = 600.0) -> AbstractContextManager[None]:
        """Exclude every other writer of the collection; StoreBusy after `timeout` seconds."""
        return self._sql.lock(collection, timeout, lambda: self._other_ingests(collection))

    def _other_ingests(self, collection: str) -> str:
        here = socket.gethostname()[:255], os.getpid()
        others = [
            r for r in self.runs(collection) if r.state == "running" and (r.host, r.pid) != here
        ]
        return ", ".join(f"process {r.pid} of {r.who} on {r.host}" for r in others)

    # ------------------------------------------------------------ collections

    def create_collection(self, row: CollectionRow) -> None:
        """Add a collection. StoreError if its name is taken by one of another encoder."""
        collection_name(row.name)
        values = row._asdict() | {"identity": json.dumps(row.identity, sort_keys=True)}
        del values["id"]  # the database counts ids itself
        if row.created_at is None:
            del values["created_at"]
        insert = sa.insert(collections).prefix_with("OR IGNORE", dialect="sqlite")
        insert = insert.prefix_with("IGNORE", dialect="mysql")
        self._sql.write(lambda link: link.execute(insert, values))
        stored = self.collection(row.name)
        if (stored.fingerprint, stored.dim) != (row.fingerprint, row.dim):
            raise StoreError(
                self.where, f"collection {row.name!r} exists already, with encoder "
                f"{stored.encoder} ({stored.fingerprint}) and {stored.dim}-dimensional vectors"
            )  # fmt: skip

    def collection(self, name: str) -> CollectionRow:
        """Return one collection."""
        for row in self._sql.read(sa.select(*_COLLECTION).where(collections.c.name == name)):
            return _collection(row)
        raise self._not_found(name)

    def collections(self) -> list[CollectionRow]:
        """All collections, sorted by name."""
        return sorted(map(_collection, self._sql.read(sa.select(*_COLLECTION))))

    def drop_collection(self, name: str) -> None:
        """Remove a collection and its images' rows. Its ingest runs stay as history."""
        number = self._id(name)
        self._change_all(number, sa.delete(attributes))
        self._change_all(number, sa.delete(images))
        drop = sa.delete(collections).where(collections.c.id == number)
        self._sql.write(lambda link: link.execute(drop))

    def _id(self, collection: str | int) -> int:
        return collection if isinstance(collection, int) else self.collection(collection).id

    def _not_found(self, name: str) -> CollectionNotFound:
        return CollectionNotFound(name, [c.name for c in self.collections()])

    # ------------------------------------------------------------ changes of images
    # They take the collection's name, or its id, which saves a query.

    def prepare(self, collection: str | int, rows: Iterable[ImageRow]) -> None:
        """Write rows as ``pending``, in place of those with the same paths.

        A row that is ready, with the same content and the same vector, stays ready.
        """
        number = self._id(collection)
        written, given = {}, {}
        for row in rows:
            key = _key(_checked(row.path))
            written[key] = row._asdict() | {
                "collection_id": number,
                "path_key": key,
                "state": "pending",
            }
            del written[key]["added_at"], written[key]["attributes"]
            if row.attributes:
                given[key] = check_attributes(row.attributes)
        ordered = [written[key] for key in sorted(written)]  # the same order for all: no deadlock

        def work(link: sa.Connection) -> None:
            link.execute(self._upsert(), ordered)
            for keys in _parts(given):
                values.write(link, number, {key: given[key] for key in keys})

        if ordered:  # a row that is pending fulfils no filter: `commit` gives the revision
            self._write(number, work) if given else self._sql.write(work)

    def _upsert(self) -> Any:
        query = sqlite.insert(images) if self._sql.sqlite else mysql.insert(images)
        new = query.excluded if self._sql.sqlite else query.inserted
        ready = sa.literal_column("'ready'")  # PyMySQL joins rows only where no value follows
        same = sa.and_(
            images.c.state == ready,
            images.c.image_id == new.image_id,
            images.c.vector_crc == new.vector_crc,
        )
        # The state comes first, because MySQL would compare with what it has just assigned.
        kept = {"collection_id", "path_key", "added_at", "state", "attributes"}
        changed = [("state", sa.case((same, ready), else_=new.state))]
        changed += [(c.name, new[c.name]) for c in images.c if c.name not in kept]
        if self._sql.sqlite:
            return query.on_conflict_do_update(
                index_elements=["collection_id", "path_key"], set_=dict(changed)
            )
        return query.on_duplicate_key_update(changed)

    def commit(self, collection: str | int, paths: Iterable[str]) -> None:
        """Mark pending rows as ``ready``, since their vectors are stored."""
        change = sa.update(images).where(images.c.state == "pending").values(state="ready")
        self._change(self._id(collection), [change], paths)

    def hide(self, collection: str | int, state: str, paths: Iterable[str] | None = None) -> None:
        """Give rows a state in which no search finds them: those of `paths`, or all of them."""
        change = sa.update(images).values(state=state)
        if paths is None:
            self._change_all(self._id(collection), change)
        else:
            self._change(self._id(collection), [change], paths)

    def remove(self, collection: str | int, paths: Iterable[str]) -> None:
        """Remove rows and attributes by path, whatever their state."""
        self._change(self._id(collection), [sa.delete(attributes), sa.delete(images)], paths)

    def set_attributes(
        self,
        collection: str,
        given: Mapping[str, Mapping[str, Any]],
        *,
        replace: bool = False,
    ) -> int:
        """Set attributes by path, all or none; gives the number of these paths that are stored.

        A value of None removes an attribute. Others that a path has stay unless `replace` is set.
        """
        checked = {_key(path): check_attributes(change) for path, change in given.items()}
        with self.exclusive(collection):
            number = self._id(collection)

            def work(link: sa.Connection) -> int:
                return sum(
                    values.write(link, number, {key: checked[key] for key in keys}, replace=replace)
                    for keys in _parts(checked)
                )

            return self._write(number, work)

    def _change(self, number: int, changes: Sequence[Any], paths: Iterable[str]) -> None:
        """Change rows by path in one transaction; paths that are not stored are passed over."""
        parts = list(_parts(map(_key, paths)))

        def work(link: sa.Connection) -> None:
            for keys in parts:
                for change in changes:
                    link.execute(_of(change, number, change.table.c.path_key.in_(keys)))

        self._write(number, work)

    def _change_all(self, number: int, change: Any) -> None:
        """Change all rows of a collection, a part at a time.

        For a million rows, one statement would take longer than a server may be silent.
        """
        for first in range(0, 256, _SLICE):
            last = bytes([first + _SLICE - 1]) + b"\xff" * 31
            part = _of(change, number, change.table.c.path_key.between(bytes([first]), last))
            self._write(number, lambda link, part=part: link.execute(part))

    def _write(self, number: int, work: Callable[[sa.Connection], T]) -> T:
        """Change images of a collection in one transaction, which gives it another revision."""
        next_one = sa.update(collections).where(collections.c.id == number)
        next_one = next_one.values(revision=collections.c.revision + 1)

        def whole(link: sa.Connection) -> T:
            done = work(link)
            link.execute(next_one)
            return done

        return self._sql.write(whole)

    # ------------------------------------------------------------ queries of images

    def lookup(
        self, collection: str, *, image_ids: Iterable[int] = (), paths: Iterable[str] = ()
    ) -> tuple[CollectionRow, list[ImageRow]]:
        """Return the collection, and its rows in any state that have one of the ids or paths.

        One statement for up to 500 of each.
        """
        conditions = [
            *(images.c.image_id.in_(part) for part in _parts(map(int, image_ids))),
            *(images.c.path_key.in_(part) for part in _parts(map(_key, paths))),
        ] or [sa.false()]
        found: dict[str, ImageRow] = {}
        for start in range(0, len(conditions), 2):
            # Not one query with OR, for which not every database uses both indexes.
            query = sa.union_all(
                *(
                    _joined(collection, condition, *_COLLECTION, *_IMAGE)
                    for condition in conditions[start : start + 2]
                )
            )
            rows = self._sql.read(query)
            if not rows:
                raise self._not_found(collection)
            for row in rows:
                image = ImageRow(*row[len(_COLLECTION) :])
                if image.path is not None:
                    found[image.path] = image
        return _collection(rows[0][: len(_COLLECTION)]), list(found.values())

    def by_path(self, collection: str, paths: Iterable[str]) -> dict[str, ImageRow]:
        """Rows by path, in any state."""
        return {row.path: row for row in self.lookup(collection, paths=paths)[1]}

    def by_id(
        self, collection: str, image_ids: Iterable[int], *, states: Sequence[str] = ("ready",)
    ) -> dict[int, list[ImageRow]]:
        """Rows in some states by image id, those of one image sorted by path."""
        return grouped(self.lookup(collection, image_ids=image_ids)[1], states)

    def unfinished(self, collection: str) -> list[ImageRow]:
        """Rows that an interruption left behind: ``pending``, ``deleting`` or ``replaced``."""
        states = [state for state in WITH_VECTOR if state != "ready"]
        rows = self._select(collection, images.c.state.in_(states), *_IMAGE)
        return [ImageRow(*row) for row in rows]

    def checksums(self, collection: str) -> dict[int, int]:
        """CRC-32 of the vector of each ready image, by image id."""
        rows = self._select(
            collection, images.c.state == "ready", images.c.image_id, images.c.vector_crc
        )
        return dict(map(tuple, rows))

    def known(self, collection: str, prefix: str = "") -> dict[str, FileState]:
        """State of every file whose path starts with `prefix`, by path."""
        start = _encode(prefix)
        rows = self._select(
            collection,
            sa.func.substr(images.c.path, 1, len(start)) == start if start else sa.true(),
            images.c.path,
            *(images.c[name] for name in FileState._fields),
        )
        return {path: FileState(*state) for path, *state in rows}

    def ids(self, collection: str, states: Sequence[str] = ("ready",)) -> np.ndarray:
        """Image ids in some states: int64, ascending, each once."""
        rows = self._select(collection, images.c.state.in_(states), images.c.image_id)
        return np.unique(np.asarray([row.image_id for row in rows], np.int64))

    def matching(self, collection: str | int, where: Mapping[str, Any] | Filter) -> np.ndarray:
        """Ids of the ready images that fulfil a filter: int64, ascending, each once.

        An image that is stored under several paths fulfils it if one of them does. The answer
        is remembered until something changes, and cannot be written to.
        """
        where, column = parse(where), collections.c["id" if isinstance(collection, int) else "name"]
        query = sa.select(collections.c.id, collections.c.revision).where(column == collection)

        def work(link: sa.Connection) -> np.ndarray:
            found = link.execute(query).first()
            if found is None:
                raise self._not_found(str(collection))
            number, revision = found
            make = partial(self._matching, link, number, where, revision)
            # 1 and True are equal, but not the same filter.
            return self._remember((number, repr(where)), revision, make)

        return self._sql.reading(work)

    def _matching(
        self, link: sa.Connection, number: int, where: Filter, revision: int
    ) -> np.ndarray:
        if self._sql.sqlite:
            make = partial(values.ready_files, link, number)
            files = self._remember((number, "files"), revision, make)
            found = files.image_ids[values.matching(link, where, number, files.keys)]
        else:
            query = sa.select(images.c.image_id).where(*self._ready(number, where))
            found = np.asarray(link.scalars(query).all(), np.int64)
        found = np.sort(found)
        ids = found[np.diff(found, prepend=-1) > 0]  # np.unique takes ten times as long
        ids.setflags(write=False)
        return ids

    def _remember(self, key: tuple[int, str], revision: int, make: Callable[[], T]) -> T:
        """What `make` returned for this revision of the collection; the oldest are forgotten."""
        known, value = self._remembered.pop(key, (None, None))
        if known != revision:
            value = make()
        self._remembered[key] = revision, value
        for oldest in list(self._remembered)[:-REMEMBERED]:
            self._remembered.pop(oldest, None)
        return value

    def _ready(self, collection: str | int, where: Mapping[str, Any] | Filter | None) -> list[Any]:
        """Conditions of the ready rows that fulfil a filter."""
        number, where = self._id(collection), parse(where)
        found = [images.c.collection_id == number, images.c.state == "ready"]
        return found if where is None else [*found, values.condition(where, number)]

    def attribute_values(
        self, collection: str, *, most: int = 100
    ) -> dict[str, list[tuple[Any, int]]]:
        """Values of each attribute and how many files have them, those of most files first.

        At most so `most` values of an attribute. Names are sorted.
        """
        files = sa.func.count(sa.distinct(attributes.c.path_key))
        query = (
            sa.select(attributes.c.name, attributes.c.value, files)
            .join_from(
                attributes,
                images,
                sa.and_(
                    images.c.collection_id == attributes.c.collection_id,
                    images.c.path_key == attributes.c.path_key,
                ),
            )
            .where(*self._ready(collection, None), values.has_value())
            .group_by(attributes.c.name, attributes.c.value)
            .order_by(attributes.c.name, files.desc(), attributes.c.value)
        )
        found: dict[str, list[tuple[Any, int]]] = {}
        for name, value, count in self._sql.read(query):
            pairs = found.setdefault(name, [])
            if len(pairs) < most:
                pairs.append((values.decode(value), count))
        return found

    def _select(self, collection: str, condition: Any, *columns: sa.Column) -> list[sa.Row]:
        """Columns of a collection's rows, and whether it exists, in one statement."""
        rows = self._sql.read(_joined(collection, condition, *columns))
        if not rows:
            raise self._not_found(collection)
        return [row for row in rows if row[0] is not None]

    def count(self, collection: str, *, where: Mapping[str, Any] | Filter | None = None) -> Counts:
        """Number of images and paths, or of those that fulfil a filter."""
        of_collection, _, *fulfil = self._ready(collection, where)
        query = (
            sa.select(
                images.c.state, sa.func.count(), sa.func.count(sa.distinct(images.c.image_id))
            )
            .where(of_collection, *fulfil)
            .group_by(images.c.state)
        )
        found = {state: numbers for state, *numbers in self._sql.read(query)}
        ready, pending, deleting, replaced = (found.get(state, (0, 0)) for state in WITH_VECTOR)
        return Counts(ready[1], ready[0], pending[0], deleting[0] + replaced[0])

    def browse(
        self,
        collection: str,
        *,
        offset: int = 0,
        limit: int = 100,
        like: str | None = None,
        since: datetime | None = None,
        where: Mapping[str, Any] | Filter | None = None,
    ) -> list[ImageRow]:
        """Return a page of the ready images, sorted by path.

        `like` is a part of the path, in which case matters; `since` is when they were added.
        """
        query = sa.select(*_IMAGE).where(*self._ready(collection, where))
        if like:
            query = query.where(sa.func.instr(images.c.path, _encode(like)) > 0)
        if since is not None:
            query = query.where(images.c.added_at >= since)
        query = query.order_by(images.c.path).limit(max(0, limit)).offset(max(0, offset))
        return [ImageRow(*row) for row in self._sql.read(query)]

    # ------------------------------------------------------------ ingest runs

    def start_run(self, collection: str, folder: str | Path, total: int = 0) -> int:
        """Record that an ingest by this process starts, and return the number of its row."""
        values = {
            "collection": collection,
            "folder": _checked(str(folder)),
            "state": "running",
            "total": total,
            "host": socket.gethostname()[:255],
            "pid": os.getpid(),
            "pid_started": _process_start(os.getpid()),
            "who": user_name(),
        }
        return self._sql.write(
            lambda link: int(link.execute(sa.insert(runs), values).inserted_primary_key[0])
        )

    def update_run(self, run_id: int, **values: object) -> None:
        """Record progress: columns of `runs`. It also shows that the process is alive."""
        change = sa.update(runs).where(runs.c.run_id == run_id).values(values)
        self._sql.write(lambda link: link.execute(change))

    def finish_run(
        self, run_id: int, state: str, *, error: str | None = None, **counts: int
    ) -> None:
        """Record how an ingest ended: ``done``, ``stopped`` or ``failed``."""
        text = None if error is None else error.encode("utf-8", "backslashreplace").decode()
        now = datetime.now(UTC)
        self.update_run(run_id, state=state, error=text, finished_at=now, **counts)

    def runs(self, collection: str | None = None, limit: int = 50) -> list[RunRow]:
        """Ingest runs, newest first."""
        query = (
            sa.select(*_RUN, runs.c.pid_started).order_by(runs.c.run_id.desc()).limit(max(0, limit))
        )
        if collection is not None:
            query = query.where(runs.c.collection == collection)
        return [_run(row) for row in self._sql.read(query)]

    def folders(self, collection: str) -> list[str]:
        """Every folder that was ever ingested into a collection, sorted."""
        query = sa.select(runs.c.folder).where(runs.c.collection == collection).distinct()
        return sorted(row.folder for row in self._sql.read(query))


def grouped(
    rows: Iterable[ImageRow], states: Sequence[str] = ("ready",)
) -> dict[int, list[ImageRow]]:
    """Rows in some states by image id, those of one image sorted by path."""
    found: dict[int, list[ImageRow]] = {}
    for row in rows:
        if row.state in states:
            found.setdefault(row.image_id, []).append(row)
    for some in found.values():
        some.sort(key=lambda row: _encode(row.path))
    return found


def _of(change: Any, number: int, condition: Any) -> Any:
    """A change of those rows of a collection's table that fulfil a condition."""
    return change.where(change.table.c.collection_id == number, condition)


def _joined(collection: str, condition: Any, *columns: sa.Column) -> sa.Select:
    """Rows of a collection that fulfil a condition; one row without an image if there are none."""
    member = sa.and_(images.c.collection_id == collections.c.id, condition)
    return (
        sa.select(*columns)
        .select_from(collections.outerjoin(images, member))
        .where(collections.c.name == collection)
    )


def _parts(values: Iterable[Any]) -> Iterator[list[Any]]:
    ordered = sorted(set(values))
    return (ordered[start : start + _AT_ONCE] for start in range(0, len(ordered), _AT_ONCE))


def _encode(path: str) -> bytes:
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError("path", f"{printable(path)[:200]} is not a valid file name") from None


def _checked(path: str) -> str:
    """Check a path that is to be stored. Each file has exactly one such path."""
    if str(absolute(path)) != path:
        raise ConfigError("path", f"{printable(path)[:200]!r} is not absolute and normalised")
    _encode(path)
    return path


def _key(path: str) -> bytes:
    return hashlib.sha256(_encode(path)).digest()


_COLLECTION = [collections.c[name] for name in CollectionRow._fields]
_IMAGE = [images.c[name] for name in ImageRow._fields]
_RUN = [runs.c[name] for name in RunRow._fields]


def _collection(row: Sequence[Any]) -> CollectionRow:
    found = CollectionRow(*row)
    return found._replace(identity=json.loads(found.identity))


def _run(row: sa.Row) -> RunRow:
    run = RunRow(*row[: len(_RUN)])
    if run.state == "running":
        quiet = datetime.now(UTC) - run.updated_at > QUIET
        here = run.host == socket.gethostname()[:255]
        if quiet or (here and _process_start(run.pid) != row.pid_started):
            return run._replace(state="stale")
    return run


def _process_start(pid: int) -> str:
    """When a process started, which tells it from a later one of the same number; "" if gone."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return ""
        fields = stat.rpartition(")")[2].split()
        # A zombie has ended. The start is in clock ticks since boot, so no clock change moves it.
        return "" if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip()


def user_name() -> str:
    """Name of the user of this process."""
    try:
        return getpass.getuser()[:255]
    except (KeyError, OSError):  # a container without this user
        return f"user {os.getuid()}"
