"""`python -m benchmarks fleet-drain`: what a job costs the server when many workers run a backlog.

    python -m benchmarks fleet-drain [--backend NAME ...] [--jobs N] [--save]

The workers run in four processes, each with its own session and connections; on SQLite, each has a
process of its own. All jobs wait in a paused queue. When all workers wait for jobs, the queue is
resumed.

- `server µs`: the CPU time of the server's processes for a job. SQLite has no server: there it is
  that of the workers.
- `without jobs`: exchanges that found no job. They may have settled some.
- `1 ms`: the same with jobs that use 1 ms of CPU time. `cv` is the standard deviation of the number
  of jobs of a worker, divided by the mean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.fleet import Calls, serve_fleet
from benchmarks.report import table
from benchmarks.server_cpu import ServerCpu
from nimburion import Context, Processor
from nimburion.core.job import State

BACKENDS = ("sqlite", "valkey", "postgres")
WORKERS = {"sqlite": (1, 4, 8, 16), "valkey": (1, 16, 32), "postgres": (1, 16, 32)}
PROCESSES = 4
QUEUE, PAYLOAD = "default", b"x" * 250
_BATCH = 1_000
_LOOK_AGAIN = 0.1


class Counter:
    """The handlers of one worker, which count its jobs."""

    def __init__(self, processor: Processor) -> None:
        self.jobs = 0
        processor.register("nothing", self.nothing)
        processor.register("short", self.short)

    async def nothing(self, ctx: Context, payload: bytes) -> None:
        """Does nothing."""
        del ctx, payload
        self.jobs += 1

    async def short(self, ctx: Context, payload: bytes) -> None:
        """Uses 1 ms of CPU time."""
        await self.nothing(ctx, payload)
        until = time.thread_time() + 0.001
        while time.thread_time() < until:
            pass


async def run_workers(url: str, count: int) -> None:
    """Run some workers until the standard input ends. Print their counts of jobs, the CPU time."""
    processors = [Processor(url) for _ in range(count)]
    counters = [Counter(processor) for processor in processors]
    calls = Calls()
    calls.count(type(processors[0].backend.consuming))
    for processor in processors:
        await processor.start()
    while calls.counts["wait" if calls.counts["wait"] else "exchange"] < count:
        await asyncio.sleep(_LOOK_AGAIN)
    print("ready", flush=True)
    began = time.process_time()
    await asyncio.to_thread(sys.stdin.read)
    found = {
        "jobs": [counter.jobs for counter in counters],
        "cpu": (time.process_time() - began) * 1e3,
        "exchanges": calls.counts["exchange"] - calls.counts["poll"],
        "without jobs": calls.counts["without jobs"],
    }
    print(json.dumps(found), flush=True)
    await asyncio.gather(*(processor.close() for processor in processors))


@contextmanager
def start_workers(url: str, workers: int, most: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start up to `most` processes, and wait until all their workers wait for jobs."""
    shares = [workers // most + (n < workers % most) for n in range(most)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fleet_drain", json.dumps([url, share])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in filter(None, shares)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


async def drain(
    url: str, server: int | None, workers: int, jobs: int, name: str
) -> dict[str, float]:
    """Enqueue the jobs, and let a fleet run them."""
    async with Processor(url) as client:
        Counter(client)
        await client.queues.pause(QUEUE)
        for first in range(0, jobs, _BATCH):
            await asyncio.gather(
                *(
                    client.enqueue_raw(name, PAYLOAD, queue=QUEUE)
                    for _ in range(min(_BATCH, jobs - first))
                )
            )
        with start_workers(url, workers, workers if server is None else PROCESSES) as started:
            cpu, began = ServerCpu(server), time.monotonic()
            await client.queues.resume(QUEUE)
            while (await client.backend.reads.count_jobs(budget=None))[State.COMPLETED] < jobs:
                await asyncio.sleep(_LOOK_AGAIN)
            seconds, server_ms = time.monotonic() - began, cpu.take()
            ended = [process.communicate("")[0].splitlines()[-1] for process in started]
    found = [json.loads(line) for line in ended]
    if server is None:
        server_ms = sum(one["cpu"] for one in found)
    counts = [count for one in found for count in one["jobs"]]
    return {
        "server µs": server_ms * 1e3 / jobs,
        "jobs/s": jobs / seconds,
        "exchanges": sum(one["exchanges"] for one in found),
        "without jobs": sum(one["without jobs"] for one in found),
        "cv": statistics.pstdev(counts) / statistics.mean(counts),
    }


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="bench fleet-drain", description=__doc__)
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--workers", nargs="+", type=int, help="the default depends on the backend")
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--short-jobs", type=int, default=6_000)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args(arguments)
    conditions = read_conditions()
    found: dict[str, Any] = {"conditions": conditions, "drains": []}
    rows = []
    for backend in options.backend:
        for name, jobs in (("nothing", options.jobs), ("short", options.short_jobs)):
            for workers in options.workers or WORKERS[backend]:
                with serve_fleet(backend) as (url, server):
                    figures = asyncio.run(drain(url, server, workers, jobs, name))
                found["drains"].append(
                    {"backend": backend, "job": name, "workers": workers, "jobs": jobs, **figures}
                )
                rows.append(
                    [
                        *(backend, "1 ms" if name == "short" else "no-op", str(workers)),
                        *(f"{jobs:,}", f"{figures['server µs']:.0f}", f"{figures['jobs/s']:,.0f}"),
                        *(f"{figures['exchanges']:,.0f}", f"{figures['without jobs']:,.0f}"),
                        f"{figures['cv']:.2f}",
                    ]
                )
                print(" | ".join(rows[-1]), flush=True)
    head = [
        "backend",
        "job",
        "workers",
        "jobs",
        "server µs a job",
        "jobs/s",
        "exchanges",
        "without jobs",
    ]
    rows_table = table("Drains by many workers", [*head, "cv"], rows)
    text = f"{describe_conditions(conditions)}\n\n{rows_table}"
    print(text)
    if options.save:
        print(save("fleet-drain", found, text))
    return 0


if __name__ == "__main__":
    asyncio.run(run_workers(*json.loads(sys.argv[1])))
