"""Attributes as users have them: dicts, data frames and CSV files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
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


_TRUTH = "true|True|TRUE|false|False|FALSE"
_WHOLE = r"-?(0|[1-9]\d{0,14})"  # neither an identifier such as 007 nor one that would be rounded
_DECIMAL = rf"{_WHOLE}(\.\d+)?([eE][+-]?\d{{1,2}})?"


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
            key = key or ("image_id" if ids else "path")
            return cls(key, _checked(key, data.items()))
        frame = _frame(data)
        key = key or next((name for name in KEYS if name in frame.columns), "path")
        if key not in frame.columns:
            columns = ", ".join(map(str, frame.columns))
            raise ConfigError(
                "key", f"{key!r} is no column; there are {printable(columns)}. If a file has "
                "another separator than the comma, read it with pandas and give the table"
            )  # fmt: skip
        frame = frame.astype(object).where(frame.notna(), None)
        # A table from `to_pandas` holds the properties of the files, too.
        passed = {key, "path", "image_id"}
        passed |= FIELDS.keys() if FIELDS.keys() <= set(frame.columns) else set()
        names = [name for name in frame.columns if name not in passed]
        values = [
            {name: value for name, value in row.items() if value is not None}
            for row in frame[names].to_dict("records")
        ]
        return cls(key, _checked(key, zip(frame[key], values, strict=True)))

    def set(self, collection: Collection, *, replace: bool = False) -> int:
        """Set the attributes in a collection; return the number of files that got some."""
        found: dict[str, dict[str, Any]] = {}
        for paths, attributes in zip(self._paths(collection), self.rows, strict=True):
            for path in paths:
                found.setdefault(path, {}).update(attributes[1])
        count = collection.metadata.set_attributes(collection.name, found, replace=replace)
        if self.rows and not count:
            first = printable(self.rows[0][0])
            raise ConfigError(
                "attributes", f"name no file of {collection.name!r}; the first {self.key} is "
                f"{first!r}. Gallery.browse shows what there is"
            )  # fmt: skip
        return count

    def _paths(self, collection: Collection) -> Iterable[Iterable[str]]:
        """Paths that each row means."""
        keys = [key for key, _ in self.rows]
        if self.key == "path":
            return [[key] for key in keys]
        if self.key == "image_id":
            rows = collection.metadata.by_id(collection.name, keys)
            return [[row.path for row in rows.get(key, ())] for key in keys]
        known: dict[str, list[str]] = {}
        for path in collection.metadata.known(collection.name):
            name = os.path.basename(path)  # noqa: PTH119 - Path takes ten times as long
            for form in {name, os.path.splitext(name)[0]}:  # noqa: PTH122
                known.setdefault(form, []).append(path)
        return [known.get(key, ()) for key in keys]


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


def _checked(key: str, rows: Iterable[tuple[Any, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    checked: dict[Any, dict[str, Any]] = {}
    for file, attributes in rows:
        at = f'attributes["{printable(file)}"]'
        known = checked.setdefault(_name(key, file, at), {})
        for name, value in check_attributes(attributes, at).items():
            if repr(known.setdefault(name, value)) != repr(value):
                reason = "has two values: give each file once, with a list for several values"
                raise ConfigError(f'{at}["{name}"]', reason)
    return list(checked.items())


def _name(key: str, file: Any, at: str) -> str | int:
    """What names a file, in the form that it is looked up by."""
    whole = isinstance(file, Integral) and not isinstance(file, bool)
    if key == "image_id" and (whole or (isinstance(file, str) and file.strip().isdecimal())):
        return int(file)
    if key == "path" and isinstance(file, str | os.PathLike):
        return str(absolute(file))
    if key == "name" and (whole or isinstance(file, str | os.PathLike)):
        return str(file)
    reason = f"is of type {type(file).__name__}, not the {key} of a file"
    if isinstance(file, float) and key == "image_id":
        reason += ": numbers with a point are rounded, so keep the column as int64 or as text"
    raise ConfigError(at, reason)


def _frame(data: Any) -> pd.DataFrame:
    """A data frame or a CSV file as a table whose columns have different names."""
    import pandas as pd

    frame = _read_csv(data) if isinstance(data, str | os.PathLike) else data
    if not isinstance(frame, pd.DataFrame):
        kinds = "a dict, a pandas.DataFrame or the path of a CSV file"
        raise ConfigError("attributes", f"are of type {type(data).__name__}: give {kinds}")
    if set(frame.index.names) & set(KEYS):
        frame = frame.reset_index(allow_duplicates=True)
    if frame.columns.has_duplicates:
        name = frame.columns[frame.columns.duplicated()][0]
        raise ConfigError("attributes", f"two columns are called {printable(name)!r}")
    return frame


def _read_csv(path: str | Path) -> pd.DataFrame:
    import pandas as pd

    file = absolute(path)
    # Only an empty field is a missing value: NA and None may be labels.
    how = {"keep_default_na": False, "na_values": [""], "skipinitialspace": True}
    try:
        rows = pd.read_csv(file, header=None, dtype=str, encoding="utf-8-sig", **how)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = ": save it in UTF-8" if isinstance(error, UnicodeError) else ""
        raise ConfigError(
            "attributes", f"{printable(file)}: no CSV table: {reason}{hint}"
        ) from None
    names = rows.iloc[0]
    if names.isna().any():
        number = 1 + int(names.isna().to_numpy().argmax())
        reason = f"column {number} has no name; pandas writes none with to_csv(index=False)"
        raise ConfigError("attributes", f"{printable(file)}: {reason}")
    table = rows.iloc[1:].reset_index(drop=True).set_axis(names.str.strip(), axis="columns")
    return table.apply(lambda column: column if column.name in KEYS else _typed(column))


def _typed(column: pd.Series) -> pd.Series:
    """Truth values or numbers, if all texts of a column are such; otherwise the texts."""
    texts = column.dropna()
    if texts.str.fullmatch(_TRUTH).all():
        return texts.str.lower() == "true"
    kinds = {_WHOLE: int, _DECIMAL: float}
    kind = next((kinds[form] for form in kinds if texts.str.fullmatch(form).all()), None)
    return column if kind is None else texts.map(kind).astype(object)
