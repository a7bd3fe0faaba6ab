"""`python -m benchmarks fleet`: how many exchanges one job causes in a fleet of idle workers.

    python -m benchmarks fleet [--backend NAME ...] [--workers N ...] [--save]

Each worker is a processor with its own handle and connections. All run in this process. Jobs arrive
one by one, far apart, and do nothing. The figures are counts, so other programs on the machine do
not change them:

- `start`: exchanges for each worker that starts, without the polls.
- `one job`: exchanges for one job, without the polls. Its worker makes two: one reserves the job,
  one stores its end.
- `one due job`: the same for one job that was delayed.
- `idle`: calls of the backend in a second while nothing happens, of the whole fleet.
- `statements`: statements of PostgreSQL or commands of Redis in that second, sent by the fleet.
- `connections`: those of each worker while nothing happens. `supervised`: those of each worker
  process of one supervisor, which are real processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import psycopg
import redis

from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.limits import serve
from benchmarks.report import table
from nimburion import Processor, config, job
from nimburion.backends import open_backend
from nimburion.backends.memory import MemoryBackend
from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.backends.redis.connection.command_connection import CommandConnection
from nimburion.core.backend import Backend

BACKENDS = ("memory", "sqlite", "valkey", "postgres")
SERVERS = ("valkey", "postgres")
WORKERS = (1, 16, 50)
FIGURES = ("start", "one job", "one due job", "idle", "statements", "connections")
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
STATEMENTS = ((PostgresConnection, "fetch"), (CommandConnection, "_request"))
"""What sends a statement to a server."""
SUPERVISED = 8
"""The worker processes of the supervisor."""
_SETTLED_AFTER = 10.0
"""Seconds after which unused connections are closed, and heartbeats have told each worker how many
there are.
"""
_GAP = 0.25
"""Seconds between two jobs, and until a fleet has come to rest."""
_SHORTEST_POLL = 1.0
"""Seconds. A shorter wait that ends with its timeout is no poll: a job is due then."""
_DELAY = 3.0
"""Seconds until the first of the delayed jobs is due."""


@job(queue="fleet", name="noop")
async def noop() -> None:
    """Do nothing."""


class Calls:
    """Counts the calls of the operations of one kind of backend, and the polls among them: the
    calls of `wait` and the long polls that ended with their timeout.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count_statements(self) -> None:
        """Count what is sent to a server, under `statement`."""
        for kind, name in STATEMENTS:
            setattr(kind, name, self._wrap("statement", getattr(kind, name)))

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
            if timeout >= _SHORTEST_POLL and time.monotonic() - began >= timeout:
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
    calls.count_statements()
    one = open_one()
    calls.count(type(one.consuming))
    calls.count(type(one.maintenance))
    client = Processor(open_one())
    client.register(noop)
    await client.open()
    others = count_connections(url)
    fleet = [Processor(open_one()) for _ in range(workers)]
    for processor in fleet:
        processor.register(noop)
        await processor.start()
    await asyncio.sleep(4 * _GAP)
    started = calls.counts["exchange"] - calls.counts["poll"]
    await asyncio.sleep(_SETTLED_AFTER)
    calls.counts.clear()
    began = time.monotonic()
    await asyncio.sleep(seconds)
    idle = sum(calls.counts[name] for name in COUNTED if name != "wait")
    passed = time.monotonic() - began
    statements, connections = calls.counts["statement"], count_connections(url) - others
    calls.counts.clear()
    for _ in range(jobs):
        await client.enqueue(noop.job())
        await asyncio.sleep(_GAP)
    exchanges = calls.counts["exchange"] - calls.counts["poll"]
    for number in range(jobs):
        await client.enqueue(noop.job(), after=_DELAY + number * _GAP)
    await asyncio.sleep(_DELAY - _GAP)
    calls.counts.clear()
    await asyncio.sleep((jobs + 1) * _GAP)
    due_exchanges = calls.counts["exchange"] - calls.counts["poll"]
    await asyncio.gather(*(processor.close() for processor in fleet))
    await client.close()
    return {
        "start": started / workers,
        "one job": exchanges / jobs,
        "one due job": due_exchanges / jobs,
        "idle": idle / passed,
        "statements": statements / passed,
        "connections": connections / workers,
    }


def count_connections(url: str) -> int:
    """Return how many connections of nimburion the server has; 0 if there is no server."""
    if url.startswith("postgresql:"):
        with psycopg.connect(url) as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nimburion'"
            ).fetchone()
            assert found is not None
            return int(found[0])
    if url.startswith("redis:"):
        with redis.Redis.from_url(url) as client:
            return sum(each["name"] == "nimburion" for each in client.client_list())
    return 0


def make_worker() -> Processor:
    """Return the processor of `nimburion worker`."""
    processor = Processor.from_config(config.load())
    processor.register(noop)
    return processor


def count_supervised(backend: str) -> float:
    """Return the connections of each idle worker process of a supervisor."""
    command = [sys.executable, "-m", "nimburion", "worker", "benchmarks.fleet:make_worker"]
    with serve(backend) as (url, _):
        environment = {**os.environ, "NIMBURION_JOBS__URL": url}
        with subprocess.Popen(
            [*command, "--processes", str(SUPERVISED)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as supervisor:
            try:
                assert supervisor.stderr is not None
                for _ in range(SUPERVISED):
                    next(line for line in supervisor.stderr if "is ready" in line)
                time.sleep(_SETTLED_AFTER)
                return count_connections(url) / SUPERVISED
            finally:
                supervisor.terminate()
                supervisor.communicate(timeout=60)


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
            rows.append([backend, str(workers), *(f"{counts[name]:.1f}" for name in FIGURES)])
            print(" | ".join(rows[-1]), flush=True)
        if backend in SERVERS:
            connections = count_supervised(backend)
            found["fleets"].append(
                {"backend": backend, "supervised": SUPERVISED, "connections": connections}
            )
            blank = [""] * (len(FIGURES) - 1)
            rows.append([backend, f"{SUPERVISED} supervised", *blank, f"{connections:.1f}"])
            print(" | ".join(rows[-1]), flush=True)
    head = [
        *("backend", "idle workers", "exchanges a start", "a job", "a due job"),
        *("idle calls/s", "idle statements/s", "connections a worker"),
    ]
    text = f"{describe_conditions(conditions)}\n\n{table('Fleets of idle workers', head, rows)}"
    print(text)
    if options.save:
        print(save("fleet", found, text))
    return 0


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run_fleet(*json.loads(sys.argv[1])))))
