"""Topics: saved queries with relevance judgments.

Judgments are appended and never changed; the latest one of an image counts. They refer to the
content of images, so that judgments of the results of several encoders form one pool.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from imgsearch.errors import ConfigError
from imgsearch.stores.schema import judgments, topics
from imgsearch.stores.sql import Database


class TopicRow(NamedTuple):
    """A topic; `query` contains the parts of the query and its filter, `judged` counts images."""

    topic_id: int
    name: str
    query: dict
    collection: str
    created_at: datetime
    updated_at: datetime
    judged: int = 0


class Judgment(NamedTuple):
    """The judgment of an image by `who`: 1 relevant, -1 not relevant, 0 pooled for judging.

    `depth` is the rank at which it was seen, if it had one, and `collection` the collection that
    was searched; for a hit of :meth:`Session.pool`, that of the session.
    """

    judgment_id: int
    image_id: int
    value: int
    depth: int | None
    collection: str
    who: str
    judged_at: datetime

    @property
    def relevant(self) -> bool | None:
        return self.value > 0 if self.value else None


class Topics:
    """Topics of a metadata store."""

    def __init__(self, sql: Database):
        self._sql = sql

    def save(self, name: str, collection: str, query: dict, *, new: bool = False) -> TopicRow:
        """Create a topic, or change its query and collection, unless it must be `new`."""
        _check_name(name)
        text = json.dumps(query, sort_keys=True, default=_plain)
        values = {"collection": collection, "query": text}
        change = sa.update(topics).where(topics.c.name == name).values(values)

        def work(link: sa.Connection) -> None:
            if new:
                _check_free(link, name)
            elif link.execute(change).rowcount:
                return
            try:
                with link.begin_nested():
                    link.execute(sa.insert(topics).values(name=name, **values))
            except sa.exc.IntegrityError:  # on a server, another notebook may save it just now
                if new:
                    _check_free(link, name)
                link.execute(change)

        self._sql.write(work)
        return self.get(name)

    def rename(self, topic_id: int, name: str) -> TopicRow:
        """Give a topic another name, which must be free."""
        _check_name(name)

        def work(link: sa.Connection) -> None:
            _check_free(link, name)
            _touch(link, topic_id, name)

        self._sql.write(work)
        return self.get(name)

    def get(self, name: str) -> TopicRow:
        """Return a topic, or raise ConfigError if it does not exist."""
        found = self._read(topics.c.name == name)
        if found:
            return found[0]
        known = ", ".join(row.name for row in self.all()[:20]) or "(none)"
        raise ConfigError("topic", f"there is no topic {name[:60]!r}; existing topics: {known}")

    def all(self) -> list[TopicRow]:
        """Return all topics, most recently changed first."""
        return self._read(sa.true())

    def _read(self, condition: sa.ColumnElement[bool]) -> list[TopicRow]:
        number = sa.func.count(sa.distinct(judgments.c.image_id))
        join = sa.and_(judgments.c.topic_id == topics.c.topic_id, judgments.c.value != 0)
        columns = [topics.c[name] for name in TopicRow._fields[:-1]]
        query = (
            sa.select(*columns, number)
            .select_from(topics.outerjoin(judgments, join))
            .where(condition)
            .group_by(*columns)
            .order_by(topics.c.updated_at.desc(), topics.c.topic_id.desc())
        )
        rows = [TopicRow(*row) for row in self._sql.read(query)]
        return [row._replace(query=json.loads(row.query)) for row in rows]

    def delete(self, topic_id: int) -> None:
        """Delete a topic and its judgments."""

        def work(link: sa.Connection) -> None:
            # The topic first: whoever is judging it has locked its row, and is waited for.
            if not link.execute(sa.delete(topics).where(topics.c.topic_id == topic_id)).rowcount:
                raise _deleted()
            link.execute(sa.delete(judgments).where(judgments.c.topic_id == topic_id))

        self._sql.write(work)

    def judge(
        self,
        topic_id: int,
        values: Iterable[tuple[int, int, int | None]],
        collection: str,
        who: str,
    ) -> None:
        """Append judgments (image id, value, depth), which are durable when this returns."""
        rows = [
            {"topic_id": topic_id, "image_id": image_id, "value": value, "depth": depth,
             "collection": collection, "who": who}
            for image_id, value, depth in values
        ]  # fmt: skip

        def work(link: sa.Connection) -> None:
            _touch(link, topic_id)
            link.execute(sa.insert(judgments), rows)

        if rows:
            self._sql.write(work)

    def undo(self, topic_id: int, who: str) -> Judgment | None:
        """Remove and return the last judgment that `who` made; None if there is none."""

        def work(link: sa.Connection) -> Judgment | None:
            _touch(link, topic_id)
            own = [judgments.c.topic_id == topic_id, judgments.c.who == who, judgments.c.value != 0]
            last = sa.select(*_JUDGMENT).where(*own).order_by(judgments.c.judgment_id.desc())
            row = link.execute(last.limit(1)).first()
            if row is None:
                return None
            this = judgments.c.judgment_id == row.judgment_id
            link.execute(sa.delete(judgments).where(this))
            return Judgment(*row)

        return self._sql.write(work)

    def withdraw(self, topic_id: int, who: str, image_id: int) -> int:
        """Remove the judgments that `who` made of an image; return how many there were."""
        own = [judgments.c.topic_id == topic_id, judgments.c.who == who, judgments.c.value != 0]
        gone = sa.delete(judgments).where(*own, judgments.c.image_id == image_id)

        def work(link: sa.Connection) -> int:
            _touch(link, topic_id)
            return link.execute(gone).rowcount

        return self._sql.write(work)

    def judgments(self, topic_id: int) -> list[Judgment]:
        """Return all judgments of a topic, and what was pooled for judging, oldest first."""
        query = sa.select(*_JUDGMENT).where(judgments.c.topic_id == topic_id)
        rows = self._sql.read(query.order_by(judgments.c.judgment_id))
        if not rows and not self._read(topics.c.topic_id == topic_id):
            raise _deleted()
        return [Judgment(*row) for row in rows]


_JUDGMENT = [judgments.c[name] for name in Judgment._fields]


def _touch(link: sa.Connection, topic_id: int, name: str | None = None) -> None:
    """Set the time of the last change of a topic, and its name; wait for who is deleting it."""
    change = sa.update(topics).where(topics.c.topic_id == topic_id)
    if not link.execute(change.values(name=name or topics.c.name)).rowcount:
        raise _deleted()


def _deleted() -> ConfigError:
    return ConfigError(
        "topic", "was deleted in the meantime: to start it again, open it with a query"
    )


def _plain(value: Any) -> object:
    """What JSON writes of a time, of a mapping that is no dict, or of a number of NumPy."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    return dict(value) if isinstance(value, Mapping) else value.item()


def _check_name(name: str) -> None:
    valid = isinstance(name, str) and 1 <= len(name) <= 190 and name.isprintable()
    if not valid or name != name.strip():
        raise ConfigError(
            "topic",
            f"{str(name)[:60]!r} is not a valid name: use 1 to 190 printable characters, "
            "without spaces at the ends",
        )


def _check_free(link: sa.Connection, name: str) -> None:
    if link.execute(sa.select(topics.c.topic_id).where(topics.c.name == name)).first():
        raise ConfigError(
            "topic", f"there is a topic {name[:60]!r} already: resume it, or choose another name"
        )
