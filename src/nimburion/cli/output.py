"""Print tables or JSON; terminal control characters are escaped."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

import click

from nimburion.cli.invocation import current_invocation
from nimburion.core.text.escaping import escape_controls
from nimburion.core.text.shortening import shorten

_MAX_CELL_WIDTH = 60
_MIN_COLUMN_WIDTH = 8
"""Columns are not shortened below this width, so that an id stays recognizable."""


def print_result(data: object, print_text: Callable[[], None]) -> None:
    """Print `data` as JSON if `--json` was given, else call `print_text`."""
    if current_invocation().as_json:
        write_json(data)
    else:
        print_text()


def write_json(data: object) -> None:
    """Print one JSON value in ASCII on one line."""
    click.echo(json.dumps(data, ensure_ascii=True, default=str).replace("\x7f", "\\u007f"))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table as `format_table` returns it."""
    click.echo(format_table(headers, rows, empty))


def format_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    empty: str,
    *,
    width: int | None = None,
) -> str:
    """Return a table with columns as wide as their content; numbers are aligned right.

    The widest columns are shortened until the table fits into `width` characters (default: the
    width of the terminal; without a terminal nothing is shortened). Returns `empty` without rows.
    """
    cells = [[_format_cell(value) for value in row] for row in rows]
    if not cells:
        return empty
    widths = [max(map(_measure_width, column)) for column in zip(headers, *cells, strict=True)]
    _fit(widths, [len(header) for header in headers], width or _find_terminal_width())
    right = [all(_is_number(row[index]) for row in cells) for index in range(len(headers))]
    lines = []
    for row in [[header.upper() for header in headers], *cells]:
        cut = [_shorten_middle(text, limit) for text, limit in zip(row, widths, strict=True)]
        padded = [_pad(*cell) for cell in zip(cut, widths, right, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _find_terminal_width() -> int | None:
    if not sys.stdout.isatty():
        return None
    from shutil import get_terminal_size  # not for a script that reads the output

    return get_terminal_size().columns


def _fit(widths: list[int], least: list[int], width: int | None) -> None:
    """Shorten the widest columns, in place, until they fit into `width` with their gaps."""
    if width is None:
        return
    least = [max(_MIN_COLUMN_WIDTH, header) for header in least]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    while excess > 0:
        index = max(range(len(widths)), key=lambda n: widths[n] - least[n])
        if widths[index] <= least[index]:
            return  # the terminal is too narrow: its lines wrap
        widths[index] -= 1
        excess -= 1


def _shorten_middle(text: str, width: int) -> str:
    """Shorten a text to `width`. The middle is left out: the ends of ids differ most."""
    if _measure_width(text) <= width:
        return text
    kept = width - 1
    end = kept // 2
    return f"{text[: kept - end]}…{text[len(text) - end :]}"


def print_fields(pairs: Mapping[str, object]) -> None:
    """Print one line per field; fields that are None are left out."""
    shown = {name: value for name, value in pairs.items() if value is not None}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        click.echo(f"{name:<{width}}  {escape_controls(value)}")


def format_time(seconds: float | None) -> str | None:
    """Format epoch seconds of the backend as local time."""
    if seconds is None:
        return None
    try:
        local = datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s after 1970"
    return local.strftime("%Y-%m-%d %H:%M:%S %z")


def format_duration(seconds: float) -> str:
    """Format a duration: `850 ms`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for unit, length, next_length in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < next_length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def format_counted(count: int, *, is_complete: bool) -> int | str:
    """Format a number of jobs; `2500+` says that there may be more.

    >>> format_counted(2500, is_complete=True), format_counted(2500, is_complete=False)
    (2500, '2500+')
    """
    return count if is_complete else f"{count}+"


def format_bytes(count: int) -> str | None:
    """Format a size: `850 B`, `12 MiB`; None for 0, which means unknown."""
    if not count:
        return None
    size, units = float(count), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if size < 1024 or unit == units[-1]:
            return f"{size:.0f} {unit}"
        size /= 1024
    return None


def _format_cell(value: object) -> str:
    text = "-" if value is None else escape_controls(value)
    return shorten(text, _MAX_CELL_WIDTH)


def _measure_width(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    marks = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - marks


def _pad(text: str, width: int, right: bool) -> str:  # noqa: FBT001 (mapped over columns)
    gap = " " * (width - _measure_width(text))
    return gap + text if right else text + gap


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-|[\d.,]+", text))
