"""Reserve jobs: lease the first jobs of the lanes, as `nimburion.backends.planning` decides."""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace

import msgspec

from nimburion.backends.memory.source import MemorySource
from nimburion.backends.memory.state import (
    JobEntry,
    LaneLimit,
    LeaseEntry,
    MemoryState,
    SessionEntry,
)
from nimburion.backends.planning.admission import REPLY_LIMIT, make_reply_limit
from nimburion.backends.planning.reserve import ReservePlan, count_fitting, plan_reserve
from nimburion.backends.planning.source import PlanLane
from nimburion.backends.server.encoding import encode_json
from nimburion.core.exchange import (
    DEFAULT_QUEUE_OPTIONS,
    DELIVERY_OVERHEAD,
    MAX_WAITING_LANES,
    Lane,
    ReserveRequest,
)
from nimburion.core.job import NO_JOB_OPTIONS
from nimburion.core.lease import Delivery, Token
from nimburion.core.limits import JobLimit, LimitKey, LimitUse
from nimburion.core.timing.clock import MICRO, to_micros

RankedHead = tuple[int, int, int, int, int, int]
"""Sort key of the first job of a lane; the lowest is leased first.

Minus the level of its queue, minus its priority, due time, seq; then the index of its lane and its
size in bytes."""


