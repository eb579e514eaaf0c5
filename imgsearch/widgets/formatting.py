"""Tables, counts, sizes and times for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from imgsearch.errors import printable

LONG = 36
"""Characters from which on a cell of a table may be broken into lines."""


TOGETHER = re.compile(r"(?<=\d) (?=(?:of|to|h|min|s|ms)\b)|(?<=of) (?=\d)|(?<=to) (?=\d)")
"""Spaces at which no line is broken: those of ``7 of 9`` and ``12 ms``."""


def table(caption: str, rows: Sequence[Mapping[str, object]], limit: int = 200) -> str:
    """Return a table as HTML: every text escaped, empty columns left out, `limit` rows at most."""
    if not rows:
        return ""
    used = [name for name in rows[0] if any(row[name] != "" for row in rows)]
    rows = [{name: row[name] for name in used} for row in rows]
    if len(rows) > limit:
        caption = f"{caption} (the first {limit} of {len(rows):,})"
    head = "".join(
        f'<th scope="col"{_number(value)}>{escape(name)}</th>' for name, value in rows[0].items()
    )
    body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows[:limit])
    return (
        f'<div class="imgsearch-scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="imgsearch-table"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
        return f"<td{_number(value)}>{text}</td>"
    text = printable(value)
    shown = TOGETHER.sub("&nbsp;", escape(text))
    return f"<td{' class=imgsearch-long' if len(text) > LONG else ''}>{shown}</td>"


def _number(value: object) -> str:
    return ' class="imgsearch-number"' if isinstance(value, int | float) else ""


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 file``, ``2,000 files``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def format_bytes(n: int) -> str:
    """Return a size, such as ``40.0 MiB``."""
    size = float(n)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{n} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Return a duration, such as ``12 ms`` or ``1 min 15 s``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_age(when: datetime) -> str:
    """Return how long ago something was, such as ``2 hours ago``."""
    seconds = (datetime.now(UTC) - when).total_seconds()
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            return f"{counted(int(seconds // size), unit)} ago"
    return "just now"
