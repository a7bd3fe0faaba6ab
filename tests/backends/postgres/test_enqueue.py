"""Many jobs in one call: several statements, one transaction."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.errors import InvalidJob, Unstorable
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.ids import JobIds
from nimburion.core.job import NewJob, State
from nimburion.core.lease import Delivery
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.jobs import Processor, job
from tests.servers.server_kinds import RunningPostgres

MANY = 1_200
SESSION = "5e" * 16
LANE = Lane("default", "mail")


@pytest.fixture
async def backend(clean_postgres: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    made = PostgresBackend(clean_postgres.url)
    await made.open()
    await made.consuming.open_session(Session(id=SESSION, names=("mail",)))
    yield made
    await made.close()


def make_jobs(ids: Sequence[str], name: str = "mail") -> list[NewJob]:
    return [NewJob(one, name, "default", b'{"n": %d}' % n) for n, one in enumerate(ids)]


def make_new_jobs(count: int = MANY, now: float | None = None) -> list[NewJob]:
    return make_jobs(JobIds(time.time if now is None else lambda: now).make_many(count))


async def take(backend: PostgresBackend, number: int, total: int) -> list[Delivery]:
    want = ReserveRequest(total, (LANE,), nonce=os.urandom(16))
    return list((await backend.consuming.exchange(SESSION, number, [], want)).deliveries)


async def test_all_of_them_are_handed_out_in_the_order_of_the_call(
    backend: PostgresBackend,
) -> None:
    jobs = make_new_jobs()
    results = await backend.producing.enqueue(jobs)
    assert [(one.id, one.outcome) for one in results] == [(job.id, "created") for job in jobs]
    reserved = await take(backend, 1, MANY)
    assert [one.lease.job_id for one in reserved] == [job.id for job in jobs]
    assert [one.payload for one in reserved] == [job.payload for job in jobs]


async def test_lanes_of_one_call_are_kept_apart(backend: PostgresBackend) -> None:
    jobs = make_new_jobs()
    mixed = [
        NewJob(job.id, "mail" if n % 3 else "other", "default", job.payload, n % 10)
        for n, job in enumerate(jobs)
    ]
    await backend.producing.enqueue(mixed)
    page = await backend.reads.list_jobs(limit=MANY)
    found = {one.id: (one.name, one.priority) for one in page.jobs}
    assert found == {job.id: (job.name, job.priority) for job in mixed}


async def test_a_repeated_call_reports_exists(backend: PostgresBackend) -> None:
    jobs = make_new_jobs()
    await backend.producing.enqueue(jobs[:1000])
    outcomes = [one.outcome for one in await backend.producing.enqueue(jobs)]
    assert outcomes == ["exists"] * 1000 + ["created"] * (MANY - 1000)
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == MANY


async def test_a_conflict_at_the_end_takes_back_what_was_before(backend: PostgresBackend) -> None:
    jobs = make_new_jobs()
    await backend.producing.enqueue([NewJob(jobs[-1].id, "mail", "default", b'"another"')])
    outcomes = [one.outcome for one in await backend.producing.enqueue(jobs)]
    assert outcomes == ["refused"] * (MANY - 1) + ["conflict"]
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 1


async def test_an_id_that_has_ended_is_found_among_many(backend: PostgresBackend) -> None:
    jobs = make_new_jobs()
    await backend.producing.enqueue(jobs[700:710])
    reserved = await take(backend, 1, 10)
    await backend.consuming.exchange(
        SESSION, 2, [Completed(one.lease) for one in reserved], ReserveRequest(0, ())
    )
    outcomes = [one.outcome for one in await backend.producing.enqueue(jobs)]
    assert outcomes == ["created"] * 700 + ["exists"] * 10 + ["created"] * (MANY - 710)


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
@pytest.mark.parametrize("count", [1, 2, MANY])
async def test_an_id_made_by_another_clock_is_found_when_it_has_ended(
    backend: PostgresBackend, ahead: float, count: int
) -> None:
    jobs = make_new_jobs(count, time.time() + ahead)
    await backend.producing.enqueue(jobs)
    reserved = await take(backend, 1, count)
    await backend.consuming.exchange(
        SESSION, 2, [Completed(one.lease) for one in reserved], ReserveRequest(0, ())
    )
    assert {one.outcome for one in await backend.producing.enqueue(jobs)} == {"exists"}


async def test_an_id_of_the_callers_own_at_the_end_is_taken_too(backend: PostgresBackend) -> None:
    jobs = make_new_jobs()
    odd = make_jobs(["an-id-of-just-as-many-letters-as-ours"[:36]])
    assert {one.outcome for one in await backend.producing.enqueue(jobs + odd)} == {"created"}
    assert (await backend.reads.get_job(odd[0].id)).id == odd[0].id


@pytest.mark.parametrize("is_generated", [True, False])
async def test_a_repeated_enqueue_of_one_job_is_found(
    backend: PostgresBackend, is_generated: bool
) -> None:
    """An id that nimburion generated is not looked up before the insert, which then fails."""
    (job,) = make_new_jobs(1) if is_generated else make_jobs(["an id of the caller's"])
    other = NewJob(job.id, job.name, job.queue, b"other")
    outcomes = []

    async def repeat() -> None:
        for one in (job, other):
            (result,) = await backend.producing.enqueue([one])
            outcomes.append(result.outcome)

    await backend.producing.enqueue(make_new_jobs(1))  # the lane exists
    await take(backend, 1, 1)
    await repeat()
    (held,) = await take(backend, 2, 9)
    await repeat()
    await backend.consuming.exchange(SESSION, 3, [Completed(held.lease)], ReserveRequest(0))
    await repeat()
    assert outcomes == ["created", *["conflict", "exists"] * 2, "conflict"]


async def test_an_unstorable_last_job_rejects_the_call(backend: PostgresBackend) -> None:
    jobs = make_new_jobs()
    bad = NewJob(JobIds(time.time).make(), "mail\0", "default", b"{}")
    with pytest.raises(Unstorable):
        await backend.producing.enqueue([*jobs, bad])
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 0
    assert {one.outcome for one in await backend.producing.enqueue(jobs)} == {"created"}


@job(queue="letters")
async def letter(to: str) -> None: ...


async def test_an_invalid_last_job_rejects_the_call(backend: PostgresBackend) -> None:
    """Jobs of one call are made while the first of them are being stored."""
    async with Processor(backend) as processor:
        jobs = [letter.job(to=f"{n}@example.com") for n in range(MANY)]
        odd = letter.job(to=7)  # type: ignore[call-arg, arg-type, unused-ignore]
        with pytest.raises(InvalidJob, match=rf"jobs\[{MANY}\].*to"):
            await processor.enqueue_many([*jobs, odd])
        assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 0
        ids = await processor.enqueue_many(jobs)
        page = await backend.reads.list_jobs(limit=MANY, payloads=True)
    found = [(one.id, one.payload) for one in reversed(page.jobs)]
    assert found == [(one, b'{"to":"%d@example.com"}' % n) for n, one in enumerate(ids)]
