"""Counts what one job costs, without a clock: calls, tasks, statements, commands, bytes.

Usage: python -m tests.budgets.counts URL SCENARIO [SCENARIO ...] [--jobs 1000]

Prints the counts of each scenario as JSON. A count is the difference between a run of few and one
of many jobs, divided by the difference in jobs, so opening, waiting and closing do not count.
Timers and a slow server can only add to a count, so the smallest of several runs is taken on both
sides: of three, and of more until another run confirms it. The longer run has eight times the jobs:
so a shorter run that counted less than usual changes little.

Run it as a program: the profiler counts the calls of every thread of the process. The server must
be empty and serve nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import itertools
import json
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVarTuple

from nimburion import Context, DurableContext, Job, Processor, State, open_backend
from nimburion.core.timing.clock import SystemClock
from tests.waiting import wait_until

Counts = Counter[str]
_Arguments = TypeVarTuple("_Arguments")

_PACKAGE, _BACKENDS = "/nimburion/", "/nimburion/backends/"
_WARM_UP = 30
_ROUNDS, _MOST_ROUNDS = 3, 12
_LONGER = 8
_CONFIRMED = 1.005
"""A run confirms the smallest number of calls if it has at most this multiple of it."""
_SLOWDOWN = 10
_BATCH = 1_000

_OTHER_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_POSTGRES_COUNTERS = """
SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS wal_bytes,
    xact_commit + xact_rollback AS transactions,
    tup_inserted + tup_updated + tup_deleted AS rows_written
