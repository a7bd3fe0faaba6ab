"""Decide which jobs an exchange leases, and which it parks: `plan_reserve`.

The lanes are merged by the rank of their first jobs. Two kinds of limits differ in one respect:

- A limit whose key is the same for all jobs of a lane closes the lane when it is full: that of a
  job name, of a queue, or of the jobs of a queue in one reply.
- Any other limit parks the job that has no room in it, and the next job of the lane is considered.

A parked job passes its turn at its other keys on: a job of the same lane that is parked for such a
key may have room now. If it does, it returns to its lane. If another of its keys is full, it moves
to that key, and the next job that is parked for the first key is considered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from heapq import heappop, heappush, heapreplace
from typing import TypeVar

import msgspec

from nimburion.backends.planning.admission import REPLY_LIMIT, Admission
from nimburion.backends.planning.fairness import Shares, TurnQueue
from nimburion.backends.planning.lanes import JobReader, LaneQueue, QueueRank, RankedPlace
from nimburion.backends.planning.source import ParkedJob, Place, PlanLane, PlanSource, Tenant
from nimburion.core.exchange import ReserveRequest
from nimburion.core.fairness import PlannedShare, ShareClass
from nimburion.core.limits import MAX_PARKED, JobLimit, LimitKey, LimitUse

P = TypeVar("P", Place, ParkedJob)


class PlannedLease(msgspec.Struct, gc=False):
    """A job to lease."""

    seq: int
    lane: PlanLane
    limits: Sequence[JobLimit]
    """The limits for which it could have been parked. It counts in those of its lane too."""
    charge: int | None
    """What its tenant is charged; None: it did not wait for a turn."""
    was_parked: bool
    """It was parked until now, so it is in no lane."""


class ReservePlan(msgspec.Struct):
    """What an exchange does. Apply all of it or nothing."""

    leases: list[PlannedLease]
    """In rank order."""
    park: dict[int, LimitKey]
    """The jobs that leave their lane and are parked for a key, by seq."""
    move: dict[int, LimitKey]
    """The parked jobs that are parked for another key now, by seq."""
    unpark: list[int]
    """The parked jobs that return to their lane, and are not leased yet."""
    uses: dict[LimitKey, LimitUse]
    """The uses that changed, except those of limits of the reply."""
    shares: dict[ShareClass, dict[Tenant, PlannedShare]]
    """The shares of the tenants that were charged."""
    min_virtual_times: dict[ShareClass, int]
    """The new minimum virtual times of these classes."""


def plan_reserve(
    source: PlanSource,
    lanes: Sequence[PlanLane],
    request: ReserveRequest,
    now: int,
    *,
    uses: Mapping[LimitKey, LimitUse],
    has_turns: bool,
) -> ReservePlan:
    """Return the plan of an exchange that reserves up to `request.total` jobs of these lanes.

    Args:
        source: reads the lanes, limits and tenants.
        lanes: the requested lanes whose queues are not paused. Their order does not matter.
        request: its `max_bytes` is not considered. A plan with a lower total leases the first jobs
            of a plan with a higher one.
        now: the time, in microseconds.
        uses: the uses of the limits of the lanes (`PlanLane.limits`). They are not changed.
        has_turns: whether jobs may wait for the turns of tenants.
    """
    planner = _Planner(source, lanes, request, now, uses)
    planner.open_queues(has_turns=has_turns)
    planner.merge()
    return planner.finish()


def count_fitting(sizes: Sequence[int], max_bytes: int) -> int:
    """Return how many jobs of these sizes, from the first on, fit into one reply: at least 1.

    Call it with the jobs of a plan, and make a new plan with this total if it is lower. No job
    changes the order because of its size.

    >>> count_fitting([500, 700, 100], 1000)
    1
    >>> count_fitting([5000], 1000)
    1
    """
    for count, size in enumerate(sizes):
        max_bytes -= size
        if max_bytes < 0 and count:
            return count
    return len(sizes)


class _Planner:
    """A plan while it is made."""

    def __init__(
        self,
        source: PlanSource,
        lanes: Sequence[PlanLane],
        request: ReserveRequest,
        now: int,
        uses: Mapping[LimitKey, LimitUse],
    ) -> None:
        self._source = source
        self._lanes = lanes
        self._request = request
        self._now = now
        self._admission = Admission(source, now, {key: copy(use) for key, use in uses.items()})
        self._shares = Shares(source)
        self._ranks: dict[str, QueueRank] = {}
        self._queues: list[LaneQueue | TurnQueue] = []
        self._lane_queues: dict[int, int] = {}
        """The index in `_queues`, by the number of the lane."""
        self._turn_queues: dict[str, int] = {}
        """The index in `_queues`, by queue."""
        self._heap: list[tuple[RankedPlace, int]] = []
        """The first job of each of `_queues`, and its index there. An entry counts only if it is
        the listed one.
        """
        self._listed: list[RankedPlace | None] = []
        self._stale: set[int] = set()
        """The queues that may have another first job, because a job returned or a lane closed."""
        self._leases: list[PlannedLease] = []
        self._parked_for: dict[int, LimitKey] = {}
        """The key for which each job was parked before, by seq."""
        self._park: dict[int, LimitKey] = {}
        """The key for which each job is parked now, by seq."""
        self._parked_readers: dict[tuple[LimitKey, int], JobReader[ParkedJob]] = {}
        self._parks_left = MAX_PARKED

    def open_queues(self, *, has_turns: bool) -> None:
        """Read the first jobs of all lanes that are not closed."""
        for lane in self._lanes:
            lane.is_closed = self._admission.find_full(lane.limits) is not None
        lanes = [lane for lane in self._lanes if not lane.is_closed]
        first: dict[int, PlanLane] = {}
        for lane, chunks in self._source.read_lanes(lanes):
            jobs = next(chunks)
            if lane.has_keys:
                first.update((seq, lane) for _, _, seq in jobs)
            self._open_lane_queue(lane, chunks, jobs)
        if first:
            self._admission.read(first)
        if has_turns:
            for queue in dict.fromkeys(lane.lane.queue for lane in lanes):
                self._open_turn_queue(queue)
        for n in range(len(self._queues)):
            self._list_head(n)

    def merge(self) -> None:
        """Lease or park the first job of all lanes, until there is none or enough are leased."""
        heap, queues, admission = self._heap, self._queues, self._admission
        total = self._request.total
        while heap and len(self._leases) < total:
            ranked, n = heap[0]
            if ranked != self._listed[n]:
                heappop(heap)
                continue
            queue = queues[n]
            lane, seq = queue.lane, ranked[3]
            if lane.limits and admission.find_full(lane.limits) is not None:
                self._close(lane)
                self._list_stale()
                continue
            limits = admission.limits.get(seq, ()) if lane.has_keys else ()
            full = admission.find_full(limits) if limits else None
            if full is None:
                self._lease(queue, lane, seq, limits)
                if len(self._leases) == total:
                    break  # before more jobs of the lane are read
            elif self._parks_left:
                queue.pop()
                self._park_job(lane, ParkedJob(*ranked[1:], None), full, limits)
            else:
                self._close(lane)
            head = self._listed[n] = queue.find_head()
            if head is None:
                heappop(heap)
            else:
                heapreplace(heap, (head, n))
            self._list_stale()
            if full is None and lane.limits and self._turn_queues:
                self._close_full_turns()

    def finish(self) -> ReservePlan:
        """Return the plan."""
        leased = {lease.seq for lease in self._leases}
        before = self._parked_for
        return ReservePlan(
            leases=self._leases,
            park={seq: key for seq, key in self._park.items() if seq not in before},
            move={
                seq: key for seq, key in self._park.items() if seq in before and before[seq] != key
            },
            unpark=[seq for seq in before if seq not in self._park and seq not in leased],
            uses={
                key: self._admission.uses[key]
                for key in self._admission.changed
                if key[0] != REPLY_LIMIT
            },
            shares=self._shares.charged,
            min_virtual_times={
                class_: self._shares.min_virtual_times[class_] for class_ in self._shares.charged
            },
        )

    def _open_lane_queue(
        self, lane: PlanLane, chunks: Iterator[list[Place]], jobs: list[Place]
    ) -> int:
        """Add the queue of the jobs without a tenant of a lane; return its index."""
        if lane.has_keys:
            chunks = self._note_chunks(lane, chunks)
        n = self._lane_queues[lane.number] = len(self._queues)
        self._queues.append(LaneQueue(lane, self._get_rank(lane.lane.queue), chunks, jobs))
        self._listed.append(None)
        return n

    def _open_turn_queue(self, queue: str) -> int:
        """Add the turns of the tenants of a queue; return its index."""
        lanes = [lane for lane in self._lanes if lane.lane.queue == queue]
        n = self._turn_queues[queue] = len(self._queues)
        rank = self._get_rank(queue)
        self._queues.append(TurnQueue(self._source, lanes, self._shares, rank, self._note))
        self._listed.append(None)
        return n

    def _get_rank(self, queue: str) -> QueueRank:
        rank = self._ranks.get(queue)
        if rank is None:
            rank = self._ranks[queue] = QueueRank(self._request, queue, self._now)
        return rank

    def _list_head(self, n: int) -> None:
        """Add the first job of a queue to the heap, unless it is there."""
        head = self._queues[n].find_head()
        if head != self._listed[n]:
            self._listed[n] = head
            if head is not None:
                heappush(self._heap, (head, n))

    def _list_stale(self) -> None:
        """List the first jobs of the queues that may have another one."""
        while self._stale:
            self._list_head(self._stale.pop())

    def _lease(
        self, queue: LaneQueue | TurnQueue, lane: PlanLane, seq: int, limits: Sequence[JobLimit]
    ) -> None:
        """Lease the first job of a queue."""
        queue.pop()
        charge = queue.charge() if isinstance(queue, TurnQueue) else None
        self._leases.append(PlannedLease(seq, lane, limits, charge, seq in self._parked_for))
        if limits:
            self._admission.take(limits)
        if lane.limits:
            self._admission.take(lane.limits)

    def _close_full_turns(self) -> None:
        """Close the lanes whose turn is next and that are full.

        Other full lanes are closed when their first job is the best one: a closed lane only leaves.
        The next turn of a queue may have a better rank than the one before it: turns do not go by
        the level of the job.
        """
        for n in self._turn_queues.values():
            while (
                self._listed[n] is not None
                and self._admission.find_full((lane := self._queues[n].lane).limits) is not None
            ):
                self._close(lane)
                self._list_stale()

    def _close(self, lane: PlanLane) -> None:
        lane.is_closed = True
        for n in (self._lane_queues.get(lane.number), self._turn_queues.get(lane.lane.queue)):
            if n is not None:
                self._stale.add(n)

    def _park_job(
        self, lane: PlanLane, job: ParkedJob, full: JobLimit, limits: Sequence[JobLimit]
    ) -> None:
        """Park a job, which left its lane, and pass its turn at its other keys on."""
        self._wait_for(lane, job, full)
        for limit in limits:
            if limit.key != full.key:
                self._pass_turn(lane, limit.key)

    def _pass_turn(self, lane: PlanLane, key: LimitKey) -> None:
        """Return the first job of a lane that is parked for a key and may run.

        The jobs before it, which have no room in another limit, move to that one.
        """
        reader = self._open_parked(lane, key)
        while (job := reader.peek()) is not None:
            limits = self._admission.limits[job.seq]
            own = next((limit for limit in limits if limit.key == key), None)
            if own is not None and not self._admission.has_room(own):
                self._admission.wait_for(own)
                return
            reader.pop()
            self._parked_for[job.seq] = key
            full = self._admission.find_full(limits)
            if full is None or not self._parks_left:
                self._return(lane, job)
                if full is not None:
                    self._close(lane)
                return
            self._wait_for(lane, job, full)

    def _wait_for(self, lane: PlanLane, job: ParkedJob, full: JobLimit) -> None:
        """Park a job for a limit. No later job of the lane that is parked for it overtakes the job.

        The limit has no room for the job until the plan ends, so the job never returns.
        """
        self._park[job.seq] = full.key
        self._open_parked(lane, full.key).add_returned(job)
        self._admission.wait_for(full)
        self._parks_left -= 1

    def _return(self, lane: PlanLane, job: ParkedJob) -> None:
        """Return a parked job to its lane."""
        place = (job.rank, job.due, job.seq)
        if job.tenant is None:
            n = self._lane_queues.get(lane.number)
            if n is None:
                n = self._open_lane_queue(lane, iter(()), [])
            queue = self._queues[n]
            assert isinstance(queue, LaneQueue)
            queue.add_returned(place)
        else:
            n = self._turn_queues.get(lane.lane.queue)
            if n is None:
                n = self._open_turn_queue(lane.lane.queue)
            queue = self._queues[n]
            assert isinstance(queue, TurnQueue)
            queue.add_returned(lane, job.tenant, place)
        self._stale.add(n)

    def _open_parked(self, lane: PlanLane, key: LimitKey) -> JobReader[ParkedJob]:
        reader = self._parked_readers.get((key, lane.number))
        if reader is None:
            chunks = self._note_chunks(lane, self._source.read_parked(key, lane))
            reader = self._parked_readers[key, lane.number] = JobReader(chunks)
        return reader

    def _note_chunks(self, lane: PlanLane, chunks: Iterator[list[P]]) -> Iterator[list[P]]:
        """Yield chunks of jobs after their limits were read."""
        for jobs in chunks:
            self._note(lane, [job[2] for job in jobs])
            yield jobs

    def _note(self, lane: PlanLane, seqs: Collection[int]) -> None:
        """Read the limits of jobs that were read, if they may have any."""
        if lane.has_keys and seqs:
            self._admission.read(dict.fromkeys(seqs, lane))
