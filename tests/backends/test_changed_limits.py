"""A change of a limit by key returns its parked jobs in steps, not all in one transaction."""

from __future__ import annotations

import os
from pathlib import Path

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.limits import MAX_RETURNED, LimitRule
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import HandDrivenWorker, list_uses
from tests.servers.server_kinds import RunningPostgres

PARKED = 2 * MAX_RETURNED + 100
QUEUES, NAMES = ("default",), ("mail", "post")


async def open_worker(backend: Backend, **limits: int) -> HandDrivenWorker:
    """Open a session with a limit by customer for each of these names; the others have none."""
    keyed = {name: {"customer": LimitRule(concurrency=most)} for name, most in limits.items()}
    session_id = os.urandom(16).hex()
    session = Session(id=session_id, queues=QUEUES, names=NAMES, limits=keyed)
    worker = HandDrivenWorker(backend, session)
    await worker.open()
    return worker


async def count_parked(backend: Backend) -> int:
    """Count the parked jobs of all keys."""
    return sum(use.parked for use in await list_uses(backend))


async def check_steps(backend: Backend) -> None:
    """Park jobs, lift the limit of one of two names that share it, and watch them return."""
    options = JobOptions(limit_keys={"customer": "a"})
    jobs = [NewJob(f"m{n:05}", "mail", "default", b"{}", options=options) for n in range(PARKED)]
    await backend.producing.enqueue(jobs)
    await backend.producing.enqueue([NewJob("p1", "post", "default", b"{}", options=options)])
    first = await open_worker(backend, mail=1, post=1)
    held = await first.take(5)
    while await count_parked(backend) < PARKED:
        await first.take(5)
    second = await open_worker(backend, post=1)
    returned, left = [], PARKED
    while True:
        reply = await second.exchange(want=second.want(2 * MAX_RETURNED))
        returned += [delivery.lease.job_id for delivery in reply.deliveries]
        before, left = left, await count_parked(backend)
        assert before - left <= MAX_RETURNED
        assert left == 1 or reply.waiting or (reply.next_due or reply.now + 1) <= reply.now
        if left == 1 and not reply.deliveries:
            break
    assert returned == [job.id for job in jobs[1:]]
    assert (reply.deliveries, reply.waiting, reply.next_due) == ([], [], None)
    reply = await first.exchange(Completed(held[0].lease), want=first.want(5))
    (job,) = reply.deliveries
    assert job.lease.job_id == "p1"


async def test_parked_jobs_return_in_steps_on_sqlite(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "jobs.db", clock=FakeClock())
    await backend.open()
    try:
        await check_steps(backend)
    finally:
        await backend.close()


async def test_parked_jobs_return_in_steps_on_postgresql(clean_postgres: RunningPostgres) -> None:
    backend = PostgresBackend(clean_postgres.url, clock=FakeClock())
    await backend.open()
    try:
        await check_steps(backend)
    finally:
        await backend.close()
