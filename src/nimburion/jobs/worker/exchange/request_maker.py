"""Decides which jobs the next exchange requests, and notes what its reply says about the others."""

from __future__ import annotations

from nimburion.core.exchange import RESERVE_NOTHING, Reply, ReserveRequest
from nimburion.jobs.worker.attempt.batch_calls import BatchCalls
from nimburion.jobs.worker.exchange.exchange_trigger import ExchangeTrigger
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from nimburion.jobs.worker.exchange.prefetch import MAX_REQUESTED
from nimburion.jobs.worker.exchange.slots import Slots
from nimburion.jobs.worker.exchange.wakeups import LongPoll, WakeupListener

MAX_EMPTY_REPLIES = 100
"""The most exchanges in a row that look for a job because the last reply named lanes, but no job.

An exchange that parks as many jobs as it may has such a reply, and so has one that meets a job
which the open transaction of a caller holds. The first ends soon; the second may last.
"""


class RequestMaker:
    """Makes the requests of one worker: for jobs of all lanes, or for the jobs of one batch.

    Args:
        may_wait: whether a request may wait inside the backend for a job (long poll).
    """

    __slots__ = (
        "_empty_replies",
        "_had_members",
        "_lanes",
        "_long_poll",
        "_may_wait",
        "_slots",
        "_trigger",
        "_wakeups",
        "expects_jobs",
        "fills_batch",
    )

    def __init__(
        self,
        slots: Slots,
        lanes: LaneSelector,
        trigger: ExchangeTrigger,
        wakeups: WakeupListener,
        long_poll: LongPoll,
        *,
        may_wait: bool,
    ) -> None:
        self._slots = slots
        self._lanes = lanes
        self._trigger = trigger
        self._wakeups = wakeups
        self._long_poll = long_poll
        self._may_wait = may_wait
        self.fills_batch: bool = False
        """Whether the last request was for jobs of one batch only."""
        self.expects_jobs: bool = False
        """Whether the next exchange may find a job in the lanes that the last reply named."""
        self._empty_replies = 0
        """The number of replies in a row that named lanes, but had no job."""
        self._had_members = False
        """Whether the last reply for all lanes had jobs for a batch: not many more fit."""

    def make_request(self, *, results_full: bool) -> ReserveRequest:
        """Return the next request. It asks for no job while too many bytes of results wait."""
        slots = self._slots
        room = min(slots.count_free(), MAX_REQUESTED)
        filled_batch, self.fills_batch = self.fills_batch, False
        if results_full:
            return RESERVE_NOTHING
        # Batches and all lanes take turns, so that neither waits for the other.
        if slots.batches is not None and (room <= 0 or not filled_batch):
            request = self._make_batch_request(slots.batches)
            if request is not None:
                self.fills_batch = True
                return request
        if room <= 0:
            return RESERVE_NOTHING
        return self._make_lanes_request(room)

    def _make_batch_request(self, batches: BatchCalls) -> ReserveRequest | None:
        """Return a request for the jobs that a batch has room for; None if no batch can be filled.

        These jobs need no slots.
        """
        slots = self._slots
        while (name := slots.find_fillable()) is not None:
            room = min(batches.count_room(name), MAX_REQUESTED)
            if slots.remaining is not None:
                room = min(room, slots.remaining - slots.waiting_count)
            request = self._lanes.make_batch_request(room, name)
            if request.total:
                return request
            batches.note_request([name])
            batches.end_request()
        batches.start_exhausted()
        return None

    def _make_lanes_request(self, room: int) -> ReserveRequest:
        """Return a request for `room` jobs: from all lanes if any may hold new jobs."""
        slots = self._slots
        everything = self._trigger.may_have_work or not self._trigger.lanes_not_empty
        waits = slots.are_empty and self._may_wait
        timeout = self._long_poll.choose_timeout(self._wakeups.due_in) if waits else 0.0
        without: set[str] = set()
        if slots.batches is not None:
            without = slots.batches.find_full(slots.count_free_slots())
            slots.batches.was_skipped = bool(without)
            if self._had_members:
                room = max(1, min(room, slots.count_free_slots()))
        return self._lanes.make_request(
            room, everything=everything, long_poll=timeout, without=without
        )

    def begin(self, request: ReserveRequest) -> None:
        """Note that the exchange with this request begins."""
        self._trigger.start_exchange(request, fills_batch=self.fills_batch)
        if self._slots.batches is not None and request.total:
            self._slots.batches.note_request({lane.name for lane in request.lanes})
        if request.total and not request.long_poll:
            self._wakeups.resume()

    def end(self) -> None:
        """Note that the exchange has its reply, or has failed."""
        if self._slots.batches is not None:
            self._slots.batches.end_request()

    def note_reply(self, reply: Reply, request: ReserveRequest) -> None:
        """Note of which lanes and batches the backend holds more jobs."""
        if request.total:
            is_empty = bool(reply.waiting) and not reply.deliveries
            self._empty_replies = self._empty_replies + 1 if is_empty else 0
            self.expects_jobs = bool(reply.waiting) and self._empty_replies < MAX_EMPTY_REPLIES
        if self._slots.batches is not None and request.total:
            self._note_batches(self._slots.batches, reply)
        if not self.fills_batch:
            if request.total:
                self._trigger.lanes_not_empty = self.expects_jobs
                self._lanes.note_non_empty(reply.waiting)
            self._wakeups.note_reply(reply, found=bool(reply.deliveries))

    def _note_batches(self, batches: BatchCalls, reply: Reply) -> None:
        """Note for which batches the backend holds more jobs.

        A reply without a delivery ends the requests for a batch until the next notification.
        """
        if reply.deliveries:
            batches.note_reply({lane.name for lane in reply.waiting})
        if not self.fills_batch:
            self._had_members = any(each.name in batches.sizes for each in reply.deliveries)
