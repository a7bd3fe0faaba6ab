"""Times and spans as backends store them: whole microseconds."""

from __future__ import annotations

from nimburion.core.errors import Unstorable

MICRO = 1_000_000
"""Microseconds per second. All backends store whole microseconds, so equal times stay equal."""
_MAX_MICROS = 1 << 62


def to_micros(seconds: float) -> int:
    """Return seconds as whole microseconds, rounded.

    Raises `Unstorable` unless they are a time or a span that can be stored.

    >>> to_micros(1.5)
    1500000
    """
    try:
        whole = round(seconds * MICRO)
    except (ValueError, OverflowError):
        whole = _MAX_MICROS
    if not -_MAX_MICROS < whole < _MAX_MICROS:
        raise Unstorable(f"{seconds!r} s is no time or span that can be stored")
    return whole
