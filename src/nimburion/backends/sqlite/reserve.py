"""Reserve jobs: choose the first jobs of the lanes in the order of the contract, and lease them.

`nimburion.backends.planning` decides if limits, tenants or several priorities concern the lanes.
Otherwise sorting the first jobs of all lanes is enough, and takes a quarter of the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.limits import LaneLimits, Rules, list_lane_limits, write_uses
from nimburion.backends.sqlite.parked_jobs import (
    count_lease_keys,
    delete_parked,
    park,
    return_parked,
)
from nimburion.backends.sqlite.tenants import save_charges
from nimburion.core.exchange import (
    DEFAULT_QUEUE_OPTIONS,
    DELIVERY_OVERHEAD,
    MAX_WAITING_LANES,
    Lane,
    ReserveRequest,
)
from nimburion.core.limits import get_limited_job, get_limited_queue
from nimburion.core.timing.clock import to_micros

if TYPE_CHECKING:
    from nimburion.backends.planning.reserve import ReservePlan

LaneJob = tuple[int, int, int]
"""Minus the priority of the job (`rank`), due time in microseconds, seq."""
RankedJob = tuple[int, int, int, int]
"""Sort key: minus the level of the queue, then rank, due time and seq. Lowest first."""

_encode = msgspec.json.Encoder().encode
_decode_heads = msgspec.json.Decoder(list[tuple[int, list[LaneJob]]]).decode
_decode_places = msgspec.json.Decoder(list[LaneJob]).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode
_decode_sizes = msgspec.json.Decoder(list[int]).decode


MANY_LANES = 8
"""With fewer lanes, reading all of them costs as little as finding those that hold jobs."""
MAX_HOLDING = 64
"""The most lanes that are found one by one."""
READ_AHEAD = 2
"""Jobs that the first read of each lane adds to its even share of the request."""

Lanes = dict[int, Lane]
"""Lanes by number."""


def exclude_full(limits: LaneLimits, lanes: Lanes, now: int) -> Lanes:
    """Return the lanes from which another job may start."""
    full = {
        name: [stored for stored in own if stored.count_room(now) == 0]
        for name, own in limits.items()
    }
    if not any(full.values()):
        return lanes
    return {number: lane for number, lane in lanes.items() if not list_lane_limits(full, lane)}


def exclude_empty(db: Database, lanes: Lanes) -> Lanes:
    """Return the lanes of many that hold jobs without a tenant.

    If more than `MAX_HOLDING` lanes hold jobs, requested or not, this returns all of these lanes:
    they are read together then.
    """
    holding = _decode_seqs(db.fetch_value("find_holding_lanes", MAX_HOLDING + 1))
    if len(holding) > MAX_HOLDING:
        return lanes
    return {number: lanes[number] for number in holding if number in lanes}


def notify_opened(db: Database, before: LaneLimits, after: LaneLimits) -> None:
    """Notify the queues in which jobs wait for a maximum that was reached before and has room now,
    for as many jobs as it has room.
    """
    were_in_use = {limit.key: use.in_use for own in before.values() for limit, use in own}
    rooms = {
        key[0]: concurrency - use.in_use
        for own in after.values()
        for (key, concurrency, _), use in own
        if concurrency is not None and use.in_use < concurrency <= were_in_use[key]
    }
    for limit, room in rooms.items():
        waiting = db.run("list_waiting_lanes", get_limited_job(limit), get_limited_queue(limit))
        lanes = {number: Lane(queue, name) for number, queue, name in waiting}
        for queue in {lane.queue for lane in exclude_full(after, lanes, db.now).values()}:
            db.notify_jobs({queue: room})


def find_next_opening(db: Database, limits: LaneLimits, lanes: Lanes) -> int | None:
    """Return when the first rate that delays a job of these lanes allows one, or None."""
    delayed: dict[int, int] = {}
    for number, lane in lanes.items():
        for stored in list_lane_limits(limits, lane):
            opening = stored.find_opening(db.now)
            if opening is not None:
                delayed[number] = min(opening, delayed.get(number, opening))
    if not delayed:
        return None
    holding = _decode_seqs(
        db.fetch_value("find_waiting_lanes", _encode(list(delayed)).decode(), len(delayed))
    )
    return min((delayed[number] for number in holding), default=None)


def find_waiting_lanes(db: Database, lanes: Lanes) -> list[Lane]:
    """Return up to 64 of these lanes that hold waiting jobs."""
    if not lanes:
        return []
    found = _decode_seqs(
        db.fetch_value("find_waiting_lanes", _encode(list(lanes)).decode(), MAX_WAITING_LANES)
    )
    return [lanes[number] for number in found]


class LeaseBatch:
    """The jobs that an exchange leases. Nothing is written before `save`."""

    def __init__(  # noqa: PLR0917 - the parts of one exchange
        self,
        db: Database,
        request: ReserveRequest,
        lanes: Lanes,
        limits: LaneLimits,
        rules: Rules,
        has_turns: bool,  # noqa: FBT001 - as above
    ) -> None:
        self._db = db
        self._request = request
        self._lanes = lanes
        self._limits = limits
        self._rules = rules
        self._has_turns = has_turns
        self._plan: ReservePlan | None = None
        self.seqs: list[int] = []
        """In rank order."""

    def choose(self) -> None:
        """Choose up to `total` jobs."""
        plain = self._choose_plain_jobs()
        if plain is None:
            self._make_plan(self._request.total)
        else:
            self.seqs = plain

    def keep(self, count: int) -> None:
        """Keep the first jobs only, because the others do not fit into the reply."""
        if self._plan is None:
            del self.seqs[count:]
        elif count < len(self.seqs):
            self._make_plan(count)

    def save(self, session: int, number: int) -> None:
        """Lease the jobs to the session and its exchange of this number."""
        db, plan = self._db, self._plan
        if plan is not None:
            self._save_plan(plan)
        if not self.seqs:
            return
        if self._limits and plan is None:
            self._take_room()
        listed = _encode(self.seqs).decode()
        values = (session, number, self._request.nonce, db.now)
        if plan is None or not plan.shares:
            db.run("insert_leases", *values, listed)
        else:
            charges = {lease.seq: lease.charge for lease in plan.leases}
            db.run("insert_charged_leases", *values, _encode(charges).decode())
        db.run("delete_taken_from_ready", listed)
        if plan is not None:
            return_parked(db, plan.unpark)

    def _choose_plain_jobs(self) -> list[int] | None:
        """Return the first jobs of the lanes by rank; None if the planner must choose: jobs may be
        parked, tenants take turns, several lanes have limits, or priorities differ.
        """
        db, lanes, total = self._db, self._lanes, self._request.total
        names = {lane.name for lane in lanes.values()} if self._rules or self._limits else set()
        if self._has_turns or not names.isdisjoint(self._rules):
            return None
        if len(lanes) == 1:
            ((number, lane),) = lanes.items()
            most = min(total, self._count_room(lane))
            return _decode_seqs(db.fetch_value("read_lane", number, most)) if most > 0 else []
        has_queue_limit = any(each.limit is not None for each in self._request.queues.values())
        if has_queue_limit or not names.isdisjoint(self._limits):
            return None
        return merge_by_sorting(open_lane_readers(db, self._request, lanes), total)

    def _count_room(self, lane: Lane) -> int:
        """Return how many jobs of a lane may start; at most the total."""
        room = self._request.queues.get(lane.queue, DEFAULT_QUEUE_OPTIONS).limit
        room = self._request.total if room is None else room
        if not self._limits:
            return room
        for stored in list_lane_limits(self._limits, lane):
            left = stored.count_room(self._db.now)
            room = room if left is None else min(room, left)
        return room

    def _make_plan(self, total: int) -> None:
        from nimburion.backends.planning.reserve import plan_reserve  # most workers never plan
        from nimburion.backends.sqlite.source import SQLiteSource

        request = self._request
        if total != request.total:
            request = msgspec.structs.replace(request, total=total)
        source = SQLiteSource(self._db, request, self._limits, self._rules)
        lanes, uses = source.make_lanes(self._lanes)
        self._plan = plan_reserve(
            source, lanes, request, self._db.now, uses=uses, has_turns=self._has_turns
        )
        self.seqs = [lease.seq for lease in self._plan.leases]

    def _save_plan(self, plan: ReservePlan) -> None:
        """Write what a plan changes, except leases and the jobs that return to their lanes."""
        db = self._db
        park(db, plan)
        delete_parked(db, [lease.seq for lease in plan.leases if lease.was_parked])
        if plan.shares:
            save_charges(db, plan)
        count_lease_keys(db, plan.leases)
        write_uses(db, plan.uses)

    def _take_room(self) -> None:
        """Count jobs of one lane that were leased without a plan in the limits of the lane."""
        for lane in self._lanes.values():
            for (key, _, rate), use in list_lane_limits(self._limits, lane):
                use.in_use += len(self.seqs)
                if rate is not None:
                    units = len(self.seqs) * rate.cost
                    use.spent_until = rate.spend(use.spent_until, self._db.now, units)
                write_uses(self._db, {key: use})


def count_fitting_jobs(db: Database, seqs: list[int], max_bytes: int) -> int:
    """Return how many of these jobs fit into one reply, without reading their payloads."""
    from nimburion.backends.planning.reserve import count_fitting  # most workers never need it

    sizes = _decode_sizes(db.fetch_value("get_sizes", _encode(seqs).decode()))
    return count_fitting([size + DELIVERY_OVERHEAD for size in sizes], max_bytes)


def find_unpaused_lanes(db: Database, request: ReserveRequest, paused: frozenset[str]) -> Lanes:
    """Return the requested lanes that exist and are not paused, by number."""
    lanes = db.find_lanes(request.lanes) if request.lanes else {}
    if not paused:
        return lanes
    return {number: lane for number, lane in lanes.items() if lane.queue not in paused}


class LaneReader:
    """Reads one lane from its front, as far as the merge needs."""

    __slots__ = ("_ageing", "_chunk", "_db", "_jobs", "_number", "_priority", "_rank", "lane")

    def __init__(  # noqa: PLR0917 - called 100 times an exchange: keywords are slow
        self,
        db: Database,
        number: int,
        lane: Lane,
        request: ReserveRequest,
        jobs: list[LaneJob],
        chunk: int,
    ) -> None:
        self._db = db
        self._number = number
        self.lane: Lane = lane
        self._priority = request.queues.get(lane.queue, DEFAULT_QUEUE_OPTIONS).priority
        self._ageing = to_micros(request.ageing)
        self._jobs = jobs
        self._rank = jobs[0][0]
        self._chunk = chunk

    @property
    def has_one_priority(self) -> bool:
        """Whether all jobs read last have one priority; then they are in the order of the merge."""
        return self._jobs[-1][0] == self._rank

    @property
    def is_exhausted(self) -> bool:
        """Whether the whole lane was read."""
        return len(self._jobs) < self._chunk

    def rank_jobs(self) -> list[RankedJob]:
        """Return the jobs read last, with the rank that the merge uses."""
        now, ageing, priority = self._db.now, self._ageing, self._priority
        return [
            (-priority - ((now - due) // ageing if ageing and now > due else 0), rank, due, seq)
            for rank, due, seq in self._jobs
        ]

    def read_more(self) -> bool:
        """Read the next jobs, twice as many as before; return False at the end of the lane."""
        if self.is_exhausted:
            return False
        self._chunk *= 2
        last = self._jobs[-1]
        self._jobs = _decode_places(
            self._db.fetch_value("read_lane_further", self._number, *last, self._chunk)
        )
        return bool(self._jobs)


def open_lane_readers(db: Database, request: ReserveRequest, lanes: Lanes) -> list[LaneReader]:
    """Read the first jobs of all lanes in one statement; return readers of nonempty lanes."""
    chunk = min(request.total, request.total // len(lanes) + READ_AHEAD)
    heads = _decode_heads(db.fetch_value("read_lane_heads", _encode(list(lanes)).decode(), chunk))
    return [LaneReader(db, n, lanes[n], request, jobs, chunk) for n, jobs in heads if jobs]


def merge_by_sorting(lanes: list[LaneReader], limit: int) -> list[int] | None:
    """Return the first `limit` jobs of the merge by sorting, which is a quarter of the work.

    Sorting is exact only while each lane is in the order of the merge (one job priority). Returns
    None if a lane is not.
    """
    ranked: list[RankedJob] = []
    unread = lanes
    while unread:
        if not all(reader.has_one_priority for reader in unread):
            return None
        ends = []
        for reader in unread:
            part = reader.rank_jobs()
            ranked += part
            if not reader.is_exhausted:
                ends.append((part[-1], reader))
        ranked.sort()
        if len(ranked) > limit:
            last = ranked[limit - 1]
            ends = [(end, reader) for end, reader in ends if end < last]
        unread = [reader for _, reader in ends if reader.read_more()]
    return [seq for _, _, _, seq in ranked[:limit]]
