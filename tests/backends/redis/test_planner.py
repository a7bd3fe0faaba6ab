"""The Lua of an exchange does what `plan_reserve` says, whatever waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from functools import cache
from random import Random
from types import MappingProxyType

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from nimburion.backends.planning import reserve
from nimburion.backends.planning.admission import make_reply_limit
from nimburion.backends.planning.reserve import ReservePlan, plan_reserve
from nimburion.backends.planning.source import PlanLane, Tenant
from nimburion.backends.redis import scripts
from nimburion.backends.redis.backend import RedisBackend
from nimburion.backends.redis.scripts import Script
from nimburion.core.exchange import DEFAULT_QUEUE_OPTIONS, Lane, QueueOptions, ReserveRequest
from nimburion.core.fairness import ShareClass, to_weight_units
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.lease import Lease
from nimburion.core.limits import (
    JobLimit,
    LimitKey,
    LimitRule,
    LimitUse,
    concerns_lane,
    drop_lane_limits,
    find_limit_key,
    make_job_limit_name,
)
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settlement import Completed, Released
from nimburion.core.timing.clock import to_micros
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import HandDrivenWorker, Harness
from tests.backends.redis.small_scripts import build_scripts_with
from tests.backends.redis.stored_state import StoredSource, StoredState, read_state
from tests.servers.server_kinds import RunningRedis

QUEUES, NAMES = ("red", "blue"), ("mail", "scan")
LANES = tuple(Lane(queue, name) for queue in QUEUES for name in NAMES)
RATE = RateLimit("1/s", interval=1_000_000, burst=2)
QUEUE_RULES = (LimitRule(1), LimitRule(3), LimitRule(3, RATE), LimitRule(rate=RATE))
MOST_PARKED = 6
SMALL = MappingProxyType(
    {"MAX_PARKED": MOST_PARKED}
    | {"MIN_CANDIDATES": 2, "MAX_CANDIDATES": 3, "MIN_TURNS": 1, "MAX_TURNS": 3}
)
"""Constants of the script that are small in these tests, so that few jobs reach them."""
FEW = 60
"""Examples of a usual run, of 12 compared exchanges each; deep, as many as the profile has."""
STEPS = 12


@cache
def build_small_scripts(*, flagged: bool) -> Mapping[str, Script]:
    """Build the scripts with small constants."""
    return build_scripts_with(SMALL, flagged=flagged)


@pytest.fixture
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "build_scripts", build_small_scripts)
    monkeypatch.setattr(reserve, "MAX_PARKED", MOST_PARKED)


class Example:
    """A sequence of exchanges. Each one is planned from what the server stores, and compared."""

    def __init__(self, seed: int, harness: Harness, events: Counter[str]) -> None:
        self.random = Random(seed)
        self.events = events
        """How often each thing happened that a plan can do."""
        self.harness = harness
        self.jobs: dict[int, NewJob] = {}
        self.held: list[tuple[HandDrivenWorker, Lease]] = []
        self.weights = {"t": 2.0} if self.random.random() < 0.3 else {}
        self.paused: set[str] = set()
        choose = self.random.choice
        self.lanes = self.random.sample(LANES, choose((1, 2, 4)))
        self.keys = choose(("a", "ab"))
        self.tenants = choose(((None,), ("t", "u"), (None, "t", "u")))
        self.has_own_limits = choose((False, True))
        self.rules: dict[str, dict[str, LimitRule]] = {}
        """What is in force, by job name and then by the name of the limit."""

    async def run(self) -> None:
        """Run all steps."""
        worker = await self.declare()
        for _ in range(STEPS):
            if self.random.random() < 0.1:
                worker = await self.declare()
            await self.change()
            await self.compare(worker)

    async def declare(self) -> HandDrivenWorker:
        """Open a session that declares other limits."""
        choose = self.random.choice
        limits: dict[str, int] = {}
        rates: dict[str, RateLimit] = {}
        if self.has_own_limits:
            limits = {name: most for name in NAMES if (most := choose((None, None, 1, 3)))}
            rates = {name: RATE for name in NAMES if choose((False, False, True))}
        shared = {
            "customer": LimitRule(concurrency=choose((1, 2))),
            "region": LimitRule(choose((None, 1)), RATE),
            "smtp": LimitRule(concurrency=choose((1, 2))),
        }
        keyed = {
            name: {limit: shared[limit] for limit in shared if self.random.random() < 0.7}
            for name in NAMES
        }
        for name in NAMES:
            if choose((True, True, False)):
                keyed[name]["queue:red"] = choose(QUEUE_RULES)
        self.rules = {
            name: keyed[name]
            | {
                make_job_limit_name(name): LimitRule(limits.get(name), rates.get(name))
                for _ in range(name in limits or name in rates)
            }
            for name in NAMES
        }
        return await self.harness.worker(
            names=NAMES,
            queues=QUEUES,
            limits=limits,
            rates=rates,
            keyed={name: some for name, some in keyed.items() if some},
            weights=self.weights,
            ttl=1_000.0,
        )

    async def change(self) -> None:
        """Enqueue jobs, end leases, pause a queue, and let time pass."""
        random = self.random
        if jobs := [self.make_job() for _ in range(random.randint(0, 6))]:
            await self.harness.enqueue(*jobs)
            self.jobs |= dict(enumerate(jobs, start=len(self.jobs) + 1))
        random.shuffle(self.held)
        for _ in range(min(random.randint(0, 3), len(self.held))):
            owner, lease = self.held.pop()
            await owner.settle(random.choice((Completed(lease), Released(lease))))
        if random.random() < 0.1:
            queue = random.choice(QUEUES)
            self.paused ^= {queue}
            await self.harness.backend.maintenance.pause_queue(queue, paused=queue in self.paused)
        self.harness.clock.advance(random.choice((0.0, 0.25, 1.5)))

    def make_job(self) -> NewJob:
        """Return a job with some keys, sometimes of a tenant."""
        random = self.random
        keys = {limit: random.choice(self.keys) for limit in ("customer", "region", "smtp")}
        lane = random.choice(self.lanes)
        return self.harness.job(
            name=lane.name,
            queue=lane.queue,
            priority=random.choice((4, 5, 5)),
            after=random.choice((0.0, 0.0, 0.0, 1.0)),
            options=JobOptions(
                tenant=random.choice(self.tenants),
                limit_keys={limit: key for limit, key in keys.items() if random.random() < 0.7},
                cost=random.choice((None, None, 2)),
            ),
        )

    async def compare(self, worker: HandDrivenWorker) -> None:
        """Reserve jobs, and compare what the server stores then with the plan."""
        backend, random = self.harness.backend, self.random
        assert isinstance(backend, RedisBackend)
        await worker.exchange(want=worker.want(0))  # moves due jobs, and returns parked ones
        state = await read_state(backend)
        queues = {
            queue: QueueOptions(random.choice((0, 0, 1)), random.choice((None, None, 1, 2)))
            for queue in QUEUES
            if random.random() < 0.7
        }
        lanes = tuple(random.sample(LANES, random.randint(1, len(LANES))))
        want = worker.want(
            random.randint(1, 7), lanes=lanes, queues=queues, ageing=random.choice((0.0, 1.0))
        )
        plan = self.plan(state, want)
        reply = await worker.exchange(want=want)
        assert [one.lease.ref for one in reply.deliveries] == [one.seq for one in plan.leases]
        state.apply(plan)
        stored = await read_state(backend)
        assert stored.waiting == state.waiting
        assert stored.parked == state.parked
        assert use_list(stored) == use_list(state)
        assert find_other_shares(stored, state, plan) == []
        assert stored.min_virtual_times == state.min_virtual_times
        assert reply.waiting == self.find_waiting(stored, want)
        self.events.update(
            leased=len(plan.leases),
            charged=len(plan.shares),
            parked=len(plan.park),
            moved=len(plan.move),
            returned=len(plan.unpark),
            returned_and_leased=sum(lease.was_parked for lease in plan.leases),
            full=len(plan.park) + len(plan.move) == MOST_PARKED,
        )
        self.held += [(worker, one.lease) for one in reply.deliveries]

    @property
    def now(self) -> int:
        return to_micros(self.harness.clock.now())

    def plan(self, state: StoredState, want: ReserveRequest) -> ReservePlan:
        """Plan an exchange in Python."""
        lanes, uses = [], dict[LimitKey, LimitUse]()
        for n, lane in enumerate(want.lanes):
            if lane.queue in self.paused:
                continue
            limits = self.list_lane_limits(lane)
            uses |= {limit.key: state.uses.get(limit.key, LimitUse()) for limit in limits}
            most = want.queues.get(lane.queue, DEFAULT_QUEUE_OPTIONS).limit
            if most is not None:
                limits.append(make_reply_limit(lane.queue, most))
                uses[limits[-1].key] = LimitUse()
            has_keys = bool(drop_lane_limits(self.rules[lane.name]))
            lanes.append(PlanLane(n, lane, limits=limits, has_keys=has_keys))
        weights = {tenant: to_weight_units(weight) for tenant, weight in self.weights.items()}
        by_key = {seq: self.list_limits(job) for seq, job in self.jobs.items()}
        source = StoredSource(state, by_key, weights)
        return plan_reserve(source, lanes, want, self.now, uses=uses, has_turns=True)

    def list_lane_limits(self, lane: Lane) -> list[JobLimit]:
        """Return the limits in which all jobs of a lane count."""
        return [
            JobLimit((name, ""), limit.concurrency, limit.rate)
            for name, limit in sorted(self.rules[lane.name].items())
            if concerns_lane(name, lane.queue)
        ]

    def list_limits(self, job: NewJob) -> list[JobLimit]:
        """Return the limits by key in which a job counts."""
        found = []
        for name, limit in sorted(drop_lane_limits(self.rules[job.name]).items()):
            key = find_limit_key(name, job.queue, job.options.limit_keys)
            if key is not None:
                rate, cost = limit.rate, job.options.cost
                if rate is not None and cost is not None:
                    rate = msgspec.structs.replace(rate, cost=cost)
                found.append(JobLimit((name, key), limit.concurrency, rate))
        return found

    def find_waiting(self, state: StoredState, want: ReserveRequest) -> list[Lane]:
        """Return the requested lanes with jobs whose limits have room."""
        holding = {job.lane for job in state.waiting.values()}
        return [
            lane
            for lane in want.lanes
            if lane in holding
            and lane.queue not in self.paused
            and all(self.has_room(state, limit) for limit in self.list_lane_limits(lane))
        ]

    def has_room(self, state: StoredState, limit: JobLimit) -> bool:
        """Return whether a limit allows one more job."""
        use = state.uses.get(limit.key, LimitUse())
        if limit.concurrency is not None and use.in_use >= limit.concurrency:
            return False
        return limit.rate is None or limit.rate.count_room(use.spent_until, self.now) > 0


def use_list(state: StoredState) -> dict[LimitKey, tuple[int, int, int | None]]:
    """Return the uses of all keys that are in use, or whose rate was."""
    return {
        key: (use.in_use, use.spent_until, use.opens_at)
        for key, use in state.uses.items()
        if (use.in_use, use.spent_until, use.opens_at) != (0, 0, None)
    }


def find_other_shares(
    stored: StoredState, planned: StoredState, plan: ReservePlan
) -> list[tuple[ShareClass, Tenant]]:
    """Return the tenants whose stored share is not as planned.

    A tenant whose job returned, and was perhaps parked again, may be at the minimum virtual time of
    that moment. No plan tells it.
    """
    jobs = [planned.waiting[seq] for seq in plan.unpark]
    jobs += [planned.parked[seq][0] for seq in plan.move]
    returned = {((job.lane.queue, job.rank), job.tenant) for job in jobs}
    found = []
    for class_, shares in stored.shares.items():
        for tenant, share in shares.items():
            expected = planned.shares.get(class_, {}).get(tenant)
            if expected is not None and (class_, tenant) in returned:
                time = max(share.virtual_time, expected.virtual_time)
                if time <= max(expected.virtual_time, planned.min_virtual_times[class_]):
                    expected = msgspec.structs.replace(expected, virtual_time=time)
            if share != expected:
                found.append((class_, tenant))
    return found


async def run_example(seed: int, url: str, events: Counter[str]) -> None:
    clock = FakeClock()
    backend = RedisBackend(url, clock=clock, timeout=30.0)
    await backend.open()
    try:
        await Example(seed, Harness(clock, [backend]), events).run()
    finally:
        await backend.close()


def test_an_exchange_does_what_the_planner_says(
    redis_server: RunningRedis, small_numbers: None
) -> None:
    usual = hypothesis.settings()
    count = usual.max_examples if usual.max_examples > 100 else FEW
    events: Counter[str] = Counter()

    # Not shrunk: a smaller seed is no simpler.
    @hypothesis.settings(usual, max_examples=count, phases=(hypothesis.Phase.generate,))
    @hypothesis.given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        redis_server.empty()
        asyncio.run(run_example(seed, redis_server.url, events))

    check()
    assert [name for name, number in events.items() if number < 3] == []
