"""`python -m benchmarks fleet`: how many exchanges one job causes in a fleet of idle workers.

    python -m benchmarks fleet [--backend NAME ...] [--workers N ...] [--save]

Each worker is a processor with its own handle and connections. All run in this process. Jobs arrive
one by one, far apart, and do nothing. The figures are counts, so other programs on the machine do
not change them:

- `start`: exchanges for each worker that starts, without the polls.
- `one job`: exchanges for one job, without the polls. Its worker makes two: one reserves the job,
  one stores its end.
- `idle`: calls of the backend in a second while nothing happens, of the whole fleet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.limits import serve
from benchmarks.report import table
from nimburion import Processor, job
from nimburion.backends import open_backend
from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Backend

BACKENDS = ("memory", "sqlite", "valkey", "postgres")
WORKERS = (1, 16, 50)
COUNTED = (
    "exchange",
    "heartbeat",
    "rescue",
    "claim_bulk_operation",
    "prune",
    "open_session",
    "wait",
)
"""The operations that an idle worker calls. `wait` is no call of a server by itself."""
_GAP = 0.25
"""Seconds between two jobs, and until a fleet has come to rest."""


@job(queue="fleet", name="noop")
async def noop() -> None:
    """Do nothing."""


class Calls:
    """Counts the calls of the operations of one kind of backend, and the polls among them: the
    calls of `wait` and the long polls that ended with their timeout.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, kind: type[Any]) -> None:
        """Count each call of the operations that this class has."""
        for name in COUNTED:
            if hasattr(kind, name):
                setattr(kind, name, self._wrap(name, getattr(kind, name)))

    def _wrap(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        @wraps(call)
        async def counted(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += 1
            began = time.monotonic()
            answer = await call(*arguments, **options)
            timeout = read_timeout(name, arguments)
            if timeout and time.monotonic() - began >= timeout:
                self.counts["poll"] += 1
            return answer

        return counted


def read_timeout(operation: str, arguments: tuple[Any, ...]) -> float:
    """Return how long a call may wait for a job, in seconds; 0 if it does not wait."""
    if operation == "wait":
        timeout: float = arguments[-1]
        return timeout
    settlements, request = arguments[-2:] if operation == "exchange" else (None, None)
    return 0.0 if request is None or settlements else request.long_poll


async def run_fleet(url: str, workers: int, jobs: int, seconds: float) -> dict[str, float]:
    """Start a fleet, let it idle, then run some jobs one by one. Return the counts."""
    shared = MemoryBackend() if url == "memory://" else None

    def open_one() -> Backend:
        return open_backend(url) if shared is None else shared.new_handle()

    calls = Calls()
    one = open_one()
    calls.count(type(one.consuming))
    calls.count(type(one.maintenance))
    client = Processor(open_one())
    client.register(noop)
    await client.open()
    fleet = [Processor(open_one()) for _ in range(workers)]
    for processor in fleet:
        processor.register(noop)
        await processor.start()
    await asyncio.sleep(4 * _GAP)
    started = calls.counts["exchange"] - calls.counts["poll"]
    calls.counts.clear()
    began = time.monotonic()
    await asyncio.sleep(seconds)
    idle = sum(calls.counts[name] for name in COUNTED if name != "wait")
    idle_rate = idle / (time.monotonic() - began)
    calls.counts.clear()
    for _ in range(jobs):
        await client.enqueue(noop.job())
        await asyncio.sleep(_GAP)
    exchanges = calls.counts["exchange"] - calls.counts["poll"]
    await asyncio.gather(*(processor.close() for processor in fleet))
    await client.close()
    return {
        "start": started / workers,
        "one job": exchanges / jobs,
        "idle": idle_rate,
    }


def measure(backend: str, workers: int, jobs: int, seconds: float) -> dict[str, float]:
    """Run one fleet with an empty backend, in a process of its own."""
    if backend == "memory":
        return run_here("memory://", workers, jobs, seconds)
    with serve(backend) as (url, _):
        return run_here(url, workers, jobs, seconds)


def run_here(url: str, workers: int, jobs: int, seconds: float) -> dict[str, float]:
    """Run one fleet in a new process."""
    arguments = json.dumps([url, workers, jobs, seconds])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fleet", arguments],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="bench fleet", description=__doc__)
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--workers", nargs="+", type=int, default=WORKERS)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the fleet idles")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args(arguments)
    conditions = read_conditions()
    found: dict[str, Any] = {"conditions": conditions, "fleets": []}
    rows = []
    for backend in options.backend:
        for workers in options.workers:
            counts = measure(backend, workers, options.jobs, options.seconds)
            found["fleets"].append({"backend": backend, "workers": workers, **counts})
            row = [f"{counts[name]:.1f}" for name in ("start", "one job", "idle")]
            rows.append([backend, str(workers), *row])
            print(" | ".join(rows[-1]), flush=True)
    head = ["backend", "idle workers", "exchanges a start", "exchanges a job", "idle calls/s"]
    text = f"{describe_conditions(conditions)}\n\n{table('Fleets of idle workers', head, rows)}"
    print(text)
    if options.save:
        print(save("fleet", found, text))
    return 0


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run_fleet(*json.loads(sys.argv[1])))))
