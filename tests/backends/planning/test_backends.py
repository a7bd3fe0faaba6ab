"""Each backend does what is decided here, also those that decide in SQL and Lua.

Random calls go through the public operations of a backend. What they answer and what they leave
behind is compared with the decision about what the backend held before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import msgspec
import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.planning.enqueue import (
    EnqueuePlan,
    KeyHolder,
    KnownJobs,
    Replacement,
    UniqueKey,
    compute_due,
    compute_key_end,
    compute_replaced_due,
    holds_key,
    plan_enqueue,
)
from nimburion.backends.planning.rescue import OrphanedLease, decide_rescue, note_rescued
from nimburion.backends.planning.runs import decide_signal
from nimburion.backends.planning.settle import (
    Effect,
    FinalSettlement,
    decide_effect,
    decide_release,
    decide_unmatched,
)
from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.redis import RedisBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.core.errors import JobNotFound
from nimburion.core.ids import compute_digest
from nimburion.core.job import (
    FINISHED,
    REPEAT_WINDOW,
    WAITING,
    AttemptError,
    JobOptions,
    JobRecord,
    NewJob,
    OnDuplicate,
    Reason,
    State,
)
from nimburion.core.lease import Delivery, Lease
from nimburion.core.maintenance import Rescued
from nimburion.core.rate_limits import RateLimit
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    CLEANUP_STEP,
    NewSignal,
    SignalOutcome,
    make_signal_source,
)
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    RateLimited,
    Recorded,
    Released,
    Retried,
    Settled,
    Suspended,
)
from nimburion.core.timing.clock import MICRO, to_micros
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import HandDrivenWorker, Harness
from tests.servers.server_kinds import RunningPostgres, RunningRedis

CHAPTERS, ROUNDS = 8, 20
"""Each chapter has jobs and keys of its own. A round is one call that is compared."""
NAMES = ("mail", "scan")
RATE = RateLimit("100/s", interval=10_000, burst=100)
MODES: tuple[OnDuplicate, ...] = ("reject", "existing", "replace", "replace")
STATES = (None, None, (State.PENDING, State.SCHEDULED), (State.PROCESSING,))
SPANS = (None, 60.0, 600.0)
MANY = 100


def read_now(harness: Harness) -> int:
    return to_micros(harness.clock.now())


def predict(record: JobRecord, effect: Effect, now: int, host: str) -> JobRecord:
    """Return what becomes of a leased or waiting job."""
    due = record.due if effect.due is None else effect.due / MICRO
    failures, state = record.failures + effect.failures, effect.state
    ended = state is not None
    if effect.sources is not None:
        state = State.SUSPENDED
    elif state is None:
        waiting = State.SCHEDULED if due > now / MICRO else State.PENDING
        state = State.RETRYING if failures else waiting
    return msgspec.structs.replace(
        record,
        state=state,
        due=due,
        failures=failures,
        lost=record.lost + effect.lost,
        history=[*record.history, *([] if effect.error is None else [effect.error])],
        reason=effect.reason,
        result=effect.result,
        payload=record.payload if effect.keeps_payload else None,
        finished_at=now / MICRO if ended else None,
        cancel_requested=False,
        session=None,
        ended_by=record.session if ended else None,
        host=host if ended and record.session else "",
    )


# Enqueue


class EnqueueCheck:
    """Enqueues, and knows which unique keys and replacements the calls have left."""

    def __init__(self, harness: Harness, random: Random, chapter: int) -> None:
        self.harness = harness
        self.random = random
        self.ids = tuple(f"job-{chapter}-{n}" for n in range(30))
        self.keys = (None, *2 * (f"{chapter}-red", f"{chapter}-blue"))
        self.jobs = [self.make_job(job_id) for job_id in self.ids]
        self.bodies: dict[str, bytes] = {}
        self.taken: dict[UniqueKey, tuple[str, JobOptions, int]] = {}
        """The holder of each key, its options, and when it took the key."""
        self.replacements: dict[str, tuple[Replacement, int]] = {}

    def make_job(self, job_id: str) -> NewJob:
        random = self.random
        key = random.choice(self.keys)
        mode = random.choice(MODES)
        options = JobOptions(
            unique_key=key,
            unique_for=random.choice(SPANS),
            unique_while=random.choice(STATES),
            on_duplicate=mode,
            max_wait=random.choice((None, 5.0)) if mode == "replace" else None,
        )
        return NewJob(
            job_id,
            random.choice((*NAMES, "mail")),
            "default",
            random.choice((b"{}", b"[]")),
            random.randint(3, 5),
            self.harness.clock.now() + 7.0 if random.random() < 0.1 else None,
            random.choice((0.0, 0.0, 30.0, -5.0)),
            JobOptions() if key is None else options,
        )

    def list_jobs(self) -> list[NewJob]:
        """Return the jobs of a call. Few of them have the id of another job."""
        jobs = []
        for _ in range(self.random.choice((1, 1, 2, 3))):
            job = self.random.choice(self.jobs)
            if self.random.random() < 0.1:
                job = self.make_job(job.id)
            jobs.append(job)
        return jobs

    async def read_known_jobs(self, jobs: list[NewJob]) -> KnownJobs:
        now = read_now(self.harness)
        reads = self.harness.backend.reads
        states = {job_id: (await reads.get_job(job_id)).state for job_id in self.bodies}
        holders = {}
        for key, (holder, options, taken_at) in self.taken.items():
            until, state = compute_key_end(options, taken_at), states.get(holder)
            if until is None and state in FINISHED:
                continue
            if holds_key(now, until, options.unique_while, state):
                holders[key] = KeyHolder(holder, is_waiting=state in WAITING)
        replacements = {
            job_id: replacement
            for job_id, (replacement, until) in self.replacements.items()
            if until > now
        }
        return KnownJobs(dict(self.bodies), holders, replacements)

    async def enqueue(self) -> None:
        """Compare one call."""
        backend, now = self.harness.backend, read_now(self.harness)
        jobs = self.list_jobs()
        plan = plan_enqueue(jobs, await self.read_known_jobs(jobs))
        expected = {job.id: self.expect_new(job, now) for job in plan.new}
        for replaced_id, job in plan.replacing:
            old = expected.get(replaced_id) or await backend.reads.get_job(replaced_id)
            expected[replaced_id] = self.expect_replaced(old, job, now)
        assert await backend.producing.enqueue(jobs) == plan.results
        self.note(plan, now)
        for job_id, record in expected.items():
            assert await backend.reads.get_job(job_id) == record

    @staticmethod
    def expect_new(job: NewJob, now: int) -> JobRecord:
        due = compute_due(job, now)
        return JobRecord(
            id=job.id,
            name=job.name,
            queue=job.queue,
            state=State.SCHEDULED if due > now else State.PENDING,
            priority=job.priority,
            payload=job.payload,
            due=due / MICRO,
            created_at=now / MICRO,
            options=job.options,
        )

    def expect_replaced(self, old: JobRecord, job: NewJob, now: int) -> JobRecord:
        due = compute_replaced_due(
            job,
            now,
            created_at=to_micros(old.created_at),
            old_due=to_micros(old.due),
            failures=old.failures,
        )
        new = self.expect_new(job, now)
        waiting = State.SCHEDULED if due > now else State.PENDING
        return msgspec.structs.replace(
            old,
            state=State.RETRYING if old.failures else waiting,
            due=due / MICRO,
            priority=new.priority,
            payload=new.payload,
            options=new.options,
        )

    def note(self, plan: EnqueuePlan, now: int) -> None:
        """Remember what a call has stored."""
        stored = [(job.id, job) for job in plan.new] + plan.replacing
        for job in plan.new:
            self.bodies[job.id] = compute_digest(job.name, job.payload)
        for job_id, job in stored:
            if job.options.unique_key is not None:
                self.taken[job.name, job.options.unique_key] = (job_id, job.options, now)
        for replaced_id, job in plan.replacing:
            until = now + to_micros(REPEAT_WINDOW)
            self.replacements[job.id] = (
                Replacement(replaced_id, compute_digest(job.name, job.payload)),
                until,
            )

    async def work(self, worker: HandDrivenWorker) -> None:
        """Change the states of some jobs."""
        backend, random = self.harness.backend, self.random
        if random.random() < 0.1:
            for job_id in random.sample(list(self.bodies), min(1, len(self.bodies))):
                await backend.producing.cancel(job_id)
        for delivery in await worker.take(random.randint(0, 2)):
            settlement = random.choice((None, *list_settlements(delivery.lease)))
            if settlement is not None:
                await worker.settle(settlement)
        self.harness.clock.advance(random.choice((0.0, 0.0, 1.0, 40.0, 400.0)))


async def check_enqueues(harness: Harness, random: Random) -> None:
    """Compare the outcomes of enqueues, and the jobs that they store and replace."""
    worker = await harness.worker(names=NAMES, ttl=1e6)
    for chapter in range(CHAPTERS):
        check = EnqueueCheck(harness, random, chapter)
        for _ in range(ROUNDS):
            await check.enqueue()
            await check.work(worker)


# Settle


def list_settlements(lease: Lease) -> tuple[FinalSettlement, ...]:
    """Return one settlement of each kind for a lease."""
    error = AttemptError(1, "failure", "ValueError", "no luck", fingerprint="f" * 16)
    return (
        Completed(lease),
        Completed(lease, b"[1]"),
        Completed(lease, keep_payload=True),
        Retried(lease, 2.0, error),
        Retried(lease, 0.0, error),
        Failed(lease, Reason.EXHAUSTED, error),
        Cancelled(lease, "no more"),
        Released(lease),
        Released(lease, 3.0),
        Released(lease, unstarted=True),
        Released(lease, 3.0, unstarted=True),
        RateLimited(lease, 4.0),
        Suspended(lease),
        Suspended(lease, (make_signal_source(lease.job_id, "go"),), 50.0),
    )


async def check_settlements(harness: Harness, random: Random) -> None:
    """Compare what each settlement makes of a job: with a cancel request, a rate, and again."""
    worker = await harness.worker(names=NAMES, rates={"scan": RATE}, ttl=1e6)
    ids = [f"job-{n}" for n in range(MANY)]
    jobs = [harness.job(job_id, name=random.choice(NAMES)) for job_id in ids]
    await harness.enqueue(*jobs)
    for _ in range(CHAPTERS):
        deliveries = await worker.take(ROUNDS)
        harness.clock.advance(random.choice((1.0, 5.0)))
        settled = [(each, await settle(harness, worker, each, random)) for each in deliveries]
        for delivery, settles in settled:
            unmatched = decide_unmatched(
                delivery.lease.token, delivery.lease.token if settles else None
            )
            record = await harness.backend.reads.get_job(delivery.lease.job_id)
            assert await worker.settle(Completed(delivery.lease)) == [unmatched]
            assert await harness.backend.reads.get_job(delivery.lease.job_id) == record


async def settle(
    harness: Harness, worker: HandDrivenWorker, delivery: Delivery, random: Random
) -> bool:
    """Compare the end of one lease; return whether it settled the job."""
    backend, lease = harness.backend, delivery.lease
    if random.random() < 0.3:
        await worker.settle(Recorded(lease, CLEANUP_STEP, b""))
    needs_cleanup = await has_cleanup_step(harness, lease.job_id)
    if random.random() < 0.3:
        await backend.producing.cancel(lease.job_id)
    before, now = await backend.reads.get_job(lease.job_id), read_now(harness)
    requested = before.cancel_requested
    if random.random() < 0.1:
        await backend.consuming.release(worker.id, [lease])
        effect = decide_release(
            cancel_requested=requested,
            settles=True,
            unstarted=True,
            needs_cleanup=needs_cleanup,
        )
    else:
        settlement = random.choice(list_settlements(lease))
        assert await worker.settle(settlement) == [Settled.DONE]
        blocked = isinstance(settlement, RateLimited) and delivery.name == "scan"
        effect = decide_effect(
            settlement,
            now,
            cancel_requested=requested,
            needs_cleanup=needs_cleanup,
            is_rate_blocked=blocked,
        )
    assert await backend.reads.get_job(lease.job_id) == predict(before, effect, now, "here")
    await check_cancel_signal(harness, lease.job_id, effect)
    return effect.settles


async def has_cleanup_step(harness: Harness, job_id: str) -> bool:
    steps = (await harness.backend.reads.read_run(job_id)).steps
    return CLEANUP_STEP in {step.number for step in steps}


async def check_cancel_signal(harness: Harness, job_id: str, effect: Effect) -> None:
    """Check that a run got the signal that asks it to end, if that is the effect. It keeps it."""
    signals = (await harness.backend.reads.read_run(job_id)).signals
    if effect.sends_cancel:
        assert CANCEL_SIGNAL in {signal.name for signal in signals}


# Signals


async def check_signals(harness: Harness, random: Random) -> None:
    """Compare the outcomes of signals to jobs of all states, and what is unread afterwards."""
    worker = await harness.worker(names=NAMES, ttl=1e6)
    ids = [f"job-{n}" for n in range(2 * ROUNDS)]
    await harness.enqueue(*(harness.job(job_id) for job_id in ids[:-ROUNDS]))
    known: dict[str, list[NewSignal]] = {job_id: [] for job_id in ids}
    for _ in range(CHAPTERS):
        for delivery in await worker.take(random.randint(0, 4)):
            await worker.settle(random.choice(list_settlements(delivery.lease)))
        signals = [
            NewSignal(random.choice(ids), "go", str(random.randrange(6)), b"%d" % n)
            for n in range(ROUNDS)
        ]
        expected = []
        for signal in signals:
            stored = known[signal.job_id]
            try:
                state = await harness.state(signal.job_id)
            except JobNotFound:
                state = None
            is_known = signal.id in {one.id for one in stored}
            expected.append(decide_signal(state, is_known=is_known, unread=len(stored)))
            if expected[-1] is SignalOutcome.STORED:
                stored.append(signal)
        assert await harness.backend.producing.send_signals(signals) == expected
        for job_id in ids[:-ROUNDS]:
            unread = (await harness.backend.reads.read_run(job_id)).signals
            assert [one.payload for one in unread] == [one.payload for one in known[job_id]]
            numbers = [one.number for one in unread]
            assert numbers == sorted({*numbers})


# Rescue


async def check_rescues(harness: Harness, random: Random) -> None:
    """Compare what becomes of the jobs of sessions that expire or are left."""
    jobs = [harness.job(f"job-{n}", name=random.choice(NAMES)) for n in range(MANY)]
    await harness.enqueue(*jobs)
    for _ in range(2 * CHAPTERS):
        orphans: dict[str, tuple[JobRecord, OrphanedLease]] = {}
        for _ in range(4):
            orphans |= await lose_some(harness, random)
        harness.clock.advance(60.0)
        await rescue(harness, orphans, max_lost=random.randint(2, 4))


async def lose_some(harness: Harness, random: Random) -> dict[str, tuple[JobRecord, OrphanedLease]]:
    """Open a session, take some jobs, and leave them. Return them by id."""
    backend = harness.backend
    worker = await harness.worker(names=NAMES)
    leases = [delivery.lease for delivery in await worker.take(random.choice((1, 1, 2, 3)))]
    harness.clock.advance(1.0)
    for lease in leases:
        if random.random() < 0.3:
            await worker.settle(Recorded(lease, CLEANUP_STEP, b""))
        if random.random() < 0.15:
            await backend.producing.cancel(lease.job_id)
        elif random.random() < 0.2:
            error = AttemptError(1, "failure", "ValueError")
            await worker.settle(Retried(lease, 0.0, error))
    was_left = random.random() < 0.2
    records = {lease.job_id: await backend.reads.get_job(lease.job_id) for lease in leases}
    held = {job_id: each for job_id, each in records.items() if each.session == worker.id}
    if was_left:
        await worker.close(*leases)
    return {
        job_id: (
            record,
            OrphanedLease(
                failures=record.failures,
                lost=record.lost,
                started_at=to_micros(record.started_at or 0.0),
                cancel_requested=record.cancel_requested,
                session=worker.id,
                host="here",
                was_left=was_left,
                held_several=len(held) > 1,
                needs_cleanup=await has_cleanup_step(harness, job_id),
            ),
        )
        for job_id, record in held.items()
    }


async def rescue(
    harness: Harness, orphans: dict[str, tuple[JobRecord, OrphanedLease]], max_lost: int
) -> None:
    """Compare one rescue of these jobs."""
    now, expected, records, effects = read_now(harness), Rescued([], [], []), {}, {}
    for job_id, (record, lease) in orphans.items():
        effect = effects[job_id] = decide_rescue(lease, max_lost, now)
        note_rescued(expected, job_id, effect)
        records[job_id] = predict(record, effect, now, "here")
    rescued = await harness.backend.consuming.rescue(MANY, max_lost=max_lost)
    for found, wanted in zip(
        msgspec.structs.astuple(rescued)[:3], msgspec.structs.astuple(expected)[:3], strict=True
    ):
        assert sorted(found) == sorted(wanted)
    for job_id, wanted_record in records.items():
        assert await harness.backend.reads.get_job(job_id) == wanted_record
        await check_cancel_signal(harness, job_id, effects[job_id])


# Backends

Check = Callable[[Harness, Random], Awaitable[None]]
CHECKS: tuple[Check, ...] = (check_enqueues, check_settlements, check_signals, check_rescues)
each_decision = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


@asynccontextmanager
async def open_harness(backend: Backend, clock: FakeClock) -> AsyncIterator[Harness]:
    await backend.open()
    try:
        yield Harness(clock, [backend])
    finally:
        await backend.close()


@each_decision
async def test_memory_does_what_is_decided(check: Check) -> None:
    clock = FakeClock()
    async with open_harness(MemoryBackend(clock=clock), clock) as harness:
        await check(harness, Random(1))


@each_decision
async def test_sqlite_does_what_is_decided(check: Check, tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_harness(SQLiteBackend(tmp_path / "jobs.db", clock=clock), clock) as harness:
        await check(harness, Random(1))


@each_decision
async def test_redis_decides_the_same(check: Check, single_redis: RunningRedis) -> None:
    clock = FakeClock()
    async with open_harness(RedisBackend(single_redis.url, clock=clock), clock) as harness:
        await check(harness, Random(1))


@each_decision
async def test_postgres_decides_the_same(check: Check, clean_postgres: RunningPostgres) -> None:
    clock = FakeClock()
    backend = PostgresBackend(clean_postgres.url, clock=clock, timeout=30.0)
    async with open_harness(backend, clock) as harness:
        await check(harness, Random(1))
