"""Paths, and atomic writing of files."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING

from imgsearch.errors import ConfigError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def absolute(path: str | Path) -> Path:
    """Make a path absolute and remove ``.`` and ``..``, without following links.

    Equivalent spellings of a path give the same result. Raises :class:`ConfigError` if the
    path is empty, cannot be encoded as a file name, or refers to an unknown user with ``~``.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigError("path", "is empty")
    if "\0" in text:
        raise ConfigError("path", f"{printable(text)} contains a NUL character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ConfigError("path", f"{printable(text)} is not a valid file name") from None
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises RuntimeError
    if expanded.startswith("~") and text.startswith("~"):
        raise ConfigError("path", f"{printable(text)} refers to a user who does not exist")
    # Path.resolve would follow links. abspath keeps two leading slashes, as POSIX allows.
    return Path("/" + os.path.abspath(expanded).lstrip("/"))  # noqa: PTH100


@contextmanager
def atomic(path: str | Path, mode: str = "wb", permissions: int = 0o666) -> Iterator[IO]:
    """Open a temporary file that replaces `path` when the block ends without an exception.

    A reader sees either the old or the new content, never a part of it. The umask applies to
    `permissions`. Text (``mode="w"``) is UTF-8, with undecodable bytes of paths escaped.
    """
    path = absolute(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}")
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    try:
        with open(
            draft,
            mode.replace("w", "x"),
            opener=lambda name, flags: os.open(name, flags, permissions),
            **text,
        ) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: dict) -> Path:
    """Write a report as JSON, with the versions of the libraries; return its absolute path."""
    text = json.dumps(content | {"versions": versions()}, indent=1, allow_nan=False)
    with atomic(path, "w") as file:
        file.write(text + "\n")
    return absolute(path)


def write_figure(path: str | Path, figure: Figure, *, dpi: int = 150) -> Path:
    """Write a figure in the format of the path's suffix; return its absolute path."""
    path = absolute(path)
    with atomic(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=dpi, bbox_inches="tight")
    return path


def csv_text(rows: Sequence[Mapping[str, object]], names: Sequence[str] = ()) -> str:
    """Return a table as CSV; its header is `names`, or the keys of the first row."""
    text = io.StringIO()
    names = names or (list(rows[0]) if rows else [])
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def versions() -> dict[str, str]:
    """Return the versions of imgsearch and of the libraries that influence its results."""
    found = {}
    for name in ("imgsearch", "numpy", "pillow", "torch", "openvino", "pymilvus", "milvus-lite"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
