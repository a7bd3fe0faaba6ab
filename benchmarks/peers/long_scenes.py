"""Scenes of PostgreSQL: what is written to its log, and what stays after long use."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.payload import PAYLOAD
from benchmarks.peers.meter import Meter, foreign
from benchmarks.peers.peer import Peer
from benchmarks.peers.scenes import Look, connected, expect, rates, watch
from benchmarks.peers.workers import Workers

BODY = len(json.dumps(PAYLOAD, separators=(",", ":")))
BACKLOG, MORE = 20_000, 5_000
"""Jobs that wait at most while they flow, and how many are added at once."""
SLICES = 10


async def wal(peer: Peer, jobs: int) -> dict[str, float]:
    """Bytes of write-ahead log of a job's life: enqueued in bulk, run, and written off."""
    async with connected(peer):
        meter = Meter(peer.statistics)
        before = meter.read()
        await peer.in_bulk("noop", jobs)
        await expect(peer, jobs)
        stored = meter.read()
        with Workers(peer.workers(1)) as workers:
            looks = await watch(peer, Meter(peer.statistics, workers), workers, jobs, 0)
        after = meter.read()
    done = looks[-1][0]
    enqueued = (stored.server.wal - before.server.wal) / jobs
    drained = (after.server.wal - stored.server.wal) / done
    return {
        "enqueued": enqueued,
        "drained": drained,
        "beyond": enqueued + drained - BODY,
        "foreign": foreign(before, looks[-1][1]),
    }


async def flow(peer: Peer, jobs: int, minutes: float) -> dict[str, Any]:
    """A drain, minutes at full flow with a producer beside the worker, and the same drain again."""
    async with connected(peer):
        before = await _drained(peer, jobs)
        slices, seen = await _flowing(peer, minutes * 60)
        after = await _drained(peer, jobs)
        size = Meter(peer.statistics).read().server.memory
    return {
        "before": before["rate"],
        "after": after["rate"],
        "flow": sum(slices) / len(slices),
        "slices": slices,
        "jobs": seen,
        "bytes": size,
        "foreign": max(before["foreign"], after["foreign"]),
    }


async def _drained(peer: Peer, jobs: int) -> dict[str, float]:
    await peer.in_bulk("noop", jobs)
    await expect(peer, jobs)
    with Workers(peer.workers(1)) as workers:
        looks: list[Look] = await watch(peer, Meter(peer.statistics, workers), workers, jobs, 0)
    return rates(looks, jobs)


async def _flowing(peer: Peer, seconds: float) -> tuple[list[float], int]:
    """Jobs a second in each tenth of the time, and how many there were."""
    stored, done, slices = 0, 0, list[float]()
    with Workers(peer.workers(1)) as workers:
        for _ in range(SLICES):
            began, before = time.perf_counter(), done
            while time.perf_counter() < began + seconds / SLICES:
                left = await peer.left()
                done = stored - left
                if left < BACKLOG:
                    await peer.in_bulk("noop", MORE)
                    stored += MORE
                else:
                    await asyncio.sleep(0.01)
                workers.check()
            slices.append((done - before) / (time.perf_counter() - began))
        while await peer.left():
            await asyncio.sleep(0.1)
            workers.check()
    return slices, stored


SCENES: dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]] = {
    scene.__name__: scene for scene in (wal, flow)
}
