"""A standby takes the place of a primary that dies, while jobs flow; who asks finds it.

Both are named in the URL. What the standby had not heard of is lost with the primary, unless each
commit waits for it.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.crash.flow import MAX_SECONDS, Flow, Record, run_flow
from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer
from tests.waiting import block_until

pytestmark = [pytest.mark.slow, pytest.mark.wide, pytest.mark.timeout(180)]

GOES_ON = 5.0
"""Seconds after the promotion in which every worker continues by itself."""


async def test_the_primary_is_killed_while_its_standby_lags(
    tmp_path: Path, postgres_binary: Binary, record_property: Record
) -> None:
    """What was acknowledged in the last second is lost, and no more than that."""
    with (
        PostgresServer(postgres_binary, durable=True) as primary,
        start_standby(primary) as standby,
    ):
        async with run_flow(tmp_path, make_failover_url(primary, standby), jobs=1_000) as flow:
            await flow.wait_until_more(100)
            cut_off(standby)
            behind = time.monotonic()
            await flow.pass_time(0.8)
            pause = await fail_over(primary, standby, flow)
    flow.result.record_counts(
        record_property, f"{postgres_binary.name}, primary killed 0.8 s ahead"
    )
    assert pause < GOES_ON
    assert flow.result.lost, "the standby was not behind"
    flow.result.check(flow.result.younger_than(behind - MAX_SECONDS))


async def test_the_primary_is_killed_and_its_standby_was_waited_for(
    tmp_path: Path, postgres_binary: Binary, record_property: Record
) -> None:
    with (
        PostgresServer(postgres_binary, durable=True) as primary,
        start_standby(primary, "fsync=on") as standby,
    ):
        wait_for_standbys(primary)
        async with run_flow(tmp_path, make_failover_url(primary, standby), jobs=1_000) as flow:
            await flow.wait_until_more(100)
            killed = time.monotonic()
            pause = await fail_over(primary, standby, flow)
    flow.result.record_counts(
        record_property, f"{postgres_binary.name}, synchronous primary killed"
    )
    assert pause < GOES_ON
    assert flow.result.lost == set()
    flow.result.check(flow.result.younger_than(killed - MAX_SECONDS))


def start_standby(primary: PostgresServer, *settings: str) -> PostgresServer:
    """A standby, to be started; jobs go into a database of their own."""
    primary.empty()
    return primary.follower(*settings)


def make_failover_url(primary: PostgresServer, standby: PostgresServer) -> str:
    """Both of them."""
    ours, other = f"127.0.0.1:{primary.port}", f"127.0.0.1:{standby.port}"
    return primary.url.replace(ours, f"{ours},{other}") + "?timeout=2"


def cut_off(standby: PostgresServer) -> None:
    """Let it hear no more of its primary."""
    standby.ask("ALTER SYSTEM SET primary_conninfo = ''")
    standby.ask("SELECT pg_reload_conf()")
    block_until(lambda: not standby.ask("SELECT 1 FROM pg_stat_wal_receiver"), "it hears no more")


def wait_for_standbys(primary: PostgresServer) -> None:
    """Let each commit that waits for the disk wait for the standby's, too."""
    primary.ask("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.ask("SELECT pg_reload_conf()")
    queries = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
    block_until(lambda: bool(primary.ask(queries)), "the standby is waited for")


async def fail_over(primary: PostgresServer, standby: PostgresServer, flow: Flow) -> float:
    """Kill the one, promote the other; seconds until every worker went on."""
    await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(standby.promote)
    return await flow.wait_until_every_worker_resumes(since=time.monotonic())
