"""The language of filters: which images of a collection are meant.

A filter is a dict, the same in Python, in parameters of notebooks and in JSON; docs/filters.md
describes it. :func:`parse` checks one completely and turns it into a small tree, which the
metadata store translates. A test on a file that lacks the attribute is false.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from imgsearch.errors import FilterError, printable

FIELDS = {
    **dict.fromkeys(("path", "name", "folder", "format", "camera"), "text"),
    **dict.fromkeys(("width", "height", "size", "orientation"), "number"),
    **dict.fromkeys(("added_at", "date_taken"), "time"),
    "has_gps": "truth value",
}
"""What every file can be filtered by without being given attributes, and its type."""

OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in", "contains", "exists", "prefix")
MAX_DEPTH, MAX_TESTS, MAX_VALUES = 16, 256, 10_000
MAX_BYTES = 8_192
"""Bytes of one text in a filter, and of all attributes of a file as JSON."""

_ORDER = {"<", "<=", ">", ">="}
_REFUSED = {
    "text": set(),
    "number": {"contains", "prefix"},
    "time": {"contains", "prefix"},
    "truth value": {"contains", "prefix", *_ORDER},
}
_GROUPS = ("and", "or", "not")
_FORMATS = {"JPG": "JPEG", "TIF": "TIFF", "HEIF": "HEIC"}  # other names in use, and ours
_MAX_INTEGER = 2**53  # beyond it, JSON and SQL do not tell neighbours apart
_TIME = re.compile(
    r"\d{4}(?:-\d\d(?:-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:\d\d)?)?)?)?"
)


class Span(NamedTuple):
    """A period, the end excluded: a day, a month, a second."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Condition:
    """A test of one field; the value of ``in`` is a tuple, that of ``exists`` is None."""

    field: str
    operator: str
    value: Any


@dataclass(frozen=True)
class And:
    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    part: Filter


Filter = Condition | And | Or | Not


def parse(where: Mapping[str, Any] | Filter | None) -> Filter | None:
    """Check a filter and return it as a tree; None if it is None or empty, and so admits all."""
    if where is None or isinstance(where, Filter):
        return where
    if isinstance(where, Mapping) and not where:
        return None
    return _Parser().group(where, "where", 1)


def names(where: Filter, *, but: str | None = None) -> set[str]:
    """Fields and attributes that a filter tests, but for tests by one operator."""
    match where:
        case And(parts) | Or(parts):
            return set().union(*(names(part, but=but) for part in parts))
        case Not(part):
            return names(part, but=but)
    return set() if where.operator == but else {where.field}


def check_attributes(given: Mapping[str, Any], at: str = "attributes") -> dict[str, Any]:
    """Check the attributes of a file and return them as plain values; None removes one."""
    if not isinstance(given, Mapping):
        raise FilterError(at, f"is {_shown(given)}; give a dict of names and values")
    checked = {}
    for name, value in given.items():
        where = f"{at}[{_shown(name)}]"
        _check_name(name, where)
        if name in FIELDS:
            raise FilterError(
                where, "is a property of the file itself: use another name, or leave it out"
            )
        value = _listed_values(value)
        if isinstance(value, list | tuple):
            checked[name] = [_attribute(element, where) for element in value]
        else:
            checked[name] = None if value is None else _attribute(value, where)
    size = len(json.dumps(checked, ensure_ascii=False).encode())
    if size > MAX_BYTES:
        raise FilterError(at, f"takes {size:,} bytes as JSON (limit {MAX_BYTES:,})")
    return checked


def _attribute(value: Any, where: str) -> Any:
    value = _scalar(value, where)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FilterError(where, f"{_shown(value)} is not valid Unicode") from None
    return value


