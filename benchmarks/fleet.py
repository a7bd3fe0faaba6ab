"""`python -m benchmarks fleet`: how many exchanges one job causes in a fleet of idle workers.

    python -m benchmarks fleet [--backend NAME ...] [--workers N ...] [--save]

Each worker is a processor with its own session and connections. All run in one process. Fleets that
are marked with * share 8 listeners, as the worker processes of 8 supervisors do. Jobs do nothing.
Each worker runs some jobs before the measurements: PostgreSQL compiles and plans the functions of a
new connection for its first exchanges, which costs more than these.
Most figures are counts, so other programs on the machine do not change them:

- `start`: exchanges for each worker that starts, without the polls. All start at the same time.
  `seconds`: until all sessions are open and idle.
- `one job`: exchanges for one job, without the polls. Its worker makes two: one reserves the job,
  one stores its end.
- `server ms`: the CPU time of the server's processes for such a job, without what an idle fleet
  costs in the same time.
- `one due job`: the same as `one job` for one job that was delayed.
- `busy`: exchanges for one job while 50 arrive in a second, `empty` those of them that found
  nothing, `busy ms` the CPU time of the server.
- `p50`, `p99`: milliseconds from the call of enqueue to the start of the handler meanwhile. Client
  and workers share a process, so compare them inside one run only.
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
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, cast

import psycopg
import redis

from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.limits import serve
from benchmarks.postgres.family import serve as serve_postgres
from benchmarks.report import Rows, at, table
from benchmarks.server_cpu import ServerCpu
from benchmarks.shared_listeners import SharedListeners
from nimburion import Context, Processor, config, job
from nimburion.backends import open_backend
from nimburion.backends.memory import MemoryBackend
from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.backends.redis.connection.command_connection import CommandConnection
from nimburion.core.backend import Backend, SharedListening
from tests.servers.postgres_programs import postgres_binary

BACKENDS = ("memory", "sqlite", "valkey", "postgres")
SERVERS = ("valkey", "postgres")


class FleetSize(NamedTuple):
    """How many workers a fleet has, and whether they share `LISTENERS` listeners."""

    workers: int
    shares: bool = False

    def __str__(self) -> str:
        return f"{self.workers}{' *' * self.shares}"


SIZES = {
    "memory": [FleetSize(1), FleetSize(50)],
    "sqlite": [FleetSize(1), FleetSize(32)],
    "valkey": [FleetSize(1), *(FleetSize(n, shares=True) for n in (50, 200, 400))],
    "postgres": [FleetSize(1), *(FleetSize(n, shares=True) for n in (50, 200))],
}
MOST_MEASURED = 200
"""Of a larger fleet, only the start is measured."""
FIGURES = (
    *("start", "seconds", "one job", "server ms", "one due job", "idle", "statements"),
    *("connections", "busy", "empty", "busy ms", "p50", "p99"),
)
COMPARED = ("busy ms", "p50", "p99")
"""The figures that are compared with those of one worker."""
PRECISE = ("server ms", "busy ms", "busy", "empty")
"""The figures with two decimals."""
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
LISTENERS = 8
MAX_CONNECTIONS = "max_connections=900"
RATE = 50
"""Jobs a second of the busy fleet."""
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
_MOST_START_SECONDS = 120.0
_WARM_UP_ROUNDS = 8
"""Each has a job for each worker."""


@job(queue="fleet", name="noop")
async def noop() -> None:
    """Do nothing."""


class TimedJobs:
    """Jobs that carry when they were enqueued. They note how long they waited, in milliseconds."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def register(self, processor: Processor) -> None:
        """Register the handler."""
        processor.register("timed", self._note)

    async def _note(self, _: Context, payload: bytes) -> None:
        self.waits.append((time.monotonic() - float(payload)) * 1e3)

    async def enqueue(self, client: Processor) -> None:
        """Enqueue a job."""
        await client.enqueue_raw("timed", repr(time.monotonic()).encode(), queue="fleet")


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
            elif name == "exchange" and not answer.deliveries:
                self.counts["without jobs"] += 1
                self.counts["empty"] += not arguments[-2]
            return answer

        return counted


def read_timeout(operation: str, arguments: tuple[Any, ...]) -> float:
    """Return how long a call may wait for a job, in seconds; 0 if it does not wait."""
    if operation == "wait":
        timeout: float = arguments[-1]
        return timeout
    settlements, request = arguments[-2:] if operation == "exchange" else (None, None)
    return 0.0 if request is None or settlements else request.long_poll


