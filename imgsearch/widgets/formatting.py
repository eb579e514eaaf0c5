"""Tables, sizes and times for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from imgsearch.errors import printable

LONG = 36
"""Characters from which on a cell of a table may be broken into lines."""


def table(caption: str, rows: Sequence[Mapping[str, object]], most: int = 200) -> str:
    """Write a table as HTML.

    Parameters
    ----------
    caption : str
        Stands above it.
    rows : sequence of mapping
        Column to value; numbers are set to the right, empty columns left out.
    most : int
        How many rows at most; the caption says how many there are.

    Returns
    -------
    str
        Everything in it is escaped.
    """
    if not rows:
        return ""
    used = [name for name in rows[0] if any(row[name] != "" for row in rows)]
    rows = [{name: row[name] for name in used} for row in rows]
    if len(rows) > most:
        caption = f"{caption} (the first {most} of {len(rows):,})"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0])
    body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows[:most])
    return (
        f'<div class="imgsearch-scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="imgsearch-table"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
        return f'<td class="imgsearch-number">{text}</td>'
    text = printable(value)
    return f"<td{' class=imgsearch-long' if len(text) > LONG else ''}>{escape(text)}</td>"


def bytes_in_words(n: int) -> str:
    """Size for people.

    Parameters
    ----------
    n : int
        Bytes.

    Returns
    -------
    str

    Examples
    --------
    >>> bytes_in_words(41_943_040)
    '40.0 MiB'
    """
    size = float(n)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{n} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def time_in_words(seconds: float) -> str:
    """Duration for people.

    Parameters
    ----------
    seconds : float
        Duration, seconds.

    Returns
    -------
    str

    Examples
    --------
    >>> time_in_words(0.0123), time_in_words(75)
    ('12 ms', '1 min 15 s')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