class _Parser:
    """Reads one filter, and counts what its limits are about."""

    def __init__(self) -> None:
        self.tests = self.values = 0

    def group(self, where: Any, at: str, depth: int) -> Filter:
        """Read a dict of which everything must hold."""
        if not isinstance(where, Mapping):
            example = '{"label": "cat"}'
            raise FilterError(at, f"is {_shown(where)}; a dict such as {example} is needed")
        if not where:
            raise FilterError(at, "is empty: it tests nothing")
        if depth > MAX_DEPTH:
            raise FilterError(at, f"is nested more than {MAX_DEPTH} levels deep")
        return _all([self.entry(key, value, at, depth) for key, value in where.items()])

    def entry(self, key: Any, value: Any, at: str, depth: int) -> Filter:
        at = f"{at}[{_shown(key)}]"
        if key == "not":
            return Not(self.group(value, at, depth + 1))
        if key in ("and", "or"):
            if not isinstance(value, list | tuple) or not value:
                raise FilterError(at, f"is {_shown(value)}; a list of one or more dicts is needed")
            parts = [self.group(p, f"{at}[{i}]", depth + 1) for i, p in enumerate(value)]
            return _all(parts) if key == "and" else Or(tuple(parts))
        _check_name(key, at)
        value = _listed_values(value)
        if not isinstance(value, Mapping):
            operator = "in" if isinstance(value, list | tuple) else "="
            value = {operator: value}
        if not value:
            raise FilterError(at, f"is empty: give a value, or an operator of {_listed(OPERATORS)}")
        return _all([self.test(key, *pair, f"{at}[{_shown(pair[0])}]") for pair in value.items()])

    def test(self, field: str, operator: Any, value: Any, at: str) -> Filter:
        if operator not in OPERATORS:
            near = difflib.get_close_matches(str(operator), OPERATORS, 1, 0.6)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise FilterError(at, f"is no operator: {hint}there are {_listed(OPERATORS)}")
        kind = FIELDS.get(field)
        if kind and operator in _REFUSED[kind]:
            raise FilterError(at, f"does not apply to {field}, which is a {kind}")
        self.tests += 1
        if self.tests > MAX_TESTS:
            raise FilterError("where", f"has more than {MAX_TESTS} tests: use 'in' for many values")
        if operator == "exists":
            if not isinstance(value, bool | np.bool_):
                raise FilterError(at, f"is {_shown(value)}; true or false is needed")
            found = Condition(field, "exists", None)
            return found if value else Not(found)
        if operator == "in":
            values = self.elements(field, _listed_values(value), at)
            return Condition(field, "in", tuple(_path(field, v, operator, at) for v in values))
        if isinstance(value, list | tuple):
            hint = '; for none of several values, use {"not": {NAME: [...]}}' * (operator == "!=")
            raise FilterError(at, f"is {_shown(value)}; a single value is needed{hint}")
        (value,) = self.elements(field, [value], at)
        value = _path(field, value, operator, at)
        if operator in ("=", "!="):
            found = Condition(field, "in", (value,))
            return found if operator == "=" else Not(found)
        if isinstance(value, bool) and operator in _ORDER:
            raise FilterError(at, "compares with a truth value, which is neither less nor more")
        if operator == "prefix" and not isinstance(value, str):
            raise FilterError(at, f"is {_shown(value)}; a text is needed")
        return Condition(field, operator, value)

    def elements(self, field: str, values: Any, at: str) -> tuple:
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
            raise FilterError(at, f"is {_shown(values)}; a list of values is needed")
        self.values += len(values)
        if self.values > MAX_VALUES:
            raise FilterError("where", f"has more than {MAX_VALUES:,} values")
        return tuple(_operand(field, value, at) for value in values)


