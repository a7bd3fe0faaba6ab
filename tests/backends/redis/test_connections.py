"""How many connections a worker has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nimburion import Context, Processor
from nimburion.backends.redis import RedisBackend, server
from nimburion.backends.redis.server import RedisServer
from tests.servers.server_kinds import RunningRedis
from tests.waiting import wait_until, wait_until_finished


def count_connections(server: RunningRedis) -> int:
    clients = server.ask("CLIENT", "LIST").decode().splitlines()
    return sum("name=nimburion " in client for client in clients)


async def expect_connections(server: RunningRedis, count: int) -> None:
    """Wait until there are `count` connections. Fail if that takes too long."""
    await wait_until(lambda: count_connections(server) == count, f"{count} connections")


@asynccontextmanager
async def run_worker(server: RunningRedis) -> AsyncIterator[Processor]:
    processor = Processor(server.url)
    processor.register("noop", noop)
    async with processor:
        await processor.start()
        yield processor


async def enqueue_at_once(processor: Processor) -> None:
    await asyncio.gather(*(processor.enqueue_raw("noop", b"{}") for _ in range(20)))


async def test_a_worker_whose_callers_enqueue_has_five(
    redis_server: RunningRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For exchanges, for heartbeats, to listen, for callers, and for other operations."""
    monkeypatch.setattr(server, "_UNUSED_INTERVAL", 1000.0)
    await expect_connections(redis_server, 0)  # those of the last test have ended
    async with run_worker(redis_server) as processor:
        await enqueue_at_once(processor)
        await expect_connections(redis_server, 5)
        await enqueue_at_once(processor)
        assert count_connections(redis_server) == 5, "no more for more calls"


async def test_an_idle_worker_closes_what_it_does_not_use(redis_server: RunningRedis) -> None:
    """It needs connections for exchanges, for heartbeats, and to listen."""
    async with run_worker(redis_server) as processor:
        await enqueue_at_once(processor)
        await expect_connections(redis_server, 3)
        job_id = await processor.enqueue_raw("noop", b"{}")
        await wait_until_finished(processor, job_id)


async def test_unused_connections_are_closed_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_UNUSED_INTERVAL", 0.0)
    settings = RedisBackend("redis://127.0.0.1:1").settings
    connections = RedisServer(settings, None).make_connections()
    calls: list[str] = []

    async def fail() -> None:
        calls.append("enqueues")
        raise OSError("broken")

    async def close() -> None:
        calls.append("commands")

    monkeypatch.setattr(connections.enqueues, "close_if_unused", fail)
    monkeypatch.setattr(connections.commands, "close_if_unused", close)
    connections.start_closing_unused()
    await wait_until(lambda: len(calls) >= 4, "both are tried again")
    assert calls[:4] == ["enqueues", "commands"] * 2
    await connections.close()


async def noop(ctx: Context, payload: bytes) -> None:
    """Do nothing."""
