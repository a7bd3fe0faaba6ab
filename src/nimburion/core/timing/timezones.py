"""Time zones by their IANA names."""

from __future__ import annotations

import re
from types import MappingProxyType
from zoneinfo import ZoneInfo, available_timezones

from nimburion.core.errors import DefinitionError
from nimburion.core.text.suggestions import find_nearest

_ABBREVIATION = re.compile(r"[A-Z]{2,4}T")
_PLACES = MappingProxyType(
    {
        "AEDT": "Australia/Sydney",
        "AEST": "Australia/Sydney",
        "BST": "Europe/London",
        "CEST": "Europe/Berlin",
        "EDT": "America/New_York",
        "EEST": "Europe/Athens",
        "JST": "Asia/Tokyo",
        "MDT": "America/Denver",
        "MSK": "Europe/Moscow",
        "NZDT": "Pacific/Auckland",
        "NZST": "Pacific/Auckland",
        "PDT": "America/Los_Angeles",
        "PST": "America/Los_Angeles",
        "WEST": "Europe/Lisbon",
    }
)
"""Abbreviations that commonly mean one place, or places with the same time."""


def find_zone(name: str) -> ZoneInfo:
    """Return the zone of an IANA name such as `Europe/Rome`.

    Raises:
        DefinitionError: there is no such zone. The message suggests the nearest name.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        shown = ascii(str(name)[:60])
    raise DefinitionError(f"there is no time zone {shown}; {suggest_zone(str(name))}")


def suggest_zone(name: str) -> str:
    """Return a suggestion for an unknown zone name."""
    if name in _PLACES:
        return f"an abbreviation is ambiguous; did you mean {_PLACES[name]!r}?"
    if _ABBREVIATION.fullmatch(name):
        return "an abbreviation is ambiguous; write one like 'Europe/Rome', or 'UTC'"
    near = find_nearest(name[:60], sorted(available_timezones()))
    return f"did you mean {near!r}?" if near else "write it like 'Europe/Rome', or 'UTC'"
