"""Print tables or JSON; terminal control characters are escaped."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

import click

from nimburion.cli.invocation import current_invocation
from nimburion.core.shortening import shorten

_MAX_CELL_WIDTH = 60
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(value: object) -> str:
    """Return the text with control characters, bidirectional marks and surrogates escaped."""
    return _CONTROL.sub(_escape, str(value))


def escape_lines(text: str) -> str:
    """Escape like `escape_controls`, but keep line breaks and expand tabs to spaces."""
    return "\n".join(escape_controls(line.expandtabs(4)) for line in text.split("\n"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {9: r"\t", 10: r"\n", 13: r"\r"}.get(code)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def print_result(data: object, draw: Callable[[], None]) -> None:
    """Print `data` as JSON if `--json` was given, else call `draw`."""
    if current_invocation().as_json:
        write_json(data)
    else:
        draw()


def write_json(data: object) -> None:
    """Print one JSON value in ASCII on one line."""
    click.echo(json.dumps(data, ensure_ascii=True, default=str).replace("\x7f", "\\u007f"))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table with columns as wide as their content; numbers are aligned right. Print
    `empty` if there are no rows."""
    cells = [[_format_cell(value) for value in row] for row in rows]
    if not cells:
        click.echo(empty)
        return
    widths = [max(map(_measure_width, column)) for column in zip(headers, *cells, strict=True)]
    right = [all(_is_number(row[index]) for row in cells) for index in range(len(headers))]
    for row in [[header.upper() for header in headers], *cells]:
        padded = [_pad(*cell) for cell in zip(row, widths, right, strict=True)]
        click.echo("  ".join(padded).rstrip())


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
