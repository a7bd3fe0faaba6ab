"""Decides whether a worker makes an exchange now, and which jobs it requests.

It depends on what the worker holds (`Slots`, `Batches`, `Completer`), on the lanes that it may
serve now (`LaneSelector`), and on the signs of work (`WakeupListener`, `DueTimer`, `LongPoll`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from enum import Enum, auto

from nimburion.core.backend import Backend
from nimburion.core.exchange import RESERVE_NOTHING, Reply, ReserveRequest
from nimburion.core.timing.clock import Clock
from nimburion.jobs.worker.exchange.batches import Batches
from nimburion.jobs.worker.exchange.completer import Completer
from nimburion.jobs.worker.exchange.exchange_size import MAX_SETTLEMENTS
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from nimburion.jobs.worker.exchange.slots import MAX_REQUESTED, Slots
from nimburion.jobs.worker.exchange.wakeups import (
    DueTimer,
    LongPoll,
    WakeupListener,
    compute_poll_interval,
)

_FLUSH_DELAY = 0.020
"""Seconds that a settlement is delayed to form a larger flush, if exchanges are quick."""
_FLUSH_DELAY_FACTOR = 3.0
"""The delay in multiples of the time that the last exchange took. A busy backend then gets fewer
and larger exchanges: each worker of a large fleet has few results in 20 ms.
"""
_MAX_FLUSH_DELAY = 0.500
"""The longest time in seconds that a settlement is delayed to form a larger flush."""

_RESERVED_PREFETCH_DIVISOR = 8
"""Settlements are delayed until they make a full flush, at most for 7/8 of the prefetched jobs: one
eighth is in reserve until the next reply.

Larger flushes cost less per job: 15-25 % less with an eighth than with a half, measured.
"""

MAX_EMPTY_REPLIES = 100
"""The most exchanges in a row that look for a job because the last reply named lanes, but no job.

