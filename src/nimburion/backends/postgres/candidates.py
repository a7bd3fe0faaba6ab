"""What a plan considers: the candidates of a planned exchange, and the source that reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from nimburion.backends.planning.admission import make_reply_limit
from nimburion.backends.planning.source import ParkedJob, Place, PlanLane, Tenant, Turn
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.fairness import PlannedShare, ShareClass, TenantShare
from nimburion.core.limits import (
    JobLimit,
    LimitChange,
    LimitKey,
    LimitRule,
    LimitUse,
    get_limited_queue,
    make_job_limit_name,
)
from nimburion.core.rate_limits import RateLimit

P = TypeVar("P", Place, ParkedJob, tuple[int, int])

_READ_AHEAD = 2
"""Jobs that the first read of each lane adds to its even share of the request."""
_GROWTH = 4
_FIRST_PARKED = 16


class Sizes(NamedTuple):
    """How much `read_candidates_1` reads at most."""

    jobs: int
    """Of each lane."""
    turns: int
    """Of each lane."""
    group_factor: int
    """For the jobs of each turn, beside what the server estimates."""
    parked: int = 0
    """Of each key and lane."""

    def grow(self, what: str) -> Sizes:
        """Return larger sizes, because a plan needs more of something."""
        size = getattr(self, what)
        return self._replace(**{what: size * _GROWTH or _FIRST_PARKED})


def make_sizes(request: ReserveRequest) -> Sizes:
    """Return what the first read of an exchange asks for."""
    total, lanes = request.total, max(1, len(request.lanes))
    return Sizes(min(total, total // lanes + _READ_AHEAD), total + 1, 1)


class NeedsMore(Exception):
    """The plan needs more candidates than were read."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what: str = what
        """The field of `Sizes` that is too small."""


CandidateJob = tuple[int, int | None, int]
"""Where a candidate waits: due time, lane (None: it is parked), main lane."""


Columns = list[Any]
"""One list for each column; each is None if there are no rows."""


class Candidates(msgspec.Struct):
    """The JSON object of `read_candidates_1`, which explains it."""

    open: list[int]
    changing: list[int]
    own: (
        list[tuple[str, int | None, int | None, int | None, int | None, int | None, int | None]]
        | None
    ) = None
    limits: list[tuple[str, str, int | None, int | None, int | None, int | None]] | None = None
    queues: list[tuple[str, int, int]] | None = None
    changes: list[tuple[str, str, int | None, int | None, int | None]] | None = None
    jobs: Columns | None = None
    turns: Columns | None = None
    groups: Columns | None = None
    group_size: int | None = None
    shares: Columns | None = None
    classes: list[tuple[str, int, int]] | None = None
    parked: list[tuple[str, str, int, int, int, int, int, int | None]] | None = None
    keys: Columns | None = None
    version: int | None = None
    sizes: list[tuple[int, int]] | None = None


decode_candidates = msgspec.json.Decoder(Candidates).decode