class FleetRun:
    """A fleet of idle workers in this process, a client, and what they call."""

    def __init__(self, url: str, server: int | None, size: FleetSize, jobs: int) -> None:
        self._url = url
        self._shared = MemoryBackend() if url == "memory://" else None
        self._server = server
        self._jobs = jobs
        self._shares = size.shares
        self._calls = Calls()
        self._calls.count_statements()
        one = self._open_one()
        self._calls.count(type(one.consuming))
        self._calls.count(type(one.maintenance))
        self._timed = TimedJobs()
        self._client = self._make_processor()
        self._fleet = [self._make_processor() for _ in range(size.workers)]
        self._cpu = ServerCpu(None)
        self._idle_cpu = 0.0
        """CPU milliseconds of the server in a second while the fleet is idle."""
        self._others = 0

    def _open_one(self) -> Backend:
        return open_backend(self._url) if self._shared is None else self._shared.new_handle()

    def _make_processor(self) -> Processor:
        processor = Processor(self._open_one())
        processor.register(noop)
        self._timed.register(processor)
        return processor

    def _share_listeners(self) -> None:
        groups = [SharedListeners() for _ in range(LISTENERS)]
        for number, processor in enumerate(self._fleet):
            if processor.backend.capabilities.out_of_process:
                sharing = cast("SharedListening", processor.backend.consuming)
                sharing.share_listener(groups[number % LISTENERS].share)

    def _count_exchanges(self) -> int:
        return self._calls.counts["exchange"] - self._calls.counts["poll"]

    async def start(self) -> dict[str, float]:
        """Start all workers at the same time, and wait until they wait for jobs."""
        await self._client.open()
        self._others = count_connections(self._url)
        if self._shares:
            self._share_listeners()
        counts, began = self._calls.counts, time.monotonic()
        await asyncio.gather(*(processor.start() for processor in self._fleet))
        async with asyncio.timeout(_MOST_START_SECONDS):
            while counts["wait" if counts["wait"] else "exchange"] < len(self._fleet):
                await asyncio.sleep(0.01)
        seconds = time.monotonic() - began
        await asyncio.sleep(4 * _GAP)
        return {"start": self._count_exchanges() / len(self._fleet), "seconds": seconds}

    async def idle(self, seconds: float) -> dict[str, float]:
        """Let the fleet do nothing."""
        await asyncio.sleep(_SETTLED_AFTER)
        counts = self._calls.counts
        counts.clear()
        self._cpu = ServerCpu(self._server)
        began = time.monotonic()
        await asyncio.sleep(seconds)
        passed = time.monotonic() - began
        self._idle_cpu = self._cpu.take() / passed
        connections = count_connections(self._url) - self._others
        return {
            "idle": sum(counts[name] for name in COUNTED if name != "wait") / passed,
            "statements": counts["statement"] / passed,
            "connections": connections / len(self._fleet),
        }

    async def warm_up(self) -> None:
        """Let each worker run some jobs."""
        waits, done = self._timed.waits, 0
        for _ in range(_WARM_UP_ROUNDS):
            done += len(self._fleet)
            await asyncio.gather(*(self._timed.enqueue(self._client) for _ in self._fleet))
            async with asyncio.timeout(_MOST_START_SECONDS):
                while len(waits) < done:
                    await asyncio.sleep(_GAP)
            await asyncio.sleep(_GAP)
        waits.clear()

    async def run_single_jobs(self) -> dict[str, float]:
        """Enqueue jobs far apart."""
        self._calls.counts.clear()
        self._cpu.take()
        began = time.monotonic()
        for _ in range(self._jobs):
            await self._client.enqueue(noop.job())
            await asyncio.sleep(_GAP)
        server_ms = self._take_cpu(began)
        return {
            "one job": self._count_exchanges() / self._jobs,
            "server ms": server_ms / self._jobs,
        }

    async def run_busy(self, seconds: float) -> dict[str, float]:
        """Enqueue jobs at a steady rate."""
        jobs, waits = int(RATE * seconds), self._timed.waits
        self._calls.counts.clear()
        self._cpu.take()
        began = time.monotonic()
        for number in range(jobs):
            await self._timed.enqueue(self._client)
            await asyncio.sleep(max(0.0, began + (number + 1) / RATE - time.monotonic()))
        async with asyncio.timeout(_MOST_START_SECONDS):
            while len(waits) < jobs:
                await asyncio.sleep(_GAP)
        server_ms = self._take_cpu(began)
        return {
            "busy": self._count_exchanges() / jobs,
            "empty": self._calls.counts["empty"] / jobs,
            "busy ms": server_ms / jobs,
            "p50": statistics.median(waits),
            "p99": at(waits, 99),
        }

    async def run_due_jobs(self) -> dict[str, float]:
        """Enqueue delayed jobs that become due far apart."""
        for number in range(self._jobs):
            await self._client.enqueue(noop.job(), after=_DELAY + number * _GAP)
        await asyncio.sleep(_DELAY - _GAP)
        self._calls.counts.clear()
        await asyncio.sleep((self._jobs + 1) * _GAP)
        return {"one due job": self._count_exchanges() / self._jobs}

    def _take_cpu(self, began: float) -> float:
        """Return the CPU milliseconds of the server, without those of an idle fleet."""
        return self._cpu.take() - self._idle_cpu * (time.monotonic() - began)

    async def close(self) -> None:
        """Stop all."""
        await asyncio.gather(*(processor.close() for processor in self._fleet))
        await self._client.close()


