"""The test harness: an empty backend, a fake clock, and workers that the cases drive by hand."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import TypeVar

from nimburion.core.backend import Backend
from nimburion.core.exchange import (
    REPLY_BYTES,
    RESERVE_NOTHING,
    Lane,
    QueueOptions,
    Reply,
    ReserveRequest,
)
from nimburion.core.job import NO_JOB_OPTIONS, AttemptError, Enqueued, JobOptions, NewJob, State
from nimburion.core.lease import Delivery, Lease
from nimburion.core.limits import (
    KeyUse,
    LimitRule,
    get_limited_job,
    make_job_limit_name,
)
from nimburion.core.maintenance import Rescued
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import HeartbeatReply, Session
from nimburion.core.settlement import Settled, Settlement
from nimburion.testing.clock import FakeClock

T = TypeVar("T")

TTL = 30.0
"""Lifetime in seconds of the sessions in the cases."""
DEADLINE = 20.0
"""Real-time deadline in seconds for an expected event."""
FAILURE = AttemptError(1, "failure", "ValueError", "no luck", "Traceback: …")
"""The error of a failed attempt."""


class Harness:
    """An empty backend with one or more handles, and its clock."""

    def __init__(self, clock: FakeClock, handles: Sequence[Backend]) -> None:
        self.clock = clock
        self.handles: list[Backend] = list(handles)
        self.backend: Backend = self.handles[0]
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
        """Return a new job; generated ids count up."""
        job_id = job_id or f"job-{next(self._jobs)}"
        return NewJob(job_id, name, queue, payload, priority, at, after, options)

    async def enqueue(self, *jobs: NewJob) -> list[Enqueued]:
        """Enqueue the jobs in one call."""
        return await self.backend.producing.enqueue(jobs)

    async def add(self, *ids: str, name: str = "mail", queue: str = "default") -> list[str]:
        """Enqueue jobs with default options in one call; one job if no ids are given. Return the
        ids."""
        jobs = [self.job(i, name=name, queue=queue) for i in ids]
        jobs = jobs or [self.job(name=name, queue=queue)]
        assert {result.outcome for result in await self.backend.producing.enqueue(jobs)} == {
            "created"
        }
        return [job.id for job in jobs]

    async def put(self, job: NewJob) -> str:
        """Enqueue one new job and return its id."""
        assert await self.backend.producing.enqueue([job]) == [Enqueued(job.id, "created")]
        return job.id

    async def worker(
        self,
        *,
        names: tuple[str, ...] = ("mail",),
        queues: tuple[str, ...] = ("default",),
        limits: dict[str, int] | None = None,
        rates: dict[str, RateLimit] | None = None,
        keyed: dict[str, dict[str, LimitRule]] | None = None,
        weights: dict[str, float] | None = None,
        ttl: float = TTL,
        backend: Backend | None = None,
    ) -> HandDrivenWorker:
        """Open a session and return a worker for it.

        `limits` and `rates`: the maxima and the rates of job names. `keyed`: their other limits.
        """
        session = Session(
            id=f"{next(self._sessions):032x}",
            ttl=ttl,
            host="here",
            pid=7,
            owner="cases",
            queues=queues,
            names=names,
            limits=make_limits(limits or {}, rates=rates or {}, keyed=keyed or {}),
            weights=weights or {},
        )
        worker = HandDrivenWorker(backend or self.backend, session)
        await worker.open()
        return worker

    async def state(self, job_id: str) -> State:
        """Return the state of a job."""
        return (await self.backend.reads.get_job(job_id)).state

    async def lose(self, worker: HandDrivenWorker, *, max_lost: int = 3) -> Rescued:
        """Let the session of the worker expire, and rescue its jobs."""
        self.clock.advance(worker.session.ttl)
        return await self.backend.consuming.rescue(1_000, max_lost=max_lost)


def make_limits(
    limits: Mapping[str, int] = MappingProxyType({}),
    *,
    rates: Mapping[str, RateLimit] = MappingProxyType({}),
    keyed: Mapping[str, Mapping[str, LimitRule]] = MappingProxyType({}),
) -> dict[str, dict[str, LimitRule]]:
    """Return the limits of a session: the maxima and rates of job names, and the other limits."""
    rules = {name: dict(named) for name, named in keyed.items()}
    for name in limits.keys() | rates.keys():
        own = LimitRule(limits.get(name), rates.get(name))
        rules.setdefault(name, {})[make_job_limit_name(name)] = own
    return rules


async def list_uses(backend: Backend) -> list[KeyUse]:
    """Return the keys of limits that are in use or for which jobs wait, by limit and key. Those of
    the limits of job names are left out.
    """
    uses = [
        use for limit in await backend.reads.list_limits(fullest=10_000) for use in limit.fullest
    ]
    return sorted(
        (use for use in uses if get_limited_job(use.limit) is None),
        key=lambda use: (use.limit, use.key),
    )


class HandDrivenWorker:
    """A worker driven by the test: a session, and the number of its last exchange."""

    def __init__(self, backend: Backend, session: Session) -> None:
        self.backend = backend
        self.session = session
        self.number: int = 0

    async def open(self) -> None:
        """Open the session."""
        await self.backend.consuming.open_session(self.session)

    @property
    def id(self) -> str:
        """The id of the session."""
        return self.session.id

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """All lanes that the worker can serve."""
        return tuple(Lane(q, n) for q in self.session.queues for n in self.session.names)

    def want(
        self,
        total: int = 1,
        *,
        lanes: tuple[Lane, ...] | None = None,
        queues: dict[str, QueueOptions] | None = None,
        ageing: float = 0.0,
        long_poll: float = 0.0,
        max_bytes: int = REPLY_BYTES,
    ) -> ReserveRequest:
        """Return a reserve request with a unique nonce."""
        seed = f"{self.id} {self.number + 1}".encode()
        nonce = hashlib.blake2b(seed, digest_size=16).digest()
        lanes = self.lanes if lanes is None else lanes
        return ReserveRequest(
            total, lanes, queues or {}, ageing, nonce, long_poll, max_bytes, free_slots=total
        )

    async def exchange(
        self, *settlements: Settlement, want: ReserveRequest = RESERVE_NOTHING
    ) -> Reply:
        """Perform the next exchange and return the reply."""
        reply = await self.backend.consuming.exchange(self.id, self.number + 1, settlements, want)
        self.number += 1
        return reply

    async def repeat(
        self, *settlements: Settlement, want: ReserveRequest = RESERVE_NOTHING
    ) -> Reply:
        """Perform the latest exchange again, as after a lost reply, and return the reply."""
        return await self.backend.consuming.exchange(self.id, self.number, settlements, want)

    async def take(self, total: int = 1, **options: object) -> list[Delivery]:
        """Reserve up to `total` jobs; `options` are the keyword arguments of `want`."""
        return (await self.exchange(want=self.want(total, **options))).deliveries  # type: ignore[arg-type]

    async def take_one(self) -> Delivery:
        """Reserve the next job and return its delivery."""
        (delivery,) = await self.take(1)
        return delivery

    async def settle(self, *settlements: Settlement) -> list[Settled]:
        """Settle attempts without reserving jobs; return the results."""
        return (await self.exchange(*settlements)).results

    async def heartbeat(self) -> HeartbeatReply:
        """Send a heartbeat and return the reply."""
        return await self.backend.consuming.heartbeat(self.id)

    async def close(self, *running: Lease) -> None:
        """Close the session."""
        await self.backend.consuming.close_session(self.id, running)


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    """Return the ids of the delivered jobs in order."""
    return [delivery.lease.job_id for delivery in deliveries]


async def wait_in_time(what: Awaitable[T]) -> T:
    """Return the result of `what`. Raises `TimeoutError` after `DEADLINE` seconds of real time."""
    return await asyncio.wait_for(what, DEADLINE)
