"""Attributes of files in both tables, and filters as SQL.

Each value is stored as bytes that sort as the values do. Whatever a filter asks is so a comparison
of bytes, which every database answers alike, and nothing that a user writes becomes SQL.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from imgsearch.filters import FIELDS, And, Condition, Filter, Not, Or, Span, check_attributes, names
from imgsearch.stores.schema import attributes, images

_TEXT, _NUMBER, _TRUTH = b"t", b"n", b"b"  # the first byte of a value tells its type
_NO_ELEMENT = b""
_END = b"\xff"  # sorts after every byte of UTF-8


def encode(value: str | float | bool) -> bytes:
    """Bytes that sort as the values of their type do."""
    if isinstance(value, bool):
        return _TRUTH + bytes([value])
    if isinstance(value, str):
        return _TEXT + _utf8(value)
    bits = int.from_bytes(struct.pack(">d", value + 0.0))  # -0.0 becomes 0.0
    bits ^= 2**64 - 1 if bits >> 63 else 2**63
    return _NUMBER + bits.to_bytes(8)


def decode(data: bytes) -> str | float | bool:
    """The value that these bytes stand for; whole numbers are integers."""
    kind, rest = data[:1], data[1:]
    if kind == _TRUTH:
        return rest == b"\1"
    if kind == _TEXT:
        return rest.decode()
    bits = int.from_bytes(rest)
    bits ^= 2**63 if bits >> 63 else 2**64 - 1
    (number,) = struct.unpack(">d", bits.to_bytes(8))
    return int(number) if number.is_integer() and abs(number) <= 2**53 else number


def values_of(given: Mapping[str, Any]) -> Iterator[tuple[str, int, bytes]]:
    """Name, position and bytes of each value: 0 for a single one, 1 and so on in a list."""
    for name, value in given.items():
        if not isinstance(value, list):
            yield name, 0, encode(value)
            continue
        for position, element in enumerate(map(encode, value), 1):
            yield name, position, element
        if not value:
            yield name, 1, _NO_ELEMENT


def attributes_of(rows: Iterable[tuple[str, int, bytes]]) -> dict[str, Any]:
    """The reverse of :func:`values_of`, for rows sorted by name and position."""
    found: dict[str, Any] = {}
    for name, position, value in rows:
        if position == 0:
            found[name] = decode(value)
            continue
        elements = found.setdefault(name, [])
        if value != _NO_ELEMENT:
            elements.append(decode(value))
    return found


def write(
    link: sa.Connection,
    collection_id: int,
    given: Mapping[bytes, dict[str, Any]],
    *,
    replace: bool = False,
) -> int:
    """Set attributes by key of the path, in both tables; count the keys that are there."""
    query = sa.select(images.c.path_key, images.c.attributes).where(
        images.c.collection_id == collection_id, images.c.path_key.in_(given)
    )
    there, changed = dict(map(tuple, link.execute(query))), {}
    for key, before in there.items():
        now = given[key] if replace or not before else check_attributes(before | given[key])
        now = {name: value for name, value in now.items() if value is not None}
        if repr(now) != repr(before):  # 1 and True are equal, but not the same value
            changed[key] = now
    if not changed:
        return len(there)
    _write_documents(link, collection_id, changed)
    link.execute(
        sa.delete(attributes).where(
            attributes.c.collection_id == collection_id, attributes.c.path_key.in_(changed)
        )
    )
    rows = [
        {"collection_id": collection_id, "path_key": key, "name": n, "position": p, "value": v}
        for key, now in changed.items()
        for n, p, v in values_of(now)
    ]
    if rows:
        link.execute(sa.insert(attributes), rows)
    return len(there)


def _write_documents(
    link: sa.Connection, collection_id: int, documents: Mapping[bytes, dict[str, Any]]
) -> None:
    update = (
        sa.update(images)
        .where(images.c.collection_id == collection_id)
        .where(images.c.path_key == sa.bindparam("key"))
        .values(attributes=sa.bindparam("now"))
    )
    link.execute(update, [{"key": key, "now": now} for key, now in documents.items()])


def has_value() -> sa.ColumnElement[bool]:
    """Whether a row of `attributes` holds a value, and does not stand for an empty list."""
    return attributes.c.value != _NO_ELEMENT


def condition(where: Filter, collection_id: int) -> sa.ColumnElement[bool]:
    """Whether a row of `images` fulfils a filter: true or false, never NULL."""
    below = partial(condition, collection_id=collection_id)
    match where:
        case And(parts):
            return sa.and_(*map(below, parts))
        case Or(parts):
            return sa.or_(*map(below, parts))
        case Not(part):
            return sa.not_(below(part))
    if where.field in FIELDS:
        column = _column(where.field)
        if where.operator == "exists":
            return column.is_not(None)
        return sa.func.coalesce(_test(column, where), sa.false(), type_=sa.Boolean)
    found = sa.select(attributes.c.path_key).where(_rows(where, collection_id))
    return images.c.path_key.in_(found)


class Files(NamedTuple):
    """Files of a collection by the first 64 bits of their keys, which are ascending."""

    keys: np.ndarray
    image_ids: np.ndarray


def ready_files(link: sa.Connection, collection_id: int) -> Files:
    """Read the ready files of a collection from SQLite."""
    digits = _key(images).concat(sa.func.printf("%016x", images.c.image_id))
    ready = sa.and_(images.c.collection_id == collection_id, images.c.state == "ready")
    rows = _numbers(link, digits, ready).reshape(-1, 2)
    return Files(*rows[np.argsort(rows[:, 0])].T.copy())


def matching(
    link: sa.Connection, where: Filter, collection_id: int, keys: np.ndarray
) -> np.ndarray:
    """Which of these files in SQLite fulfil a filter.

    The result is that of :func:`condition`, with which SQLite takes three times as long: it looks
    up each file in a temporary index for each test of an attribute.
    """
    below = partial(matching, link, collection_id=collection_id, keys=keys)
    if names(where) <= FIELDS.keys():
        of_collection = images.c.collection_id == collection_id
        rows = sa.and_(of_collection, condition(where, collection_id))
        return _holds(_numbers(link, _key(images), rows), keys)
    match where:
        case And(parts):
            return np.logical_and.reduce([below(part) for part in parts])
        case Or(parts):
            return np.logical_or.reduce([below(part) for part in parts])
        case Not(part):
            return ~below(part)
    return _holds(_numbers(link, _key(attributes), _rows(where, collection_id)), keys)


def _holds(found: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which of the ascending keys were found."""
    found = np.sort(found)
    return np.searchsorted(found, keys) < np.searchsorted(found, keys, "right")


