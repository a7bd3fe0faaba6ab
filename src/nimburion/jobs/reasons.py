"""Why a worker should ask its store now, and the bell that wakes the one who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nimburion.core.exchange import Want

_LATEST_SETTLE = 0.020
"""Seconds that a settlement waits for company at most."""


class Reasons:
    """What speaks for an exchange, until one begins."""

    __slots__ = ("_backstop", "_bell", "_loop", "hinted", "more", "overdue")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.hinted: bool = True
        """There may be work that nobody has looked for yet."""
        self.more: bool = False
        """The last reply said that lanes still hold jobs."""
        self.overdue: bool = False
        """A settlement has waited for company for long enough."""
        self._loop = loop
        self._backstop: asyncio.TimerHandle | None = None
        self._bell = asyncio.Event()

    async def until(self, needed: Callable[[], bool]) -> None:
        """Return when it is `needed`; asked anew after each ring."""
        while not needed():
            self._bell.clear()
            await self._bell.wait()

    def ring(self) -> None:
        """Something has changed."""
        self._bell.set()

    def hint(self) -> None:
        """There may be work."""
        self.hinted = True
        self._bell.set()

    def hold_back(self) -> None:
        """Settlements wait for company; from now on not for long."""
        if self._backstop is None:
            self._backstop = self._loop.call_later(_LATEST_SETTLE, self._on_overdue)

    def begin(self, want: Want) -> None:
        """An exchange begins: what it takes care of is no reason any more."""
        self.overdue = False
        if self._backstop is not None:
            self._backstop.cancel()
            self._backstop = None
        if want.total:
            self.more = False
            self.hinted = False

    def _on_overdue(self) -> None:
        self.overdue = True
        self._bell.set()
