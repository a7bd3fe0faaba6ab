"""Tables for people, JSON for machines; what would steer a terminal is written out."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

import click

from nimburion.cli.invocation import current_invocation

_WIDEST = 60
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(value: object) -> str:
    """Text that moves no cursor, changes no colour and hides nothing."""
    return _CONTROL.sub(_escape, str(value))


def escape_lines(text: str) -> str:
    """As `clean`, but line breaks and tabs stay."""
    return "\n".join(escape_controls(line.expandtabs(4)) for line in text.split("\n"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {9: r"\t", 10: r"\n", 13: r"\r"}.get(code)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def print_result(data: object, draw: Callable[[], None]) -> None:
    """Write `data` as JSON when asked to, else call `draw`."""
    if current_invocation().as_json:
        write_json(data)
    else:
        draw()


def write_json(data: object) -> None:
    """One JSON value in ASCII on one line."""
    click.echo(json.dumps(data, ensure_ascii=True, default=str).replace("\x7f", "\\u007f"))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Columns as wide as their content; numbers to the right."""
    cells = [[_format_cell(value) for value in row] for row in rows]
    if not cells:
        click.echo(empty)
        return
    widths = [max(map(_measure_width, column)) for column in zip(headers, *cells, strict=True)]
    right = [all(_is_number(row[index]) for row in cells) for index in range(len(headers))]
    for row in [[header.upper() for header in headers], *cells]:
        padded = [_pad(*one) for one in zip(row, widths, right, strict=True)]
        click.echo("  ".join(padded).rstrip())


def print_fields(pairs: Mapping[str, object]) -> None:
    """One line a field; what is None is left out."""
    told = {name: value for name, value in pairs.items() if value is not None}
    width = max(map(len, told), default=0)
    for name, value in told.items():
        click.echo(f"{name:<{width}}  {escape_controls(value)}")


def format_time(seconds: float | None) -> str | None:
    """A time of the backend as people read it, in local time."""
    if seconds is None:
        return None
    try:
        local = datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s after 1970"
    return local.strftime("%Y-%m-%d %H:%M:%S %z")


def format_duration(seconds: float) -> str:
    """A duration as people read it: `850 ms`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for unit, length, next_length in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < next_length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _format_cell(value: object) -> str:
    text = "-" if value is None else escape_controls(value)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _measure_width(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    marks = sum(unicodedata.combining(one) > 0 for one in text)
    return len(text) + wide - marks


def _pad(text: str, width: int, right: bool) -> str:  # noqa: FBT001 (mapped over columns)
    gap = " " * (width - _measure_width(text))
    return gap + text if right else text + gap


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-|[\d.,]+", text))
