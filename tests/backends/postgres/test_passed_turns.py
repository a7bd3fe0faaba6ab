"""Turns of keys on PostgreSQL: parked jobs that move from one full key to another."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.exchange import Lane, Reply
from nimburion.core.job import JobOptions
from nimburion.core.lease import Lease
from nimburion.core.limits import MAX_PARKED, LimitRule
from nimburion.core.settlement import Completed
from nimburion.core.transactions import CallerConnection
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import HandDrivenWorker, Harness, ids, list_uses
from nimburion.testing.contract.transactions import get_transactional
from tests.servers.server_kinds import RunningPostgres

LIMITS = {"mail": {"customer": LimitRule(concurrency=1), "smtp": LimitRule(concurrency=1)}}


@pytest.fixture
async def harness(clean_postgres: RunningPostgres) -> AsyncIterator[Harness]:
    clock = FakeClock()
    backend = PostgresBackend(clean_postgres.url, clock=clock, timeout=30.0)
    await backend.open()
    yield Harness(clock, [backend])
    await backend.close()


async def park(
    harness: Harness, worker: HandDrivenWorker, count: int, tenant: str | None = None
) -> tuple[Lease, Lease]:
    """Lease a job of the customer `c` and one of `smtp`. Park `count` jobs of both for `c`.

    Returns the two leases.
    """
    for job_id, keys in (("of-customer", {"customer": "c"}), ("of-smtp", {"smtp": ""})):
        await harness.enqueue(harness.job(job_id, options=JobOptions(limit_keys=keys)))
    both = JobOptions(limit_keys={"customer": "c", "smtp": ""}, tenant=tenant)
    jobs = [harness.job(f"m{n:05d}", options=both) for n in range(count)]
    of_customer, of_smtp = await worker.take(9)
    for first in range(0, count, MAX_PARKED):
        await harness.enqueue(*jobs[first : first + MAX_PARKED])
        while (await worker.exchange(want=worker.want(9))).waiting:
            pass
    assert await count_parked(harness) == {"customer": count}
    return of_customer.lease, of_smtp.lease


async def count_parked(harness: Harness) -> dict[str, int]:
    """Return the number of parked jobs by limit."""
    return {use.limit: use.parked for use in await list_uses(harness.backend) if use.parked}


@pytest.mark.parametrize("tenant", [None, "t"])
async def test_other_names_run_while_parked_jobs_move_to_another_key(
    harness: Harness, tenant: str | None
) -> None:
    """A customer gets room while `smtp` has none: each exchange fills its slots with other jobs,
    and moves up to MAX_PARKED jobs. Then nothing is left to do.
    """
    count = 2 * MAX_PARKED + 500
    worker = await harness.worker(names=("mail", "page"), keyed=LIMITS)
    of_customer, of_smtp = await park(harness, worker, count, tenant)
    replies: list[Reply] = []
    ended: list[Completed] = [Completed(of_customer)]
    while not replies or replies[-1].waiting:
        await harness.add(*(f"{len(replies)}-{n}" for n in range(3)), name="page")
        replies.append(await worker.exchange(*ended, want=worker.want(3)))
        ended = [Completed(delivery.lease) for delivery in replies[-1].deliveries]
        assert len(ended) == 3, f"exchange {len(replies)} leased too few"
        if await count_parked(harness) == {"smtp": count}:
            break
        assert Lane("default", "mail") in replies[-1].waiting
    assert len(replies) <= count // MAX_PARKED + 2
    reply = await worker.exchange(*ended, Completed(of_smtp), want=worker.want(3))
    assert ids(reply.deliveries) == ["m00000"]
    assert await count_parked(harness) == {"smtp": count - 1}


async def test_parked_jobs_move_while_the_other_key_changes_hands(harness: Harness) -> None:
    """Each exchange ends a job of `smtp` and starts the next one. So `smtp` has room when parked
    jobs are considered, and none when the exchange ends.
    """
    worker = await harness.worker(keyed=LIMITS)
    of_customer, of_smtp = await park(harness, worker, 50)
    smtp = JobOptions(limit_keys={"smtp": ""})
    ended = [Completed(of_customer), Completed(of_smtp)]
    for n in range(3):
        await harness.enqueue(harness.job(f"urgent-{n}", priority=9, options=smtp))
        reply = await worker.exchange(*ended, want=worker.want(9))
        assert ids(reply.deliveries) == [f"urgent-{n}"]
        ended = [Completed(reply.deliveries[0].lease)]
    assert await count_parked(harness) == {"smtp": 50}
    assert ids((await worker.exchange(*ended, want=worker.want(9))).deliveries) == ["m00000"]


async def test_the_first_job_that_can_run_has_the_turn(harness: Harness) -> None:
    """Behind more jobs without room than one exchange moves."""
    worker = await harness.worker(keyed=LIMITS)
    of_customer, _ = await park(harness, worker, MAX_PARKED + 500)
    await harness.enqueue(
        *(harness.job(n, options=JobOptions(limit_keys={"customer": "c"})) for n in ("x", "y"))
    )
    await worker.exchange(want=worker.want(9))
    reply = await worker.exchange(Completed(of_customer), want=worker.want(9))
    for _ in range(3):
        if reply.deliveries:
            break
        assert reply.waiting == [Lane("default", "mail")]
        reply = await worker.exchange(want=worker.want(9))
    assert ids(reply.deliveries) == ["x"]
    assert await count_parked(harness) == {"smtp": MAX_PARKED + 500, "customer": 1}


async def test_no_job_overtakes_one_that_has_the_turn(harness: Harness) -> None:
    """The exchange that fills `smtp` passes the turn of a job to the next one of the customer."""
    worker = await harness.worker(names=("mail", "page"), keyed=LIMITS)

    async def add(job_id: str, priority: int = 5, **keys: str) -> None:
        options = JobOptions(limit_keys=keys)
        await harness.enqueue(harness.job(job_id, priority=priority, options=options))

    await add("first", customer="c")
    (first,) = await worker.take(9)
    await add("both", customer="c", smtp="")
    await add("next", customer="c")
    assert await worker.take(9) == []
    await worker.settle(Completed(first.lease))
    await add("urgent", 9, smtp="")
    await add("later", customer="c")
    await harness.add("p1", name="page")
    reply = await worker.exchange(want=worker.want(9))
    assert ids(reply.deliveries) == ["urgent", "next", "p1"]
    assert await count_parked(harness) == {"smtp": 1, "customer": 1}


async def test_a_job_that_a_caller_holds_while_its_key_gets_room_is_not_forgotten(
    harness: Harness, clean_postgres: RunningPostgres
) -> None:
    """The caller replaces the parked job, and rolls back. The key is considered again a second
    after an exchange found the job locked. More exchanges in that second do not consider it, and
    do not defer it.
    """
    worker = await harness.worker(keyed=LIMITS)
    options = JobOptions(limit_keys={"customer": "c"}, unique_key="u", on_duplicate="replace")
    await harness.enqueue(harness.job("first", options=JobOptions(limit_keys={"customer": "c"})))
    (first,) = await worker.take(9)
    await harness.enqueue(harness.job("parked", options=options))
    assert await worker.take(9) == []
    caller = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    try:
        await caller.execute("BEGIN")
        await get_transactional(harness).enqueue_in(
            CallerConnection(caller), [harness.job("new", options=options)]
        )
        reply = await worker.exchange(Completed(first.lease), want=worker.want(9))
        assert (reply.deliveries, reply.waiting) == ([], [])
        considered_at = harness.clock.now() + 1.0
        assert reply.next_due == considered_at
        await caller.execute("ROLLBACK")
    finally:
        await caller.close()
    for _ in range(3):  # the bound of `Consuming.exchange` has not begun
        harness.clock.advance(0.25)
        reply = await worker.exchange(want=worker.want(9))
        assert (reply.deliveries, reply.next_due) == ([], considered_at)
    harness.clock.advance(0.25)
    assert ids(await worker.take(9)) == ["parked"]


async def test_all_jobs_that_a_caller_held_start_if_their_key_has_room(
    harness: Harness, clean_postgres: RunningPostgres
) -> None:
    """Two places of the key became free while the caller held both parked jobs."""
    worker = await harness.worker(keyed={"mail": {"customer": LimitRule(concurrency=2)}})
    keys = {"customer": "c"}
    held = {n: JobOptions(limit_keys=keys, unique_key=n, on_duplicate="replace") for n in "uv"}
    await harness.enqueue(*(harness.job(n, options=JobOptions(limit_keys=keys)) for n in "ab"))
    running = await worker.take(9)
    await harness.enqueue(*(harness.job(n, options=options) for n, options in held.items()))
    assert await worker.take(9) == []
    caller = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    try:
        await caller.execute("BEGIN")
        await get_transactional(harness).enqueue_in(
            CallerConnection(caller),
            [harness.job(f"new-{n}", options=options) for n, options in held.items()],
        )
        await worker.settle(*(Completed(delivery.lease) for delivery in running))
        await caller.execute("ROLLBACK")
    finally:
        await caller.close()
    harness.clock.advance(1.0)
    assert ids(await worker.take(9)) == ["u", "v"]
