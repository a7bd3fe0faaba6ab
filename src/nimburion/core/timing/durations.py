"""Durations as callers pass them: a number of seconds or a timedelta."""

from __future__ import annotations

import math
from datetime import timedelta


def to_seconds(duration: float | timedelta) -> float:
    """Return the duration in seconds; a negative duration becomes zero.

    >>> to_seconds(timedelta(minutes=1)), to_seconds(-3)
    (60.0, 0.0)
    """
    if isinstance(duration, timedelta):
        return max(0.0, duration.total_seconds())
    return max(0.0, float(duration))


def read_seconds(value: object) -> float | None:
    """Return the seconds of a value that may be no duration; None unless it is a finite one.

    The caller raises the error that names the option.

    >>> read_seconds(timedelta(minutes=1)), read_seconds(-3), read_seconds("60"), read_seconds(True)
    (60.0, -3.0, None, None)
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None
