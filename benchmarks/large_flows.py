"""The scenes of `dev.py bench flows` that need many jobs.

- `suspended`: the plain drain of a backend that also has 100,000 suspended durable runs, beside
  that of one without any. Each run waits for a signal, or for ten years.
- `million`: the enqueue of a flow of 1,000,000 members beside that of 1,000,000 plain jobs, and the
  time of `get_flow`.
- `release`: one job, and 100,000 that depend on it. The times are those of single exchanges of the
  worker, from the call to the reply, until all dependents have run. An exchange that settles
  nothing and brings nothing is left out, since it may wait for jobs.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import redis.asyncio

from benchmarks.limits import read_cpu
from benchmarks.payload import PAYLOAD
from benchmarks.workload import noop
from nimburion import Flow, Processor
from nimburion.core.backend import Backend
from nimburion.core.exchange import Lane, Reply, ReserveRequest
from nimburion.core.ids import make_session_id
from nimburion.core.job import NewJob, State
from nimburion.core.runs import make_signal_source
from nimburion.core.session import Session
from nimburion.core.settlement import Settlement, Suspended
from nimburion.jobs.declaration.job import JobFunction

SUSPENDED = 100_000
"""How many runs are suspended beside the plain drain."""
MEMBERS = 1_000_000
"""The members of the large flow."""
DEPENDENTS = 100_000
"""How many jobs depend on one."""
BATCH = 500
CALL = 10_000
"""The jobs of one call of `enqueue_many`."""
YEARS = 10 * 365 * 86_400.0
READS = 50
"""How often `get_flow` is timed."""


async def suspend_runs(backend: Backend, count: int) -> None:
    """Leave this number of suspended runs in a backend."""
    session = make_session_id()
    lane = Lane("waiting", "waiting")
    await backend.consuming.open_session(Session(id=session, names=(lane.name,)))
    settled: list[Settlement] = []
    for number, start in enumerate(range(0, count + BATCH, BATCH), 1):
        ids = [f"waiting-{n}" for n in range(start, min(start + BATCH, count))]
        if ids:
            jobs = [NewJob(one, lane.name, lane.queue, b"{}") for one in ids]
            await backend.producing.enqueue(jobs)
        request = ReserveRequest(total=len(ids), lanes=(lane,), nonce=os.urandom(16))
        reply = await backend.consuming.exchange(session, number, settled, request)
        settled = [
            Suspended(one.lease, (make_signal_source(one.lease.job_id, "go"),), YEARS)
            for one in reply.deliveries
        ]
    await backend.consuming.close_session(session)
    counts = await backend.reads.count_jobs(budget=None)
    if counts[State.SUSPENDED] != count:
        raise RuntimeError(f"{counts[State.SUSPENDED]} of {count} runs are suspended")


async def fill(url: str, count: int, _: int | None) -> dict[str, float]:
    """Leave suspended runs in the backend of a URL."""
    async with Processor(url) as processor:
        await suspend_runs(processor.backend, count)
    # The servers would do this during the drain, and it would be counted.
    if url.startswith("postgres"):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")
    elif not url.startswith("sqlite"):
        await rewrite_log(url)
    return {}


async def rewrite_log(url: str) -> None:
    """Let a Redis server write its append-only file anew."""
    async with redis.asyncio.Redis.from_url(url.replace("valkey://", "redis://", 1)) as server:
        await server.bgrewriteaof()
        while (await server.info("persistence"))["aof_rewrite_in_progress"]:
            await asyncio.sleep(0.05)


async def drain_plain(url: str, jobs: int, server: int | None) -> dict[str, float]:
    """Complete plain jobs; return the CPU time a job of worker and server, in microseconds."""
    return await _drain_plain(url, jobs, server)


async def drain_beside_suspended(url: str, jobs: int, server: int | None) -> dict[str, float]:
    """The same, of a backend that was filled. One in memory is filled here."""
    return await _drain_plain(url, jobs, server, SUSPENDED if url == "memory://" else 0)


async def _drain_plain(url: str, jobs: int, server: int | None, fill: int = 0) -> dict[str, float]:
    left = jobs
    done = asyncio.Event()
    async with Processor(url) as processor:

        @processor.job(queue="bench")
        async def plain(to: str, subject: str, body: str) -> None:  # noqa: ARG001
            nonlocal left
            left -= 1
            if not left:
                done.set()

        if fill:
            await suspend_runs(processor.backend, fill)
        await _enqueue_plain(processor, plain, jobs)
        began = time.process_time() + read_cpu(server)
        await processor.start()
        await done.wait()
        await processor.stop()
        ended = time.process_time() + read_cpu(server)
    return {"run": (ended - began) / jobs * 1e6}


async def enqueue_plain(url: str, jobs: int, server: int | None) -> dict[str, float]:
    """Enqueue plain jobs; return the CPU time a job of both parts, in microseconds."""
    async with Processor(url) as processor:
        processor.register(noop)
        began = time.process_time() + read_cpu(server)
        await _enqueue_plain(processor, noop, jobs)
        ended = time.process_time() + read_cpu(server)
    return {"enqueue": (ended - began) / jobs * 1e6}


async def _enqueue_plain(
    processor: Processor, function: JobFunction[..., ..., Any, None], jobs: int
) -> None:
    """Enqueue this number of jobs, in calls of `CALL`."""
    for start in range(0, jobs, CALL):
        calls = range(start, min(jobs, start + CALL))
        await processor.enqueue_many(function.job(**PAYLOAD) for _ in calls)


async def enqueue_members(url: str, jobs: int, server: int | None) -> dict[str, float]:
    """The same of the members of one flow, and the median time of `get_flow` in milliseconds."""
    async with Processor(url) as processor:
        processor.register(noop)
        began = time.process_time() + read_cpu(server)
        flow = Flow("large")
        flow.add_all(noop.job(**PAYLOAD) for _ in range(jobs))
        flow_id = await processor.enqueue_flow(flow)
        ended = time.process_time() + read_cpu(server)
        times = []
        for _ in range(READS):
            at = time.perf_counter()
            infos = await processor.backend.reads.get_flow(flow_id)
            times.append((time.perf_counter() - at) * 1e3)
            assert infos
    return {"enqueue": (ended - began) / jobs * 1e6, "get_flow": statistics.median(times)}


async def release(url: str, jobs: int, _: int | None) -> dict[str, float]:
    """Run one job and all that depend on it; return the times of single exchanges in milliseconds:
    the median, and the longest.
    """
    times: list[float] = []
    async with Processor(url) as processor:
        exchange = processor.backend.consuming.exchange

        async def timed_exchange(
            session_id: str, number: int, settlements: Sequence[Settlement], request: ReserveRequest
        ) -> Reply:
            began = time.perf_counter()
            reply = await exchange(session_id, number, settlements, request)
            if settlements or reply.deliveries:
                times.append((time.perf_counter() - began) * 1e3)
            return reply

        processor.backend.consuming.exchange = timed_exchange  # type: ignore[method-assign]
        processor.register(noop)
        flow = Flow("release")
        first = flow.add(noop.job(**PAYLOAD), name="first")
        flow.add_all((noop.job(**PAYLOAD) for _ in range(jobs)), depends_on=first)
        await processor.enqueue_flow(flow)
        await processor.start()
        while (await processor.backend.reads.count_jobs())[State.COMPLETED] <= jobs:
            await asyncio.sleep(0.2)
        await processor.stop()
    return {"median": statistics.median(times), "longest": max(times), "exchanges": len(times)}


PARTS = {
    "fill": fill,
    "beside_none": drain_plain,
    "beside_suspended": drain_beside_suspended,
    "large_bulk": enqueue_plain,
    "large_flow": enqueue_members,
    "release": release,
}
"""What a process of its own runs, by name."""
