"""Plans keep every limit, let all jobs run in the end, and leave nothing out without saying so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from random import Random
from typing import TypeVar
from unittest import mock

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from nimburion.backends.planning import reserve
from nimburion.backends.planning.admission import make_reply_limit
from nimburion.backends.planning.reserve import ReservePlan, plan_reserve
from nimburion.backends.planning.source import ParkedJob, Place, PlanLane, Tenant, Turn
from nimburion.core.exchange import Lane, QueueOptions, ReserveRequest
from nimburion.core.fairness import PlannedShare, ShareClass, TenantShare
from nimburion.core.limits import (
    JobLimit,
    LimitKey,
    LimitUse,
    make_job_limit_name,
    make_queue_limit_name,
)
from nimburion.core.rate_limits import RateLimit

LANES = tuple(Lane(queue, name) for queue in ("red", "blue") for name in ("mail", "scan"))
RATE = RateLimit("1/s", interval=1_000_000, burst=2)
MOST_PARKED = 3
T = TypeVar("T")


class Job(msgspec.Struct, frozen=True):
    """A job that waits."""

    seq: int
    lane: Lane
    rank: int
    due: int
    tenant: str | None
    limits: tuple[JobLimit, ...]

    @property
    def place(self) -> Place:
        return (self.rank, self.due, self.seq)


class Model:
    """Jobs in lanes and parked, uses and shares: the simplest source. It applies plans."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 10_000_000
        self.waiting: dict[int, Job] = {}
        self.parked: dict[int, tuple[Job, LimitKey]] = {}
        self.running: dict[int, tuple[Job, int | None]] = {}
        self.uses: dict[LimitKey, LimitUse] = {}
        self.shares: dict[ShareClass, dict[Tenant, TenantShare]] = {}
        self.min_virtual_times: dict[ShareClass, int] = {}
        self.own = {
            name: JobLimit(
                (make_job_limit_name(name), ""),
                random.choice((None, 1, 3)),
                random.choice((None, RATE)),
            )
            for name in ("mail", "scan")
        }
        self.queue_limits = {
            name: JobLimit((make_queue_limit_name("red"), ""), random.choice((1, 3)), None)
            for name in ("mail", "scan")
            if random.random() < 0.4
        }
        """The limit of the queue `red`. Its maximum may differ by job name."""
        self.maximums: dict[str, int | None] = {
            name: random.choice((1, 2)) for name in ("customer", "smtp")
        }
        self.maximums |= {"region": random.choice((None, 1))}
        self.cap = random.choice((None, 1, 2))

    # Reading

    def read_lanes(
        self, lanes: Sequence[PlanLane]
    ) -> Sequence[tuple[PlanLane, Iterator[list[Place]]]]:
        found = ((lane, self.list_jobs(lane.lane, None)) for lane in lanes)
        return [(lane, split([job.place for job in jobs])) for lane, jobs in found if jobs]

    def read_turns(self, lane: PlanLane) -> Iterator[list[Turn]]:
        first: dict[tuple[int, str], Job] = {}
        for job in sorted(self.waiting.values(), key=lambda job: job.place):
            if job.lane == lane.lane and job.tenant is not None:
                first.setdefault((job.rank, job.tenant), job)
        turns = [
            Turn(job.rank, self.get_share(job).virtual_time, job.due, job.seq, job.tenant)
            for job in first.values()
        ]
        return split(sorted(turns))

    def read_group(
        self, lane: PlanLane, tenant: Tenant, rank: int, after: tuple[int, int] | None
    ) -> Iterator[list[tuple[int, int]]]:
        jobs = self.list_jobs(lane.lane, tenant)
        places = [(job.due, job.seq) for job in jobs if job.rank == rank]
        return split([place for place in places if after is None or place > after])

    def read_shares(
        self, class_: ShareClass, tenants: Collection[Tenant]
    ) -> dict[Tenant, PlannedShare]:
        shares = self.shares.get(class_, {})
        return {name: PlannedShare(copy(shares.get(name, TenantShare())), 100) for name in tenants}

    def read_min_virtual_time(self, class_: ShareClass) -> int:
        return self.min_virtual_times.get(class_, 0)

    def read_limits(self, jobs: Mapping[int, PlanLane]) -> dict[int, list[JobLimit]]:
        return {seq: list(self.find_job(seq).limits) for seq in jobs}

    def read_uses(self, keys: Collection[LimitKey]) -> dict[LimitKey, LimitUse]:
        parked = {key for _, key in self.parked.values()}
        found = {key: copy(self.uses.get(key, LimitUse())) for key in keys}
        for key, use in found.items():
            use.has_parked = key in parked
        return found

    def read_parked(self, key: LimitKey, lane: PlanLane) -> Iterator[list[ParkedJob]]:
        jobs = [job for job, of in self.parked.values() if of == key and job.lane == lane.lane]
        return split(sorted(ParkedJob(*job.place, job.tenant) for job in jobs))

    def list_jobs(self, lane: Lane, tenant: Tenant | None) -> list[Job]:
        jobs = [job for job in self.waiting.values() if (job.lane, job.tenant) == (lane, tenant)]
        return sorted(jobs, key=lambda job: job.place)

    def list_lane_limits(self, lane: Lane) -> list[JobLimit]:
        limits = [self.own[lane.name]]
        if lane.queue == "red" and lane.name in self.queue_limits:
            limits.append(self.queue_limits[lane.name])
        return limits

    def find_job(self, seq: int) -> Job:
        return self.waiting[seq] if seq in self.waiting else self.parked[seq][0]

    def get_share(self, job: Job) -> TenantShare:
        class_ = self.shares.setdefault((job.lane.queue, job.rank), {})
        return class_.setdefault(job.tenant, TenantShare())

    # Changing

    def add(self, seq: int) -> None:
        """Enqueue a job with some keys, sometimes of a tenant."""
        random = self.random
        limits = [
            JobLimit(
                (name, random.choice("ab")),
                self.maximums[name],
                RATE if name == "region" else None,
            )
            for name in ("customer", "region", "smtp")
            if random.random() < 0.6
        ]
        tenant = random.choice((None, "t", "u"))
        due = self.now - random.choice((0, 2_000_000))
        self.put(Job(seq, random.choice(LANES), random.randint(-6, -5), due, tenant, tuple(limits)))

    def put(self, job: Job, *, was_parked: bool = False) -> None:
        """Let a job begin to wait."""
        if job.tenant is not None:
            minimum = self.read_min_virtual_time((job.lane.queue, job.rank))
            if not [
                other for other in self.list_jobs(job.lane, job.tenant) if other.rank == job.rank
            ]:
                share = self.get_share(job)
                share.catch_up(minimum) if was_parked else share.join(minimum, 100)
        self.waiting[job.seq] = job

    def plan(self, total: int, lanes: Sequence[Lane] = LANES) -> ReservePlan:
        planned = []
        for n, lane in enumerate(lanes):
            limits = self.list_lane_limits(lane)
            if self.cap is not None and lane.queue == "red":
                limits.append(make_reply_limit("red", self.cap))
            planned.append(PlanLane(n, lane, limits=limits, has_keys=True))
        uses = {
            limit.key: copy(self.uses.get(limit.key, LimitUse()))
            for lane in planned
            for limit in lane.limits
        }
        queues = {"red": QueueOptions(priority=1)}
        request = ReserveRequest(total, tuple(lanes), queues, ageing=1.0)
        with mock.patch.object(reserve, "MAX_PARKED", MOST_PARKED):
            return plan_reserve(self, planned, request, self.now, uses=uses, has_turns=True)

    def apply(self, plan: ReservePlan) -> None:
        """Change the model as a plan says, and check that the plan keeps to the rules."""
        assert len(plan.park) + len(plan.move) <= MOST_PARKED
        before = {seq: key for seq, (_, key) in self.parked.items()}
        for lease in plan.leases:
            job = self.find_job(lease.seq)
            assert lease.was_parked == (lease.seq in self.parked)
            self.count((*job.limits, *self.list_lane_limits(job.lane)))
            self.waiting.pop(lease.seq, None)
            self.parked.pop(lease.seq, None)
            self.running[lease.seq] = (job, lease.charge)
            assert (lease.charge is None) == (job.tenant is None)
        for key, use in plan.uses.items():
            mine = self.uses.setdefault(key, LimitUse())
            assert (mine.in_use, mine.spent_until) == (use.in_use, use.spent_until)
            mine.opens_at = use.opens_at
        for class_, shares in plan.shares.items():
            self.min_virtual_times[class_] = plan.min_virtual_times[class_]
            for tenant, weighted in shares.items():
                self.shares.setdefault(class_, {})[tenant] = weighted.share
        for seq, key in plan.park.items():
            self.parked[seq] = (self.waiting.pop(seq), key)
        for seq, key in plan.move.items():
            assert before[seq] != key
            self.parked[seq] = (self.parked[seq][0], key)
        for seq in plan.unpark:
            self.put(self.parked.pop(seq)[0], was_parked=True)
        self.check_turns()
        for seq in (*plan.park, *plan.move):
            job, key = self.parked[seq]
            assert not self.has_room(next(limit for limit in job.limits if limit.key == key))

    def check_progress(self, plan: ReservePlan, total: int, lanes: Sequence[Lane] = LANES) -> None:
        """While capacity is left, jobs wait only in full lanes, or the plan parks all it may."""
        if len(plan.leases) == total or len(plan.park) + len(plan.move) == MOST_PARKED:
            return
        taken = Counter(self.running[lease.seq][0].lane.queue for lease in plan.leases)
        for job in self.waiting.values():
            if job.lane in lanes:
                is_capped = job.lane.queue == "red" and taken["red"] == self.cap
                assert is_capped or not all(map(self.has_room, self.list_lane_limits(job.lane)))

    def check_turns(self) -> None:
        """A key with room for which jobs of a lane are parked has a job in that lane, or a time."""
        for job, key in self.parked.values():
            limit = next(limit for limit in job.limits if limit.key == key)
            if self.has_room(limit):
                holders = [other for other in self.waiting.values() if other.lane == job.lane]
                use = self.uses.get(key, LimitUse())
                assert use.opens_at is not None or any(
                    key in {limit.key for limit in other.limits} for other in holders
                )

    def has_room(self, limit: JobLimit) -> bool:
        use = self.uses.get(limit.key, LimitUse())
        if limit.concurrency is not None and use.in_use >= limit.concurrency:
            return False
        return limit.rate is None or limit.rate.count_room(use.spent_until, self.now) > 0

    def count(self, limits: Sequence[JobLimit]) -> None:
        """Count a job in its limits, which have room for it."""
        assert [limit for limit in limits if not self.has_room(limit)] == []
        for key, _, rate in limits:
            use = self.uses.setdefault(key, LimitUse())
            use.in_use += 1
            if rate is not None:
                use.spent_until = rate.spend(use.spent_until, self.now, 1)

    def end(self, seq: int) -> None:
        """End a lease, and let a job of each lane that is parked for its keys return."""
        job, charge = self.running.pop(seq)
        if charge is not None:
            self.get_share(job).settle(charge, 100, run_time=self.random.choice((None, 500_000)))
        for limit in (*job.limits, *self.list_lane_limits(job.lane)):
            self.uses[limit.key].in_use -= 1
            self.let_return(limit.key)

    def let_return(self, key: LimitKey) -> None:
        for lane in LANES:
            jobs = [job for job, of in self.parked.values() if of == key and job.lane == lane]
            if jobs:
                first = min(jobs, key=lambda job: job.place)
                del self.parked[first.seq]
                self.put(first, was_parked=True)

    def advance(self) -> None:
        """Let time pass. Jobs whose rate allows one now return."""
        self.now += self.random.choice((0, 250_000, 1_500_000))
        for key, use in self.uses.items():
            if use.opens_at is not None and use.opens_at <= self.now:
                use.opens_at = None
                self.let_return(key)


