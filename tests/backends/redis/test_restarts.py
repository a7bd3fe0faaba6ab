"""The server is killed and comes back, while jobs flow."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.backends.redis.stuck_disk import StuckDisk
from tests.crash.flow import MAX_SECONDS, Record, run_flow
from tests.servers import Binary, Server

pytestmark = pytest.mark.slow

GOES_ON = 5.0
"""Seconds after its return in which every worker continues by itself."""


async def test_killed_and_started_again(
    tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    with Server(redis_binary, "appendfsync everysec", appendonly=True) as server:
        async with run_flow(tmp_path, server.url, jobs=5_000) as flow:
            await flow.wait_until_acknowledged(2_500)
            killed = time.monotonic()
            await asyncio.to_thread(server.kill)
            await flow.pass_time(1.0)
            await asyncio.to_thread(server.start)
            pause = await flow.wait_until_every_worker_resumes(since=time.monotonic())
    flow.result.record_counts(record_property, f"{redis_binary.name}, killed and started")
    assert pause < GOES_ON
    assert len(flow.acknowledged) >= 5_000
    assert flow.held_up
    flow.result.check(flow.result.younger_than(killed - MAX_SECONDS))


async def test_killed_while_its_disk_hangs_it_forgets_its_last_seconds(
    tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    """What it forgets was answered: jobs, deliveries, settlements. Workers that know more than
    their server drop what they hold, and go on with what it knows."""
    with Server(redis_binary, "appendfsync everysec", appendonly=True) as server:
        async with run_flow(tmp_path, server.url, jobs=2_000) as flow:
            await flow.wait_until_acknowledged(1_500)
            with StuckDisk(server) as disk:
                await flow.wait_until(lambda: is_sync_hanging(server), "a sync hangs")
                # Half of the two seconds: on a busy machine, the kill comes late.
                await flow.pass_time(1.0)
                killed = time.monotonic()
                disk.kill_server()
            await asyncio.to_thread(server.start)
            pause = await flow.wait_until_every_worker_resumes(since=time.monotonic())
    flow.result.record_counts(record_property, f"{redis_binary.name}, killed while its disk hung")
    assert pause < GOES_ON
    assert flow.result.lost, "nothing was forgotten"
    flow.result.check(flow.result.younger_than(killed - MAX_SECONDS))


def is_sync_hanging(server: Server) -> bool:
    with server.client() as client:
        return bool(client.info("persistence")["aof_pending_bio_fsync"])
