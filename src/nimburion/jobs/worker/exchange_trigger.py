"""Decides when a worker exchanges with its backend, and wakes the one who waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from enum import Enum, auto

from nimburion.core.exchange import ReserveRequest
from nimburion.jobs.worker.completer import Completer
from nimburion.jobs.worker.exchange_size import MOST_AT_ONCE
from nimburion.jobs.worker.prefetch import Prefetch

_MAX_FLUSH_DELAY = 0.020
"""Seconds that a settlement waits for company at most."""

_REFILL_FRACTION = 8
"""Until there is room for a whole batch, or for all but an eighth of the prefetch, settlements wait
for company: the larger a batch, the less each job costs (an eighth: 15-25 % less than a half,
measured)."""


class ExchangeReason(Enum):
    """Why an exchange is made now. See `ExchangeTrigger.find_reason`."""

    CLOSING = auto()
    SESSION_OVER = auto()
    RESULTS_FULL = auto()
    FLUSH_DUE = auto()
    BATCH_FULL = auto()
    RESULTS_WAIT = auto()
    WORK_POSSIBLE = auto()
    LANES_NOT_EMPTY = auto()
    IDLE = auto()


class ExchangeTrigger:
    """Decides whether to exchange now, from the state of one worker."""

    __slots__ = (
        "_count_room",
        "_flush_timer",
        "_held",
        "_long_poll",
        "_loop",
        "_prefetch",
        "_running",
        "_woken",
        "cancelled",
        "closing",
        "completer",
        "flush_due",
        "lanes_not_empty",
        "may_have_work",
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
        self.completer: Completer
        """The settlements of the current session. Set when a session is opened."""
        self.may_have_work: bool = True
        """There may be work that nobody has looked for yet."""
        self.lanes_not_empty: bool = False
        """The last reply said that lanes still hold jobs."""
        self.flush_due: bool = False
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
        self._flush_timer: asyncio.TimerHandle | None = None
        self._woken = asyncio.Event()

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
        completer = self.completer
        if self.closing or (self.cancelled and not self._running):
            return ExchangeReason.CLOSING
        if completer.closed:
            return ExchangeReason.SESSION_OVER
        if completer.is_full:
            return ExchangeReason.RESULTS_FULL
        prefetch = self._prefetch.size
        full = min(MOST_AT_ONCE, prefetch - prefetch // _REFILL_FRACTION)
        if len(self._held) > prefetch - full:
            return self._find_flush_reason(full)
        if completer.has_pending:
            return ExchangeReason.RESULTS_WAIT
        reason = self._find_work_reason()
        return reason if reason is not None and self._count_room() > 0 else None

    def _find_flush_reason(self, full: int) -> ExchangeReason | None:
        if self.flush_due:
            return ExchangeReason.FLUSH_DUE
        if len(self.completer.pending) >= max(1, full):
            return ExchangeReason.BATCH_FULL
        return None

    def _find_work_reason(self) -> ExchangeReason | None:
        if self.may_have_work:
            return ExchangeReason.WORK_POSSIBLE
        if self.lanes_not_empty:
            return ExchangeReason.LANES_NOT_EMPTY
        if self._long_poll and not self._running:
            return ExchangeReason.IDLE
        return None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to exchange, ever: the reserve loop ends."""
        if self.completer.has_pending:
            return False
        return self.closing or (self.cancelled and not self._running)

    async def wait_for_reason(self) -> None:
        """Return when there is a reason; looks again after each ring."""
        while self.find_reason() is None:
            self._woken.clear()
            await self._woken.wait()

    def note_result(self) -> None:
        """An attempt has ended: wake the waiter, or let its settlement wait for company a while."""
        if self.find_reason() is not None:
            self._woken.set()
        elif self._flush_timer is None and self.completer.pending:
            self._flush_timer = self._loop.call_later(_MAX_FLUSH_DELAY, self._on_flush_due)

    def wake(self) -> None:
        """Something has changed."""
        self._woken.set()

    def note_possible_work(self) -> None:
        """There may be work."""
        self.may_have_work = True
        self._woken.set()

    def start_exchange(self, request: ReserveRequest) -> None:
        """An exchange begins: what it takes care of is no reason any more."""
        self.flush_due = False
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if request.total:
            self.lanes_not_empty = False
            self.may_have_work = False

    def _on_flush_due(self) -> None:
        self.flush_due = True
        self._woken.set()
