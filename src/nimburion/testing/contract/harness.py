"""What the cases play on: one empty backend, a clock to move by hand, and workers played by
hand."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Sequence
from itertools import count
from typing import TypeVar

from nimburion.core.backend import Backend
from nimburion.core.exchange import RESERVE_NOTHING, Lane, QueueOptions, Reply, ReserveRequest
from nimburion.core.job import NO_JOB_OPTIONS, AttemptError, Enqueued, JobOptions, NewJob, State
from nimburion.core.lease import Delivery, Lease
from nimburion.core.operations import Rescued
from nimburion.core.session import HeartbeatReply, Session
from nimburion.core.settlement import Settled, Settlement
from nimburion.testing.clock import FakeClock

T = TypeVar("T")

TTL = 30.0
"""Seconds that the sessions of the cases live."""
DEADLINE = 20.0
"""Seconds of real time after which something that should happen counts as not happening."""
OOPS = AttemptError(1, "failure", "ValueError", "no luck", "Traceback: …")
"""How an attempt may end badly."""


class Harness:
    """An empty backend, seen through one or more handles, and its clock."""

    def __init__(self, clock: FakeClock, handles: Sequence[Backend]) -> None:
        self.clock = clock
        self.handles: list[Backend] = list(handles)
        self.store: Backend = self.handles[0]
        self._jobs = count(1)
        self._sessions = count(1)

    def job(
        self,
        job_id: str | None = None,
        *,
        name: str = "mail",
        queue: str = "default",
        payload: bytes = b"{}",
        priority: int = 5,
        at: float | None = None,
        after: float = 0.0,
        options: JobOptions = NO_JOB_OPTIONS,
    ) -> NewJob:
        """A new job; ids count up."""
        job_id = job_id or f"job-{next(self._jobs)}"
        return NewJob(job_id, name, queue, payload, priority, at, after, options)

    async def enqueue(self, *jobs: NewJob) -> list[Enqueued]:
        """One call."""
        return await self.store.enqueue(jobs)

    async def add(self, *ids: str, name: str = "mail", queue: str = "default") -> list[str]:
        """Enqueue plain jobs, in one call; without ids, one."""
        jobs = [self.job(i, name=name, queue=queue) for i in ids]
        jobs = jobs or [self.job(name=name, queue=queue)]
        assert {one.outcome for one in await self.store.enqueue(jobs)} == {"created"}
        return [job.id for job in jobs]

    async def put(self, job: NewJob) -> str:
        """Enqueue one job that is new."""
        assert await self.store.enqueue([job]) == [Enqueued(job.id, "created")]
        return job.id

    async def worker(
        self,
        *,
        names: tuple[str, ...] = ("mail",),
        queues: tuple[str, ...] = ("default",),
        limits: dict[str, int] | None = None,
        ttl: float = TTL,
        store: Backend | None = None,
    ) -> HandDrivenWorker:
        """A worker with a session of its own."""
        session = Session(
            id=f"{next(self._sessions):032x}",
            ttl=ttl,
            host="here",
            pid=7,
            owner="cases",
            queues=queues,
            names=names,
            limits=limits or {},
        )
        worker = HandDrivenWorker(store or self.store, session)
        await worker.store.open_session(session)
        return worker

    async def state(self, job_id: str) -> State:
        """Where a job stands."""
        return (await self.store.get(job_id)).state

    async def lose(self, worker: HandDrivenWorker, *, max_lost: int = 3) -> Rescued:
        """Let the worker's session expire, and rescue what it held."""
        self.clock.advance(worker.session.ttl)
        return await self.store.rescue(1_000, max_lost=max_lost)


class HandDrivenWorker:
    """A worker played by hand: a session, and the number of its last exchange."""

    def __init__(self, store: Backend, session: Session) -> None:
        self.store = store
        self.session = session
        self.number: int = 0

    @property
    def id(self) -> str:
        """Its session's id."""
        return self.session.id

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """All it can serve."""
        return tuple(Lane(q, n) for q in self.session.queues for n in self.session.names)

    def want(
        self,
        total: int = 1,
        *,
        lanes: tuple[Lane, ...] | None = None,
        queues: dict[str, QueueOptions] | None = None,
        ageing: float = 0.0,
    ) -> ReserveRequest:
        """A request with a nonce that no other exchange has."""
        seed = f"{self.id} {self.number + 1}".encode()
        nonce = hashlib.blake2b(seed, digest_size=16).digest()
        lanes = self.lanes if lanes is None else lanes
        return ReserveRequest(total, lanes, queues or {}, ageing, nonce)

    async def exchange(
        self, *settlements: Settlement, want: ReserveRequest = RESERVE_NOTHING
    ) -> Reply:
        """The next exchange."""
        reply = await self.store.exchange(self.id, self.number + 1, settlements, want)
        self.number += 1
        return reply

    async def take(self, total: int = 1, **terms: object) -> list[Delivery]:
        """Reserve up to `total` jobs; `terms` as for `want`."""
        return (await self.exchange(want=self.want(total, **terms))).deliveries  # type: ignore[arg-type]

    async def take_one(self) -> Delivery:
        """Reserve the one job that is there for it first."""
        (delivery,) = await self.take(1)
        return delivery

    async def settle(self, *settlements: Settlement) -> list[Settled]:
        """Say what became of attempts; reserve nothing."""
        return (await self.exchange(*settlements)).results

    async def beat(self) -> HeartbeatReply:
        """Say that it lives."""
        return await self.store.heartbeat(self.id)

    async def close(self, *running: Lease) -> None:
        """End its session."""
        await self.store.close_session(self.id, running)


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    """Which jobs were handed out, in order."""
    return [delivery.lease.job_id for delivery in deliveries]


async def soon(what: Awaitable[T]) -> T:
    """What it gives, or a failure when it takes longer than a backend may."""
    return await asyncio.wait_for(what, DEADLINE)