def _key(table: sa.Table) -> sa.ColumnElement[str]:
    """The first 64 bits of a file's key, as hexadecimal digits."""
    return sa.func.hex(sa.func.substr(table.c.path_key, 1, 8), type_=sa.Text)


def _numbers(
    link: sa.Connection, digits: sa.ColumnElement[str], rows: sa.ColumnElement[bool]
) -> np.ndarray:
    """Numbers of 64 bits from SQLite: int64. As one text, which takes a third of the time."""
    text = link.scalar(sa.select(sa.func.group_concat(digits, "")).where(rows))
    return np.frombuffer(bytes.fromhex(text or ""), ">i8").astype(np.int64)


def _rows(test: Condition, collection_id: int) -> sa.ColumnElement[bool]:
    """Whether a row of `attributes` fulfils a test."""
    return sa.and_(
        attributes.c.collection_id == collection_id,
        attributes.c.name == test.field,
        _attribute_test(test),
    )


def _column(field: str) -> sa.ColumnElement:
    """A field of `images`; texts as bytes."""
    path = sa.type_coerce(images.c.path, sa.LargeBinary)
    if field == "path":
        return path
    if field in ("name", "folder"):
        name = sa.func.substring_index(path, b"/", -1, type_=sa.LargeBinary)
        if field == "name":
            return name
        slash = sa.func.length(path) - sa.func.length(name)
        end = sa.case((slash > 1, slash - 1), else_=1)  # the root is its own slash
        return sa.func.substr(path, 1, end, type_=sa.LargeBinary)
    column = images.c[field]
    return sa.cast(column, sa.LargeBinary) if FIELDS[field] == "text" else column


def _test(column: sa.ColumnElement, test: Condition) -> sa.ColumnElement[bool]:
    value = test.value
    if FIELDS[test.field] == "time":
        return _time_test(column, test)
    if test.operator == "in":
        return column.in_([_bound(v) for v in value])
    value = _bound(value)
    if test.operator in ("contains", "prefix") and not value:
        return column.is_not(None)  # SQLite finds nothing in an empty text
    if test.operator == "contains":
        return sa.func.instr(column, value) > 0
    if test.operator == "prefix":
        return sa.func.substr(column, 1, len(value)) == value
    return column.op(test.operator, is_comparison=True)(value)


def _time_test(column: sa.ColumnElement, test: Condition) -> sa.ColumnElement[bool]:
    """Compare with a period: within it, before its start, or from its end on."""
    if test.operator == "in":
        return sa.or_(sa.false(), *(sa.and_(column >= s, column < e) for s, e in test.value))
    span: Span = test.value
    return {
        "<": column < span.start,
        ">=": column >= span.start,
        "<=": column < span.end,
        ">": column >= span.end,
    }[test.operator]


def _attribute_test(test: Condition) -> sa.ColumnElement[bool]:
    column, value = attributes.c.value, test.value
    if test.operator == "exists":
        return sa.true()
    if test.operator == "in":
        return column.in_([encode(v) for v in value])
    data = encode(value)
    kind, after = data[:1], bytes([data[0] + 1])
    if test.operator == "prefix":
        return sa.and_(column >= data, column < data + _END)
    if test.operator == "contains":
        is_element = sa.and_(attributes.c.position > 0, column == data)
        if kind != _TEXT:
            return is_element
        text = sa.func.substr(column, 2, type_=sa.LargeBinary)
        holds = sa.func.instr(text, data[1:]) > 0 if data[1:] else sa.true()
        is_text = sa.and_(attributes.c.position == 0, column >= kind, column < after)
        return sa.or_(is_element, sa.and_(is_text, holds))
    return sa.and_(
        column.op(test.operator, is_comparison=True)(data), column >= kind, column < after
    )


def _bound(value: Any) -> Any:
    return _utf8(value) if isinstance(value, str) else value


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
