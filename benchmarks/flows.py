"""What flows cost: a drain of members beside one of jobs without a flow.

    python3 dev.py bench flows [--backend NAME] [--jobs N] [--repeat N] [--save] [SCENE ...]

A worker in a process of its own completes no-op async jobs, which wait when it starts. Each scene
runs beside the plain drain, in turn, and the ratio is the median of these pairs: the CPU time a job
of the worker's process and of the server, plain by scene. The enqueue is measured apart, in the
same way. It needs Linux, which tells the CPU time of other processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.limits import KINDS, read_cpu, serve
from benchmarks.payload import PAYLOAD
from benchmarks.report import Rows, ratio, spread, table
from benchmarks.workload import noop
from nimburion import Flow, Processor, State, chain

LINKS = 10
"""The jobs of one chain."""


class Scene(NamedTuple):
    """The flows of a number of jobs."""

    title: str
    make: Callable[[int], list[Flow]]


def make_group(jobs: int) -> list[Flow]:
    """Return a flow of jobs that wait for nothing."""
    flow = Flow("members")
    flow.add_all(noop.job(**PAYLOAD) for _ in range(jobs))
    return [flow]


def make_chains(jobs: int) -> list[Flow]:
    """Return chains of `LINKS` jobs."""
    return [
        chain(*(noop.job(**PAYLOAD) for _ in range(LINKS)), name="chain")
        for _ in range(jobs // LINKS)
    ]


def fan_out(jobs: int) -> list[Flow]:
    """Return a flow of one job, and all others after it."""
    flow = Flow("fan-out")
    first = flow.add(noop.job(**PAYLOAD), name="first")
    flow.add_all((noop.job(**PAYLOAD) for _ in range(jobs - 1)), depends_on=first)
    return [flow]


def fan_in(jobs: int) -> list[Flow]:
    """Return a flow of one job that waits for all others."""
    flow = Flow("fan-in")
    group = flow.add_all(noop.job(**PAYLOAD) for _ in range(jobs - 1))
    flow.add(noop.job(**PAYLOAD), name="last", depends_on=group)
    return [flow]


SCENES = {
    "members": Scene("a flow, no dependencies", make_group),
    "chains": Scene(f"chains of {LINKS}", make_chains),
    "fan_out": Scene("one, then all others", fan_out),
    "fan_in": Scene("all others, then one", fan_in),
}


async def drain(url: str, scene: str, jobs: int, server: int | None) -> dict[str, float]:
    """Enqueue and complete all jobs; return the CPU time a job of both parts in microseconds."""
    async with Processor(url) as processor:
        processor.register(noop)
        started = time.process_time() + read_cpu(server)
        if scene == "plain":
            await processor.enqueue_many(noop.job(**PAYLOAD) for _ in range(jobs))
        else:
            for flow in SCENES[scene].make(jobs):
                await processor.enqueue_flow(flow)
        stored = time.process_time() + read_cpu(server)
        await processor.start()
        while (await processor.backend.reads.count_jobs())[State.COMPLETED] < jobs:
            await asyncio.sleep(0.2)
        await processor.stop()
        ended = time.process_time() + read_cpu(server)
    return {"enqueue": (stored - started) / jobs * 1e6, "run": (ended - stored) / jobs * 1e6}


def run(scene: str, kind: str, jobs: int) -> dict[str, float]:
    """Run a scene with an empty backend, in a process of its own."""
    with serve(kind) as (url, server):
        arguments = json.dumps([url, scene, jobs, server])
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.flows", "--part", arguments],
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare(kind: str, scenes: Sequence[str], jobs: int, repeat: int) -> Rows:
    """Run each scene beside the plain drain, in turn; return the rows of a table."""
    rows: Rows = []
    for scene in scenes:
        plains, flows = [], []
        for _ in range(repeat):
            plains.append(run("plain", kind, jobs))
            flows.append(run(scene, kind, jobs))
        row = [SCENES[scene].title]
        for part in ("run", "enqueue"):
            base, cost = ([one[part] for one in some] for some in (plains, flows))
            row += [spread(base, 1), spread(cost, 1), ratio(base, cost)]
        rows.append(row)
        print(*row, file=sys.stderr, flush=True)
    return rows


def show(kind: str, jobs: int, rows: Rows) -> str:
    """Return the figures as a table."""
    head = ["jobs", "plain drain, µs a job", "drain, µs a job", "plain by it"]
    head += ["plain enqueue, µs a job", "enqueue, µs a job", "plain by it"]
    return table(f"{kind}, {jobs:,} jobs", head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the report if asked to."""
    parser = argparse.ArgumentParser(prog="dev.py bench flows", description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", choices=[*SCENES, []])
    parser.add_argument("--backend", choices=KINDS, default="sqlite")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.part:
        print(json.dumps(asyncio.run(drain(*json.loads(chosen.part)))))
        return 0
    conditions = read_conditions()
    rows = compare(chosen.backend, chosen.scenes or list(SCENES), chosen.jobs, chosen.repeat)
    figures = show(chosen.backend, chosen.jobs, rows)
    print(figures)
    if chosen.save:
        command = f"python3 dev.py bench flows --backend {chosen.backend} --jobs {chosen.jobs}"
        text = (
            f"# What flows cost\n\n`{command} --repeat {chosen.repeat}`\n\n"
            f"{describe_conditions(conditions)} Medians (minimum-maximum) of {chosen.repeat} runs "
            f"beside the plain drain, in turn.\n\n{figures}"
        )
        save(f"flows-{chosen.backend}", {"conditions": conditions, "rows": rows}, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
