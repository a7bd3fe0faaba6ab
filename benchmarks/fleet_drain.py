"""`python -m benchmarks fleet-drain`: what a job costs the server when many workers run a backlog.

    python -m benchmarks fleet-drain [--backend NAME ...] [--jobs N] [--save]

The workers run in four processes, each with its own session and connections; on SQLite, each has a
process of its own. Each runs some jobs first: PostgreSQL plans the functions of a new connection in
its first exchanges, which costs more than these. Then all jobs wait in a paused queue, and the
queue is resumed. The workers say when they have run them: to count them costs the server as much as
to run them.

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
_WARM_UP_ROUNDS = 8
"""Each has a few jobs for each worker."""
_WARM_UP_JOBS = 10


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
    """Run some workers until the standard input ends. For each line of it, print their counts of
    jobs, of exchanges and the CPU time since the line before.
    """
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
    while await asyncio.to_thread(sys.stdin.readline):
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


class Fleet:
    """The worker processes, and a client."""

    def __init__(self, client: Processor, processes: list[subprocess.Popen[str]]) -> None:
        self._client = client
        self._processes = processes

    async def enqueue(self, name: str, jobs: int) -> None:
        """Enqueue jobs."""
        for first in range(0, jobs, _BATCH):
            await asyncio.gather(
                *(
                    self._client.enqueue_raw(name, PAYLOAD, queue=QUEUE)
                    for _ in range(min(_BATCH, jobs - first))
                )
            )

    def read(self) -> list[dict[str, Any]]:
        """Return what each process has counted."""
        found = []
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
        return found

    def count_jobs(self) -> int:
        """Return how many jobs have run."""
        return sum(sum(one["jobs"]) for one in self.read())

    async def wait_until_run(self, jobs: int) -> None:
        """Wait until so many jobs have run, and all results are stored."""
        while self.count_jobs() < jobs:
            await asyncio.sleep(_LOOK_AGAIN)
        reads = self._client.backend.reads
        while (await reads.count_jobs(budget=None))[State.COMPLETED] < jobs:
            await asyncio.sleep(_LOOK_AGAIN)

    async def warm_up(self, workers: int, name: str) -> int:
        """Let each worker run some jobs: it prefetches by how long they take. Return how many."""
        done = 0
        for _ in range(_WARM_UP_ROUNDS):
            done += workers * _WARM_UP_JOBS
            await self.enqueue(name, workers * _WARM_UP_JOBS)
            await self.wait_until_run(done)
        return done


async def drain(
    url: str, server: int | None, workers: int, jobs: int, name: str
) -> dict[str, float]:
    """Enqueue the jobs, and let a fleet run them."""
    most = workers if server is None else PROCESSES
    async with Processor(url) as client:
        Counter(client)
        with start_workers(url, workers, most) as started:
            fleet = Fleet(client, started)
            warm = await fleet.warm_up(workers, name)
            await client.queues.pause(QUEUE)
            await fleet.enqueue(name, jobs)
            before = fleet.read()
            cpu, began = ServerCpu(server), time.monotonic()
            await client.queues.resume(QUEUE)
            await fleet.wait_until_run(warm + jobs)
            seconds, server_ms = time.monotonic() - began, cpu.take()
            after = fleet.read()
    if server is None:
        server_ms = sum_change(before, after, "cpu")
    counts = [
        now - then
        for one, last in zip(after, before, strict=True)
        for now, then in zip(one["jobs"], last["jobs"], strict=True)
    ]
    return {
        "server µs": server_ms * 1e3 / jobs,
        "jobs/s": jobs / seconds,
        "exchanges": sum_change(before, after, "exchanges"),
        "without jobs": sum_change(before, after, "without jobs"),
        "cv": statistics.pstdev(counts) / statistics.mean(counts),
    }


def sum_change(before: list[dict[str, Any]], after: list[dict[str, Any]], name: str) -> float:
    """Return by how much a figure of all processes has grown."""
    return float(sum(one[name] for one in after) - sum(one[name] for one in before))


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
