"""Decides when the jobs of batch handlers start, and requests the jobs that fill a batch.

A job of a batch handler waits, without a slot, until its batch is ready and a slot is free. Its
batch is ready when it is full, or `batch_wait` seconds after its first job; without `batch_wait`,
when the backend holds no more of these jobs for this worker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.lease import Delivery
from nimburion.jobs.declaration.registry import Handler
from nimburion.jobs.worker.exchange.lane_selector import LaneSelector
from nimburion.jobs.worker.exchange.slots import MAX_REQUESTED, Slots, take


class _Batch:
    """The jobs of one name that wait for the start of their batch."""

    __slots__ = ("has_waited", "jobs", "may_fill", "name", "size", "timer", "wait")

    def __init__(self, handler: Handler, jobs: deque[Delivery]) -> None:
        self.name = handler.name
        self.size = handler.policy.batch or 1
        self.wait = handler.policy.batch_wait
        self.jobs = jobs
        self.may_fill = False
        """Whether the backend may hold more of these jobs."""
        self.timer: asyncio.TimerHandle | None = None
        self.has_waited = False
        """Whether `wait` seconds have passed since the first job."""

    def count_room(self) -> int:
        """Return how many more jobs complete the last batch; 0: it is whole."""
        return -len(self.jobs) % self.size


class Batches:
    """The batches of one worker, by job name.

    Args:
        handlers: the batch handlers.
        slots: the jobs that the worker holds.
    """

    __slots__ = (
        "_batches",
        "_loop",
        "_requested",
        "_slots",
        "are_next",
        "had_jobs",
        "on_ready",
        "was_filled",
    )

    def __init__(self, handlers: Iterable[Handler], slots: Slots) -> None:
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self.on_ready: Callable[[], None] = lambda: None
        """Called when a batch has waited long enough."""
        self._batches = {
            handler.name: _Batch(handler, slots.batched.setdefault(handler.name, deque()))
            for handler in handlers
        }
        """The one to request and to start next comes first."""
        self._requested: set[str] = set()
        """The names in the request under way."""
        self.are_next: bool = True
        """Whether a batch gets the next free slot, if a prefetched job waits too."""
        self.was_filled: bool = False
        """Whether the last request was for one batch: it says nothing about the other lanes."""
        self.had_jobs: bool = False
        """Whether the last reply for all lanes had jobs of batches: not many more fit."""

    # Start

    @property
    def are_ready(self) -> bool:
        """Whether a batch may start as soon as a slot is free. Until then, jobs may join it."""
        return any(map(self._is_ready, self._batches.values()))

    def take_ready(self) -> list[Delivery]:
        """Remove and return the jobs of a batch that is ready."""
        batch = next(filter(self._is_ready, self._batches.values()), None)
        if batch is None:
            return []
        self._move_to_end(batch)
        taken = (take(batch.jobs) for _ in range(min(batch.size, len(batch.jobs))))
        jobs = [job for job in taken if job is not None]
        batch.has_waited = False
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        self._start_timer(batch)
        return jobs

    def _is_ready(self, batch: _Batch) -> bool:
        if not batch.jobs:
            return False
        if len(batch.jobs) >= batch.size or batch.has_waited:
            return True
        may_grow = batch.may_fill or batch.name in self._requested
        return not batch.wait and not (may_grow and self._slots.takes_batched)

    def _start_timer(self, batch: _Batch) -> None:
        if batch.wait and batch.jobs and batch.timer is None and not batch.has_waited:
            batch.timer = self._loop.call_later(batch.wait, self._end_wait, batch)

    def _end_wait(self, batch: _Batch) -> None:
        batch.timer = None
        if batch.jobs:
            batch.has_waited = True
            self.on_ready()

    # Request

    def find_fillable(self) -> str | None:
        """Return the name of a batch that more jobs may join now; None if there is none."""
        if not self._slots.takes_batched:
            return None
        return next(
            (name for name, each in self._batches.items() if each.may_fill and each.count_room()),
            None,
        )

    def find_full(self, free_slots: int) -> set[str]:
        """Return the names that hold enough jobs for batches in all free slots."""
        slots = max(0, free_slots)
        return {
            name for name, batch in self._batches.items() if len(batch.jobs) >= slots * batch.size
        }

    def make_request(self, lanes: LaneSelector) -> ReserveRequest | None:
        """Return a request for the jobs that a batch has room for; None if no batch can be filled.

        These jobs need no slots.
        """
        slots = self._slots
        while (name := self.find_fillable()) is not None:
            room = min(self._batches[name].count_room(), MAX_REQUESTED)
            if slots.remaining is not None:
                room = min(room, slots.remaining - slots.waiting_count)
            request = lanes.make_batch_request(room, name)
            self._batches[name].may_fill = False
            if request.total:
                return request
        return None

    def note_possible_work(self) -> None:
        """Note that there may be new jobs of each name."""
        if self._slots.takes_batched:
            for batch in self._batches.values():
                batch.may_fill = True

    def note_request(self, request: ReserveRequest) -> None:
        """Note that these jobs are requested now. Call `end_request` with the reply."""
        for name in {lane.name for lane in request.lanes}.intersection(self._batches):
            self._requested.add(name)
            self._batches[name].may_fill = False
            self._move_to_end(self._batches[name])

    def end_request(self) -> None:
        """Note that the request has its reply, or has failed."""
        self._requested.clear()

    def note_reply(self, reply: Reply) -> None:
        """Note of which batches the backend holds more jobs, and which have their first job.

        A reply without a delivery ends the requests for a batch until the next notification.
        """
        self._requested.clear()
        if reply.deliveries:
            for name in {lane.name for lane in reply.waiting}.intersection(self._batches):
                self._batches[name].may_fill = True
        if not self.was_filled:
            self.had_jobs = any(each.name in self._batches for each in reply.deliveries)
        for batch in self._batches.values():
            self._start_timer(batch)

    def _move_to_end(self, batch: _Batch) -> None:
        self._batches[batch.name] = self._batches.pop(batch.name)
