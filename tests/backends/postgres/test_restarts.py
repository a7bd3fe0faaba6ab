"""The server dies and comes back, or ends connections as it likes, while jobs flow.

What a call acknowledged is on the disk. What workers note is committed without waiting for that, so
that a server which dies forgets the last of it: those jobs run again, and none is lost.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import psycopg
import pytest

from tests.crash.flow import MAX_SECONDS, Flow, Record, run_flow
from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GOES_ON = 5.0
"""Seconds after its return in which every worker continues by itself."""

_OTHERS = """FROM pg_stat_activity
    WHERE application_name LIKE 'nimburion%%' AND pid <> pg_backend_pid()"""


async def test_stopped_immediately_and_started_again(
    tmp_path: Path, postgres_binary: Binary, record_property: Record
) -> None:
    """Without a checkpoint, and with connections killed at random before and after."""
    random, ended = Random(7), 0
    with PostgresServer(postgres_binary, durable=True) as server:
        async with run_flow(tmp_path, server.url, jobs=5_000) as flow:
            ended += await backends_end(server, flow, random, jobs=1_500)
            stopped = time.monotonic()
            await asyncio.to_thread(server.stop_immediately)
            await flow.pass_time(1.0)
            await asyncio.to_thread(server.start)
            pause = await flow.wait_until_every_worker_resumes(since=time.monotonic())
            ended += await backends_end(server, flow, random, jobs=1_500)
    flow.result.record_counts(record_property, f"{postgres_binary.name}, stopped immediately")
    record_property(f"{postgres_binary.name}: connections ended at random, in total", ended)
    assert pause < GOES_ON
    assert len(flow.acknowledged) >= 5_000
    assert flow.held_up
    assert ended > 10
    assert flow.result.lost == set()
    flow.result.check(flow.result.younger_than(stopped - MAX_SECONDS))


@pytest.mark.wide
async def test_connections_are_ended_at_random(
    tmp_path: Path, postgres_binary: Binary, record_property: Record
) -> None:
    """Nobody can know what became of a call; asking again by id and number makes it true, once."""
    with PostgresServer(postgres_binary, durable=True) as server:
        async with run_flow(tmp_path, server.url, jobs=3_000) as flow:
            ended = await backends_end(server, flow, Random(11), jobs=3_000)
    record_property(f"{postgres_binary.name}: connections ended at random, in total", ended)
    assert ended > 10
    flow.result.check()
    assert flow.result.sessions_lost == 0


@pytest.mark.wide
async def test_the_kernel_kills_a_backend(
    tmp_path: Path, postgres_binary: Binary, record_property: Record
) -> None:
    """As when memory runs out. The server then ends all others and recovers from its log."""
    with PostgresServer(postgres_binary, durable=True) as server:
        async with run_flow(tmp_path, server.url, jobs=1_000) as flow:
            await flow.wait_until_more(100)
            ((victim,),) = server.ask(f"SELECT pid {_OTHERS} LIMIT 1")
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            await wait_until(lambda: has_recovered(server), "it takes connections")
            pause = await flow.wait_until_every_worker_resumes(since=time.monotonic())
        assert "all server processes terminated; reinitializing" in server.log
    flow.result.record_counts(record_property, f"{postgres_binary.name}, a backend killed")
    assert pause < GOES_ON
    assert flow.result.lost == set()
    flow.result.check(flow.result.younger_than(killed - MAX_SECONDS))


async def backends_end(server: PostgresServer, flow: Flow, random: Random, *, jobs: int) -> int:
    """Let the server end some of our connections, again and again; how many."""
    ended, enough = 0, len(flow.acknowledged) + jobs
    while len(flow.acknowledged) < enough:
        ((count,),) = server.ask(
            f"SELECT count(pg_terminate_backend(pid)) {_OTHERS} AND random() < %s",
            (random.random() / 2,),
        )
        ended += count
        await flow.pass_time(random.uniform(0.1, 0.3))
    return ended


def has_recovered(server: PostgresServer) -> bool:
    """Whether it takes connections after it was thrown back."""
    if "all server processes terminated; reinitializing" not in server.log:
        return False
    with suppress(psycopg.OperationalError):
        return server.ask("SELECT 1") == [(1,)]
    return False
