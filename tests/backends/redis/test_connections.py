"""How many connections a worker has."""

from __future__ import annotations

import asyncio

from nimburion import Context, Processor
from tests.servers.server_kinds import RunningRedis
from tests.waiting import wait_until


def count_connections(server: RunningRedis) -> int:
    clients = server.ask("CLIENT", "LIST").decode().splitlines()
    return sum("name=nimburion " in client for client in clients)


async def test_an_idle_worker_closes_what_it_does_not_use(redis_server: RunningRedis) -> None:
    """It needs connections for exchanges, for heartbeats, and to listen."""
    processor = Processor(redis_server.url)
    processor.register("noop", noop)
    async with processor:
        await processor.start()
        await asyncio.gather(*(processor.enqueue_raw("noop", b"{}") for _ in range(20)))
        assert count_connections(redis_server) == 5, "also for callers, and for other operations"
        await wait_until(lambda: count_connections(redis_server) == 3, "three connections")
        await processor.enqueue_raw("noop", b"{}")
        assert count_connections(redis_server) >= 4


async def noop(ctx: Context, payload: bytes) -> None:
    """Do nothing."""
