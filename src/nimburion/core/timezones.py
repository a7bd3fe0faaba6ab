"""Time zones by their IANA names."""

from __future__ import annotations

import difflib
import re
from types import MappingProxyType
from zoneinfo import ZoneInfo, available_timezones

from nimburion.core.errors import DefinitionError

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
"""Abbreviations that people write for one place, or for places that keep the same time."""


def find_zone(name: str) -> ZoneInfo:
    """The zone of an IANA name, like `Europe/Rome`. `DefinitionError` names the nearest one."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        shown = ascii(str(name)[:60])
    raise DefinitionError(f"there is no time zone {shown}; {suggest_zone(str(name))}")


def suggest_zone(name: str) -> str:
    """What may have been meant by a name that is none."""
    if name in _PLACES:
        return f"an abbreviation names no place; did you mean {_PLACES[name]!r}?"
    if _ABBREVIATION.fullmatch(name):
        return "an abbreviation names no place; write one like 'Europe/Rome', or 'UTC'"
    near = difflib.get_close_matches(name[:60], sorted(available_timezones()), n=1)
    return f"did you mean {near[0]!r}?" if near else "write it like 'Europe/Rome', or 'UTC'"
