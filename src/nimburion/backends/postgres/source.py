"""The source of a plan on PostgreSQL: `PostgresSource`, which reads candidates."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from nimburion.backends.planning.admission import make_reply_limit
from nimburion.backends.planning.source import ParkedJob, Place, PlanLane, Tenant, Turn
from nimburion.backends.postgres.candidates import (
    Candidates,
    NeedsMore,
    Sizes,
    iterate_rows,
    make_rate,
)
from nimburion.core.exchange import ReserveRequest
from nimburion.core.fairness import PlannedShare, ShareClass, TenantShare
from nimburion.core.limits import (
    JobLimit,
    LimitChange,
    LimitKey,
    LimitRule,
    LimitUse,
    concerns_lane,
)

J = TypeVar("J", Place, ParkedJob, tuple[int, int])

CandidateJob = tuple[int, int | None, int]
"""Where a candidate waits: due time, lane (None: it is parked), main lane."""


class PostgresSource:
    """See `nimburion.backends.planning.source.PlanSource`. It reads candidates that are in memory.

    A read beyond them raises `NeedsMore`. Lanes are named by their index in the request, from 1,
    tenants by their share.
    """

    def __init__(
        self,
        candidates: Candidates,
        request: ReserveRequest,
        sizes: Sizes,
    ) -> None:
        self._candidates = candidates
        self._request = request
        self._sizes = sizes
        self._lanes = list(dict.fromkeys(request.lanes))
        self.jobs: dict[int, CandidateJob] = {}
        """By seq."""
        self.shares_by_job: dict[int, int | None] = {}
        """The shares of the jobs of tenants, by seq."""
        self.uses: dict[LimitKey, LimitUse] = {}
        """Those of keys for which jobs may be parked, as they were read."""
        self._incomplete: set[object] = set()
        """The lanes, groups, and keys in a lane that may have more jobs than were read."""
        self._places: dict[int, list[Place]] = {}
        """The jobs without a tenant, by lane."""
        self._turns: dict[int, list[tuple[int, int, int, int]]] = {}
        """Rank, virtual time, group and share of each turn, by lane."""
        self._groups: dict[int, list[tuple[int, int]]] = {}
        """Due time and seq of the jobs of each group, which is the lane of a tenant in `lane`."""
        self._group_numbers: dict[tuple[int, int, Tenant], int] = {}
        """The groups by lane, rank and share."""
        self._turn_times: dict[Tenant, int] = {}
        """The virtual times of the turns, by share."""
        self._parked: dict[tuple[LimitKey, int], list[ParkedJob]] = {}
        """The parked jobs, by key and lane."""
        self._limits: dict[int, list[JobLimit]] = {}
        """The limits for which a job may be parked, by seq."""
        self._shares = {share: values for share, *values in iterate_rows(candidates.shares)}
        self.virtual_times: dict[int, int | None] = {
            share: values[0] for share, values in self._shares.items()
        }
        """By share; None: it has no row."""
        self._min_virtual_times: dict[ShareClass, int] = {
            (queue, rank): minimum for queue, rank, minimum in candidates.classes or ()
        }
        self._index_jobs()
        self._index_turns()
        self._index_groups()
        self._index_parked_jobs()
        self._index_keys()

    @property
    def has_turns(self) -> bool:
        """Whether jobs wait for the turns of tenants, or are parked before them."""
        return bool(self._turns) or any(
            job.share is not None for job in self._candidates.parked or ()
        )

    def make_lanes(self) -> tuple[list[PlanLane], dict[LimitKey, LimitUse]]:
        """Return the lanes that are served, with the limits that close them, and their uses."""
        uses: dict[LimitKey, LimitUse] = {}
        caps = self._make_reply_limits(uses)
        closing: dict[str, list[JobLimit]] = {}
        keyed_names = set()
        for row in self._candidates.rules or ():
            if row.in_use is None:
                keyed_names.add(row.job)
                continue
            rate = make_rate(row.interval, row.burst, row.cost)
            limit = JobLimit((row.limit, ""), row.concurrency, rate)
            closing.setdefault(row.job, []).append(limit)
            uses[limit.key] = LimitUse(row.in_use, row.spent_until or 0)
        planned = []
        for place in self._candidates.open:
            lane = self._lanes[place - 1]
            limits = [caps[lane.queue]] if lane.queue in caps else []
            limits += (
                limit
                for limit in closing.get(lane.name, ())
                if concerns_lane(limit.key[0], lane.queue)
            )
            planned.append(PlanLane(place, lane, limits=limits, has_keys=lane.name in keyed_names))
        return planned, uses

    def _make_reply_limits(self, uses: dict[LimitKey, LimitUse]) -> dict[str, JobLimit]:
        """Return the limits of the jobs of a queue in the reply, by queue; add their uses."""
        limits = {
            queue: make_reply_limit(queue, options.limit)
            for queue, options in self._request.queues.items()
            if options.limit is not None
        }
        uses.update((limit.key, LimitUse()) for limit in limits.values())
        return limits

    def read_lanes(
        self, lanes: Sequence[PlanLane]
    ) -> Sequence[tuple[PlanLane, Iterator[list[Place]]]]:
        """See `PlanSource`."""
        return [
            (lane, self._read(self._places.get(lane.number, []), lane.number, "most_jobs"))
            for lane in lanes
            if self._places.get(lane.number) or lane.number in self._incomplete
        ]

    def read_turns(self, lane: PlanLane) -> Iterator[list[Turn]]:
        """See `PlanSource`."""
        listed = self._turns.get(lane.number, [])
        turns = []
        for rank, virtual_time, group, share in listed:
            jobs = self._groups.get(group)
            if jobs:
                turns.append(Turn(rank, virtual_time, *jobs[0], share))
        if turns:
            yield turns
        if len(listed) >= self._sizes.most_turns:
            raise NeedsMore("most_turns")

    def read_group(
        self, lane: PlanLane, tenant: Tenant, rank: int, after: tuple[int, int] | None
    ) -> Iterator[list[tuple[int, int]]]:
        """See `PlanSource`."""
        group = self._group_numbers.get((lane.number, rank, tenant))
        if group is None:
            if len(self._turns.get(lane.number, ())) >= self._sizes.most_turns:
                raise NeedsMore("most_turns")
            return
        jobs = self._groups.get(group, [])
        if after is not None:
            jobs = [job for job in jobs if job > after]
        yield from self._read(jobs, group, "group_factor")

    def read_shares(
        self,
        class_: ShareClass,  # noqa: ARG002 - a share belongs to one class
        tenants: Collection[Tenant],
    ) -> dict[Tenant, PlannedShare]:
        """See `PlanSource`."""
        found: dict[Tenant, PlannedShare] = {}
        for share in tenants:
            virtual_time, mean, unmeasured, units = self._shares[share]
            if virtual_time is None:  # no job of the tenant was reserved yet
                virtual_time = self._turn_times.get(share, -1)
            found[share] = PlannedShare(TenantShare(virtual_time, mean, unmeasured), units)
        return found

    def read_min_virtual_time(self, class_: ShareClass) -> int:
        """See `PlanSource`."""
        return self._min_virtual_times.get(class_, 0)

    def read_limits(self, jobs: Mapping[int, PlanLane]) -> dict[int, list[JobLimit]]:
        """See `PlanSource`."""
        return {seq: self._limits.get(seq, []) for seq in jobs}

    def read_uses(self, keys: Collection[LimitKey]) -> dict[LimitKey, LimitUse]:
        """See `PlanSource`. The plan changes its copies."""
        return {
            key: LimitUse(use.in_use, use.spent_until, use.opens_at, use.has_parked)
            for key, use in ((key, self.uses[key]) for key in keys)
        }

    def read_parked(self, key: LimitKey, lane: PlanLane) -> Iterator[list[ParkedJob]]:
        """See `PlanSource`."""
        if not self.uses[key].has_parked:
            return
        if self._sizes.most_parked == 0:
            raise NeedsMore("most_parked")
        place = (key, lane.number)
        yield from self._read(self._parked.get(place, []), place, "most_parked")

    def _read(self, jobs: list[J], place: object, what: str) -> Iterator[list[J]]:
        """Yield the jobs of a place; raise `NeedsMore` after them if there may be more."""
        if jobs:
            yield jobs
        if place in self._incomplete:
            raise NeedsMore(what)

    def _index_jobs(self) -> None:
        """Note the jobs without a tenant, by lane."""
        counts: dict[object, int] = {}
        for place, rank, due, seq, lane, main_lane in iterate_rows(self._candidates.jobs):
            counts[place] = counts.get(place, 0) + 1
            self.jobs[seq] = (due, lane, main_lane)
            self._places.setdefault(place, []).append((rank, due, seq))
        self._note_incomplete(counts, self._sizes.most_jobs)

    def _index_turns(self) -> None:
        """Note the turns of tenants, by lane."""
        for place, rank, virtual_time, group, share in iterate_rows(self._candidates.turns):
            self._turns.setdefault(place, []).append((rank, virtual_time, group, share))
            self._group_numbers[place, rank, share] = group
            self._turn_times[share] = virtual_time

    def _index_groups(self) -> None:
        """Note the jobs of tenants, by group."""
        shares = {group: share for turns in self._turns.values() for _, _, group, share in turns}
        counts: dict[object, int] = {}
        for group, due, seq in iterate_rows(self._candidates.groups):
            counts[group] = counts.get(group, 0) + 1
            self.jobs[seq] = (due, group, group)
            self.shares_by_job[seq] = shares[group]
            self._groups.setdefault(group, []).append((due, seq))
        self._note_incomplete(counts, self._candidates.group_size or 0)

    def _index_parked_jobs(self) -> None:
        """Note the parked jobs, by key and lane."""
        counts: dict[object, int] = {}
        for job in self._candidates.parked or ():
            place = ((job.limit, job.key), job.place)
            counts[place] = counts.get(place, 0) + 1
            self.jobs[job.seq] = (job.due, None, job.lane)
            self.shares_by_job[job.seq] = job.share
            parked = ParkedJob(job.rank, job.due, job.seq, job.share)
            self._parked.setdefault(place, []).append(parked)
        self._note_incomplete(counts, self._sizes.most_parked)

    def _note_incomplete(self, counts: dict[object, int], size: int) -> None:
        """Note the places of which as many jobs were read as were asked for."""
        self._incomplete.update(place for place, count in counts.items() if count >= size)

    def _index_keys(self) -> None:
        """Note the limits for which jobs may be parked, and the uses of their keys."""
        rules = {
            (row.job, row.limit): LimitRule(
                row.concurrency, make_rate(row.interval, row.burst, row.cost)
            )
            for row in self._candidates.rules or ()
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
            name, limit_key = names[place - 1], (limit, key)
            job_limit = made.get((name, limit_key, cost))
            if job_limit is None:
                rule = rules[name, limit].apply(changes.get(limit_key))
                job_limit = made[name, limit_key, cost] = make_job_limit(limit_key, rule, cost)
            if limit_key not in self.uses:
                in_use, spent, opens_at, has_parked = use
                self.uses[limit_key] = LimitUse(in_use or 0, spent or 0, opens_at, has_parked)
            self._limits.setdefault(seq, []).append(job_limit)


def make_job_limit(key: LimitKey, rule: LimitRule, cost: int | None) -> JobLimit:
    """Return the limit of a job for one key. `cost`: what the job carries; None: nothing."""
    rate = rule.rate
    if rate is not None and cost is not None:
        rate = msgspec.structs.replace(rate, cost=cost)
    return JobLimit(key, rule.concurrency, rate)
