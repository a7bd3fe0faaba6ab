"""A worker with batch handlers. A worker without them is a `Worker`, which knows nothing of this.

A job of a batch handler is a member: an attempt that takes no slot. A call of the handler takes one
slot for all its members.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from nimburion.core.backend import Backend
from nimburion.core.exchange import RESERVE_NOTHING, Reply, ReserveRequest
from nimburion.core.lease import SUSPECT_AFTER, Delivery
from nimburion.core.timing.clock import Clock
from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.attempt_runner import AttemptRunner
from nimburion.jobs.worker.attempt.batch_calls import BatchCalls
from nimburion.jobs.worker.exchange.completer import Completer
from nimburion.jobs.worker.exchange.fetcher import ExchangeReason, Fetcher
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from nimburion.jobs.worker.exchange.prefetch import MAX_REQUESTED, Prefetch
from nimburion.jobs.worker.exchange.slots import Slots, take
from nimburion.jobs.worker.worker import Worker


class Member(Attempt):
    """An attempt at one job of a batch."""

    takes_slot = False


class BatchSlots(Slots):
    """The jobs of a worker with batch handlers, and the calls that wait for a slot.

    `max_running` is the number of slots and of members, without the calls, which take a slot each.
    """

    __slots__ = ("calls", "new_members")
    max_running: int

    def __init__(self, concurrency: int, prefetch: Prefetch, calls: BatchCalls) -> None:
        super().__init__(concurrency, prefetch)
        self.calls: BatchCalls = calls
        """The members that run, by batch."""
        self.new_members: deque[Delivery] = deque()
        """The jobs of batch handlers that have not started. They need no slot."""

    def make_member(self, delivery: Delivery, session_id: str) -> Attempt:
        """Return an attempt that takes no slot."""
        member = Member(delivery, session_id)
        self.calls.add(member)
        self.max_running += 1
        return member

    def remove_member(self, attempt: Attempt) -> None:
        """Remove an attempt that has ended from its batch; do nothing for one that takes a slot."""
        if self.calls.remove(attempt):
            self.max_running -= 1

    @property
    def waiting_count(self) -> int:
        """See `Slots.waiting_count`."""
        return super().waiting_count + len(self.new_members)

    @property
    def are_empty(self) -> bool:
        """See `Slots.are_empty`."""
        return super().are_empty and not self.new_members

    @property
    def can_start(self) -> bool:
        """See `Slots.can_start`. A job that joins a batch needs no slot."""
        return self.takes_members or super().can_start

    @property
    def takes_members(self) -> bool:
        """Whether more jobs may join the batches."""
        if self.draining or self.quiet or self.suspects or self.runs_suspect:
            return False
        return self.remaining is None or self.remaining > self.waiting_count

    def find_fillable(self) -> str | None:
        """Return the name of a batch that more jobs may join now; None if there is none."""
        return self.calls.find_fillable() if self.takes_members else None

    def start_exhausted(self) -> None:
        """Start the batches that no job can join now."""
        if self.takes_members:
            self.calls.start_exhausted()
        else:
            self.calls.exhaust()

    def add_all(self, deliveries: Sequence[Delivery]) -> None:
        """See `Slots.add_all`. A suspect does not join a batch: it runs alone."""
        others: list[Delivery] = []
        for delivery in deliveries:
            joins = delivery.lost < SUSPECT_AFTER and delivery.name in self.calls.sizes
            (self.new_members if joins else others).append(delivery)
        super().add_all(others)

    def list_unstarted(self) -> tuple[deque[Delivery], ...]:
        """See `Slots.list_unstarted`."""
        return (*super().list_unstarted(), self.new_members)


class BatchFetcher(Fetcher):
    """Decides for a worker with batch handlers. It also requests jobs that fill a batch."""

    __slots__ = ("_calls", "_had_members", "_is_partial", "_was_skipped")

    _slots: BatchSlots

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        slots: BatchSlots,
        completer: Completer,
        *,
        lanes: LaneSelector,
        waits_for_jobs: bool,
        session_ttl: float,
    ) -> None:
        super().__init__(
            backend,
            clock,
            loop,
            slots,
            completer,
            lanes=lanes,
            waits_for_jobs=waits_for_jobs,
            session_ttl=session_ttl,
        )
        self._calls = slots.calls
        self._is_partial = False
        """Whether the last request was for one name only: it says nothing about the other lanes."""
        self._had_members = False
        """Whether the last reply for all lanes had jobs for a batch: not many more fit."""
        self._was_skipped = False
        """Whether a request left out a name because no slot was free for its call."""

    def _find_work_reason(self) -> ExchangeReason | None:
        reason = super()._find_work_reason()
        if reason is None and self._slots.find_fillable() is not None:
            return ExchangeReason.BATCH_HAS_ROOM
        return reason

    def note_free_slot(self) -> None:
        """Look for jobs of all batch handlers, if the last request left some out."""
        if self._was_skipped and self._slots.count_free_slots() > 0:
            self._was_skipped = False
            self.may_have_work = True

    def note_possible_work(self) -> None:
        """See `Fetcher.note_possible_work`."""
        if self._slots.takes_members:
            self._calls.note_possible_work()
        super().note_possible_work()

    def make_request(self) -> ReserveRequest:
        """See `Fetcher.make_request`."""
        request = super().make_request()
        if request.total:
            self._calls.note_request({lane.name for lane in request.lanes})
        return request

    def _choose_request(self) -> ReserveRequest:
        """Return a request for jobs of all lanes, for the jobs of one batch, or for none."""
        was_partial, self._is_partial = self._is_partial, False
        if self._completer.is_full:
            return RESERVE_NOTHING
        room = min(self._slots.count_free(), MAX_REQUESTED)
        # Batches and all lanes take turns, so that neither waits for the other.
        if room <= 0 or not was_partial:
            request = self._make_batch_request()
            if request is not None:
                self._is_partial = True
                return request
        if room <= 0:
            return RESERVE_NOTHING
        free = self._slots.count_free_slots()
        without = self._calls.find_full(free)
        self._was_skipped = bool(without)
        if self._had_members:
            room = max(1, min(room, free))
        return self._make_lanes_request(room, without)

    def _make_batch_request(self) -> ReserveRequest | None:
        """Return a request for the jobs that a batch has room for; None if no batch can be filled.

        These jobs need no slots.
        """
        slots = self._slots
        while (name := slots.find_fillable()) is not None:
            room = min(self._calls.count_room(name), MAX_REQUESTED)
            if slots.remaining is not None:
                room = min(room, slots.remaining - slots.waiting_count)
            request = self._lanes.make_batch_request(room, name)
            if request.total:
                return request
            self._calls.note_request([name])
            self._calls.end_request()
        self._calls.start_exhausted()
        return None

    def begin_session(self, completer: Completer) -> None:
        """See `Fetcher.begin_session`. The last request of the former session has no reply."""
        self._calls.end_request()
        super().begin_session(completer)

    def note_reply(self, reply: Reply, request: ReserveRequest) -> None:
        """See `Fetcher.note_reply`. Note of which batches the backend holds more jobs.

        A reply without a delivery ends the requests for a batch until the next notification.
        """
        self._calls.end_request()
        super().note_reply(reply, request)
        if request.total:
            if reply.deliveries:
                self._calls.note_reply({lane.name for lane in reply.waiting})
            if not self._is_partial:
                sizes = self._calls.sizes
                self._had_members = any(each.name in sizes for each in reply.deliveries)

    def _note_lanes(self, reply: Reply) -> None:
        if self._is_partial:
            self.due_timer.note_reply(reply, is_partial=True)
        else:
            super()._note_lanes(reply)


class BatchWorker(Worker):
    """A worker of a registry with batch handlers."""

    _slots: BatchSlots
    _takes_call_next = True
    """Whether a call gets the next free slot, if a prefetched job waits too."""
    _fetcher_class = BatchFetcher

    @property
    def _batch_fetcher(self) -> BatchFetcher:
        assert isinstance(self.fetcher, BatchFetcher)
        return self.fetcher

    def _make_slots(self, prefetch: Prefetch) -> Slots:
        calls = BatchCalls(self._registry.batch_sizes, self._start_jobs, self._end_call)
        return BatchSlots(self._settings.concurrency, prefetch, calls)

    async def start(self, attempt_runner: AttemptRunner) -> None:
        """See `Worker.start`."""
        attempt_runner.use_batch_calls(self._slots.calls)
        await super().start(attempt_runner)

    def _receive(self, reply: Reply, request: ReserveRequest) -> None:
        super()._receive(reply, request)
        self._slots.start_exhausted()

    def _start_jobs(self) -> None:
        """Start members, which need no slot; then calls and other jobs while slots are free."""
        if self._is_starting_jobs:
            return
        self._is_starting_jobs = True
        try:
            self._start_members()
            self._start_calls()
        finally:
            self._is_starting_jobs = False
        super()._start_jobs()

    def _start_members(self) -> None:
        slots, completer = self._slots, self.session.completer
        while slots.new_members and not (slots.runs_suspect or completer.is_full):
            if (delivery := take(slots.new_members)) is not None:
                self._start_job(delivery, slots.make_member)

    def _start_calls(self) -> None:
        """Start calls while slots are free. Calls and prefetched jobs take turns."""
        slots, completer = self._slots, self.session.completer
        ready = slots.calls.ready
        while ready and slots.count_free_slots() > 0 and not completer.is_full:
            takes_call, self._takes_call_next = self._takes_call_next, True
            if takes_call or (delivery := take(slots.prefetched)) is None:
                if ready.popleft()():
                    slots.max_running -= 1
                    self._takes_call_next = False
            else:
                self._start_job(delivery)

    def _end_call(self) -> None:
        """Free the slot of a call."""
        self._slots.max_running += 1
        self._start_jobs()
        self._batch_fetcher.note_free_slot()
        self.fetcher.note_result()

    def _free_slot(self, attempt: Attempt) -> None:
        self._slots.remove_member(attempt)
        super()._free_slot(attempt)
        self._batch_fetcher.note_free_slot()
        self._start_jobs()

    def _release_all(self) -> None:
        """Release also the members that wait for their call."""
        super()._release_all()
        for attempt in list(self._slots.calls.uncalled):
            attempt.interrupt(Interruption.STOP)
