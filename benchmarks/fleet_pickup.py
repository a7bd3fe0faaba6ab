"""`python -m benchmarks fleet-pickup`: how soon a job starts in a fleet of idle workers.

    python -m benchmarks fleet-pickup [--backend NAME ...] [--workers N ...] [--save]

50 jobs a second arrive. The workers run in eight processes, as those of eight supervisors do, and
the producer runs in another: the event loop of one process with 200 workers is late for reasons
that no fleet of processes has. `p50` and `p99` are milliseconds from the call of enqueue to the
start of the handler. Each fleet is followed by one worker alone, because the machine changes.
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
from benchmarks.fleet import RATE, TimedJobs, noop, serve_fleet
from benchmarks.report import at, table
from benchmarks.server_cpu import ServerCpu
from benchmarks.shared_listeners import SharedListeners
from nimburion import Processor

BACKENDS = ("valkey", "postgres")
PROCESSES = 8
_WARM_UP_ROUNDS = 8
_SETTLED_AFTER = 3.0


async def run_workers(url: str, count: int) -> None:
    """Run some workers that share a listener. Print how long their jobs waited, for each line of
    the standard input, until it ends.
    """
    timed, shared = TimedJobs(), SharedListeners()
    fleet = [Processor(url) for _ in range(count)]
    for processor in fleet:
        processor.register(noop)  # which has the queue of the timed jobs
        timed.register(processor)
        processor.backend.consuming.share_listener(shared.share)  # type: ignore[attr-defined]
    await asyncio.gather(*(processor.start() for processor in fleet))
    await asyncio.sleep(_SETTLED_AFTER)
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(timed.waits), flush=True)
        timed.waits.clear()
    await asyncio.gather(*(processor.close() for processor in fleet))


class Fleet:
    """The worker processes."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def take_waits(self) -> list[float]:
        """Return how long the jobs since the last call have waited."""
        waits: list[float] = []
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            waits += json.loads(process.stdout.readline())
        return waits


@contextmanager
def start_fleet(url: str, workers: int) -> Iterator[Fleet]:
    """Start the workers, and wait until all are idle."""
    count = min(PROCESSES, workers)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fleet_pickup", json.dumps([url, workers // count])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield Fleet(processes)
    finally:
        for process in processes:
            process.communicate("")


async def measure(url: str, server: int | None, workers: int, seconds: float) -> dict[str, float]:
    """Enqueue jobs at a steady rate for a fleet."""
    timed = TimedJobs()
    async with Processor(url) as client:
        timed.register(client)
        with start_fleet(url, workers) as fleet:
            for _ in range(_WARM_UP_ROUNDS):
                await asyncio.gather(*(timed.enqueue(client) for _ in range(workers)))
                await asyncio.sleep(1.0)
            await asyncio.sleep(_SETTLED_AFTER)
            fleet.take_waits()
            cpu, began, jobs = ServerCpu(server), time.monotonic(), int(RATE * seconds)
            for number in range(jobs):
                await timed.enqueue(client)
                await asyncio.sleep(max(0.0, began + (number + 1) / RATE - time.monotonic()))
            await asyncio.sleep(1.0)
            server_ms, waits = cpu.take(), fleet.take_waits()
    return {
        "jobs": len(waits),
        "server ms": server_ms / jobs,
        "p50": statistics.median(waits),
        "p99": at(waits, 99),
    }


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="bench fleet-pickup", description=__doc__)
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--workers", nargs="+", type=int, default=[50, 200])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args(arguments)
    conditions = read_conditions()
    found: dict[str, Any] = {"conditions": conditions, "fleets": []}
    rows = []
    for backend in options.backend:
        for workers in options.workers:
            figures = []
            for count in (workers, 1):
                with serve_fleet(backend) as (url, server):
                    figures.append(asyncio.run(measure(url, server, count, options.seconds)))
            fleet, one = figures
            found["fleets"].append({"backend": backend, "workers": workers} | fleet | {"one": one})
            rows.append(
                [
                    *(backend, str(workers), f"{fleet['jobs']:,.0f}"),
                    *(
                        f"{fleet[name]:.2f} / {one[name]:.2f}"
                        for name in ("server ms", "p50", "p99")
                    ),
                    *(f"{fleet[name] / one[name]:.1f}" for name in ("p50", "p99")),
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    head = ["backend", "idle workers", "jobs", "server ms a job / one worker"]
    head += ["p50, ms / one worker", "p99, ms / one worker", "p50, ratio", "p99, ratio"]
    text = f"{describe_conditions(conditions)}\n\n{table('Pickup at 50 jobs/s', head, rows)}"
    print(text)
    if options.save:
        print(save("fleet-pickup", found, text))
    return 0


if __name__ == "__main__":
    asyncio.run(run_workers(*json.loads(sys.argv[1])))
