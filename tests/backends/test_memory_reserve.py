"""The plain case of `Reservation.lease_jobs` leases what the general case leases."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from random import Random
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.memory.reserve import Reservation
from nimburion.core.exchange import Lane, QueueOptions, Reply, ReserveRequest
from nimburion.core.job import NO_JOB_OPTIONS, AttemptError, JobOptions, NewJob
from nimburion.core.lease import Lease
from nimburion.core.limits import LimitChange, LimitRule, make_job_limit_name
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Released, Retried, Settlement
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend

SESSION = "5" * 32
QUEUES = ("red", "blue")
NAMES = ("mail", "report", "scan")
LANES = tuple(Lane(queue, name) for queue in QUEUES for name in NAMES)
STEPS = 25


class GeneralBackend(OverridableBackend):
    """A memory backend whose exchanges all take the general case."""

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        with mock.patch.object(Reservation, "is_plain", return_value=False):
            return await super().exchange(session_id, number, settlements, request)


class Pair:
    """Makes the same random calls on two backends. Each call must have the same answer."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.clock = FakeClock()
        self.backends = (MemoryBackend(clock=self.clock), GeneralBackend(clock=self.clock))
        self.leases: list[Lease] = []
        self.enqueued = 0
        self.exceptions = random.choice((0.0, 0.0, 0.15))
        """How often a step is a pause, a limit or a job of a tenant: exceptions to the plain
        case."""

    async def run(self) -> None:
        session = Session(id=SESSION, names=NAMES, limits=self.choose_keyed_limits())
        for backend in self.backends:
            await backend.consuming.open_session(session)
        for number in range(1, STEPS + 1):
            self.clock.advance(self.random.choice((0.0, 0.25, 1.0, 10.0)))
            await self.enqueue()
            if self.random.random() < self.exceptions:
                await self.change_admission()
            await self.exchange(number)
        one, other = [(await backend.reads.list_jobs(limit=1000)).jobs for backend in self.backends]
        assert one == other

    def choose_keyed_limits(self) -> dict[str, dict[str, LimitRule]]:
        return {"scan": {"k": LimitRule(1)}} if self.random.random() < self.exceptions else {}

    async def enqueue(self) -> None:
        jobs = [self.make_job() for _ in range(self.random.randint(0, 6))]
        for backend in self.backends:
            await backend.producing.enqueue(jobs)

    def make_job(self) -> NewJob:
        random = self.random
        self.enqueued += 1
        options = NO_JOB_OPTIONS
        if random.random() < 0.2:
            tenant = "t" if random.random() < self.exceptions else None
            options = JobOptions(headers={"a": "b"}, tenant=tenant, limit_keys={"k": "1"})
        return NewJob(
            f"job-{self.enqueued}",
            random.choice(NAMES),
            random.choice(QUEUES),
            b"x" * random.choice((2, 200, 2_000)),
            priority=random.randint(4, 6),
            after=random.choice((0.0, 0.0, 0.25, 5.0)),
            options=options,
        )

    async def change_admission(self) -> None:
        """Pause or resume a queue, or change or reset the limits of a job name."""
        random = self.random
        queue, paused = random.choice(QUEUES), random.random() < 0.5
        concurrency = random.choice((None, 0, 2))
        rate = RateLimit("2/s", 500_000, burst=2) if concurrency is None else None
        name = make_job_limit_name(random.choice(NAMES))
        change = LimitChange(name=name, concurrency=concurrency, rate=rate)
        what = random.choice(("pause", "change", "reset"))
        for backend in self.backends:
            if what == "pause":
                await backend.maintenance.pause_queue(queue, paused=paused)
            elif what == "change":
                await backend.maintenance.change_limit(change)
            else:
                await backend.maintenance.reset_limit(change.name)

    async def exchange(self, number: int) -> None:
        settlements = [self.settle(lease) for lease in self.leases if self.random.random() < 0.7]
        settled = {settlement.lease for settlement in settlements}
        request = self.make_request()
        one, other = [
            await backend.consuming.exchange(SESSION, number, settlements, request)
            for backend in self.backends
        ]
        assert one == other
        self.leases = [lease for lease in self.leases if lease not in settled]
        self.leases += [delivery.lease for delivery in one.deliveries]

    def settle(self, lease: Lease) -> Settlement:
        error = AttemptError(1, "failure", "ValueError", "no")
        return self.random.choice((Completed(lease), Released(lease), Retried(lease, 0.25, error)))

    def make_request(self) -> ReserveRequest:
        random = self.random
        limit = 1 if random.random() < self.exceptions else None
        return ReserveRequest(
            total=random.randint(0, 8),
            lanes=tuple(random.sample(LANES, random.randint(1, len(LANES)))),
            queues={"red": QueueOptions(random.randint(-1, 1), limit)},
            ageing=random.choice((0.0, 2.0, 60.0)),
            nonce=random.randbytes(16),
            max_bytes=random.choice((1, 1_000, 5_000, 1_000_000)),
        )


def test_the_plain_case_leases_what_the_general_case_leases() -> None:
    plain_exchanges: Counter[bool] = Counter()
    is_plain = Reservation.is_plain

    def count_plain(merge: Reservation) -> bool:
        result = is_plain(merge)
        plain_exchanges[result] += 1
        return result

    @given(seed=st.integers(0, 2**32 - 1))
    def compare(seed: int) -> None:
        asyncio.run(Pair(Random(seed)).run())

    with mock.patch.object(Reservation, "is_plain", count_plain):
        compare()
    assert plain_exchanges[True] > 500
    assert plain_exchanges[False] > 100
