"""Attributes as users have them: dicts, data frames and CSV files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import date
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imgsearch.collection import Collection
from imgsearch.errors import ConfigError, printable
from imgsearch.filters import FIELDS, check_attributes
from imgsearch.io import absolute

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("path", "name", "image_id")
"""What a table can name a file by."""


class Table(NamedTuple):
    """Attributes of some files, each with what names it."""

    key: str
    rows: list[tuple[Any, dict[str, Any]]]

    @classmethod
    def read(cls, data: Mapping | pd.DataFrame | str | Path, key: str | None = None) -> Table:
        """Read and check a dict of dicts, a data frame or a CSV file."""
        if key not in (None, *KEYS):
            raise ConfigError("key", f"is {key!r}; there are {', '.join(KEYS)}")
        if isinstance(data, Mapping):
            ids = bool(data) and all(isinstance(name, Integral) for name in data)
            return cls(key or ("image_id" if ids else "path"), _checked(data.items()))
        frame = _read_csv(data) if isinstance(data, str | os.PathLike) else data
        if set(frame.index.names) & set(KEYS):
            frame = frame.reset_index()
        key = key or next((name for name in KEYS if name in frame.columns), "path")
        if key not in frame.columns:
            columns = ", ".join(map(str, frame.columns))
            raise ConfigError("key", f"{key!r} is no column; there are {printable(columns)}")
        frame = frame.astype(object).where(frame.notna(), None)
        # A table from `to_pandas` holds the properties of the files, too.
        names = [name for name in frame.columns if name not in (*FIELDS, *KEYS)]
        values = [
            {name: value for name, value in row.items() if value is not None}
            for row in frame[names].to_dict("records")
        ]
        return cls(key, _checked(zip(frame[key], values, strict=True)))

    def set(self, collection: Collection, *, replace: bool = False) -> int:
        """Set the attributes in a collection; return the number of files that got some."""
        found: dict[str, dict[str, Any]] = {}
        for paths, attributes in zip(self._paths(collection), self.rows, strict=True):
            for path in paths:
                found.setdefault(path, {}).update(attributes[1])
        count = collection.metadata.set_attributes(collection.name, found, replace=replace)
        if self.rows and not count:
            first = printable(self.rows[0][0])
            reason = f"name no file of {collection.name!r}; the first {self.key} is {first!r}"
            raise ConfigError("attributes", reason)
        return count

    def _paths(self, collection: Collection) -> Iterable[Iterable[str]]:
        """Paths that each row means."""
        keys = [key for key, _ in self.rows]
        if self.key == "path":
            return [[str(absolute(key))] for key in keys]
        if self.key == "image_id":
            rows = collection.metadata.by_id(collection.name, map(int, keys))
            return [[row.path for row in rows.get(int(key), ())] for key in keys]
        known: dict[str, list[str]] = {}
        for path in collection.metadata.known(collection.name):
            name = os.path.basename(path)  # noqa: PTH119 - Path takes ten times as long
            for form in {name, os.path.splitext(name)[0]}:  # noqa: PTH122
                known.setdefault(form, []).append(path)
        return [known.get(str(key), ()) for key in keys]


class Labels(NamedTuple):
    """Attributes that the files of an ingest get."""

    every: dict[str, Any]
    from_folders: bool
    table: Table | None

    @classmethod
    def read(
        cls, given: Mapping[str, Any] | pd.DataFrame | str | Path | None, from_folders: bool
    ) -> Labels:
        """Check what a user gives: a dict for every file, or a table."""
        if given is None or isinstance(given, Mapping):
            return cls(check_attributes(given or {}), from_folders, None)
        return cls({}, from_folders, Table.read(given))

    def of(self, path: str) -> dict[str, Any]:
        """Attributes of one file, without those of the table."""
        label = {"label": printable(Path(path).parent.name)} if self.from_folders else {}
        return label | self.every


def _checked(rows: Iterable[tuple[Any, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    checked = []
    for key, attributes in rows:
        plain = attributes
        if isinstance(attributes, Mapping):
            plain = {name: _plain(value) for name, value in attributes.items()}
        checked.append((key, check_attributes(plain)))
    return checked


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value


def _read_csv(path: str | Path) -> pd.DataFrame:
    import pandas as pd

    file = absolute(path)
    types = {"path": str, "name": str, "image_id": "int64"}
    try:
        # Only an empty field is a missing value: NA and None may be labels.
        return pd.read_csv(
            file, dtype=types, encoding="utf-8-sig", keep_default_na=False, na_values=[""]
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError("attributes", f"{printable(file)}: no CSV table: {reason}") from None
