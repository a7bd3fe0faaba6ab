"""Worker processes: jobs a second of CPU-bound handlers, with one process and with two.

    python -m benchmarks.processes [--backend sqlite|valkey] [--jobs N] [--repeat N] [--save NAME]

Each handler uses 1 ms of CPU time on the event loop. `nimburion worker --processes 1` and `2` run
in turn on the same backend, with default settings. The rate is read from the backend's own counts,
while all workers are ready, from a tenth of the jobs to nine tenths. Run it on a quiet machine with
two cores or more: the workers need both. It takes about 40 s.

The CPU time a job says more on a machine that other programs use too: with two free cores, two
processes could at best do twice as many jobs, times the CPU time a job of one over that of two.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nimburion import config
from nimburion.core.job import State
from nimburion.jobs import Processor

BURN_SECONDS = 0.001
READY = re.compile(rb"worker process \d+ .* is ready")

processor = Processor.from_config(config.load())


@processor.job()
async def burn() -> None:
    """Use 1 ms of CPU time."""
    until = time.thread_time() + BURN_SECONDS
    while time.thread_time() < until:
        pass


@contextmanager
def open_url(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of an empty backend."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/jobs.db"
        return
    if kind == "postgres":
        from tests.servers.postgres import PostgresServer
        from tests.servers.postgres_programs import postgres_binary

        with PostgresServer(postgres_binary(), durable=True) as postgres:
            yield postgres.url
        return
    from tests.servers.binaries import valkey_binary
    from tests.servers.server import Server

    with Server(valkey_binary(), appendonly=True) as server:
        yield server.url


async def measure(url: str, processes: int, jobs: int) -> tuple[float, float]:
    """Return the jobs a second, and the CPU time of all processes a job, in ms."""
    async with Processor(url) as client:
        client.register(burn)
        for start in range(0, jobs, 1000):
            await client.enqueue_many([burn.job() for _ in range(min(1000, jobs - start))])
        done = (await client.backend.reads.count_jobs(budget=None))[State.COMPLETED]
        cpu = read_child_seconds()
        worker = start_worker(url, processes)
        looks: list[tuple[int, float]] = []
        try:
            while not looks or looks[-1][0] < jobs:
                await asyncio.sleep(0.1)
                count = (await client.backend.reads.count_jobs(budget=None))[State.COMPLETED] - done
                looks.append((count, time.perf_counter()))
        finally:
            worker.terminate()
            worker.wait()
        inside = [look for look in looks if jobs * 0.1 <= look[0] <= jobs * 0.9]
        (first, start_time), (last, end_time) = inside[0], inside[-1]
        cpu = (read_child_seconds() - cpu) / jobs * 1e3
        return (last - first) / (end_time - start_time), cpu


def read_child_seconds() -> float:
    """Return the CPU time of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def start_worker(url: str, processes: int) -> subprocess.Popen[bytes]:
    """Start `nimburion worker`, and return when all its processes are ready."""
    target = "benchmarks.processes:processor"
    # worker_recycle gives the single worker a supervisor too
    environment = {
        **os.environ,
        "NIMBURION_JOBS__URL": url,
        "NIMBURION_JOBS__WORKER_RECYCLE__AGE": "1d",
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "nimburion", "worker", target, "--processes", str(processes)],
        env=environment,
        stderr=subprocess.PIPE,
    )
    assert worker.stderr is not None
    ready = 0
    while ready < processes:
        line = worker.stderr.readline()
        assert line, "the supervisor has ended"
        ready += bool(READY.search(line))
    return worker


async def compare(kind: str, jobs: int, repeat: int) -> list[str]:
    """Measure one process and two in turn; the lines of a report."""
    rates: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder, open_url(kind, Path(folder)) as url:
        for _ in range(repeat):
            for processes, found in rates.items():
                found.append(await measure(url, processes, jobs))
    lines = [
        f"{kind}, {jobs:,} jobs, {repeat} runs each, load {os.getloadavg()[0]:.2f}",
        "",
        "| processes | jobs/s, median | lowest | highest | CPU ms a job, median |",
        "|---|---|---|---|---|",
    ]
    medians: dict[int, float] = {}
    costs: dict[int, float] = {}
    for processes, found in rates.items():
        speeds = [rate for rate, _ in found]
        medians[processes] = statistics.median(speeds)
        costs[processes] = statistics.median(cost for _, cost in found)
        lines.append(
            f"| {processes} | {medians[processes]:,.0f} | {min(speeds):,.0f} | {max(speeds):,.0f} "
            f"| {costs[processes]:.3f} |"
        )
    measured, by_cost = medians[2] / medians[1], 2 * costs[1] / costs[2]
    return [*lines, "", f"ratio of the medians: {measured:.2f}; by CPU time a job: {by_cost:.2f}"]


def main() -> None:
    """Measure, print, and keep the report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("sqlite", "valkey"), default="sqlite")
    parser.add_argument("--jobs", type=int, default=5_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.md")
    chosen = parser.parse_args()
    report = "\n".join(asyncio.run(compare(chosen.backend, chosen.jobs, chosen.repeat))) + "\n"
    print(report)
    if chosen.save:
        path = Path(__file__).parent / "results" / f"{chosen.save}.md"
        command = f"python -m benchmarks.processes --backend {chosen.backend}"
        path.write_text(f"# Worker processes\n\n`{command}`\n\n{report}")


if __name__ == "__main__":
    main()
