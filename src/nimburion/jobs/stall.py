"""Notices when long jobs have taken every slot, and what is held behind them does not begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized

_PATIENCE = 0.25
"""Seconds: many times what a prefetch should take."""


class StallWatch:
    """Calls `on_stall` when something was held for a while in which no job began."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, held: Sized, on_stall: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._held = held
        self._on_stall = on_stall
        self._timer: asyncio.TimerHandle | None = None
        self.begun = 0
        """How many jobs have begun; whoever begins one counts it here."""

    def watch(self) -> None:
        """Something is held: look again in a while."""
        if self._timer is None:
            self._timer = self._loop.call_later(_PATIENCE, self._look, self.begun)

    def _look(self, begun: int) -> None:
        self._timer = None
        if self._held and self.begun == begun:
            self._on_stall()
        elif self._held:
            self.watch()
