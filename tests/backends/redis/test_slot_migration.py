"""The slot of a namespace moves to another node of a cluster, and nodes die, while jobs flow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.crash.flow import MAX_SECONDS, Flow, Record, run_flow
from tests.servers import Binary, Cluster

pytestmark = pytest.mark.slow

GOES_ON = 5.0
SLOT_KEY = "{nimburion}:counters"


@asynccontextmanager
async def run_flow_through(
    cluster: Cluster, folder: Path, jobs: int, ttl: float = 10.0
) -> AsyncIterator[Flow]:
    async with run_flow(folder, f"{cluster.url}?timeout=2", jobs=jobs, ttl=ttl) as flow:
        yield flow


async def test_the_slot_moves_there_and_back(
    tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    """Key by key, as administrators move slots: while it moves, nothing of the namespace can be
    asked for anywhere, and everybody waits.

    Which refusal a client meets depends on when it asks, but each must meet one to learn where the
    slot is. How long all take to go on is recorded; the deadline for it (`DEADLINE`) is that of a
    test, and the sessions live long enough for a machine that is busy with something else.
    """
    with Cluster(redis_binary) as cluster:
        slot = cluster.compute_slot(SLOT_KEY)
        home = cluster.find_owner(slot)
        async with run_flow_through(cluster, tmp_path, 1_000, ttl=60.0) as flow:
            pauses, moved = [], 0
            for target in (cluster.find_other(home), home):
                await flow.wait_until_acknowledged(len(flow.acknowledged) + 300)
                moved += await asyncio.to_thread(cluster.move_slot, slot, target)
                pauses.append(await flow.wait_until_every_worker_resumes(since=time.monotonic()))
        met = count_redirects(cluster)
    flow.result.record_counts(record_property, f"{redis_binary.name}, slot moved twice")
    record_property("keys moved with their slot, in total", moved)
    for code, number in met.items():
        record_property(f"{code} while a slot moved, in total", number)
    record_property("longest, ms until every worker went on, in total", round(1000 * max(pauses)))
    assert moved > 10
    assert sum(met.values()), "no client was redirected to the slot"
    flow.result.check()
    assert flow.result.sessions_lost == 0


def count_redirects(cluster: Cluster) -> dict[str, int]:
    """How often nodes have answered that a key is elsewhere, or on its way."""
    found: dict[str, int] = dict.fromkeys(("MOVED", "ASK", "TRYAGAIN"), 0)
    for node in cluster.nodes:
        with node.client() as client:
            statistics = client.info("errorstats")
        for code in found:
            found[code] += int(statistics.get(f"errorstat_{code}", {"count": 0})["count"])
    return found


async def test_nodes_die(tmp_path: Path, redis_binary: Binary, record_property: Record) -> None:
    """One that has nothing of the namespace: nobody notices, once the cluster may go on without
    its slots. The one that has: everybody waits until it is back."""
    lines = ("cluster-require-full-coverage no", "appendfsync everysec")
    with Cluster(redis_binary, *lines, appendonly=True) as cluster:
        owner = cluster.find_owner(cluster.compute_slot(SLOT_KEY))
        bystander = cluster.find_other(owner)
        async with run_flow_through(cluster, tmp_path, 1_500) as flow:
            await flow.wait_until_acknowledged(500)
            bystander.kill()
            await flow.wait_until_acknowledged(1_000)
            assert flow.held_up == 0, "a node died that has nothing of it"
            killed = time.monotonic()
            await asyncio.to_thread(owner.kill)
            await flow.pass_time(1.0)
            await asyncio.to_thread(owner.start)
            pause = await flow.wait_until_every_worker_resumes(since=time.monotonic())
            bystander.start()
    flow.result.record_counts(record_property, f"{redis_binary.name}, node of a cluster killed")
    assert pause < GOES_ON
    assert flow.held_up
    flow.result.check(flow.result.younger_than(killed - MAX_SECONDS))
