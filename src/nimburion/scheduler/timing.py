"""What the store's clock shows, as far as it is known here.

A job that is fired too soon waits in the store for its tick, so a clock that is fast does no harm;
one that is slow would fire late. The store dates each job that it takes: that tells how far the
clock here is off.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from nimburion.core.clock import Clock
from nimburion.core.reading import Fired

_log = logging.getLogger("nimburion.scheduler")

_EACH = 60.0
_NOTEWORTHY = 0.01
_LOUD = 5.0


class StoreTime:
    """The local clock, corrected by what the store said last."""

    def __init__(self, clock: Clock, created_at: Callable[[str], Awaitable[float | None]]) -> None:
        self._clock = clock
        self._created_at = created_at
        self._off = 0.0
        self._learned = float("-inf")

    def now(self) -> float:
        """The store's time, epoch seconds."""
        return self._clock.now() + self._off

    def local(self) -> float:
        """This host's time."""
        return self._clock.now()

    async def learn(self, fired: Fired, sent: float) -> None:
        """Look once a minute how a job that was sent at `sent` is dated."""
        if fired.job_id is None or self._clock.monotonic() - self._learned < _EACH:
            return
        answered = self._clock.now()
        created = await self._created_at(fired.job_id)
        if created is None or answered < sent:
            return
        self._learned = self._clock.monotonic()
        off = created - (sent + answered) / 2
        doubt = max(_NOTEWORTHY, (answered - sent) / 2)
        self._off = off if abs(off) > doubt else 0.0
        if abs(self._off) > _LOUD:
            _log.warning("the clock of this host is %.1f s off that of the store", -self._off)