class Reservation:
    """What one reserve request gets, at one time."""

    def __init__(self, state: MemoryState, request: ReserveRequest, now: int) -> None:
        self._state = state
        self._request = request
        self._now = now
        changing = state.list_changing()
        requested = dict.fromkeys((lane.queue, lane.name) for lane in request.lanes)
        self._lanes = [lane for lane in requested if lane not in changing]
        self._ageing = to_micros(request.ageing)

    def is_plain(self) -> bool:
        """Return whether the jobs may be leased in the order of their rank.

        Nothing restricts the lanes, or there is one lane and no job of it is parked.
        """
        state = self._state
        if state.turns or any(
            queue in state.pauses or name in state.names_with_keys for queue, name in self._lanes
        ):
            return False
        return len(self._lanes) == 1 or not (
            any(options.limit is not None for options in self._request.queues.values())
            or any(name in state.limits for _, name in self._lanes)
        )

    def lease_jobs(self, session: SessionEntry, number: int) -> list[Delivery]:
        """Lease up to `total` jobs in rank order, as long as they fit into `max_bytes`.

        The first job is leased whatever its size.
        """
        if self.is_plain():
            return self._lease_plain_jobs(session, number)
        return self._lease_planned_jobs(session, number)

    def _lease_plain_jobs(self, session: SessionEntry, number: int) -> list[Delivery]:
        """Do what a plan does if nothing restricts the lanes, in a third of the calls.

        A test compares the two on random exchanges.
        """
        state, lanes, total = self._state, self._lanes, self._request.total
        limits: list[LaneLimit] = []
        if len(lanes) == 1:
            ((queue, name),) = lanes
            limits = state.list_lane_limits(queue, name)
            total = self._count_room(queue, limits)
        counted = tuple(limit.key for limit, _ in limits)
        chosen: list[Delivery] = []
        bytes_left = self._request.max_bytes
        firsts = [state.peek_lane(lane) for lane in lanes]
        heads = [self._rank(entry, n) for n, entry in enumerate(firsts) if entry is not None]
        heapify(heads)
        while heads and len(chosen) < total:
            n, size = heads[0][4:]
            bytes_left -= size
            if bytes_left < 0 and chosen:
                break
            entry = state.pop_lane(lanes[n])
            lease = self._lease(entry, session, number)
            lease.counted_keys = counted
            chosen.append(make_delivery(entry, lease.token, state))
            following = state.peek_lane(lanes[n])
            if following is None:
                heappop(heads)
            else:
                heapreplace(heads, self._rank(following, n))
        if chosen:
            for (_, _, rate), use in limits:
                use.in_use += len(chosen)
                if rate is not None:
                    units = len(chosen) * rate.cost
                    use.spent_until = rate.spend(use.spent_until, self._now, units)
        return chosen

    def _count_room(self, queue: str, limits: list[LaneLimit]) -> int:
        """Return how many jobs of a lane may start; at most the total."""
        room = self._request.total
        most = self._request.queues.get(queue, DEFAULT_QUEUE_OPTIONS).limit
        if most is not None:
            room = min(room, most)
        for limit in limits:
            room = limit.count_room(self._now, room)
        return room

    def _lease_planned_jobs(self, session: SessionEntry, number: int) -> list[Delivery]:
        plan = self._plan(self._request.total)
        sizes = [measure_size(self._state.jobs_by_seq[lease.seq]) for lease in plan.leases]
        fitting = count_fitting(sizes, self._request.max_bytes)
        if fitting < len(sizes):
            plan = self._plan(fitting)
        return self._apply(plan, session, number)

    def _plan(self, total: int) -> ReservePlan:
        request = self._request
        if total != request.total:
            request = msgspec.structs.replace(request, total=total)
        state = self._state
        uses: dict[LimitKey, LimitUse] = {}
        lanes = [
            PlanLane(
                n,
                Lane(*lane),
                limits=self._list_limits(*lane, uses),
                has_keys=lane[1] in state.names_with_keys,
            )
            for n, lane in enumerate(self._lanes)
            if state.find_pause(lane[0], self._now) is None
        ]
        source, has_turns = MemorySource(state), bool(state.turns)
        return plan_reserve(source, lanes, request, self._now, uses=uses, has_turns=has_turns)

    def _list_limits(self, queue: str, name: str, uses: dict[LimitKey, LimitUse]) -> list[JobLimit]:
        """Return the limits in which all jobs of a lane count; add their uses to `uses`."""
        limits = []
        most = self._request.queues.get(queue, DEFAULT_QUEUE_OPTIONS).limit
        if most is not None:
            limits.append(make_reply_limit(queue, most))
            uses[limits[-1].key] = LimitUse()
        for limit, use in self._state.list_lane_limits(queue, name):
            limits.append(limit)
            uses[limit.key] = LimitUse(use.in_use, use.spent_until)
        return limits

    def _apply(self, plan: ReservePlan, session: SessionEntry, number: int) -> list[Delivery]:
        """Change the state as the plan says; return the leased jobs."""
        state = self._state
        state.save_uses(plan.uses)
        for (queue, rank), shares in plan.shares.items():
            state.turns.save_shares(queue, -rank, plan.min_virtual_times[queue, rank], shares)
        chosen = []
        for planned in plan.leases:
            entry = state.jobs_by_seq[planned.seq]
            entry.position = None
            entry.parked_for = None
            lease = self._lease(entry, session, number)
            if planned.charge is not None:
                lease.charge = planned.charge
                state.turns.count_lease(entry)
            lease.counted_keys = tuple(
                limit.key
                for limit in (*planned.lane.limits, *planned.limits)
                if limit.key[0] != REPLY_LIMIT
            )
            chosen.append(make_delivery(entry, lease.token, state))
        for seq, key in (plan.park | plan.move).items():
            state.park(state.jobs_by_seq[seq], key)
        for seq in plan.unpark:
            state.unpark_job(state.jobs_by_seq[seq])
        for seq in plan.park:
            entry = state.jobs_by_seq[seq]
            if entry.options.fair_tenant is not None:
                state.turns.rank_again(entry)
        return chosen

    def find_waiting_lanes(self) -> list[Lane]:
        """Return up to 64 requested lanes that still hold jobs and are not paused or at a limit."""
        found: list[Lane] = []
        for lane in self._request.lanes:
            if len(found) == MAX_WAITING_LANES:
                break
            if (
                lane not in found
                and self._is_open(lane.queue, lane.name)
                and self._state.has_waiting((lane.queue, lane.name))
            ):
                found.append(lane)
        return found

    def find_next_opening(self) -> int | None:
        """Return when the first rate limit that delays a job of these lanes allows one, or None."""
        openings = [
            rate.find_opening(use.spent_until)
            for queue, name in self._lanes
            if name in self._state.limits and self._state.find_pause(queue, self._now) is None
            for (_, _, rate), use in self._state.list_lane_limits(queue, name)
            if rate is not None
            and rate.count_room(use.spent_until, self._now) == 0
            and self._state.has_waiting((queue, name))
        ]
        return min(openings, default=None)

    def _rank(self, entry: JobEntry, n: int) -> RankedHead:
        """Return the rank of a job that is the first of lane `n`.

        Ageing depends on the due time of this job only, not on the jobs behind it.
        """
        level = self._request.queues.get(entry.queue, DEFAULT_QUEUE_OPTIONS).priority
        if self._ageing and self._now > entry.due:
            level += (self._now - entry.due) // self._ageing
        size = DELIVERY_OVERHEAD + len(entry.payload or b"")
        if entry.options is not NO_JOB_OPTIONS:
            size = measure_size(entry)
        return (-level, -entry.priority, entry.due, entry.seq, n, size)

    def _is_open(self, queue: str, name: str) -> bool:
        """Return whether a lane is not paused, and its limits allow another job."""
        state = self._state
        if state.find_pause(queue, self._now) is not None:
            return False
        return name not in state.limits or all(
            limit.count_room(self._now, 1) for limit in state.list_lane_limits(queue, name)
        )

    def _lease(self, entry: JobEntry, session: SessionEntry, number: int) -> LeaseEntry:
        """Lease a job that was removed from its lane."""
        entry.fence += 1
        token = Token(entry.fence, self._request.nonce)
        entry.leased = lease = LeaseEntry(session, number, token, self._now)
        session.leased_jobs[entry.seq] = entry
        return lease


def measure_size(entry: JobEntry) -> int:
    """Return the size of a job in bytes, as `ReserveRequest.max_bytes` counts it."""
    size = DELIVERY_OVERHEAD + len(entry.payload or b"")
    return size if entry.options is NO_JOB_OPTIONS else size + len(encode_json(entry.options))


def make_delivery(entry: JobEntry, token: Token, state: MemoryState) -> Delivery:
    """Return the job as a `Delivery` for the worker."""
    return Delivery(
        entry.make_lease(token),
        entry.name,
        entry.queue,
        entry.payload or b"",
        entry.priority,
        entry.failures,
        entry.lost,
        entry.due / MICRO,
        entry.created_at / MICRO,
        entry.options,
        None if entry.fence == 1 else state.run_tables.find_small_page(entry.id),
    )
