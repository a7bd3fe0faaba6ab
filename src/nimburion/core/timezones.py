"""Time zones by their IANA names."""

from __future__ import annotations

import difflib
from zoneinfo import ZoneInfo, available_timezones

from nimburion.core.errors import DefinitionError


def zone_of(name: str) -> ZoneInfo:
    """The zone of an IANA name, like `Europe/Rome`. `DefinitionError` names the nearest one."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        shown = ascii(str(name)[:60])
    raise DefinitionError(f"there is no time zone {shown}; {hint_for(str(name))}")


def hint_for(name: str) -> str:
    """What may have been meant by a name that is none."""
    near = difflib.get_close_matches(name[:60], sorted(available_timezones()), n=1)
    return f"did you mean {near[0]!r}?" if near else "write it like 'Europe/Rome', or 'UTC'"
