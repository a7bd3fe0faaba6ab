"""Sentinel puts a replica in the place of a primary that dies or hangs, while jobs flow."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tests.crash.flow import MAX_SECONDS, Record, run_flow
from tests.servers import Binary, SentinelTrio, Server
from tests.servers.sentinel import read_role

pytestmark = pytest.mark.slow

GOES_ON = 5.0
"""Seconds after the promotion in which every worker continues by itself."""


async def test_the_primary_is_killed(
    tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    with SentinelTrio(redis_binary, appendonly=True) as trio:
        async with run_flow(tmp_path, f"{trio.url}?timeout=2", jobs=2_000) as flow:
            await flow.wait_until_acknowledged(1_500)
            killed = time.monotonic()
            former = await asyncio.to_thread(trio.kill_primary)
            await asyncio.to_thread(trio.wait_for_another, former)
            promoted = time.monotonic()
            pause = await flow.wait_until_every_worker_resumes(since=promoted)
    flow.result.record_counts(record_property, f"{redis_binary.name}, primary killed")
    record_property("ms from its death to a promotion, in total", round(1000 * (promoted - killed)))
    record_property("ms from there until every worker went on, in total", round(1000 * pause))
    assert pause < GOES_ON
    assert flow.held_up
    flow.result.check(flow.result.younger_than(killed - MAX_SECONDS))


async def test_the_primary_is_killed_while_its_replica_lags(
    tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    """Replication is asynchronous. What the replica does not read fills the buffers between them,
    and then stays with the primary: 700 jobs of 30 kB are more than the buffers hold."""
    with SentinelTrio(redis_binary, appendonly=True) as trio:
        url = f"{trio.url}?timeout=2"
        async with run_flow(tmp_path, url, jobs=1_500, load=30_000) as flow:
            await flow.wait_until_acknowledged(1_000)
            replica = next(server for server in trio.data if server is not trio.primary)
            paused = time.monotonic()
            replica.pause()
            await flow.wait_until_more(700)
            former = await asyncio.to_thread(trio.kill_primary)
            replica.resume()
            await asyncio.to_thread(trio.wait_for_another, former)
            pause = await flow.wait_until_every_worker_resumes(since=time.monotonic())
    flow.result.record_counts(record_property, f"{redis_binary.name}, primary killed while ahead")
    assert flow.result.lost, "the replica was not behind"
    assert pause < GOES_ON
    flow.result.check(flow.result.younger_than(paused))


@pytest.mark.timeout(120)  # sentinels of Redis 6.2 take their time
async def test_the_primary_hangs_and_comes_back_as_a_replica(
    tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    """It wakes up and takes itself for the primary still. Nobody who has met the new one writes
    there, and what it was sent before it hung is void."""
    with SentinelTrio(redis_binary, appendonly=True) as trio:
        async with run_flow(tmp_path, f"{trio.url}?timeout=1", jobs=1_000) as flow:
            await flow.wait_until_acknowledged(500)
            former = trio.primary
            hung = time.monotonic()
            former.pause()
            await asyncio.to_thread(trio.wait_for_another, former)
            await flow.wait_until_every_worker_resumes(since=time.monotonic())
            former.resume()
            await flow.wait_until(lambda: is_replica(former), "it has learnt of it")
    flow.result.record_counts(record_property, f"{redis_binary.name}, primary hung")
    flow.result.check(flow.result.younger_than(hung - MAX_SECONDS))


def is_replica(server: Server) -> bool:
    """Whether it is a replica now. A sentinel that makes it one hangs up on everybody."""
    with suppress(redis.ConnectionError):
        return read_role(server) == "slave"
    return False