def split(items: list[T]) -> Iterator[list[T]]:
    """Yield chunks of two."""
    for n in range(0, len(items), 2):
        yield items[n : n + 2]


@given(st.integers(0, 2**32))
def test_plans_keep_the_limits_and_leave_nothing_out(seed: int) -> None:
    random = Random(seed)
    model = Model(random)
    for step in range(20):
        for n in range(random.randint(0, 4)):
            model.add(100 * step + n)
        for job in [seq for seq in model.running if random.random() < 0.5]:
            model.end(job)
        model.advance()
        total = random.randint(1, 6)
        lanes = random.sample(LANES, random.randint(1, len(LANES)))
        plan = model.plan(total, lanes)
        fewer = random.randint(1, total)
        assert [lease.seq for lease in model.plan(fewer, lanes).leases] == [
            lease.seq for lease in plan.leases[:fewer]
        ]
        model.apply(plan)
        model.check_progress(plan, total, lanes)


@given(st.integers(0, 2**32))
def test_all_jobs_run_in_the_end(seed: int) -> None:
    random = Random(seed)
    model = Model(random)
    count = random.randint(1, 30)
    for seq in range(count):
        model.add(seq)
    ended = 0
    for _ in range(20 * count):
        total = random.randint(1, 6)
        plan = model.plan(total)
        model.apply(plan)
        model.check_progress(plan, total)
        running = list(model.running)
        for seq in running:
            model.end(seq)
        ended += len(running)
        if ended == count:
            return
        model.advance()
    raise AssertionError(f"{ended} of {count} jobs ran: {model.waiting} {model.parked}")