An exchange that parks as many jobs as it may has such a reply, and so has one that meets a job
which the open transaction of a caller holds. The first ends soon; the second may last.
"""


class ExchangeReason(Enum):
    """The reason for an exchange. See `Fetcher.find_reason`."""

    CLOSING = auto()
    SESSION_OVER = auto()
    RESULTS_FULL = auto()
    FLUSH_DUE = auto()
    FLUSH_FULL = auto()
    RESULTS_WAIT = auto()
    WORK_POSSIBLE = auto()
    LANES_NOT_EMPTY = auto()
    JOB_DUE = auto()
    BATCH_HAS_ROOM = auto()
    IDLE = auto()


class Fetcher:
    """Decides for one worker when it makes an exchange, and for which jobs.

    Args:
        slots: the jobs that the worker holds.
        completer: the settlements that wait, and the connection to the session.
        lanes: the lanes that the worker may serve.
        batches: the batches of the worker; None without batch handlers.
        waits_for_jobs: whether a request may wait inside the backend for a job (long poll).
        session_ttl: the seconds after which the session expires without a heartbeat.
    """

    __slots__ = (
        "_batches",
        "_completer",
        "_counted_at",
        "_empty_replies",
        "_flush_size",
        "_flush_timer",
        "_lanes",
        "_loop",
        "_monotonic",
        "_ran",
        "_refill_level",
        "_slots",
        "_taken",
        "_waits_for_jobs",
        "_was_batch_skipped",
        "_woken",
        "cancelled",
        "closing",
        "due_timer",
        "expects_jobs",
        "flush_due",
        "has_others",
        "job_due",
        "lanes_not_empty",
        "long_poll",
        "may_have_work",
        "wakeups",
    )

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        slots: Slots,
        completer: Completer,
        *,
        lanes: LaneSelector,
        batches: Batches | None = None,
        waits_for_jobs: bool,
        session_ttl: float,
    ) -> None:
        self.may_have_work: bool = True
        """Whether there may be jobs for which no exchange has looked yet."""
        self.lanes_not_empty: bool = False
        """Whether the last reply listed lanes that still hold jobs."""
        self.flush_due: bool = False
        """Whether a settlement was delayed for the maximum time."""
        self.job_due: bool = False
        """Whether a job became due that no exchange has promoted yet."""
        self.closing: bool = False
        """Whether the worker is closing: pending settlements are sent, and no job is awaited."""
        self.cancelled: bool = False
        """Whether code outside the engine cancelled the reserve loop: it ends when no job runs."""
        self.has_others: bool = False
        """Whether other workers are alive: they may run what this one does not prefetch."""
        self.expects_jobs: bool = False
        """Whether the next exchange may find a job in the lanes that the last reply named."""
        self.long_poll: LongPoll = LongPoll(backend, lanes.queues, session_ttl)
        self.wakeups: WakeupListener = WakeupListener(
            backend, lanes.queues, clock, self.note_possible_work
        )
        self.due_timer: DueTimer = DueTimer(clock, self.note_job_due)
        self._loop = loop
        self._monotonic = clock.monotonic
        self._slots = slots
        self._completer = completer
        self._lanes = lanes
        self._batches = batches
        self._was_batch_skipped = False
        """Whether a request left out a batch handler because no slot was free for its call."""
        self._waits_for_jobs = waits_for_jobs
        self._empty_replies = 0
        """The number of replies in a row that named lanes, but had no job."""
        self._flush_timer: asyncio.TimerHandle | None = None
        self._refill_level = self._flush_size = 0
        """While more than `_refill_level` jobs are prefetched, and fewer than `_flush_size` results
        wait, `find_reason` returns None. The last call has set both, less than a second ago.
        """
        self._woken = asyncio.Event()
        self._taken = 0
        """The jobs that were delivered since the worker last found nothing waiting; since its start
        while there is no other worker."""
        self._ran = 0
        """How many of them had left this worker at `_counted_at`."""
        self._counted_at = clock.monotonic()

    # Ask now?

    def find_reason(self) -> ExchangeReason | None:
        """Return the reason to exchange now, or None. The first state that holds decides.

        "Plenty held" means: the prefetched jobs leave no room for as many more as a full flush of
        results makes; in a fleet also that jobs are prefetched, and no others are known to wait.
        Batches are those of batch handlers: their worker does not wait for prefetched jobs.

        | state of the worker | answer |
        |---|---|
        | closing, or cancelled and no job runs | CLOSING: send pending settlements, then end |
        | the session has ended | SESSION_OVER: detect it, and open a new session |
        | too many bytes of results wait | RESULTS_FULL: no job starts before they are sent |
        | plenty held, a result has waited | FLUSH_DUE: do not delay a result any longer |
        | plenty held, a handler waits for a step | FLUSH_DUE: let it continue |
        | plenty held, an exchange has no answer | FLUSH_DUE: repeat it, its reply may lease jobs |
        | plenty held, a full flush waits | FLUSH_FULL: send the results and fetch as many jobs |
        | plenty held, less than that waits | None: a larger flush costs less per job |
        | results or progress wait | RESULTS_WAIT: a delay would gain nothing |
        | all slots are taken, a job is due | JOB_DUE: promote it for another worker |
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
        flush_size = min(MAX_SETTLEMENTS, prefetch - prefetch // _RESERVED_PREFETCH_DIVISOR)
        refills = self.lanes_not_empty or self.may_have_work or not self.has_others
        refills = refills or self._batches is not None  # a batch may have room for others
        self._refill_level = prefetch - flush_size if refills else 0
        self._flush_size = flush_size
        if len(slots.prefetched) > self._refill_level:
            return self._find_flush_reason(flush_size)
        if completer.has_pending:
            return ExchangeReason.RESULTS_WAIT
        reason: ExchangeReason | None = None
        if self.may_have_work:
            reason = ExchangeReason.WORK_POSSIBLE
        elif self.lanes_not_empty:
            reason = ExchangeReason.LANES_NOT_EMPTY
        elif self.long_poll.is_supported and slots.are_empty:
            reason = ExchangeReason.IDLE
        if reason is not None and slots.count_free() <= 0:
            reason = ExchangeReason.JOB_DUE if self.job_due else None
        return reason if self._batches is None else self._find_batch_reason(self._batches, reason)

    def _find_flush_reason(self, flush_size: int) -> ExchangeReason | None:
        completer = self._completer
        if self.flush_due or completer.is_awaited or completer.unanswered is not None:
            return ExchangeReason.FLUSH_DUE
        if len(completer.pending) >= max(1, flush_size):
            return ExchangeReason.FLUSH_FULL
        return None

    def _find_batch_reason(
        self, batches: Batches, reason: ExchangeReason | None
    ) -> ExchangeReason | None:
        """Return the reason of a worker with batch handlers; `reason` is that of other jobs."""
        slots = self._slots
        if self._was_batch_skipped and min(slots.count_free_slots(), slots.count_free()) > 0:
            return ExchangeReason.WORK_POSSIBLE
        return reason or (ExchangeReason.BATCH_HAS_ROOM if batches.find_fillable() else None)

    async def wait_for_reason(self) -> bool:
        """Wait until there is a reason to exchange. Checks again after each wake-up.

        Returns False if the worker is closing and nothing is left to send: the reserve loop ends.
        """
        while (reason := self.find_reason()) is None:
            self._woken.clear()
            if self._flush_timer is None and self._completer.has_pending:
                self.note_result()
            await self._woken.wait()
        return reason is not ExchangeReason.CLOSING or self._completer.has_pending

    def note_result(self) -> None:
        """Note the end of an attempt: wake the reserve loop, or start the flush timer."""
        if (
            self._flush_timer is not None
            and not self.flush_due
            and len(self._completer.pending) < self._flush_size
            and len(self._slots.prefetched) > self._refill_level
            and not self._completer.is_full
        ):
            return  # most results: a larger flush costs less per job
        if self.find_reason() is not None:
            self._woken.set()
        elif self._flush_timer is None and self._completer.has_pending:
            delay = max(_FLUSH_DELAY, _FLUSH_DELAY_FACTOR * self._completer.last_seconds)
            delay = min(delay, _MAX_FLUSH_DELAY)
            self._flush_timer = self._loop.call_later(delay, self._on_flush_due)

    def wake(self) -> None:
        """Let the reserve loop check for a reason again."""
        self._woken.set()

    def note_possible_work(self) -> None:
        """Note that there may be jobs, and wake the reserve loop."""
        self.may_have_work = True
        if self._batches is not None:
            self._batches.note_possible_work()
        self._woken.set()

    def note_job_due(self) -> None:
        """Note that a job became due that this worker has to promote, and wake the reserve loop."""
        self.job_due = True
        self.note_possible_work()

    def note_fleet(self, size: int, *, has_expired: bool) -> None:
        """Note how many workers are alive, and whether a session has expired: an idle worker polls
        the less often the more there are.
        """
        seconds = compute_poll_interval(size, has_expired=has_expired)
        if seconds < self.long_poll.longest:
            self.long_poll.interrupt()
        self.long_poll.longest = seconds
        self.wakeups.set_poll_interval(seconds)
        self.has_others = size > 1
        if not self.has_others:
            self._slots.prefetch.stop_sharing()

    def begin_session(self, completer: Completer) -> None:
        """Use the completer of a new session, and look for jobs in all lanes."""
        self._completer = completer
        self.may_have_work = True
        if self._batches is not None:  # the last request of the former session has no reply
            self._batches.end_request()

    def _on_flush_due(self) -> None:
        self.flush_due = True
        self._woken.set()

    # For what?

    def make_request(self) -> ReserveRequest:
        """Return the request of the exchange that begins now; reset the reasons that it handles.

        It asks for no job while too many bytes of results wait.
        """
        self.flush_due = self.job_due = False
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self.has_others:
            self._share_backlog()
        if self._completer.is_full:
            return RESERVE_NOTHING
        room = min(self._slots.count_free(), MAX_REQUESTED)
        if self._batches is not None:
            return self._make_request_with_batches(room, self._batches)
        return self._make_lanes_request(room) if room > 0 else RESERVE_NOTHING

    def _share_backlog(self) -> None:
        """Limit how many jobs this worker prefetches: other workers may run them too."""
        slots, now = self._slots, self._monotonic()
        held = len(slots.running) + slots.waiting_count
        if not (slots.prefetched or self.lanes_not_empty):  # the backlog has ended
            self._taken, self._ran = held, 0
        ran = self._taken - held
        if ran == 0 or ran > self._ran:
            slots.prefetch.share(ran, ran - self._ran, now - self._counted_at)
            self._ran, self._counted_at = ran, now

    def _make_lanes_request(self, room: int, without: Collection[str] = ()) -> ReserveRequest:
        """Return a request for `room` jobs: from all lanes if any may hold new jobs.

        It does not wait inside the backend if the next exchange may find a job without a wait.
        Jobs of the names in `without` are left out. The reasons that the request handles are reset.
        """
        slots = self._slots
        everything = self.may_have_work or not self.lanes_not_empty
        can_wait = self.long_poll.is_supported and self._waits_for_jobs and not self.expects_jobs
        waits = can_wait and slots.are_empty
        timeout = self.long_poll.choose_timeout(self.due_timer.seconds_left) if waits else 0.0
        request = self._lanes.make_request(
            room,
            everything=everything,
            long_poll=timeout,
            free_slots=slots.count_free_slots() - len(slots.prefetched),
            without=without,
        )
        if request.total:
            self.lanes_not_empty = self.may_have_work = False
        return request

    def _make_request_with_batches(self, room: int, batches: Batches) -> ReserveRequest:
        """Return a request for jobs of all lanes, for the jobs of one batch, or for none.

        The two kinds take turns, so that neither waits for the other.
        """
        request = None
        if room <= 0 or not batches.was_filled:
            request = batches.make_request(self._lanes)
        batches.was_filled = request is not None
        if request is None and room > 0:
            free = self._slots.count_free_slots()
            without = batches.find_full(free)
            if self._was_batch_skipped and free > 0:
                self.may_have_work = True
            self._was_batch_skipped = bool(without)
            if batches.had_jobs:
                room = max(1, min(room, free))
            request = self._make_lanes_request(room, without)
        if request is None or not request.total:
            return RESERVE_NOTHING
        batches.note_request(request)
        return request

    # What the reply says

    def note_reply(self, reply: Reply, request: ReserveRequest) -> None:
        """Note of which lanes the backend holds more jobs, and when the next job is due."""
        batches = self._batches
        self._taken += len(reply.deliveries)
        if request.total:
            is_partial = batches is not None and batches.was_filled
            if batches is not None:
                batches.note_reply(reply)
            is_empty = bool(reply.waiting) and not reply.deliveries
            self._empty_replies = self._empty_replies + 1 if is_empty else 0
            self.expects_jobs = bool(reply.waiting) and self._empty_replies < MAX_EMPTY_REPLIES
            if not is_partial:
                self.lanes_not_empty = self.expects_jobs
                if self._lanes.uses_waiting:
                    self._lanes.note_non_empty(reply.waiting)
                self.wakeups.is_idle = not reply.deliveries
            self.due_timer.note_reply(reply, is_partial=is_partial)
        if request.long_poll or not self._slots.can_start:
            self.wakeups.withdraw()
        elif not self.lanes_not_empty:  # else the next exchange looks for jobs in any case
            self.wakeups.resume()
