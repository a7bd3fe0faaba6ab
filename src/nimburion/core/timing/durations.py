"""Durations as callers pass them: a number of seconds, a timedelta, or a text like `1h30m`."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from types import MappingProxyType

Duration = float | timedelta | str
"""Seconds, a timedelta, or a text like `500ms`, `30s`, `5m`, `1h30m`, `90d` or `3 days`."""

DURATION_FORMS = "a number of seconds, a timedelta or a text like '1h30m'"
_CENTURY_SECONDS = 100 * 365.25 * 86_400

_UNITS = MappingProxyType({"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001})
_WORDS = MappingProxyType(
    {"d": "d|days?", "h": "h|hours?", "m": "m|minutes?", "s": "s|seconds?", "ms": "ms"}
)
_TEXT = re.compile(
    r"\s?".join(
        rf"(?:(?P<{unit}>\d{{1,9}}(?:\.\d{{1,9}})?)\s?(?:{words}))?"
        for unit, words in _WORDS.items()
    )
)
"""Some of the units, in this order, each with a number: `1h30m`, `3 days`."""


def to_seconds(duration: Duration) -> float:
    """Return the duration in seconds; a negative duration becomes zero. Raises `ValueError` for
    a text that is no duration.

    >>> to_seconds(timedelta(minutes=1)), to_seconds(-3), to_seconds("1h30m")
    (60.0, 0.0, 5400.0)
    """
    if isinstance(duration, timedelta):
        return max(0.0, duration.total_seconds())
    if isinstance(duration, str):
        seconds = parse_duration_text(duration)
        if seconds is None:
            raise ValueError(f"a duration is a text like '30s', '5m' or '1h30m', not {duration!r}")
        return seconds
    return max(0.0, float(duration))


def read_seconds(value: object) -> float | None:
    """Return the seconds of a value that may be no duration; None unless it is a finite one.

    The caller raises the error that names the option.

    >>> read_seconds(timedelta(minutes=1)), read_seconds(-3), read_seconds("60"), read_seconds(True)
    (60.0, -3.0, None, None)
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        return parse_duration_text(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None


def require_seconds(what: str, value: object, error: type[Exception]) -> float:
    """Return the seconds of a value that may be no duration. Raises `error`, which names the option
    `what`, unless it is a duration from 0 seconds to a century.
    """
    seconds = _require_duration(what, value, error)
    if seconds < 0:
        raise error(f"{what} must be 0 seconds or more, not {value!r}")
    return seconds


def require_positive_seconds(what: str, value: object, error: type[Exception]) -> float:
    """Return the seconds as `require_seconds` does. Raises `error` also for 0."""
    seconds = _require_duration(what, value, error)
    if seconds <= 0:
        raise error(f"{what} must be more than 0 seconds, not {value!r}")
    return seconds


def _require_duration(what: str, value: object, error: type[Exception]) -> float:
    seconds = read_seconds(value)
    if seconds is None:
        raise error(f"{what} must be {DURATION_FORMS}, not {value!r}")
    if seconds > _CENTURY_SECONDS:
        raise error(f"{what} must be less than a century, not {seconds:g} seconds")
    return seconds


def parse_duration_text(text: str) -> float | None:
    """Return the seconds of a text like `1h30m`; None if it is none.

    >>> parse_duration_text("1h30m"), parse_duration_text("500ms"), parse_duration_text("90")
    (5400.0, 0.5, None)
    >>> parse_duration_text("3 days"), parse_duration_text("1 hour 30 minutes")
    (259200.0, 5400.0)
    """
    match = _TEXT.fullmatch(text)
    if match is None or match.lastgroup is None:
        return None
    return sum(float(count) * _UNITS[unit] for unit, count in match.groupdict("0").items())
