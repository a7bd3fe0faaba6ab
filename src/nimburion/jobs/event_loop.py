"""The event loop of a process that nimburion runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def find_fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the loop factory of uvloop if it is installed (extra `fast`); None for the standard
    loop."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop
