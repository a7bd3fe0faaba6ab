"""The scenes, the same for every peer. Each has a fresh server to itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.payload import PAYLOAD
from benchmarks.peers.meter import Meter, Reading, foreign, per_job
from benchmarks.peers.peer import Peer, Spent, settled, stopwatch
from benchmarks.peers.workers import Workers

STUCK_AFTER = 20.0
"""Seconds after which a drain is measured as far as it came."""
LOOK_EVERY = 0.1
LOOKING = 0.03
"""The part of the time that goes into counting, at most: a long table is not counted in no time."""
LONGEST_PAUSE = 1.0
PART = 200_000
"""Jobs that are enqueued at once where many are run before the measuring."""
Look = tuple[int, Reading]


async def enqueue_one(peer: Peer, jobs: int) -> dict[str, float]:
    """One call after another."""
    return await _enqueue(peer, jobs, peer.one_by_one("noop", jobs), timed=jobs - 1)


async def enqueue_bulk(peer: Peer, jobs: int) -> dict[str, float]:
    """The peer's own bulk call, or a hundred single calls at once."""
    return await _enqueue(peer, jobs, peer.in_bulk("noop", jobs), timed=jobs)


async def enqueue_together(peer: Peer, jobs: int, producers: int) -> dict[str, float]:
    """Many tasks of one process, each one awaited call after another."""
    return await _enqueue(peer, jobs, _together(peer, jobs, producers), timed=jobs)


async def memory(peer: Peer, jobs: int) -> dict[str, float]:
    """Bytes of the server's memory for each job that waits."""
    meter = Meter(peer.statistics)
    before = meter.read()
    async with connected(peer):  # connections need memory too: read before and after them
        await peer.in_bulk("noop", jobs)
        await expect(peer, jobs)
    await asyncio.sleep(0.2)
    after = meter.read()
    return {
        "bytes": (after.server.memory - before.server.memory) / jobs,
        "foreign": foreign(before, after),
    }


async def drain(
    peer: Peer,
    jobs: int,
    processes: int = 1,
    kind: str = "noop",
    *,
    stay: int = 0,
    kept: int = 0,
    pinned: bool = False,
) -> dict[str, float]:
    """Workers that start on a full queue, until only the `stay` jobs that are too many are left.

    First `kept` jobs are completed; `pinned` holds a snapshot from before the queue is filled.
    """
    async with connected(peer):
        if kept:
            await _complete(peer, kept)
        with peer.postgres.pinned() if pinned else nullcontext():
            await peer.in_bulk(kind, jobs + stay)
            await expect(peer, jobs + stay)
            with Workers(peer.workers(processes)) as workers:
                looks = await watch(peer, Meter(peer.statistics, workers), workers, jobs, stay)
    return rates(looks, jobs)


def rates(looks: list[Look], jobs: int) -> dict[str, float]:
    """What the looks at a drain say."""
    first, last = _steady(looks, jobs)
    (less, a), (more, b) = first, last
    done, seconds = more - less, b.at - a.at
    third = next(look for look in looks if look[0] >= less + done * 2 // 3)
    later = third if third[0] < more else first
    return {
        "rate": done / seconds,
        "late": (more - later[0]) / (b.at - later[1].at),
        "client_us": (b.workers - a.workers) / done * 1e6,
        **per_job(a, b, done),
        "seconds": seconds,
    }


async def pickup(peer: Peer, jobs: int, every: float) -> dict[str, Any]:
    """From before the call to the start of the handler in a worker that was idle, milliseconds."""
    warm = 20
    async with connected(peer):
        with Workers(peer.workers(1)) as workers:
            await peer.paced(1, 0.0)
            await _noted(peer, 1, workers)
            await peer.paced(warm, every)
            await _noted(peer, 1 + warm, workers)
            await asyncio.sleep(1)
            meter = Meter(peer.statistics, workers)
            before = meter.read()
            await peer.paced(jobs, every)
            noted = await _noted(peer, 1 + warm + jobs, workers)
            after = meter.read()
    return {"ms": noted[1 + warm :], **per_job(before, after, jobs)}


async def idle(peer: Peer, seconds: float) -> dict[str, float]:
    """A worker that has run one job and has nothing more to do."""
    async with connected(peer):
        with Workers(peer.workers(1)) as workers:
            await peer.paced(1, 0.0)
            await _noted(peer, 1, workers)
            await asyncio.sleep(5)
            meter = Meter(peer.statistics, workers)
            before = meter.read()
            await asyncio.sleep(seconds)
            after = meter.read()
            workers.check()
    span = after.at - before.at
    return {
        "requests": (after.server.requests - before.server.requests) / span,
        "commands": (after.server.commands - before.server.commands) / span,
        "transactions": (after.server.transactions - before.server.transactions) / span,
        "wal": (after.server.wal - before.server.wal) / span,
        "client_percent": (after.workers - before.workers) / span * 100,
        "server_percent": (after.server.cpu - before.server.cpu) / span * 100,
        "foreign": foreign(before, after),
    }


@asynccontextmanager
async def connected(peer: Peer) -> AsyncIterator[None]:
    await peer.open()
    yield
    await peer.close()


async def _enqueue(
    peer: Peer, jobs: int, work: Coroutine[Any, Any, Spent], timed: int
) -> dict[str, float]:
    async with connected(peer):
        meter = Meter(peer.statistics)
        before = meter.read()
        spent = await work
        after = meter.read()
        await expect(peer, jobs)
    return {
        "rate": timed / spent.clock,
        "client_us": spent.cpu / timed * 1e6,
        **per_job(before, after, jobs),
    }


async def _together(peer: Peer, jobs: int, producers: int) -> Spent:
    async def produce() -> None:
        for _ in range(jobs // producers):
            await settled(peer.enqueue("noop", PAYLOAD))

    with stopwatch() as spent:
        await asyncio.gather(*(produce() for _ in range(producers)))
    return spent


async def watch(peer: Peer, meter: Meter, workers: Workers, jobs: int, stay: int) -> list[Look]:
    """Looks at the backend's counts, each with a reading, until the jobs are done."""
    looks: list[Look] = []
    pause = LOOK_EVERY
    deadline: float | None = None
    started = time.perf_counter()
    while not looks or looks[-1][0] < jobs:
        await asyncio.sleep(pause)
        began = time.perf_counter()
        done = jobs + stay - await peer.left()
        looks.append((done, meter.read()))
        now = time.perf_counter()
        pause = max(LOOK_EVERY, min(LONGEST_PAUSE, (now - began) / LOOKING))
        if deadline is None and done > 0:
            deadline = now + STUCK_AFTER
        if now > (deadline or started + STUCK_AFTER):
            if done > jobs // 5:
                break
            raise RuntimeError(f"{done} of {jobs} jobs were done in {now - started:.0f} s")
        workers.check()
    return looks


def _steady(looks: list[Look], jobs: int) -> tuple[Look, Look]:
    """From a tenth of the work (every process has started) to the last look that saw some left."""
    some = [look for look in looks if look[0] >= jobs / 10]
    unfinished = [look for look in some if look[0] < jobs]
    if len({done for done, _ in unfinished}) < 2:
        raise RuntimeError(f"{jobs} jobs are too few to measure: done before the second look")
    return unfinished[0], unfinished[-1]


async def _complete(peer: Peer, jobs: int) -> None:
    """Enqueue so many and run them, a part at a time."""
    with Workers(peer.workers(1)) as workers:
        for start in range(0, jobs, PART):
            await peer.in_bulk("noop", min(PART, jobs - start))
            while await peer.left():
                await asyncio.sleep(LOOK_EVERY)
                workers.check()


async def expect(peer: Peer, jobs: int) -> None:
    stored = await peer.left()
    if stored != jobs:
        raise RuntimeError(f"{jobs} jobs were enqueued, the backend has {stored}")


async def _noted(peer: Peer, many: int, workers: Workers) -> list[float]:
    """The milliseconds that handlers wrote down, once there are so many."""
    path = Path(peer.setting.notes)
    deadline = time.monotonic() + STUCK_AFTER
    while True:
        noted = read(path)
        if len(noted) >= many:
            return noted
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(noted)} of {many} jobs were picked up")
        workers.check()
        await asyncio.sleep(0.05)


def read(path: Path) -> list[float]:
    """The numbers of a file, one a line; none while there is no file."""
    return [float(line) for line in path.read_text().split()] if path.exists() else []


SCENES: dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]] = {
    scene.__name__: scene
    for scene in (enqueue_one, enqueue_bulk, enqueue_together, memory, drain, pickup, idle)
}
