"""The program that measures the cost of a plain job: `python -m benchmarks.job_cost URL ...`.

It imports only what old checkouts have too, because `benchmarks/cost.py` runs it against them.
Each round enqueues jobs one by one, enqueues more by 1,000, and runs them all with one worker.
Before and after each drain it times bare asyncio tasks in the same process: a task of a coroutine
that does nothing, created with a copied context, and awaited by `gather` in groups of 100. Times
are CPU times of this process, all threads included, in microseconds a job; those of the server are
its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import json
import time
from typing import Any

import nimburion
from benchmarks.payload import PAYLOAD
from benchmarks.peers.event_loops import fast_loop
from benchmarks.peers.server_statistics import StatisticsSource, open_statistics
from benchmarks.peers.setting import Setting
from nimburion.backends import open_backend
from nimburion.jobs import Job, Processor

GROUP = 100
TASKS = 20_000
BULK = 1_000


class Drain:
    """Counts the jobs that ran; `finished` is set by the last one."""

    jobs = 0
    finished: asyncio.Event


class Noop(Job, name="noop", queue="bench"):
    """Do nothing but count."""

    to: str
    subject: str
    body: str

    async def process(self, ctx: Any) -> None:  # noqa: ARG002
        Drain.jobs -= 1
        if not Drain.jobs:
            Drain.finished.set()


async def do_nothing() -> None:
    """Be the coroutine of a bare task."""


async def time_bare_tasks() -> float:
    """Return the CPU time of one bare task."""
    loop = asyncio.get_running_loop()
    began = time.process_time()
    for _ in range(TASKS // GROUP):
        tasks = [
            loop.create_task(do_nothing(), context=contextvars.copy_context()) for _ in range(GROUP)
        ]
        await asyncio.gather(*tasks)
    return (time.process_time() - began) / TASKS * 1e6


class Stopwatch:
    """The CPU time of this process and of the server since it was made, and the written log."""

    def __init__(self, statistics: StatisticsSource) -> None:
        self._statistics = statistics
        self._server = statistics.figures()
        self._cpu, self._clock = time.process_time(), time.perf_counter()

    def read(self, step: str, jobs: int) -> dict[str, float]:
        """Return the figures of a step, for each job."""
        clock, cpu = time.perf_counter(), time.process_time()
        server = self._statistics.figures()
        return {
            f"{step}_rate": jobs / (clock - self._clock),
            f"{step}_cpu": (cpu - self._cpu) / jobs * 1e6,
            f"{step}_server_cpu": (server.cpu - self._server.cpu) / jobs * 1e6,
            f"{step}_wal": (server.wal - self._server.wal) / jobs,
        }


async def measure_round(
    url: str, statistics: StatisticsSource, jobs: int, ones: int, settings: dict[str, Any]
) -> dict[str, float]:
    """Enqueue and run so many jobs, and return the figures of each step."""
    processor = Processor(open_backend(url), **settings)
    processor.register(Noop)
    found: dict[str, float] = {}
    async with processor:
        stopwatch = Stopwatch(statistics)
        for _ in range(ones):
            await processor.enqueue(Noop(**PAYLOAD))
        found |= stopwatch.read("enqueue_one", ones)
        stopwatch = Stopwatch(statistics)
        for _ in range(ones, jobs, BULK):
            await processor.enqueue_many([Noop(**PAYLOAD) for _ in range(BULK)])
        found |= stopwatch.read("enqueue_bulk", jobs - ones)
        Drain.jobs, Drain.finished = jobs, asyncio.Event()
        before = await time_bare_tasks()
        stopwatch = Stopwatch(statistics)
        await processor.start()
        await Drain.finished.wait()
        await processor.stop()
        found |= stopwatch.read("drain", jobs)
        found["bare_task"] = (before + await time_bare_tasks()) / 2
    found["bare_tasks"] = found["drain_cpu"] / found["bare_task"]
    return found


async def measure(
    url: str, server: int, rounds: int, jobs: int, ones: int, *, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the figures of each round; a first, small round is left out."""
    statistics = open_statistics(Setting(url, best=False, notes="", server=server))
    await measure_round(url, statistics, BULK + ones, ones, settings)
    found = [await measure_round(url, statistics, jobs, ones, settings) for _ in range(rounds)]
    return {
        "package": nimburion.__file__,
        "rounds": {name: [one[name] for one in found] for name in found[0]},
    }


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--server", type=int, default=0, help="the process of the server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of a round enqueued in bulk")
    parser.add_argument("--ones", type=int, default=500, help="jobs enqueued one by one")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--forget", action="store_true", help="keep no arguments of completed jobs")
    chosen = parser.parse_args()
    settings = {"keep_arguments": "no"} if chosen.forget else {}  # old checkouts have none
    with asyncio.Runner(loop_factory=fast_loop() if chosen.uvloop else None) as runner:
        found = runner.run(
            measure(
                chosen.url,
                chosen.server,
                chosen.rounds,
                chosen.jobs + chosen.ones,
                chosen.ones,
                settings=settings,
            )
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
