"""The cost of a job by the number of lanes: `python3 dev.py bench names [BACKEND ...] [--save]`.

One worker runs a backlog of no-op jobs that is spread evenly over its lanes: one name, 1,000 names
of one queue, and 50 names in each of 200 queues. The shapes take turns on one server, in rounds.
Times are CPU times of the process that enqueues and runs, and of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from typing import Any

from benchmarks.conditions import ROOT, describe_conditions, read_conditions, save
from benchmarks.cost import BACKENDS, serve
from benchmarks.job_cost import Stopwatch
from benchmarks.payload import PAYLOAD
from benchmarks.peers.server_statistics import open_statistics
from benchmarks.peers.setting import Setting
from benchmarks.report import Rows, table
from nimburion.backends import open_backend
from nimburion.config import QueueSettings
from nimburion.jobs import Processor, job

SHAPES = {"1 name": (1, 1), "1,000 names": (1, 1_000), "200 queues of 50 names": (200, 50)}
"""Queues, and names of each."""
BULK = 1_000


class Drain:
    """Counts the jobs that ran; `finished` is set by the last one."""

    jobs = 0
    finished: asyncio.Event


def make_handlers(names: int) -> list[Any]:
    """Return handlers that only count, under so many names."""

    def make(n: int) -> Any:
        async def count(to: str, subject: str, body: str) -> None:  # noqa: ARG001
            Drain.jobs -= 1
            if not Drain.jobs:
                Drain.finished.set()

        return job(name=f"noop_{n}", queue="bench_0")(count)

    return [make(n) for n in range(names)]


async def measure_round(
    url: str, server: int, queues: int, names: int, jobs: int
) -> dict[str, float]:
    """Enqueue jobs, each for the next lane. Return what it costs to run all with one worker."""
    statistics_source = open_statistics(Setting(url, best=False, notes="", server=server))
    handlers = make_handlers(names)
    places = [f"bench_{n}" for n in range(queues)]
    processor = Processor(open_backend(url), queues=tuple(map(QueueSettings, places)))
    processor.register(*handlers)
    async with processor:
        for start in range(0, jobs, BULK):
            groups: dict[str, list[Any]] = defaultdict(list)
            for n in range(start, min(start + BULK, jobs)):
                groups[places[n // names % queues]].append(handlers[n % names].job(**PAYLOAD))
            for queue, group in groups.items():
                await processor.enqueue_many(group, queue=queue)
        Drain.jobs, Drain.finished = jobs, asyncio.Event()
        stopwatch = Stopwatch(statistics_source)
        await processor.start()
        await Drain.finished.wait()
        await processor.stop()
        return stopwatch.read("drain", jobs)


def measure(backend: str, jobs: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return what the rounds of each shape cost, on one server; a first round is left out."""
    found: dict[str, list[dict[str, float]]] = {shape: [] for shape in SHAPES}
    for shape, (queues, names) in SHAPES.items():  # each shape has its own server: lanes stay
        with serve(backend) as (url, server):
            for _ in range(rounds + 1):
                command = [sys.executable, "-m", "benchmarks.names", "--run", url]
                command += [str(n) for n in (server, queues, names, jobs)]
                done = subprocess.run(
                    command, cwd=ROOT, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise RuntimeError(done.stderr[-3000:])
                found[shape].append(json.loads(done.stdout))
        del found[shape][0]
    return found


def show(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Return the table: a row for each backend and shape."""
    rows: Rows = []
    for backend, shapes in found.items():
        first = 0.0
        for shape, costs in shapes.items():
            worker, server = (
                statistics.median(cost[name] for cost in costs)
                for name in ("drain_cpu", "drain_server_cpu")
            )
            first = first or worker + server
            ratio = f"{(worker + server) / first:.2f}"
            cells = [f"{worker:.1f}", f"{server:.1f}" if server else "", ratio]
            rows.append([BACKENDS[backend], shape, *cells])
    return table(
        "A job by the number of lanes",
        ["", "lanes", "worker CPU, µs a job", "server CPU, µs a job", "both, of one name"],
        rows,
    )


def main(arguments: list[str]) -> int:
    """Measure, print, and keep the figures if asked to."""
    parser = argparse.ArgumentParser(prog="benchmarks names", description=__doc__)
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=f"of {', '.join(BACKENDS)}")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each shape")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    chosen = parser.parse_args(arguments)
    found: dict[str, Any] = {"conditions": read_conditions(), "jobs": chosen.jobs}
    found["costs"] = {
        backend: measure(backend, chosen.jobs, chosen.rounds)
        for backend in chosen.backends or BACKENDS
    }
    text = "# The cost of a job by the number of lanes\n\n`python3 dev.py bench names`\n\n"
    text += f"{describe_conditions(found['conditions'])}\n\n{show(found['costs'])}"
    print(text)
    if chosen.save:
        print(save("names", found, text), file=sys.stderr)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        url, *numbers = sys.argv[2:]
        print(json.dumps(asyncio.run(measure_round(url, *map(int, numbers)))))
    else:
        sys.exit(main(sys.argv[1:]))
