"""A request that is held up somewhere may arrive when everything is over."""

from __future__ import annotations

import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.job import State
from nimburion.jobs import Processor
from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.waiting import wait_until


@pytest.mark.parametrize("tenant", [None, "acme"])
async def test_an_enqueue_that_arrives_after_its_repetition_makes_no_second_job(
    postgres_binary: Binary, tenant: str | None
) -> None:
    """The client hung up and asked again by another way, and what it asked for has run."""
    runs = list[bytes]()
    with PostgresServer(postgres_binary) as server:
        worker = Processor(PostgresBackend(server.url))
        worker.register("count", lambda _ctx, data: runs.append(data))
        async with Proxy(server.port) as proxy:
            ways = f"127.0.0.1:{proxy.port},127.0.0.1:{server.port}"
            url = f"postgresql://postgres@{ways}/postgres?timeout=0.5"
            async with Processor(PostgresBackend(url)) as client:
                await client.enqueue_raw("count", b"0", tenant=tenant)
                held_up = list_connections(server)
                async with worker:
                    await worker.drain()
                    proxy.hold_up()
                    job_id = await client.enqueue_raw("count", b"1", tenant=tenant)
                    await worker.drain()
                    proxy.heal()
                    gone = "what was held up has arrived"
                    await wait_until(lambda: not held_up & list_connections(server), gone)
                    await worker.drain()
                    assert (await worker.get_status(job_id)).state is State.COMPLETED
                    assert sum((await worker.backend.reads.count_jobs(budget=None)).values()) == 2
    assert runs == [b"0", b"1"]
    assert held_up


def list_connections(server: PostgresServer) -> set[int]:
    """The processes that serve clients of the server."""
    queries = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
    return {pid for (pid,) in server.ask(f"{queries} AND pid <> pg_backend_pid()")}
