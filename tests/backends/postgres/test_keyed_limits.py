"""Limits by key on PostgreSQL, while other exchanges are in the middle of theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.exchange import Lane, Reply, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.limits import LimitRule
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Settlement
from nimburion.testing.contract.harness import list_uses
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

DEADLINE = 30.0
SETTLING, COUNTING = 1, 2
"""Advisory locks, for which an exchange waits when it ends a lease and when it counts a key."""
ADD_TRIGGERS = f"""
    CREATE FUNCTION public.wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_advisory_xact_lock_shared(CAST(TG_ARGV[0] AS int8)); RETURN NULL;
    END $$;
    CREATE TRIGGER wait_for_test BEFORE DELETE ON nimburion.lease
        EXECUTE FUNCTION public.wait_for_test({SETTLING});
    CREATE TRIGGER wait_for_test AFTER UPDATE ON nimburion.limit_use FOR EACH ROW
        EXECUTE FUNCTION public.wait_for_test({COUNTING});
"""
REMOVE_TRIGGERS = """
    DROP TRIGGER wait_for_test ON nimburion.lease;
    DROP TRIGGER wait_for_test ON nimburion.limit_use;
    DROP FUNCTION public.wait_for_test();
"""


@pytest.fixture
async def connections(clean_postgres: RunningPostgres) -> AsyncIterator[list[asyncpg.Connection]]:
    made = [await asyncpg.connect(clean_postgres.url, statement_cache_size=0) for _ in range(2)]
    yield made
    for connection in made:
        await connection.close()


@pytest.fixture
async def backends(clean_postgres: RunningPostgres) -> AsyncIterator[dict[str, PostgresBackend]]:
    """One for each queue. The exchanges of one backend wait for each other."""
    made = {queue: PostgresBackend(clean_postgres.url, timeout=DEADLINE) for queue in "ab"}
    for backend in made.values():
        await backend.open()
    yield made
    for backend in made.values():
        await backend.close()


async def exchange(
    backends: dict[str, PostgresBackend], queue: str, number: int, *settlements: Settlement
) -> Reply:
    """Make the exchange of the only worker of a queue."""
    lanes = (Lane(queue, "plain"), Lane(queue, "keyed"))
    return await backends[queue].consuming.exchange(
        queue * 32, number, settlements, ReserveRequest(9, lanes)
    )


async def test_an_exchange_leases_no_job_whose_limit_it_has_not_locked(
    clean_postgres: RunningPostgres,
    backends: dict[str, PostgresBackend],
    connections: list[asyncpg.Connection],
) -> None:
    """One exchange settles a job, and there is no job with a key. Then one comes to each of two
    queues, both with the same key, and another worker counts the job of its queue."""
    one_at_a_time = {"keyed": {"customer": LimitRule(concurrency=1)}}
    for queue, backend in backends.items():
        await backend.consuming.open_session(
            Session(id=queue * 32, ttl=600.0, names=("plain", "keyed"), limits=one_at_a_time)
        )
    await backends["a"].producing.enqueue([NewJob("plain", "plain", "a", b"{}")])
    (plain,) = (await exchange(backends, "a", 1)).deliveries
    counter, settler = connections
    await counter.execute(ADD_TRIGGERS)
    for connection, lock in ((counter, COUNTING), (settler, SETTLING)):
        await connection.execute("BEGIN")  # behind PgBouncer, only a transaction can hold a lock
        await connection.execute(f"SELECT pg_advisory_xact_lock({lock})")
    exchanges: list[asyncio.Task[Reply]] = []
    try:
        settling = asyncio.create_task(exchange(backends, "a", 2, Completed(plain.lease)))
        exchanges.append(settling)
        await wait_until(lambda: list_awaited(clean_postgres) == [SETTLING], "a lease ends")
        options = JobOptions(limit_keys={"customer": "x"})
        await backends["a"].producing.enqueue(
            [NewJob(f"keyed-{queue}", "keyed", queue, b"{}", options=options) for queue in "ab"]
        )
        exchanges.append(asyncio.create_task(exchange(backends, "b", 1)))
        await wait_until(lambda: COUNTING in list_awaited(clean_postgres), "one is counted")
        await settler.execute("COMMIT")
        await wait_until(
            lambda: settling.done() or list_awaited(clean_postgres) == [0, COUNTING],
            "the first exchange ends, or waits for the key that the other has counted",
        )
    finally:
        await settler.execute("ROLLBACK")
        await counter.execute("COMMIT")
        async with asyncio.timeout(DEADLINE):
            replies = await asyncio.gather(*exchanges)
        await counter.execute(REMOVE_TRIGGERS)
    leased = [delivery.lease.job_id for reply in replies for delivery in reply.deliveries]
    assert leased == ["keyed-b"]
    assert [use.in_use for use in await list_uses(backends["a"])] == [1]
    assert (await exchange(backends, "a", 3)).deliveries == []


def list_awaited(server: RunningPostgres) -> list[int]:
    """Return the advisory locks for which transactions wait; 0 for a lock of another kind."""
    rows = server.ask(
        "SELECT CASE locktype WHEN 'advisory' THEN objid ELSE 0 END FROM pg_locks"
        " WHERE NOT granted ORDER BY 1"
    )
    return [int(lock) for (lock,) in rows]


async def test_nothing_is_reserved_while_another_transaction_holds_the_only_job(
    backends: dict[str, PostgresBackend], connections: list[asyncpg.Connection]
) -> None:
    limits = {"keyed": {"customer": LimitRule(concurrency=1)}}
    await backends["a"].consuming.open_session(
        Session(id="a" * 32, ttl=600.0, names=("plain", "keyed"), limits=limits)
    )
    options = JobOptions(limit_keys={"customer": "x"})
    await backends["a"].producing.enqueue([NewJob("held", "keyed", "a", b"{}", options=options)])
    holder, _ = connections
    await holder.execute("BEGIN")
    await holder.execute("SELECT FROM nimburion.ready FOR UPDATE")
    assert (await exchange(backends, "a", 1)).deliveries == []
    await holder.execute("COMMIT")
    (held,) = (await exchange(backends, "a", 2)).deliveries
    assert held.lease.job_id == "held"