FROM pg_stat_database WHERE datname = current_database()
"""


class Recorder:
    """The counts of the current run, and the number of its jobs that have ended."""

    def __init__(self) -> None:
        self.counts: Counts = Counter()
        self.is_counting = False
        self._ends = itertools.count(1)
        self._jobs = 0
        self._finish: Callable[[], object] = lambda: None

    def start(self, jobs: int) -> asyncio.Event:
        """Begin to count; return the event that is set when this many jobs have ended."""
        loop, finished = asyncio.get_running_loop(), asyncio.Event()
        self._ends, self._jobs = itertools.count(1), jobs
        self._finish = lambda: loop.call_soon_threadsafe(finished.set)
        self.counts, self.is_counting = Counter(), True
        return finished

    def stop(self) -> Counts:
        """Stop counting; return the counts."""
        self.is_counting = False
        return self.counts

    def note_end(self) -> None:
        if next(self._ends) == self._jobs:
            self._finish()

    def note_call(self, frame: FrameType, event: str, _: object) -> None:
        """Count a call of a Python function. A profile function of `sys` and `threading`."""
        if not self.is_counting or event != "call":
            return
        path = frame.f_code.co_filename
        if path == __file__:  # the handlers, and the counting itself
            return
        self.counts["calls"] += 1
        if _PACKAGE in path:
            self.counts["backend_calls" if _BACKENDS in path else "engine_calls"] += 1

    def note_statement(self, text: str) -> None:
        if self.is_counting:
            self.counts["statements"] += 1
            self.counts["commits"] += text.upper().startswith("COMMIT")

    def note(self, name: str) -> None:
        self.counts[name] += self.is_counting


recorder = Recorder()


class Plain(Job, name="plain"):
    """Three texts, about 200 bytes as JSON."""

    to: str
    subject: str
    body: str

    async def process(self, ctx: Context) -> None:
        recorder.note_end()


class InThread(Job, name="in_thread"):
    """The same with a `def` handler, which runs in a thread."""

    to: str
    subject: str
    body: str

    def process(self, ctx: Context) -> None:
        recorder.note_end()


class Limited(Job, name="limited", concurrency=100_000):
    """The same under one limit, which is never reached."""

    to: str
    subject: str
    body: str

    async def process(self, ctx: Context) -> None:
        recorder.note_end()


STEPS = 10
"""The steps of a durable function."""
PAUSE = 3_600.0
"""Seconds for which a durable function is suspended."""


async def return_number(number: int) -> int:
    """Return a number, as a step."""
    return number


class Stepping(Job, name="stepping"):
    """A durable function with `STEPS` steps, one after another."""

    to: str
    subject: str
    body: str

    async def process(self, ctx: DurableContext) -> None:
        for number in range(STEPS):
            await ctx.options(key=str(number)).step(return_number, number)
        recorder.note_end()


class Suspending(Job, name="suspending"):
    """A durable function that is suspended once. Each of its two attempts counts as an end."""

    to: str
    subject: str
    body: str

    async def process(self, ctx: DurableContext) -> None:
        recorder.note_end()
        await ctx.sleep("pause", PAUSE)


class ShiftedClock(SystemClock):
    """The clock of a backend, which may be set forward."""

    shift = 0.0

    def now(self) -> float:
        return super().now() + self.shift


class ProcessClock(SystemClock):
    """Measures how long the process ran, so that other programs change no decision of the worker,
    such as how many jobs it prefetches."""

    def monotonic(self) -> float:
        return time.process_time()


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts callbacks, and tasks by their first step.

    Its timers are slower, as the counted code is: otherwise they would send more exchanges.
    """

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        now = self.time()
        return super().call_at(now + _SLOWDOWN * (when - now), callback, *args, context=context)

    def call_soon(
        self,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        recorder.note("callbacks")
        if "TaskStep" in type(callback).__name__:
            recorder.note("tasks")
        return super().call_soon(callback, *args, context=context)


class CountingConnection(sqlite3.Connection):
    """Counts the statements of SQLite."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.set_trace_callback(recorder.note_statement)


async def drain(url: str, kind: type[Job], jobs: int) -> Counts:
    """Return what a worker takes to run this many jobs that wait."""
    backend = open_backend(url)
    _count_exchanges(backend)
    processor = Processor(backend, clock=ProcessClock())
    processor.register(kind)
    async with processor:
        for start in range(0, jobs, _BATCH):
            await processor.enqueue_many(_make_jobs(kind, min(_BATCH, jobs - start)))
    before = await _read_server(url)
    async with processor:
        counts = await _run_worker(processor, jobs)
    return counts + await _read_server(url) - before


async def suspend(url: str, kind: type[Job], jobs: int) -> Counts:
    """Return what a worker takes to suspend this many durable runs and, later, to resume them."""
    clock = ShiftedClock()
    backend = open_backend(url, clock=clock)
    _count_exchanges(backend)
    processor = Processor(backend, clock=ProcessClock())
    processor.register(kind)
    async with processor:
        await processor.enqueue_many(_make_jobs(kind, jobs))

        async def are_suspended() -> bool:
            return (await backend.reads.count_jobs())[State.SUSPENDED] == jobs

        counts = await _run_worker(processor, jobs, are_suspended)
        clock.shift = 2 * PAUSE
        return counts + await _run_worker(processor, jobs)


async def _run_worker(
    processor: Processor, jobs: int, is_over: Callable[[], Awaitable[bool]] | None = None
) -> Counts:
    """Return what a worker takes until this many attempts have ended. Then it stops."""
    finished = recorder.start(jobs)
    running = asyncio.create_task(processor.run(signals=False))
    await finished.wait()
    counts = recorder.stop()
    if is_over is not None:
        await wait_until(is_over, "all runs are suspended")
    await processor.stop()
    await running
    return counts


async def enqueue(url: str, kind: type[Job], jobs: int) -> Counts:
    """Return what it takes to enqueue this many jobs, one after the other."""
    processor = Processor(open_backend(url), clock=ProcessClock())
    processor.register(kind)
    before = await _read_server(url)
    async with processor:
        (job,) = _make_jobs(kind, 1)
        for _ in range(_WARM_UP):
            await processor.enqueue(job)
        recorder.start(jobs)
        for _ in range(jobs):
            await processor.enqueue(job)
        counts = recorder.stop()
    return counts + await _read_server(url) - before


SCENARIOS: dict[str, tuple[Callable[[str, type[Job], int], Awaitable[Counts]], type[Job]]] = {
    "drain": (drain, Plain),
    "drain_in_threads": (drain, InThread),
    "drain_limited": (drain, Limited),
    "enqueue": (enqueue, Plain),
    "drain_steps": (drain, Stepping),
    "suspend": (suspend, Suspending),
}

LONG_SCENARIOS = ("enqueue", "drain_steps", "suspend")
"""Those that take much for a job, and are counted with fewer."""


def count_per_job(scenario: str, url: str, jobs: int) -> dict[str, float]:
    """Return each count of the scenario per job."""
    _run(scenario, url, jobs // 4)  # imports and caches
    few = _find_smallest(scenario, url, jobs)
    many = _find_smallest(scenario, url, _LONGER * jobs)
    return {name: (many[name] - few.get(name, 0.0)) / ((_LONGER - 1) * jobs) for name in many}


def _find_smallest(scenario: str, url: str, jobs: int) -> dict[str, int]:
    """Return the smallest of each count in several runs."""
    runs: list[Counts] = []
    is_confirmed = False
    while len(runs) < _ROUNDS or (not is_confirmed and len(runs) < _MOST_ROUNDS):
        runs.append(_run(scenario, url, jobs))
        calls = sorted(run["calls"] for run in runs)
        is_confirmed = len(runs) > 1 and calls[1] <= _CONFIRMED * calls[0]
    return {name: min(run[name] for run in runs) for name in runs[0]}


def _run(scenario: str, url: str, jobs: int) -> Counts:
    measure, kind = SCENARIOS[scenario]
    with tempfile.TemporaryDirectory(prefix="nb-") as folder:
        own_url = f"sqlite:///{Path(folder) / 'jobs.db'}" if url == "sqlite" else url
        with asyncio.Runner(loop_factory=CountingLoop) as runner:
            return runner.run(measure(own_url, kind, jobs))  # type: ignore[arg-type]


def _make_jobs(kind: type[Job], count: int) -> list[Job]:
    fields: Any = {"to": "user@example.com", "subject": "hello", "body": "x" * 160}
    return [kind(**fields) for _ in range(count)]


def _count_exchanges(backend: Any) -> None:
    exchange = backend.consuming.exchange

    async def exchange_counted(*arguments: object) -> object:
        recorder.note("exchanges")
        return await exchange(*arguments)

    backend.consuming.exchange = exchange_counted


async def _read_server(url: str) -> Counts:
    """Return the counters of the server; none for a backend without one."""
    if url.startswith("redis"):
        return await _read_redis(url)
    if url.startswith("postgresql"):
        return await _read_postgres(url)
    return Counter()


async def _read_redis(url: str) -> Counts:
    import redis.asyncio

    async with redis.asyncio.from_url(url) as client:
        info = await client.info("all")
    return Counter(
        commands=info["total_commands_processed"],
        bytes_in=info["total_net_input_bytes"],
        bytes_out=info["total_net_output_bytes"],
    )


async def _read_postgres(url: str) -> Counts:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:

        async def is_alone() -> bool:
            return not await connection.fetchval(_OTHER_SESSIONS)

        await wait_until(is_alone, "each session ends, and publishes its counters")
        (row,) = await connection.fetch(_POSTGRES_COUNTERS)
    finally:
        await connection.close()
    return Counter({name: int(value) for name, value in row.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what one job costs.")
    parser.add_argument("url")
    parser.add_argument("scenarios", nargs="+", choices=SCENARIOS)
    parser.add_argument("--jobs", type=int, default=1_000)
    options = parser.parse_args()
    sqlite3.connect = partial(sqlite3.connect, factory=CountingConnection)  # type: ignore[assignment]
    threading.setprofile(recorder.note_call)
    sys.setprofile(recorder.note_call)
    counts = {
        scenario: count_per_job(
            scenario, options.url, options.jobs // (5 if scenario in LONG_SCENARIOS else 1)
        )
        for scenario in options.scenarios
    }
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
