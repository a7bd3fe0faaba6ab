"""Handlers in child processes: calls a second, and what CPU-bound handlers do to other jobs.

    python -m benchmarks.children [--save NAME]

Memory backend, two children, default settings, one worker process. The two parts:

- Calls: no-op `def` and `async def` handlers in the children, until the last job is completed. For
  comparison, in turn: the same handlers in the worker itself, and a no-op function in as many
  processes of `concurrent.futures.ProcessPoolExecutor`, which stores nothing.
- Beside: CPU-bound handlers of 0.5 s each run in the children. Meanwhile 50 async jobs a second are
  enqueued, and each notes how long after its enqueue it started (the pickup). The cores in use are
  the CPU time of the handlers over the time of the part.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from nimburion.jobs import Processor
from nimburion.jobs.declaration.job import JobCall

CHILDREN = 2
CALLS = 10_000
REPEATS = 7
BURN_SECONDS = 0.5
BURNS = 16
RATE = 50.0

processor = Processor("memory://", children=CHILDREN)
pickups: list[float] = []


@processor.job(execution="process")
def call(number: int) -> None:
    """Do nothing, in a child."""


@processor.job(execution="process")
async def call_async(number: int) -> None:
    """Do nothing, on the event loop of a child."""


@processor.job()
def call_in_thread(number: int) -> None:
    """Do nothing, in a thread of the worker."""


@processor.job()
async def call_in_worker(number: int) -> None:
    """Do nothing, on the event loop of the worker."""


def do_nothing(number: int) -> None:
    """Do nothing, in a process of the standard library's pool."""


@processor.job(execution="process")
def burn(seconds: float) -> float:
    """Use a core for some seconds of CPU time; return the time it took."""
    began, until = time.perf_counter(), time.process_time() + seconds
    while time.process_time() < until:
        pass
    return time.perf_counter() - began


@processor.job()
async def note_pickup(enqueued: float) -> None:
    """Note the time since the enqueue, in the worker."""
    pickups.append(time.perf_counter() - enqueued)


async def measure_calls(make_job: Callable[[int], JobCall[Any]]) -> float:
    """Return the calls a second of one handler."""
    await processor.enqueue_many([make_job(number) for number in range(CALLS)])
    began = time.perf_counter()
    while processor.health().running or await processor.pending_count():
        await asyncio.sleep(0.01)
    return CALLS / (time.perf_counter() - began)


async def measure_pool(pool: ProcessPoolExecutor) -> float:
    """Return the calls a second of the standard library's pool, one call a message."""
    began = time.perf_counter()
    await asyncio.to_thread(lambda: list(pool.map(do_nothing, range(CALLS), chunksize=1)))
    return CALLS / (time.perf_counter() - began)


async def measure_beside(burning: bool) -> tuple[float, float, float]:
    """Return p50 and p99 of the pickup in ms, and the cores that the burning handlers use."""
    pickups.clear()
    began = time.perf_counter()
    ids = [await processor.enqueue(burn.job(BURN_SECONDS)) for _ in range(BURNS if burning else 0)]
    waiting = [asyncio.create_task(processor.wait(job_id)) for job_id in ids]
    until = began + BURNS * BURN_SECONDS / CHILDREN
    while (any(not each.done() for each in waiting)) if burning else time.perf_counter() < until:
        await processor.enqueue(note_pickup.job(time.perf_counter()))
        await asyncio.sleep(1 / RATE)
    seconds = time.perf_counter() - began
    cores = BURN_SECONDS * len(ids) / seconds
    ordered = sorted(pickups)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return statistics.median(ordered) * 1e3, p99 * 1e3, cores


async def measure() -> list[str]:
    """Run both parts; the lines of a report."""
    lines = [
        f"{CHILDREN} children, {os.cpu_count()} cores, load before: {os.getloadavg()[0]:.2f}",
        "",
        f"| no-op calls/s ({CALLS:,} jobs, {REPEATS} runs) | median | lowest | highest |",
        "|---|---|---|---|",
    ]
    async with processor:
        await processor.start()
        ready = [await processor.enqueue(burn.job(0.05)) for _ in range(2 * CHILDREN)]
        for job_id in ready:
            await processor.wait(job_id, 30)
        with ProcessPoolExecutor(CHILDREN, multiprocessing.get_context("spawn")) as pool:
            await measure_pool(pool)  # starts the processes
            measures: dict[str, Callable[[], Awaitable[float]]] = {
                "`def` in a child": partial(measure_calls, call.job),
                "`async def` in a child": partial(measure_calls, call_async.job),
                "`ProcessPoolExecutor`": partial(measure_pool, pool),
                "`def` in a thread": partial(measure_calls, call_in_thread.job),
                "`async def` in the worker": partial(measure_calls, call_in_worker.job),
            }
            runs: dict[str, list[float]] = {name: [] for name in measures}
            for _ in range(REPEATS):
                for name, run in measures.items():
                    runs[name].append(await run())
        for name, values in runs.items():
            figures = (statistics.median(values), min(values), max(values))
            lines.append(f"| {name} | " + " | ".join(f"{each:,.0f}" for each in figures) + " |")
        lines += ["", "| async jobs at 50/s | pickup p50 | p99 | cores used by CPU-bound jobs |"]
        lines += ["|---|---|---|---|"]
        for burning in (False, True):
            p50, p99, cores = await measure_beside(burning)
            what = "beside CPU-bound jobs in both children" if burning else "alone"
            lines.append(f"| {what} | {p50:.2f} ms | {p99:.2f} ms | {cores:.2f} |")
    return lines


def main() -> None:
    """Measure, print, and keep the report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.md")
    chosen = parser.parse_args()
    report = "\n".join(asyncio.run(measure())) + "\n"
    print(report)
    if chosen.save:
        path = Path(__file__).parent / "results" / f"{chosen.save}.md"
        path.write_text(
            f"# Handlers in child processes\n\n`python -m benchmarks.children`\n\n{report}"
        )


if __name__ == "__main__":
    main()
