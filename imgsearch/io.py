"""Paths, and files that are written completely or not at all."""

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

    Two spellings of one path give the same result. A path that is empty, holds a NUL
    character or a surrogate that stands for no byte, or names an unknown user with ``~``
    is a :class:`ConfigError`.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigError("path", "is empty")
    if "\0" in text:
        raise ConfigError("path", f"{printable(text)} holds a NUL character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ConfigError("path", f"{printable(text)} is not a valid file name") from None
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises RuntimeError
    if expanded.startswith("~") and text.startswith("~"):
        raise ConfigError("path", f"{printable(text)} names a user who does not exist")
    # Not resolve, which would follow links. POSIX lets abspath keep two leading slashes.
    return Path("/" + os.path.abspath(expanded).lstrip("/"))  # noqa: PTH100


@contextmanager
def atomic(path: str | Path, mode: str = "wb", permissions: int = 0o666) -> Iterator[IO]:
    """Open a file that takes its name only after the block has written all of it.

    A reader sees the old content or the new, never a part; an exception leaves the old
    file. The kernel applies the umask to `permissions`. Text (``mode="w"``) is UTF-8;
    undecodable bytes of paths become backslash escapes.
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
    """Write a figure in the format of the path's ending; return its absolute path."""
    path = absolute(path)
    with atomic(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=dpi, bbox_inches="tight")
    return path


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Table as CSV, with the keys of the first row as its header."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def versions() -> dict[str, str]:
    """Versions of imgsearch and of the installed libraries that decide its results."""
    found = {}
    for name in ("imgsearch", "numpy", "pillow", "torch", "openvino", "pymilvus", "milvus-lite"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
