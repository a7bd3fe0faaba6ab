"""Decides when a worker exchanges with its backend, and wakes the one who waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from enum import Enum, auto

from nimburion.core.exchange import Want
from nimburion.jobs.worker.completer import Conveyor
from nimburion.jobs.worker.exchange_size import MOST_AT_ONCE
from nimburion.jobs.worker.prefetch import Prefetch

_LATEST_SETTLE = 0.020
"""Seconds that a settlement waits for company at most."""

_REFILL = 8
"""Until there is room for a whole batch, or for all but an eighth of the prefetch, settlements wait
for company: the larger a batch, the less each job costs (an eighth: 15-25 % less than a half,
measured)."""


class ExchangeReason(Enum):
    """Why an exchange is made now. See `Reasons.find_reason`."""

    CLOSING = auto()
    SESSION_OVER = auto()
    RESULTS_FULL = auto()
    FLUSH_DUE = auto()
    BATCH_FULL = auto()
    RESULTS_WAIT = auto()
    WORK_POSSIBLE = auto()
    LANES_NOT_EMPTY = auto()
    IDLE = auto()


class Reasons:
    """Decides whether to exchange now, from the state of one worker."""

    __slots__ = (
        "_backstop",
        "_bell",
        "_count_room",
        "_held",
        "_long_poll",
        "_loop",
        "_prefetch",
        "_running",
        "cancelled",
        "closing",
        "conveyor",
        "hinted",
        "more",
        "overdue",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        prefetch: Prefetch,
        *,
        held: Sized,
        running: Sized,
        count_room: Callable[[], int],
        long_poll: bool,
    ) -> None:
        self.conveyor: Conveyor
        """The settlements of the current session. Set when a session is opened."""
        self.hinted: bool = True
        """There may be work that nobody has looked for yet."""
        self.more: bool = False
        """The last reply said that lanes still hold jobs."""
        self.overdue: bool = False
        """A settlement has waited for company for long enough."""
        self.closing: bool = False
        """The worker ends: what is left is sent, and nothing is waited for."""
        self.cancelled: bool = False
        """Something outside the engine cancelled the reserve loop: it ends when nothing runs."""
        self._loop = loop
        self._prefetch = prefetch
        self._held = held
        self._running = running
        self._count_room = count_room
        self._long_poll = long_poll
        self._backstop: asyncio.TimerHandle | None = None
        self._bell = asyncio.Event()

    def find_reason(self) -> ExchangeReason | None:
        """Return why to exchange now; None: not now. The first state that holds decides.

        "Plenty held" means: the jobs that are prefetched leave no room for a whole batch.

        | state of the worker | answer |
        |---|---|
        | closing, or cancelled and nothing runs | CLOSING: send what is left, then end |
        | the session was given up or lost | SESSION_OVER: find out, and open another |
        | more bytes of results wait than may | RESULTS_FULL: no job starts before they are sent |
        | plenty held, a result waits since 20 ms | FLUSH_DUE: no result waits longer for company |
        | plenty held, results for a batch wait | BATCH_FULL: send them and fetch as many jobs |
        | plenty held, results for less than a batch | None: a larger batch costs less per job |
        | results or progress wait | RESULTS_WAIT: nothing is gained by waiting |
        | no room: all slots are taken, or it drains | None: nothing to send, nowhere to put jobs |
        | a notification, a due time or a poll | WORK_POSSIBLE: look for jobs in all lanes |
        | the last reply left jobs behind | LANES_NOT_EMPTY: fetch more of those lanes |
        | nothing runs, and the backend can long-poll | IDLE: wait inside the backend for a job |
        | otherwise | None: wait until woken |
        """
        conveyor = self.conveyor
        if self.closing or (self.cancelled and not self._running):
            return ExchangeReason.CLOSING
        if conveyor.abandoned:
            return ExchangeReason.SESSION_OVER
        if conveyor.is_full:
            return ExchangeReason.RESULTS_FULL
        prefetch = self._prefetch.size
        full = min(MOST_AT_ONCE, prefetch - prefetch // _REFILL)
        if len(self._held) > prefetch - full:
            return self._find_flush_reason(full)
        if conveyor.loaded:
            return ExchangeReason.RESULTS_WAIT
        reason = self._find_work_reason()
        return reason if reason is not None and self._count_room() > 0 else None

    def _find_flush_reason(self, full: int) -> ExchangeReason | None:
        if self.overdue:
            return ExchangeReason.FLUSH_DUE
        if len(self.conveyor.pending) >= max(1, full):
            return ExchangeReason.BATCH_FULL
        return None

    def _find_work_reason(self) -> ExchangeReason | None:
        if self.hinted:
            return ExchangeReason.WORK_POSSIBLE
        if self.more:
            return ExchangeReason.LANES_NOT_EMPTY
        if self._long_poll and not self._running:
            return ExchangeReason.IDLE
        return None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to exchange, ever: the reserve loop ends."""
        if self.conveyor.loaded:
            return False
        return self.closing or (self.cancelled and not self._running)

    async def wait_for_reason(self) -> None:
        """Return when there is a reason; looks again after each ring."""
        while self.find_reason() is None:
            self._bell.clear()
            await self._bell.wait()

    def note_result(self) -> None:
        """An attempt has ended: wake the waiter, or let its settlement wait for company a while."""
        if self.find_reason() is not None:
            self._bell.set()
        elif self._backstop is None and self.conveyor.pending:
            self._backstop = self._loop.call_later(_LATEST_SETTLE, self._on_overdue)

    def ring(self) -> None:
        """Something has changed."""
        self._bell.set()

    def hint(self) -> None:
        """There may be work."""
        self.hinted = True
        self._bell.set()

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
