"""Files that a run leaves behind: written whole, or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from imgsearch.errors import ConfigError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from imgsearch.gallery import Hits


def absolute(path: str | Path) -> Path:
    """Make a path absolute and take ``.`` and ``..`` out of it, without following links.

    Parameters
    ----------
    path : path
        Relative paths start in the working folder; ``~`` is the user's home.

    Returns
    -------
    pathlib.Path
        Two spellings of one path give the same result.

    Raises
    ------
    ConfigError
        The path is empty, holds a NUL character or a lone surrogate that stands for
        no byte, or names a user who does not exist.
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
    return Path(os.path.abspath(expanded))  # noqa: PTH100 - resolve would follow links


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part.

    Parameters
    ----------
    path : path
        Its folder is made if need be.
    data : bytes
        The whole content.

    Returns
    -------
    pathlib.Path
        The absolute path.

    Raises
    ------
    OSError
        The folder cannot be written to, or the disk is full; an old file stays.
    """
    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(part).chmod(0o666 & ~umask)  # mkstemp's 0600 would hide reports from colleagues
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return path


def write_json(path: str | Path, content: dict) -> Path:
    """Write a report as JSON, with the versions of what made it.

    Parameters
    ----------
    path : path
        The file.
    content : dict
        Plain values.

    Returns
    -------
    pathlib.Path
        The absolute path.

    Raises
    ------
    OSError
        As :func:`write_atomic`.
    """
    content = content | {"versions": versions()}
    return write_atomic(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def write_figure(path: str | Path, figure: Figure, *, dpi: int = 150) -> Path:
    """Write a figure in the format that the path's ending names.

    Parameters
    ----------
    path : path
        Ending in ``.png``, ``.svg`` or ``.pdf``.
    figure : matplotlib.figure.Figure
        The figure.
    dpi : int
        Dots per inch of a PNG.

    Returns
    -------
    pathlib.Path
        The absolute path.

    Raises
    ------
    OSError
        As :func:`write_atomic`.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix[1:], dpi=dpi, bbox_inches="tight")
    return write_atomic(path, buffer.getvalue())


def hits_csv(hits: Hits, *, names_only: bool = False) -> bytes:
    """Write the results of a search as a table.

    Parameters
    ----------
    hits : Hits
        Results of a search.
    names_only : bool
        Leave the folders out of the paths.

    Returns
    -------
    bytes
        CSV in UTF-8 with a header: rank, score, image_id, path, width, height.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["rank", "score", "image_id", "path", "width", "height"])
    for hit in hits:
        path = printable(Path(hit.path).name if names_only else hit.path)
        table.writerow([hit.rank, f"{hit.score:.6f}", hit.image_id, path, hit.width, hit.height])
    return text.getvalue().encode()


def versions() -> dict[str, str]:
    """Versions of imgsearch and of the libraries that decide its numbers.

    Returns
    -------
    dict of str to str
        Distribution to version; those that are not installed are left out.
    """
    found = {}
    for name in ("imgsearch", "numpy", "pillow", "torch", "openvino", "pymilvus", "milvus-lite"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
