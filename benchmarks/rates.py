"""A rate over several worker processes: is it held, and never exceeded?

    python -m benchmarks.rates [--backend sqlite|valkey|postgres] [--seconds N] [--processes N]
        [--save NAME]

No-op async jobs with `rate="1000/s"` wait while `nimburion worker --processes 4` starts. Two times
of each job are read afterwards: when the backend reserved it, on the backend's clock, and when its
handler began. From both:

- the rate from the first start to the last, and how far it is from what was declared;
- the most jobs that started in any time, beyond what the rate allows in this time. The rate
  promises at most a burst for the times at which jobs are reserved. Handlers begin a little later.

Run it for 60 seconds on a quiet machine. The default of 10 seconds is for a first look.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import open_url
from benchmarks.report import table
from nimburion import config
from nimburion.core.job import State
from nimburion.jobs import Processor

PER_SECOND = 1_000
READY = re.compile(rb"worker process \d+ .* is ready")

processor = Processor.from_config(config.load())


@processor.job(rate=f"{PER_SECOND}/s")
async def call() -> float:
    """Return the time at which the handler began."""
    return time.time()


BURST = PER_SECOND // 10
"""The default burst: what the rate allows in 0.1 s."""


def find_excess(starts: Sequence[float], per_second: float) -> float:
    """Return the most jobs that started in any time, less what the rate allows in this time.

    A rate that is never exceeded has at most its burst here.

    >>> find_excess([0.0, 0.0, 1.0, 2.0], per_second=1)
    2.0
    """
    lowest, most = float("inf"), 0.0
    for number, start in enumerate(sorted(starts)):
        level = number - per_second * start
        lowest = min(lowest, level)
        most = max(most, level - lowest + 1)
    return most


async def measure(url: str, processes: int, seconds: int) -> dict[str, list[float]]:
    """Run the jobs; return the times at which they were reserved and began, in order."""
    jobs = PER_SECOND * seconds + BURST
    async with Processor(url) as client:
        client.register(call)
        for start in range(0, jobs, 1_000):
            await client.enqueue_many(call.job() for _ in range(min(1_000, jobs - start)))
        worker = start_worker(url, processes)
        try:
            while (await client.backend.reads.count_jobs(budget=None))[State.COMPLETED] < jobs:
                await asyncio.sleep(0.5)
        finally:
            worker.terminate()
            worker.wait()
        return await read_starts(client)


async def read_starts(client: Processor) -> dict[str, list[float]]:
    """Read when each job was reserved, and when its handler began."""
    reserved, began = [], []
    after: str | None = None
    while True:
        page = await client.backend.reads.list_jobs(limit=1_000, after=after)
        for record in page.jobs:
            assert record.started_at is not None
            assert record.result is not None
            reserved.append(record.started_at)
            began.append(float(json.loads(record.result)))
        after = page.next
        if after is None:
            return {"reserved": sorted(reserved), "handler began": sorted(began)}


def start_worker(url: str, processes: int) -> subprocess.Popen[bytes]:
    """Start `nimburion worker`, and return when all its processes are ready."""
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "nimburion", "worker", "benchmarks.rates:processor"),
            *("--processes", str(processes)),
        ],
        env={**os.environ, "NIMBURION_JOBS__URL": url},
        stderr=subprocess.PIPE,
    )
    assert worker.stderr is not None
    ready = 0
    while ready < processes:
        line = worker.stderr.readline()
        assert line, "the supervisor has ended"
        ready += bool(READY.search(line))
    return worker


def report(found: dict[str, list[float]]) -> str:
    """Return the figures as a table."""
    rows = []
    for what, starts in found.items():
        rate = (len(starts) - BURST) / (starts[-1] - starts[0])
        off = (rate / PER_SECOND - 1) * 100
        rows.append(
            [what, f"{rate:,.1f}", f"{off:+.2f} %", f"{find_excess(starts, PER_SECOND):,.1f}"]
        )
    head = ["time", "jobs a second", "off", "most beyond the rate in any time"]
    return table(f"{PER_SECOND}/s with a burst of {BURST}", head, rows)


def main() -> None:
    """Measure, print, and keep the report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("sqlite", "valkey", "postgres"), default="valkey")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.md")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, open_url(chosen.backend, Path(folder)) as url:
        found = asyncio.run(measure(url, chosen.processes, chosen.seconds))
    figures = report(found)
    print(figures)
    if chosen.save:
        path = Path(__file__).parent / "results" / f"{chosen.save}.md"
        conditions = (
            f"{chosen.backend}, {chosen.processes} processes, {chosen.seconds} s of jobs, "
            f"{os.cpu_count()} cores, load before: {load:.1f}. One run."
        )
        command = f"python -m benchmarks.rates --backend {chosen.backend}"
        command += f" --processes {chosen.processes} --seconds {chosen.seconds}"
        path.write_text(
            f"# A rate over worker processes\n\n`{command}`\n\n{conditions}\n\n{figures}"
        )


if __name__ == "__main__":
    main()