class PostgresSource:
    """See `nimburion.backends.planning.source.Source`. It reads candidates that are in memory.

    A read beyond them raises `NeedsMore`.
    """

    def __init__(
        self,
        candidates: Candidates,
        request: ReserveRequest,
        sizes: Sizes,
        excluded: Collection[int] = (),
    ) -> None:
        """`excluded`: the seqs of jobs that the plan must not contain."""
        self._candidates = candidates
        self._request = request
        self._sizes = sizes
        self._lanes = list(dict.fromkeys(request.lanes))
        self.jobs: dict[int, CandidateJob] = {}
        """By seq."""
        self.shares_by_job: dict[int, int | None] = {}
        """The shares of the jobs of tenants, by seq."""
        self.uses: dict[LimitKey, LimitUse] = {}
        """As they were read."""
        self._limits: dict[int, list[JobLimit]] = {}
        self._places: dict[int, list[Place]] = {}
        self._full: set[object] = set()
        """The requested lanes, the lanes of tenants (below 0), and the keys and lanes that may have
        more jobs than were read.
        """
        self._turns: dict[int, list[tuple[int, int, int, int]]] = {}
        self._groups: dict[int, list[tuple[int, int]]] = {}
        self._lanes_by_group: dict[tuple[int, int, Tenant], int] = {}
        self._turn_times: dict[Tenant, int] = {}
        self._parked: dict[tuple[LimitKey, int], list[ParkedJob]] = {}
        self._shares = {share: values for share, *values in iterate_rows(candidates.shares)}
        self.virtual_times: dict[int, int | None] = {
            share: values[0] for share, values in self._shares.items()
        }
        """By share; None: it has no row."""
        self.min_virtual_times: dict[ShareClass, int] = {
            (queue, rank): minimum for queue, rank, minimum in candidates.classes or ()
        }
        self._read_jobs(excluded)
        self._read_tenants(excluded)
        self._read_parked_jobs(excluded)
        self._read_keys()
        for limit, in_use, spent in candidates.queues or ():
            self.uses[limit, ""] = LimitUse(in_use, spent)

    @property
    def has_turns(self) -> bool:
        """Whether jobs wait for the turns of tenants, or are parked before them."""
        return bool(self._turns) or any(
            share is not None for *_, share in self._candidates.parked or ()
        )

    def make_lanes(self) -> tuple[list[PlanLane], dict[LimitKey, LimitUse]]:
        """Return the lanes that are served, with their limits, and the uses of these."""
        uses: dict[LimitKey, LimitUse] = {}
        caps: dict[str, JobLimit] = {}
        for queue, options in self._request.queues.items():
            if options.limit is not None:
                caps[queue] = limit = make_reply_limit(queue, options.limit)
                uses[limit.key] = LimitUse()
        own: dict[str, JobLimit] = {}
        for name, maximum, in_use, interval, burst, cost, spent in self._candidates.own or ():
            own[name] = limit = JobLimit(
                (make_job_limit_name(name), ""), maximum, make_rate(interval, burst, cost)
            )
            uses[limit.key] = LimitUse(in_use or 0, spent or 0)
        of_queues, parked_names = self._read_declared_limits()
        for limit in of_queues.values():
            use = self.uses.setdefault(limit.key, LimitUse())
            uses[limit.key] = LimitUse(use.in_use, use.spent_until)
        planned = []
        for place in self._candidates.open:
            lane = self._lanes[place - 1]
            closing = (caps.get(lane.queue), of_queues.get(lane), own.get(lane.name))
            limits = [limit for limit in closing if limit]
            planned.append(PlanLane(place, lane, limits=limits, has_keys=lane.name in parked_names))
        return planned, uses

    def _read_declared_limits(self) -> tuple[dict[Lane, JobLimit], set[str]]:
        """Return the limits of queues by lane, and the job names with limits that park jobs."""
        of_queues: dict[Lane, JobLimit] = {}
        parked_names: set[str] = set()
        for job, limit, concurrency, interval, burst, cost in self._candidates.limits or ():
            queue = get_limited_queue(limit)
            if queue is None:
                parked_names.add(job)
            else:
                rate = make_rate(interval, burst, cost)
                of_queues[Lane(queue, job)] = JobLimit((limit, ""), concurrency, rate)
        return of_queues, parked_names

    def read_lanes(
        self, lanes: Sequence[PlanLane]
    ) -> Sequence[tuple[PlanLane, Iterator[list[Place]]]]:
        """See `Source`."""
        return [
            (lane, self._read(self._places.get(lane.number, []), lane.number, "jobs"))
            for lane in lanes
            if self._places.get(lane.number) or lane.number in self._full
        ]

    def read_turns(self, lane: PlanLane) -> Iterator[list[Turn]]:
        """See `Source`."""
        listed = self._turns.get(lane.number, [])
        turns = []
        for rank, virtual_time, number, share in listed:
            jobs = self._groups.get(number)
            if jobs:
                turns.append(Turn(rank, virtual_time, *jobs[0], share))
            elif number in self._full:
                raise NeedsMore("group_factor")  # all that were read are excluded
        if turns:
            yield turns
        if len(listed) >= self._sizes.turns:
            raise NeedsMore("turns")

    def read_group(
        self, lane: PlanLane, tenant: Tenant, rank: int, after: tuple[int, int] | None
    ) -> Iterator[list[tuple[int, int]]]:
        """See `Source`."""
        number = self._lanes_by_group.get((lane.number, rank, tenant))
        if number is None:
            if len(self._turns.get(lane.number, ())) >= self._sizes.turns:
                raise NeedsMore("turns")
            return
        jobs = self._groups.get(number, [])
        if after is not None:
            jobs = [job for job in jobs if job > after]
        yield from self._read(jobs, number, "group_factor")

    def read_shares(
        self,
        class_: ShareClass,  # noqa: ARG002 - a share belongs to one class
        tenants: Collection[Tenant],
    ) -> dict[Tenant, PlannedShare]:
        """See `Source`."""
        found: dict[Tenant, PlannedShare] = {}
        for share in tenants:
            virtual_time, mean, unmeasured, units = self._shares[share]
            if virtual_time is None:  # no job of the tenant was reserved yet
                virtual_time = self._turn_times.get(share, -1)
            found[share] = PlannedShare(TenantShare(virtual_time, mean, unmeasured), units)
        return found

    def read_min_virtual_time(self, class_: ShareClass) -> int:
        """See `Source`."""
        return self.min_virtual_times.get(class_, 0)

    def read_limits(self, jobs: Mapping[int, PlanLane]) -> dict[int, list[JobLimit]]:
        """See `Source`."""
        return {seq: self._limits.get(seq, []) for seq in jobs}

    def read_uses(self, keys: Collection[LimitKey]) -> dict[LimitKey, LimitUse]:
        """See `Source`. The plan changes its copies."""
        return {
            key: LimitUse(use.in_use, use.spent_until, use.opens_at, use.has_parked)
            for key, use in ((key, self.uses[key]) for key in keys)
        }

    def read_parked(self, key: LimitKey, lane: PlanLane) -> Iterator[list[ParkedJob]]:
        """See `Source`."""
        if not self.uses[key].has_parked:
            return
        if self._sizes.parked == 0:
            raise NeedsMore("parked")
        yield from self._read(
            self._parked.get((key, lane.number), []), (key, lane.number), "parked"
        )

    def _read(self, jobs: list[P], of: object, what: str) -> Iterator[list[P]]:
        """Yield jobs; raise `NeedsMore` after them if there may be more."""
        if jobs:
            yield jobs
        if of in self._full:
            raise NeedsMore(what)

    def _read_jobs(self, excluded: Collection[int]) -> None:
        counts: dict[int, int] = {}
        places: list[Place] = []
        last = 0
        for place, rank, due, seq, lane, main_lane in iterate_rows(self._candidates.jobs):
            if place != last:
                last, places = place, self._places.setdefault(place, [])
                counts[place] = 0
            counts[place] += 1
            if seq not in excluded:
                self.jobs[seq] = (due, lane, main_lane)
                places.append((rank, due, seq))
        self._full.update(place for place, count in counts.items() if count >= self._sizes.jobs)

    def _read_tenants(self, excluded: Collection[int]) -> None:
        counts: dict[int, int] = {}
        turns = list(iterate_rows(self._candidates.turns))
        shares = {lane: share for _, _, _, lane, share in turns}
        for lane, due, seq in iterate_rows(self._candidates.groups):
            counts[lane] = counts.get(lane, 0) + 1
            if seq not in excluded:
                self.jobs[seq] = (due, lane, lane)
                self.shares_by_job[seq] = shares[lane]
                self._groups.setdefault(lane, []).append((due, seq))
        size = self._candidates.group_size or 0
        self._full.update(lane for lane, count in counts.items() if count >= size)
        for place, rank, virtual_time, lane, share in turns:
            self._turns.setdefault(place, []).append((rank, virtual_time, lane, share))
            self._lanes_by_group[place, rank, share] = lane
            self._turn_times[share] = virtual_time

    def _read_parked_jobs(self, excluded: Collection[int]) -> None:
        counts: dict[tuple[LimitKey, int], int] = {}
        for limit, key, place, rank, due, seq, lane, share in self._candidates.parked or ():
            group = ((limit, key), place)
            counts[group] = counts.get(group, 0) + 1
            if seq not in excluded:
                self.jobs[seq] = (due, None, lane)
                self.shares_by_job[seq] = share
                self._parked.setdefault(group, []).append(ParkedJob(rank, due, seq, share))
        self._full.update(group for group, count in counts.items() if count >= self._sizes.parked)

    def _read_keys(self) -> None:
        declared = {
            (job, limit): LimitRule(concurrency, make_rate(interval, burst, cost))
            for job, limit, concurrency, interval, burst, cost in self._candidates.limits or ()
        }
        changes = {
            (limit, key): LimitChange(
                name=limit, key=key, concurrency=concurrency, rate=make_rate(interval, burst, 1)
            )
            for limit, key, concurrency, interval, burst in self._candidates.changes or ()
        }
        made: dict[tuple[str, LimitKey, int | None], JobLimit] = {}
        names = [lane.name for lane in self._lanes]
        for seq, place, limit, key, cost, *use in iterate_rows(self._candidates.keys):
            name = names[place - 1]
            limit_key = (limit, key)
            job_limit = made.get((name, limit_key, cost))
            if job_limit is None:
                keyed = declared[name, limit].apply(changes.get(limit_key))
                rate = keyed.rate
                if rate is not None and cost is not None:
                    rate = msgspec.structs.replace(rate, cost=cost)
                job_limit = JobLimit(limit_key, keyed.concurrency, rate)
                made[name, limit_key, cost] = job_limit
                if limit_key not in self.uses:
                    in_use, spent, opens_at, has_parked = use
                    self.uses[limit_key] = LimitUse(in_use or 0, spent or 0, opens_at, has_parked)
            self._limits.setdefault(seq, []).append(job_limit)


def iterate_rows(columns: Columns | None) -> Iterator[tuple[Any, ...]]:
    """Return the rows of a table that was sent in columns."""
    return iter(()) if columns is None or columns[0] is None else zip(*columns, strict=True)


def make_rate(interval: int | None, burst: int | None, cost: int | None) -> RateLimit | None:
    """Return a rate limit from the columns of a table; None: there is none."""
    return None if interval is None else RateLimit("", interval, burst or 1, cost or 1)
