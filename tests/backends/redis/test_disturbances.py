"""Things that go wrong with a server that lives, while jobs flow: no job is lost or run twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from tests.crash.flow import Flow, Record, run_flow
from tests.servers import Binary, Proxy, Server
from tests.servers.ports import free_port

pytestmark = pytest.mark.slow

BOTH_WAYS: tuple[Literal["requests", "replies"], ...] = ("requests", "replies")


def count_errors(server: Server, code: str) -> int:
    """How often the server has answered so, to anybody."""
    with server.client() as client:
        return int(client.info("errorstats").get(f"errorstat_{code}", {"count": 0})["count"])


async def test_clients_are_killed_and_scripts_forgotten(
    tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    killed = 0
    with Server(redis_binary) as server:
        async with run_flow(tmp_path, server.url, jobs=3_000) as flow:
            while len(flow.acknowledged) < 1_500 or killed <= 30:
                server.ask("SCRIPT", "FLUSH")
                killed += server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                killed += server.ask("CLIENT", "KILL", "TYPE", "pubsub")
                await flow.pass_time(0.1)
        unknown = count_errors(server, "NOSCRIPT")
    record_property("Redis connections killed by the server, in total", killed)
    record_property("scripts that the server had forgotten, in total", unknown)
    assert killed > 30
    assert unknown > 10
    flow.result.check()
    assert flow.result.sessions_lost == 0


async def test_it_becomes_a_replica_for_a_while(tmp_path: Path, redis_binary: Binary) -> None:
    """Of a primary that is not there, so that it keeps its data."""
    with Server(redis_binary) as server:
        async with run_flow(tmp_path, server.url, jobs=1_000, per_second=500) as flow:
            await flow.wait_until_acknowledged(300)
            server.ask("REPLICAOF", "127.0.0.1", free_port())
            await flow.pass_time(1.0)
            server.ask("REPLICAOF", "NO", "ONE")
        assert count_errors(server, "READONLY") or count_errors(server, "ERR"), (
            "Redis 6.2 hides it in a sentence"
        )
    assert flow.held_up
    flow.result.check()
    assert flow.result.sessions_lost == 0


async def test_it_takes_its_time_to_load(tmp_path: Path, redis_binary: Binary) -> None:
    """It listens, and answers that it is loading."""
    with Server(redis_binary, "key-load-delay 60", appendonly=True) as server:
        async with run_flow(tmp_path, server.url, jobs=1_500) as flow:
            await flow.wait_until_acknowledged(1_000)
            await asyncio.to_thread(server.restart)
        assert count_errors(server, "LOADING")
    assert flow.held_up
    flow.result.check()
    assert flow.result.sessions_lost == 0


async def test_the_network_drops_delays_and_cuts(
    tmp_path: Path, valkey: Server, record_property: Record
) -> None:
    valkey.empty()
    cut = resets = 0
    async with Proxy(valkey.port) as proxy:
        url = f"{proxy.url}?timeout=0.5"
        async with run_flow(tmp_path, url, jobs=1_000, per_second=500, ttl=20.0) as flow:
            for n in range(4):
                proxy.hold_up()
                await flow.pass_time(0.8)
                proxy.heal()
                await flow.pass_time(0.2)
                cut += proxy.cut()
                for of in BOTH_WAYS:
                    proxy.reset_after(137 * n, of)
                    await proxy_has_served(flow, proxy)
                    resets += 1
    record_property("connections cut or reset, in total", cut + resets)
    assert cut > 10
    assert flow.held_up
    flow.result.check()
    assert flow.result.sessions_lost == 0


async def proxy_has_served(flow: Flow, proxy: Proxy) -> None:
    """Somebody whose connection was reset has made another one."""
    before = proxy.connections
    await flow.wait_until(lambda: proxy.connections > before, "somebody connects anew")


async def test_it_hangs_for_longer_than_sessions_live(
    tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    """Workers stop believing in their leases, and what they hold may run again; nothing else."""
    with Server(redis_binary) as server:
        async with run_flow(tmp_path, server.url, jobs=1_000, per_second=500, ttl=1.0) as flow:
            await flow.wait_until_acknowledged(300)
            server.pause()
            await flow.pass_time(2.5)
            server.resume()
    flow.result.record_counts(record_property, f"{redis_binary.name}, hung for 2.5 session lives")
    assert flow.result.sessions_lost >= len(flow.workers)
    flow.result.check(flow.result.was_given_up)
    assert flow.result.lost == set()
