"""An exchange that leases many jobs waits for others that do, but for no stopped worker."""

from __future__ import annotations

import asyncpg

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from tests.servers.server_kinds import RunningPostgres

JOBS = 100
"""More than an exchange leases without the lock."""


async def test_a_worker_that_stops_in_its_exchange_stops_no_other(
    clean_postgres: RunningPostgres,
) -> None:
    """The server ends an exchange when its client has read the reply. A client that was stopped
    does not read it. Here, another transaction holds the four locks in its place.
    """
    backend = PostgresBackend(clean_postgres.url)
    await backend.open()
    stopped = await asyncpg.connect(clean_postgres.url)
    try:
        await backend.consuming.open_session(
            Session(id="s", host="h", pid=1, owner="o", queues=("q",), names=("n",), ttl=600.0)
        )
        await backend.producing.enqueue([NewJob(f"j{i}", "n", "q", b"{}") for i in range(JOBS)])
        async with stopped.transaction():
            await stopped.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1 || n, 7049))"
                " FROM generate_series(0, 3) AS n",
                '"nimburion".exchange_1 ',
            )
            request = ReserveRequest(total=JOBS, lanes=(Lane("q", "n"),))
            reply = await backend.consuming.exchange("s", 1, [], request)
        assert len(reply.deliveries) == JOBS
    finally:
        await stopped.close()
        await backend.close()