CUSTOMER, SMTP = (JobLimit((name, ""), 1, None) for name in ("customer", "smtp"))


def make_job(seq: int, *limits: JobLimit, tenant: str | None = None) -> Job:
    return Job(seq, LANES[0], -5, seq, tenant, limits)


def open_model() -> Model:
    """Return a model without limits but those of the jobs."""
    model = Model(Random(0))
    model.own = {
        name: JobLimit((make_job_limit_name(name), ""), None, None) for name in ("mail", "scan")
    }
    model.queue_limits = {}
    model.cap = None
    return model


def test_no_turn_passes_at_a_full_key() -> None:
    model = open_model()
    model.uses = {CUSTOMER.key: LimitUse(1), SMTP.key: LimitUse(1)}
    model.parked = {seq: (make_job(seq, SMTP), SMTP.key) for seq in range(5)}
    model.put(make_job(9, CUSTOMER, SMTP))
    plan = model.plan(4)
    assert (plan.park, plan.move, plan.unpark) == ({9: CUSTOMER.key}, {}, [])


def test_no_job_overtakes_one_of_its_key_that_was_parked_before_it() -> None:
    """The first job needs two units. The turn that passes on is its turn, though one is left."""
    cheap = JobLimit(("region", ""), None, RATE)
    costly = JobLimit(("region", ""), None, msgspec.structs.replace(RATE, cost=2))
    model = open_model()
    model.uses = {SMTP.key: LimitUse(1), cheap.key: LimitUse(0, model.now + 500_000)}
    model.parked = {5: (make_job(5, cheap), cheap.key)}
    model.put(make_job(1, costly))
    model.put(make_job(2, cheap, SMTP))
    plan = model.plan(4)
    assert plan.leases == []
    assert plan.park == {1: cheap.key, 2: SMTP.key}
    assert plan.unpark == []


def test_a_job_that_returns_is_leased_whether_it_has_a_tenant_or_not() -> None:
    for waiting, parked in ((None, "t"), ("t", None), (None, None), ("t", "t"), ("t", "u")):
        model = open_model()
        model.uses = {CUSTOMER.key: LimitUse(1)}
        model.parked = {1: (make_job(1, SMTP, tenant=parked), SMTP.key)}
        model.put(make_job(9, CUSTOMER, SMTP, tenant=waiting))
        plan = model.plan(4)
        assert [(lease.seq, lease.was_parked) for lease in plan.leases] == [(1, True)]
        assert plan.park == {9: CUSTOMER.key}
        model.apply(plan)