async def run_fleet(
    url: str, server: int | None, size: tuple[int, bool], jobs: int, seconds: float
) -> dict[str, float]:
    """Start a fleet, let it idle, then run jobs. Return the figures."""
    run = FleetRun(url, server, FleetSize(*size), jobs)
    found = await run.start()
    if jobs:
        await run.warm_up()
        found |= await run.idle(seconds)
        found |= await run.run_single_jobs()
        found |= await run.run_due_jobs()
        found |= await run.run_busy(seconds)
    await run.close()
    return found


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


@contextmanager
def serve_fleet(backend: str) -> Iterator[tuple[str, int | None]]:
    """Yield the URL of an empty backend for a large fleet, and the process of its server."""
    if backend != "postgres":
        with serve(backend) as running:
            yield running
        return
    with serve_postgres(postgres_binary(), MAX_CONNECTIONS) as server:
        yield server.url, server.pid


def measure(backend: str, size: FleetSize, jobs: int, seconds: float) -> dict[str, float]:
    """Run one fleet with an empty backend, in a process of its own."""
    if backend == "memory":
        return run_here("memory://", None, size, jobs, seconds)
    with serve_fleet(backend) as (url, server):
        return run_here(url, server, size, jobs, seconds)


def run_here(
    url: str, server: int | None, size: FleetSize, jobs: int, seconds: float
) -> dict[str, float]:
    """Run one fleet in a new process."""
    arguments = json.dumps([url, server, size, jobs, seconds])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fleet", arguments],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def format_figure(figures: dict[str, float], name: str) -> str:
    """Return a figure as text; empty if it was not measured."""
    return f"{figures[name]:.{2 if name in PRECISE else 1}f}" if name in figures else ""


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="bench fleet", description=__doc__)
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--workers", nargs="+", type=int, help="the default depends on the backend")
    parser.add_argument("--shared", action="store_true", help="--workers share listeners")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the fleet idles")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args(arguments)
    conditions = read_conditions()
    found: dict[str, Any] = {"conditions": conditions, "fleets": []}
    rows: Rows = []
    for backend in options.backend:
        given = [FleetSize(workers, shares=options.shared) for workers in options.workers or ()]
        for size in given or SIZES[backend]:
            jobs = 0 if size.workers > MOST_MEASURED else options.jobs
            figures = measure(backend, size, jobs, options.seconds)
            found["fleets"].append({"backend": backend, **size._asdict(), **figures})
            numbers = [format_figure(figures, name) for name in FIGURES]
            rows.append([backend, str(size), *numbers])
            print(" | ".join(rows[-1]), flush=True)
        if backend in SERVERS:
            connections = count_supervised(backend)
            found["fleets"].append(
                {"backend": backend, "supervised": SUPERVISED, "connections": connections}
            )
            cells = [f"{connections:.1f}" * (name == "connections") for name in FIGURES]
            rows.append([backend, f"{SUPERVISED} supervised", *cells])
            print(" | ".join(rows[-1]), flush=True)
    text = describe_fleets(found, rows)
    print(text)
    if options.save:
        print(save("fleet", found, text))
    return 0


def describe_fleets(found: dict[str, Any], rows: Rows) -> str:
    """Return the conditions, the table of all figures, and that of the ratios."""
    head = [
        *("backend", "idle workers", "exchanges a start", "start, s", "exchanges a job"),
        *("server ms a job", "exchanges a due job", "idle calls/s", "idle statements/s"),
        *("connections a worker", "50 jobs/s: exchanges a job", "of them empty", "server ms a job"),
        *("pickup p50, ms", "p99, ms"),
    ]
    title = f"Fleets of idle workers; *: with {LISTENERS} listeners"
    ratios = [
        [one["backend"], str(FleetSize(one["workers"], shares=one["shares"])), *compare(found, one)]
        for one in found["fleets"]
        if "one job" in one
    ]
    compared = table(
        "The same at 50 jobs/s, divided by the figure of one worker",
        ["backend", "idle workers", "server ms a job", "pickup p50", "p99"],
        ratios,
    )
    conditions = describe_conditions(found["conditions"])
    return f"{conditions}\n\n{table(title, head, rows)}\n{compared}"


def compare(found: dict[str, Any], one: dict[str, Any]) -> list[str]:
    """Return some figures of a fleet, divided by those of one worker on the same backend."""
    first = next(each for each in found["fleets"] if each["backend"] == one["backend"])
    return [f"{one[name] / first[name]:.1f}" if first[name] else "" for name in COMPARED]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run_fleet(*json.loads(sys.argv[1])))))
