"""Settlements of many kinds in one exchange: each backend does what the memory backend does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.redis import RedisBackend
from nimburion.core.backend import Backend
from nimburion.core.job import Reason, State
from nimburion.core.lease import Lease
from nimburion.core.runs import NewSignal, make_signal_source
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Recorded,
    Released,
    Retried,
    Settlement,
    Suspended,
)
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness
from tests.servers.server_kinds import RunningPostgres, RunningRedis

ROUNDS = 25
JOBS = 12
MakeSettlement = Callable[[Lease], Settlement]


class Side:
    """One of the backends that are compared, and the leases that its worker got."""

    def __init__(self, harness: Harness, worker: HandDrivenWorker) -> None:
        self.harness = harness
        self.worker = worker
        self.leases: list[Lease] = []
        """Those of before too, so that some settlements are stale."""

    async def take(self) -> list[str]:
        deliveries = await self.worker.take(JOBS)
        self.leases += sorted((one.lease for one in deliveries), key=lambda lease: lease.job_id)
        return sorted(one.lease.job_id for one in deliveries)

    async def describe(self) -> list[object]:
        """Return what is stored of all jobs."""
        reads = self.harness.backend.reads
        found: list[object] = []
        for number in range(JOBS):
            record, run = await reads.get_job(f"j{number}"), await reads.read_run(f"j{number}")
            steps = [(step.number, step.body) for step in run.steps]
            signals = [(signal.number, signal.name) for signal in run.signals]
            progress = record.progress and (record.progress.fraction, record.progress.message)
            ended = (record.state, record.reason, record.failures, record.lost)
            due = round(record.due, 3) if record.state is not State.PROCESSING else None
            found.append((record.id, ended, due, progress, steps, signals))
        return found


def choose_settlement(random: Random, job_id: str) -> MakeSettlement:
    number, delay = random.randint(0, 4), random.choice([None, 0.0, 5.0])
    sources = random.choice([(), (make_signal_source(job_id, "paid"),)])
    kinds: list[MakeSettlement] = [
        Completed,
        Completed,
        lambda lease: Completed(lease, b"1"),
        lambda lease: Completed(lease, keep_payload=True),
        lambda lease: Retried(lease, 5.0, FAILURE),
        lambda lease: Failed(lease, Reason.PERMANENT, FAILURE),
        lambda lease: Released(lease, delay),
        lambda lease: Cancelled(lease, "asked"),
        lambda lease: Progressed(lease, number / 10, '[["text"]]'),
        *3 * [lambda lease: Recorded(lease, number, b"%d" % number)],
        lambda lease: Recorded(lease, number, b"x", number),
        lambda lease: Recorded(lease, number, b"y", forgets=True),
        *2 * [lambda lease: Suspended(lease, sources, delay)],
    ]
    return random.choice(kinds)


@asynccontextmanager
async def open_side(make: Callable[[FakeClock], Backend]) -> AsyncIterator[Side]:
    clock = FakeClock()
    backend = make(clock)
    await backend.open()
    harness = Harness(clock, [backend])
    await harness.add(*(f"j{number}" for number in range(JOBS)))
    yield Side(harness, await harness.worker(ttl=10_000.0))
    await backend.close()


async def play(
    seed: int, make: Callable[[FakeClock], Backend]
) -> AsyncIterator[tuple[str, object, object]]:
    """Make the same random exchanges on a backend and on the memory backend.

    Yield where it is, and what each of the two did.
    """
    random = Random(seed)
    async with (
        open_side(lambda clock: MemoryBackend(clock=clock)) as memory,
        open_side(make) as other,
    ):
        for turn in range(ROUNDS):
            where = f"seed {seed}, exchange {turn}"
            yield where, await other.take(), await memory.take()
            for place in random.sample(range(len(memory.leases)), random.randint(0, 2)):
                job_id = memory.leases[place].job_id
                for side in (memory, other):
                    await side.harness.backend.producing.cancel(job_id)
            if random.random() < 0.3:
                signal = NewSignal(f"j{random.randrange(JOBS)}", "paid", f"s{turn}", b"1")
                for side in (memory, other):
                    await side.harness.backend.producing.send_signals([signal])
            recent = range(max(0, len(memory.leases) - 2 * JOBS), len(memory.leases))
            places = [random.choice(recent) for _ in range(random.randint(1, 12))]
            makers = [choose_settlement(random, memory.leases[place].job_id) for place in places]
            results = [
                await side.worker.settle(
                    *(make(side.leases[place]) for place, make in zip(places, makers, strict=True))
                )
                for side in (memory, other)
            ]
            yield where, results[1], results[0]
            yield where, await other.describe(), await memory.describe()
            seconds = random.choice([0.0, 1.0, 5.0])
            for side in (memory, other):
                side.harness.clock.advance(seconds)


@pytest.mark.parametrize("seed", range(6))
async def test_on_postgres(seed: int, clean_postgres: RunningPostgres) -> None:
    steps = play(seed, lambda clock: PostgresBackend(clean_postgres.url, clock=clock))
    async for where, found, expected in steps:
        assert found == expected, where


@pytest.mark.parametrize("seed", range(6))
async def test_on_redis(seed: int, single_redis: RunningRedis) -> None:
    single_redis.empty()
    steps = play(seed, lambda clock: RedisBackend(single_redis.url, clock=clock))
    async for where, found, expected in steps:
        assert found == expected, where
