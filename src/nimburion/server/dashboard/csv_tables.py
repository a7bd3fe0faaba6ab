"""Tables of pages as CSV, for spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import Enum

import msgspec

from nimburion.core.text.escaping import escape_controls

_TIMES = re.compile(r"at|since|until|due|first|last|start|\w+_at|\w+_since|\w+_tick")
"""The names of fields that hold a time in epoch seconds."""
_LEAST_TIME = 100_000_000.0
"""A smaller number is no time, whatever the name of its field."""
_FORMULA = re.compile(r"(^|;)(?=\s*[=+\-@|%\uff1d\uff0b\uff0d\uff20])")
"""Where a formula begins. In many countries, spreadsheets separate cells at semicolons, also in a
file with commas.
"""


def make_csv(rows: Iterable[msgspec.Struct]) -> str:
    """Return rows as CSV with a header (RFC 4180).

    The columns are the fields of the rows; those of a nested struct have its name in front, as in
    `job.id`. Lists and maps are JSON. Times are ISO 8601, in UTC.

    An apostrophe precedes each part of a text that a spreadsheet would take for a formula.
    """
    cells = [dict(_list_cells(row, "")) for row in rows]
    names = dict.fromkeys(name for row in cells for name in row)
    nested = {name.rpartition(".")[0] for name in names}  # None in some rows
    columns = [name for name in names if name not in nested]
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(cells)
    return written.getvalue()


def _list_cells(row: msgspec.Struct, prefix: str) -> Iterator[tuple[str, str]]:
    for field in msgspec.structs.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, msgspec.Struct):
            yield from _list_cells(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, _format_cell(field.name, value)


def _format_cell(name: str, value: object) -> str:
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        if value >= _LEAST_TIME and _TIMES.fullmatch(name):
            return _format_time(value)
        return str(value)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return _FORMULA.sub(r"\1'", escape_controls(text))


def _format_time(at: float) -> str:
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (OverflowError, OSError, ValueError):
        return str(at)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