def _all(parts: Sequence[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _check_name(name: Any, at: str) -> None:
    if not isinstance(name, str):
        raise FilterError(at, "is not a name: a text is needed")
    if not name or len(name) > 64 or name != name.strip() or not name.isprintable():
        raise FilterError(
            at, "is not a name: 1 to 64 printable characters are needed, without spaces at its ends"
        )
    if name in _GROUPS:
        raise FilterError(at, f"is reserved: {_listed(_GROUPS)} combine filters")
    if name == "image_id":
        raise FilterError(at, "is no attribute: Gallery.get finds an image by its image_id")


def _operand(field: str, value: Any, at: str) -> Any:
    """A value to compare a field with, of the field's type."""
    kind = FIELDS.get(field)
    if kind == "time":
        return _span(field, value, at)
    if value is None:
        raise FilterError(at, 'is None; for images without it use {"exists": False}')
    value = _scalar(value, at)
    types = {"text": str, "number": int | float, "truth value": bool}
    truth = isinstance(value, bool)
    if kind and not (isinstance(value, types[kind]) and truth == (kind == "truth value")):
        raise FilterError(at, f"is {_shown(value)}, but {field} is a {kind}")
    if field == "format":
        value = value.strip().upper()
        return _FORMATS.get(value, value)
    return value


def _path(field: str, value: Any, operator: str, at: str) -> Any:
    """A path or a folder as it is stored; any other value is returned as it is."""
    if field not in ("path", "folder") or operator not in ("=", "!=", "in", "prefix") or not value:
        return value
    if not value.startswith("/"):
        raise FilterError(
            at, f"is {_shown(value)}, a relative path: give the absolute path, or use 'contains' "
            "to look for a part of it"
        )  # fmt: skip
    return value if operator == "prefix" else "/" + os.path.normpath(value).lstrip("/")


def _listed_values(value: Any) -> Any:
    """An array as a list; any other value is returned as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _scalar(value: Any, at: str) -> Any:
    """A text, a number or a truth value as Python's own type; a date as text in ISO format."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, date) and value == value:  # not pandas.NaT
        return value.isoformat()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        try:
            size = len(value.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            raise FilterError(at, f"{_shown(value)} is not valid Unicode") from None
        if size > MAX_BYTES:
            raise FilterError(at, f"is a text of {size:,} bytes (limit {MAX_BYTES:,})")
        return str(value)
    if isinstance(value, Integral):
        if abs(int(value)) > _MAX_INTEGER:
            raise FilterError(at, f"is {_shown(value)}: keep whole numbers beyond 2**53 as text")
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise FilterError(at, f"is {_shown(value)}; a finite number is needed")
        return float(value)
    raise FilterError(
        at, f"is {_shown(value)}, a {type(value).__name__}; a text, a number, true or false, or a "
        "list of these is needed"
    )  # fmt: skip


def _span(field: str, value: Any, at: str) -> Span:
    """The period that a date or a time names: a day, a month, a second."""
    text = str(value) if isinstance(value, date | str) else ""
    if isinstance(value, datetime):
        text = value.isoformat(timespec="microseconds")
    if not _TIME.fullmatch(text):
        raise FilterError(
            at, f"is {_shown(value)}; a date is needed, such as '2024-05-31', '2024-05' or "
            "'2024-05-31T12:00'"
        )  # fmt: skip
    try:
        start = datetime.fromisoformat(text + "-01-01"[len(text) - 4 :] * (len(text) < 10))
        length = _length(text, start)
        if field == "added_at":
            start = start.replace(tzinfo=start.tzinfo or UTC).astimezone(UTC)
        span = Span(start, start + length)
    except (ValueError, OverflowError):
        reason = f"is {_shown(value)}, which is no time in the years 1 to 9998"
        raise FilterError(at, reason) from None
    if field != "added_at" and start.tzinfo is not None:
        raise FilterError(at, f"has a time zone, but {field} has none: cameras do not note it")
    return span


def _length(text: str, start: datetime) -> timedelta:
    """How long the period lasts that a text of this precision names."""
    if len(text) < 10:
        next_year, next_month = start.year + 1, start.month % 12 + 1
        if len(text) == 4:
            return start.replace(year=next_year) - start
        return start.replace(year=start.year + start.month // 12, month=next_month) - start
    clock = re.sub(r"(Z|[+-]\d\d:\d\d)$", "", text[11:])
    lengths = {0: timedelta(days=1), 5: timedelta(minutes=1), 8: timedelta(seconds=1)}
    return lengths.get(len(clock), timedelta(microseconds=1))


def _shown(value: Any) -> str:
    text = printable(json.dumps(value) if isinstance(value, str) else repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
