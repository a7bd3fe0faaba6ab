"""Decides when a worker makes an exchange, and wakes the reserve loop for it."""

from __future__ import annotations

import asyncio
from enum import Enum, auto

from nimburion.core.exchange import ReserveRequest
from nimburion.jobs.worker.exchange.completer import Completer
from nimburion.jobs.worker.exchange.exchange_size import MAX_SETTLEMENTS
from nimburion.jobs.worker.exchange.slots import Slots

_MAX_FLUSH_DELAY = 0.020
"""The longest time in seconds that a settlement is delayed to form a larger batch."""

_REFILL_FRACTION = 8
"""Settlements are delayed until a full batch fits, or 7/8 of the prefetch.

Larger batches cost less per job: 15-25 % less with an eighth than with a half, measured.
"""


class ExchangeReason(Enum):
    """The reason for an exchange. See `ExchangeTrigger.find_reason`."""

    CLOSING = auto()
    SESSION_OVER = auto()
    RESULTS_FULL = auto()
    FLUSH_DUE = auto()
    BATCH_FULL = auto()
    RESULTS_WAIT = auto()
    WORK_POSSIBLE = auto()
    LANES_NOT_EMPTY = auto()
    BATCH_HAS_ROOM = auto()
    IDLE = auto()


class ExchangeTrigger:
    """Decides from the state of one worker whether to make an exchange now."""

    __slots__ = (
        "_batch_size",
        "_completer",
        "_flush_timer",
        "_long_poll",
        "_loop",
        "_refill_level",
        "_slots",
        "_woken",
        "cancelled",
        "closing",
        "flush_due",
        "lanes_not_empty",
        "may_have_work",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        slots: Slots,
        completer: Completer,
        *,
        long_poll: bool,
    ) -> None:
        self.may_have_work: bool = True
        """Whether there may be jobs for which no exchange has looked yet."""
        self.lanes_not_empty: bool = False
        """Whether the last reply listed lanes that still hold jobs."""
        self.flush_due: bool = False
        """Whether a settlement was delayed for the maximum time."""
        self.closing: bool = False
        """Whether the worker is closing: pending settlements are sent, and no job is awaited."""
        self.cancelled: bool = False
        """Whether code outside the engine cancelled the reserve loop: it ends when no job runs."""
        self._loop = loop
        self._slots = slots
        self._completer = completer
        self._long_poll = long_poll
        self._flush_timer: asyncio.TimerHandle | None = None
        self._refill_level = self._batch_size = 0
        """While more than `_refill_level` jobs are prefetched, and fewer than `_batch_size` results
        wait, `find_reason` returns None. Its last call has set both, at most 20 ms ago.
        """
        self._woken = asyncio.Event()

    def find_reason(self) -> ExchangeReason | None:
        """Return the reason to exchange now, or None. The first state that holds decides.

        "Plenty held" means: the prefetched jobs leave no room for a whole batch.

        | state of the worker | answer |
        |---|---|
        | closing, or cancelled and no job runs | CLOSING: send pending settlements, then end |
        | the session has ended | SESSION_OVER: detect it, and open a new session |
        | too many bytes of results wait | RESULTS_FULL: no job starts before they are sent |
        | plenty held, a result waits for 20 ms | FLUSH_DUE: do not delay a result any longer |
        | plenty held, a batch of results waits | BATCH_FULL: send them and fetch as many jobs |
        | plenty held, less than a batch waits | None: a larger batch costs less per job |
        | results or progress wait | RESULTS_WAIT: a delay would gain nothing |
        | all slots are taken, a batch has room | BATCH_HAS_ROOM: its jobs need no slot |
        | all slots are taken, or it drains | None: nothing to send, no room for jobs |
        | a notification, a due time or a poll | WORK_POSSIBLE: look for jobs in all lanes |
        | the last reply left jobs behind | LANES_NOT_EMPTY: fetch more from those lanes |
        | the last reply left jobs of a batch | BATCH_HAS_ROOM: fill it |
        | it holds no job, and can long-poll | IDLE: wait inside the backend for a job |
        | otherwise | None: wait for a wake-up |
        """
        completer, slots = self._completer, self._slots
        if self.closing or (self.cancelled and not slots.running):
            return ExchangeReason.CLOSING
        if completer.closed:
            return ExchangeReason.SESSION_OVER
        if completer.is_full:
            return ExchangeReason.RESULTS_FULL
        prefetch = slots.prefetch.size
        full = min(MAX_SETTLEMENTS, prefetch - prefetch // _REFILL_FRACTION)
        self._refill_level, self._batch_size = prefetch - full, full
        if len(slots.prefetched) > prefetch - full:
            return self._find_flush_reason(full)
        if completer.has_pending:
            return ExchangeReason.RESULTS_WAIT
        return self._find_work_reason()

    def _find_flush_reason(self, full: int) -> ExchangeReason | None:
        if self.flush_due:
            return ExchangeReason.FLUSH_DUE
        if len(self._completer.pending) >= max(1, full):
            return ExchangeReason.BATCH_FULL
        return None

    def _find_work_reason(self) -> ExchangeReason | None:
        reason = self._find_sign_of_work()
        if reason is not None and self._slots.count_free() > 0:
            return reason
        if self._slots.batches is not None and self._slots.find_fillable() is not None:
            return ExchangeReason.BATCH_HAS_ROOM
        return None

    def _find_sign_of_work(self) -> ExchangeReason | None:
        if self.may_have_work:
            return ExchangeReason.WORK_POSSIBLE
        if self.lanes_not_empty:
            return ExchangeReason.LANES_NOT_EMPTY
        if self._long_poll and self._slots.are_empty:
            return ExchangeReason.IDLE
        return None

    @property
    def is_over(self) -> bool:
        """Whether the last exchange was made: the reserve loop ends."""
        if self._completer.has_pending:
            return False
        return self.closing or (self.cancelled and not self._slots.running)

    async def wait_for_reason(self) -> None:
        """Wait until there is a reason to exchange. Checks again after each wake-up."""
        while self.find_reason() is None:
            self._woken.clear()
            await self._woken.wait()

    def note_result(self) -> None:
        """Note the end of an attempt: wake the reserve loop, or start the flush timer (20 ms)."""
        if (
            self._flush_timer is not None
            and not self.flush_due
            and len(self._completer.pending) < self._batch_size
            and len(self._slots.prefetched) > self._refill_level
            and not self._completer.is_full
        ):
            return  # most results: a larger batch costs less per job
        if self.find_reason() is not None:
            self._woken.set()
        elif self._flush_timer is None and self._completer.pending:
            self._flush_timer = self._loop.call_later(_MAX_FLUSH_DELAY, self._on_flush_due)

    def wake(self) -> None:
        """Let the reserve loop check for a reason again."""
        self._woken.set()

    def note_possible_work(self) -> None:
        """Note that there may be jobs, and wake the reserve loop."""
        self.may_have_work = True
        if self._slots.batches is not None and self._slots.takes_members:
            self._slots.batches.note_possible_work()
        self._woken.set()

    def begin_session(self, completer: Completer) -> None:
        """Use the completer of a new session, and look for jobs in all lanes."""
        self._completer = completer
        self.may_have_work = True

    def start_exchange(self, request: ReserveRequest, *, fills_batch: bool = False) -> None:
        """Reset the reasons that the exchange which now begins handles.

        Args:
            fills_batch: whether it requests only jobs for a batch.
        """
        self.flush_due = False
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if request.total and not fills_batch:
            self.lanes_not_empty = False
            self.may_have_work = False

    def _on_flush_due(self) -> None:
        self.flush_due = True
        self._woken.set()
