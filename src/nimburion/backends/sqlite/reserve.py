"""Reserve jobs: merge the heads of the lanes in the order of the contract, then lease each job.

No index can hold this order: the rank of a head changes with its age, and no job of a lane can
overtake the head. So this module reads a few jobs at a time from the front of each lane and merges
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import Database, to_micros
from nimburion.backends.sqlite.keyed_limits import KeyAdmission
from nimburion.backends.sqlite.rate_limits import Rates, read_rates, take_units
from nimburion.backends.sqlite.tenants import QueueTurns, TenantShares, open_turns
from nimburion.core.exchange import DEFAULT_QUEUE_OPTIONS, DELIVERY_OVERHEAD, Lane, ReserveRequest
from nimburion.core.session import ConcurrencyLimit

_READ_AHEAD = 2
"""Jobs that the first read of each lane adds to its even share of the request."""
_MAX_WAITING_LANES = 64
"""The most waiting lanes that a reply names."""

LaneJob = tuple[int, int, int]
"""Minus the priority of the job (`rank`), due time in microseconds, seq."""
RankedJob = tuple[int, int, int, int]
"""Sort key: minus the level of the queue, then rank, due time and seq. Lowest first."""

_encode = msgspec.json.Encoder().encode
_decode_heads = msgspec.json.Decoder(list[tuple[int, list[LaneJob]]]).decode
_decode_lane_jobs = msgspec.json.Decoder(list[LaneJob]).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode
_decode_sizes = msgspec.json.Decoder(list[tuple[int, int]]).decode
_decode_limit_rows = msgspec.json.Decoder(list[tuple[str, int, int]]).decode

Lanes = dict[int, Lane]


def insert_leases(  # noqa: PLR0917 - the parts of one exchange
    db: Database,
    session: int,
    number: int,
    request: ReserveRequest,
    seqs: list[int],
    shares: TenantShares | None,
) -> None:
    """Lease these jobs, in rank order, to the session and its exchange of this number."""
    listed = _encode(seqs).decode()
    values = (session, number, request.nonce, db.now)
    if shares is None:
        db.run("insert_leases", *values, listed)
    else:
        db.run("insert_charged_leases", *values, _encode(shares.save(seqs)).decode())
    db.run("delete_taken_from_ready", listed)


def measure_sizes(db: Database, seqs: list[int]) -> list[tuple[int, int]]:
    """Return the lane and the size in bytes of each job, without reading its payload."""
    return _decode_sizes(db.fetch_value("get_sizes", _encode(seqs).decode()))


def count_fitting(sizes: Iterable[int], max_bytes: int) -> int:
    """Return how many jobs of these sizes, from the first on, fit into one reply: at least 1."""
    count = 0
    for size in sizes:
        max_bytes -= size + DELIVERY_OVERHEAD
        if max_bytes < 0 and count:
            break
        count += 1
    return count


def find_unpaused_lanes(db: Database, request: ReserveRequest, paused: frozenset[str]) -> Lanes:
    """Return the requested lanes that exist and are not paused, by number."""
    lanes = db.find_lanes(request.lanes)
    if not paused:
        return lanes
    return {number: lane for number, lane in lanes.items() if lane.queue not in paused}


class Limits(NamedTuple):
    """The concurrency limits and the rate limits at one moment, by job name."""

    running: dict[str, ConcurrencyLimit]
    rates: Rates

    def __bool__(self) -> bool:
        return bool(self.running or self.rates)

    def count_available(self, now: int) -> dict[str, int]:
        """Return how many jobs of each limited name may start now; negative above a limit."""
        available = {name: limit.limit - limit.in_use for name, limit in self.running.items()}
        for name, rate in self.rates.items():
            room = rate.count_room(now)
            available[name] = min(available.get(name, room), room)
        return available

    def exclude_full(self, lanes: Lanes, now: int) -> Lanes:
        """Return the lanes from which another job may start."""
        if not self:
            return lanes
        full = {name for name, available in self.count_available(now).items() if available <= 0}
        return {number: lane for number, lane in lanes.items() if lane.name not in full}

    def has_opened_since(self, before: Limits) -> bool:
        """Return whether a concurrency limit has room now that was full before."""
        return any(
            limit.in_use < limit.limit <= before.running[name].in_use
            for name, limit in self.running.items()
        )

    def find_next_opening(self, db: Database, lanes: Lanes) -> int | None:
        """Return when the first rate that delays a job of these lanes allows one, or None."""
        closed = {name for name, rate in self.rates.items() if rate.count_room(db.now) == 0}
        delayed = {number: lane for number, lane in lanes.items() if lane.name in closed}
        if not delayed:
            return None
        holding = _decode_seqs(
            db.fetch_value("find_waiting_lanes", _encode(list(delayed)).decode(), len(delayed))
        )
        rates = [self.rates[delayed[number].name] for number in holding]
        return min((rate.limit.find_opening(rate.spent_until) for rate in rates), default=None)


def read_all_limits(db: Database) -> Limits:
    """Read the concurrency limits and the rate limits."""
    return Limits(read_limits(db), read_rates(db))


def read_limits(db: Database) -> dict[str, ConcurrencyLimit]:
    """Read the concurrency limits, by job name."""
    return decode_limits(db.fetch_value("list_limits"))


def decode_limits(listed: str) -> dict[str, ConcurrencyLimit]:
    """Decode the JSON list of concurrency limits, as stored, into limits by job name."""
    return {
        name: ConcurrencyLimit(maximum, in_use)
        for name, maximum, in_use in _decode_limit_rows(listed)
    }


def find_waiting_lanes(db: Database, lanes: Lanes) -> list[Lane]:
    """Return up to 64 of these lanes that hold waiting jobs."""
    if not lanes:
        return []
    found = _decode_seqs(
        db.fetch_value("find_waiting_lanes", _encode(list(lanes)).decode(), _MAX_WAITING_LANES)
    )
    return [lanes[number] for number in found]


def choose_jobs(  # noqa: PLR0917 - the parts of one exchange
    db: Database,
    request: ReserveRequest,
    lanes: Lanes,
    limits: Limits,
    admission: KeyAdmission | None,
    shares: TenantShares | None,
) -> list[int]:
    """Return the seqs to lease, in rank order, within the caps of queues and names.

    Counts them against the concurrency limits and the rate limits in the database.
    """
    capacity = Capacity(request, limits.count_available(db.now) if limits else {})
    is_keyed = admission is not None and any(admission.covers(lane) for lane in lanes.values())
    if len(lanes) == 1 and not is_keyed and shares is None:
        ((number, lane),) = lanes.items()
        seqs = _decode_seqs(db.fetch_value("read_lane", number, capacity.get_available(lane)))
        capacity.take(lane, len(seqs))
    else:
        sorted_ = (
            None
            if capacity.is_limited or is_keyed or shares is not None
            else merge_by_sorting(open_lane_readers(db, request, lanes), capacity.total)
        )
        seqs = (
            merge(
                open_lane_readers(db, request, lanes),
                [] if shares is None else open_turns(db, request, lanes, shares, admission),
                capacity,
                admission,
            )
            if sorted_ is None
            else sorted_
        )
    for name, taken in capacity.taken.items():
        db.run("take_limit", name, taken)
        if name in limits.rates:
            take_units(db, name, limits.rates[name], taken)
    return seqs


class Capacity:
    """The number of further jobs that may be leased: in total, per queue, and per limited name."""

    __slots__ = ("_names", "_queues", "is_limited", "taken", "total")

    def __init__(self, request: ReserveRequest, names: dict[str, int]) -> None:
        self.total: int = request.total
        self._queues = {
            queue: options.limit
            for queue, options in request.queues.items()
            if options.limit is not None
        }
        self._names = names
        self.is_limited: bool = bool(self._queues or self._names)
        """Whether a queue or a name has a limit, in addition to the total."""
        self.taken: dict[str, int] = {}
        """Number of jobs taken for each limited name."""

    def get_available(self, lane: Lane) -> int:
        """Return how many more jobs of this lane may be leased, at most the total."""
        capacity = self._queues.get(lane.queue, self.total)
        return max(0, min(capacity, self._names.get(lane.name, capacity), self.total))

    def take(self, lane: Lane, count: int) -> None:
        """Subtract `count` jobs of this lane from the queue's and the name's limit."""
        if lane.queue in self._queues:
            self._queues[lane.queue] -= count
        if lane.name in self._names and count:
            self._names[lane.name] -= count
            self.taken[lane.name] = self.taken.get(lane.name, 0) + count


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
        self._jobs = _decode_lane_jobs(
            self._db.fetch_value("read_lane_further", self._number, *last, self._chunk)
        )
        return bool(self._jobs)

    def list_candidates(self) -> dict[int, Lane]:
        """Return the lane of each job read last, by seq."""
        return {seq: self.lane for _, _, seq in self._jobs}

    def iter_ranked(self, admission: KeyAdmission | None) -> Iterator[RankedJob]:
        """Yield all jobs of the lane, with the rank that the merge uses; read more as needed.

        `admission`: it reads the keys of the jobs that are read later. None: they have no keys.
        """
        yield from self.rank_jobs()
        while self.read_more():
            if admission is not None:
                admission.read_keys(self.list_candidates())
            yield from self.rank_jobs()


def open_lane_readers(db: Database, request: ReserveRequest, lanes: Lanes) -> list[LaneReader]:
    """Read the first jobs of all lanes in one statement; return readers of nonempty lanes."""
    chunk = min(request.total, request.total // len(lanes) + _READ_AHEAD)
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


def merge(
    lanes: list[LaneReader],
    turns: list[QueueTurns],
    capacity: Capacity,
    admission: KeyAdmission | None,
) -> list[int]:
    """Return the first jobs of the merge within the caps and limits.

    No job of a lane overtakes the first job of that lane, whatever its rank. A job whose key has no
    room is parked. The jobs of the tenants of a queue are one more lane: `turns`.
    """
    keyed = [admission is not None and admission.covers(reader.lane) for reader in lanes]
    if admission is not None:
        admission.read_keys(
            {
                seq: lane
                for reader, is_keyed in zip(lanes, keyed, strict=True)
                if is_keyed
                for seq, lane in reader.list_candidates().items()
            }
        )
    following = [
        reader.iter_ranked(admission if is_keyed else None)
        for reader, is_keyed in zip(lanes, keyed, strict=True)
    ]
    heap = [(next(jobs), index) for index, jobs in enumerate(following)]
    heads = [queue.peek(capacity) for queue in turns]
    heap += [(head.ranked, index) for index, head in enumerate(heads, len(lanes)) if head]
    heapify(heap)
    chosen: list[int] = []
    limit = capacity.total
    while heap:
        ranked, index = heap[0]
        if index >= len(lanes):
            if serve_turns(heap, turns[index - len(lanes)], chosen, capacity, admission):
                break
            continue
        seq = ranked[3]
        lane = lanes[index].lane
        if capacity.is_limited and capacity.get_available(lane) == 0:
            heappop(heap)
            continue
        if admission is None or not keyed[index] or admission.admit(seq):
            chosen.append(seq)
            capacity.take(lane, 1)
            if len(chosen) == limit:
                break  # before more jobs of the lane are read
        elif admission.must_stop:
            break
        replace_head(heap, next(following[index], None))
    if admission is not None:
        admission.save_parked()
    return chosen


def replace_head(heap: list[tuple[RankedJob, int]], after: RankedJob | None) -> None:
    """Replace the first job of the heap by the next one of its lane; None: there is none."""
    if after is None:
        heappop(heap)
    else:
        heapreplace(heap, (after, heap[0][1]))


def serve_turns(
    heap: list[tuple[RankedJob, int]],
    turns: QueueTurns,
    chosen: list[int],
    capacity: Capacity,
    admission: KeyAdmission | None,
) -> bool:
    """Take or park the job of a queue whose turn is next, unless another one is next by now, and
    replace it in the heap. Returns whether the merge ends.
    """
    ranked = heap[0][0]
    job = turns.peek(capacity) if capacity.is_limited else turns.head
    if job is not None and job.ranked == ranked:
        seq = ranked[3]
        if admission is None or not admission.covers(job.lane) or admission.admit(seq):
            turns.take(job)
            chosen.append(seq)
            capacity.take(job.lane, 1)
            if len(chosen) == capacity.total:
                return True
        else:
            turns.remove(job)
            if admission.must_stop:
                return True
        job = turns.peek(capacity)
    replace_head(heap, None if job is None else job.ranked)
    return False
