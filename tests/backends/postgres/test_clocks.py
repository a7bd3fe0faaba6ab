"""The clock of PostgreSQL, which transactions read before they get their locks."""

from __future__ import annotations

import asyncio

import asyncpg

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.job import NewJob
from nimburion.core.rate_limits import CLOCK_TOLERANCE, RateLimit
from nimburion.core.session import Session
from nimburion.testing.contract.harness import HandDrivenWorker, make_limits
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

TEN_MINUTES = 600_000_000
SLOW = RateLimit("6/h", interval=TEN_MINUTES, burst=1)
CLOCK = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8)"


async def test_an_exchange_that_waited_for_a_limit_does_not_take_this_for_a_clock_set_back(
    clean_postgres: RunningPostgres,
) -> None:
    """Another exchange read the clock later, and had the limit first."""
    backend = PostgresBackend(clean_postgres.url, timeout=30.0)
    await backend.open()
    session = Session(
        id="a" * 32, ttl=600.0, queues=("q",), names=("n",), limits=make_limits(rates={"n": SLOW})
    )
    worker = HandDrivenWorker(backend, session)
    await worker.open()
    await backend.producing.enqueue([NewJob(job_id, "n", "q", b"{}") for job_id in "ab"])
    assert len((await worker.exchange(want=worker.want(1))).deliveries) == 1
    other = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)

    async def is_waiting() -> bool:
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return bool(await other.fetchval(waits))

    async def has_passed_tolerance() -> bool:
        return bool(await other.fetchval(CLOCK) > began + CLOCK_TOLERANCE)

    try:
        async with other.transaction(isolation="read_committed"):
            await other.execute("SELECT FROM nimburion.limit_rule FOR NO KEY UPDATE")
            exchange = asyncio.create_task(worker.exchange(want=worker.want(1)))
            await wait_until(is_waiting, "the exchange waits for the limit")
            began = await other.fetchval(CLOCK)
            await wait_until(has_passed_tolerance, "the time of the exchange is old")
            used_at = await other.fetchval(CLOCK)
            await other.execute("UPDATE nimburion.limit_rule SET used_at = $1", used_at)
            await other.execute(
                "UPDATE nimburion.limit_use SET spent_until = $1", used_at + TEN_MINUTES
            )
        assert (await exchange).deliveries == []
        spent_until = await other.fetchval("SELECT spent_until FROM nimburion.limit_use")
        assert spent_until == used_at + TEN_MINUTES
    finally:
        await other.close()
        await backend.close()
