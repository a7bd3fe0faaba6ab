"""What flows and durable functions cost: a drain of their jobs beside one of plain jobs.

    python3 dev.py bench flows [--backend NAME] [--jobs N] [--repeat N] [--save] [SCENE ...]

A worker in a process of its own completes no-op async jobs, which wait when it starts. Each scene
runs beside the plain drain, in turn, and the ratio is the median of these pairs: the CPU time a job
of the worker's process and of the server, plain by scene. The enqueue is measured apart, in the
same way. It needs Linux, which tells the CPU time of other processes.

The scenes of durable functions run beside two drains: of plain jobs, and of durable functions
without an operation. What an operation costs is the difference to the latter, in plain jobs.
`signal` measures times instead: from a signal until its handler continues, and from an enqueue
until a plain handler begins, one at a time, of a worker that is idle.

`minimum` measures what a step costs at least, beside the plain drain: see
`benchmarks/step_minimum.py`. The number of runs that step side by side is that of a worker by
default, and 100.

`suspended`, `million` and `release` need many jobs and are measured only when they are named;
`benchmarks/large_flows.py` describes them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from benchmarks import large_flows, step_minimum
from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.limits import KINDS, read_cpu, serve
from benchmarks.payload import PAYLOAD
from benchmarks.report import Rows, ratio, spread, table
from benchmarks.workload import noop
from nimburion import DurableContext, Flow, Processor, Signal, State, chain, job
from nimburion.jobs.declaration.job import JobFunction

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


STEPS = 10
"""The steps of one durable function."""
SLOTS = 10
"""The concurrency of a worker by default."""
PAUSE = 1.5
"""Seconds for which a durable function is suspended: longer than it keeps its slot."""
SIGNALS = 200
"""How many signals are timed, one at a time."""


async def do_nothing(number: int) -> int:
    """Do nothing, as a step."""
    return number


@job(queue="bench")
async def bare(ctx: DurableContext, to: str, subject: str, body: str) -> None:
    """Do nothing, as a durable function."""


@job(queue="bench")
async def stepping(ctx: DurableContext, to: str, subject: str, body: str) -> None:  # noqa: ARG001
    """Do `STEPS` steps, one after another."""
    for number in range(STEPS):
        await ctx.options(key=str(number)).step(do_nothing, number)


@job(queue="bench")
async def pausing(ctx: DurableContext, to: str, subject: str, body: str) -> None:  # noqa: ARG001
    """Be suspended once."""
    await ctx.sleep("pause", PAUSE)


class DurableScene(NamedTuple):
    """A durable function, and how many operations it has."""

    title: str
    job: JobFunction[..., ..., Any, None]
    operations: int
    slots: int = SLOTS
    """The concurrency of the worker, also in the two drains beside it."""


DURABLE_SCENES = {
    "step": DurableScene("one step", stepping, STEPS),
    "step_100": DurableScene("one step, 100 slots", stepping, STEPS, 100),
    "suspend": DurableScene("one suspend and resume, by a sleep", pausing, 1),
}
ALL = (*SCENES, *DURABLE_SCENES, "minimum", "signal")
MINIMUM_TASKS = (SLOTS, 100)
"""How many runs step side by side in the scene `minimum`: as in a worker by default, and more."""
LARGE_SCENES = ("suspended", "million", "release")
BARE = DurableScene("no operation", bare, 1)


async def drain(url: str, scene: str, jobs: int, server: int | None) -> dict[str, float]:
    """Enqueue and complete all jobs; return the CPU time a job of both parts in microseconds.

    `scene` may end with the concurrency of the worker, as in `plain@100`.
    """
    scene, _, slots = scene.partition("@")
    async with Processor(url, concurrency=int(slots or SLOTS)) as processor:
        processor.register(noop, bare, stepping, pausing)
        started = time.process_time() + read_cpu(server)
        if scene == "plain":
            await processor.enqueue_many(noop.job(**PAYLOAD) for _ in range(jobs))
        elif scene in DURABLE_SCENES or scene == "bare":
            function = DURABLE_SCENES.get(scene, BARE).job
            await processor.enqueue_many(function.job(**PAYLOAD) for _ in range(jobs))
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


async def time_signals(url: str, count: int) -> dict[str, float]:
    """Return the median times, in milliseconds, from an enqueue until a plain handler begins, and
    from a signal until a durable one continues.
    """
    signal = Signal("go", int)
    times: asyncio.Queue[float] = asyncio.Queue()
    async with Processor(url) as processor:

        @processor.job
        async def plain() -> None:
            times.put_nowait(time.perf_counter())

        @processor.job
        async def waiting(ctx: DurableContext) -> None:
            await ctx.wait_for(signal)
            times.put_nowait(time.perf_counter())

        await processor.start()
        pickups, signals = [], []
        for _ in range(count):
            began = time.perf_counter()
            await processor.enqueue(plain.job())
            pickups.append(await times.get() - began)
            run_id = await processor.enqueue(waiting.job())
            while (await processor.get_status(run_id)).state is not State.SUSPENDED:
                await asyncio.sleep(0.002)
            began = time.perf_counter()
            await processor.signal(run_id, signal, 1)
            signals.append(await times.get() - began)
        await processor.stop()
    return {
        "pickup": statistics.median(pickups) * 1e3,
        "signal": statistics.median(signals) * 1e3,
    }


@contextmanager
def serve_any(kind: str) -> Iterator[tuple[str, int | None]]:
    """Yield the URL of an empty backend, also of one in memory, and the process of its server."""
    if kind == "memory":
        yield "memory://", None
    else:
        with serve(kind) as served:
            yield served


def run(scene: str, kind: str, jobs: int) -> dict[str, float]:
    """Run a scene with an empty backend, in a process of its own."""
    with serve_any(kind) as (url, server):
        return run_part(url, scene, jobs, server)


def run_part(url: str, scene: str, jobs: int, server: int | None) -> dict[str, float]:
    """Run a scene in a process of its own."""
    arguments = json.dumps([url, scene, jobs, server])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.flows", "--part", arguments],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


async def run_scene(url: str, scene: str, jobs: int, server: int | None) -> dict[str, float]:
    """Run a scene in this process."""
    if scene == "signal":
        return await time_signals(url, jobs)
    if scene.startswith("minimum"):
        return await step_minimum.measure(url, int(scene.removeprefix("minimum")), jobs, server)
    if scene in large_flows.PARTS:
        return await large_flows.PARTS[scene](url, jobs, server)
    return await drain(url, scene, jobs, server)


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


def compare_durable(kind: str, scenes: Sequence[str], jobs: int, repeat: int) -> Rows:
    """Run each scene of durable functions beside both drains; return the rows of a table."""
    rows: Rows = []
    for scene in scenes:
        title, _, operations, slots = DURABLE_SCENES[scene]
        found: list[tuple[float, float, float]] = []
        for _ in range(repeat):
            drains = [f"{one}@{slots}" for one in ("plain", "bare", scene)]
            plain, none, whole = (run(one, kind, jobs)["run"] for one in drains)
            found.append((plain, none, (whole - none) / operations))
        plains, bares, costs = ([*values] for values in zip(*found, strict=True))
        row = [title, spread(plains, 1), spread(bares, 1), spread(costs, 1), ratio(costs, plains)]
        rows.append(row)
        print(*row, file=sys.stderr, flush=True)
    return rows


def compare_minimum(kind: str, jobs: int, repeat: int) -> Rows:
    """Measure the minimum of a step beside the plain drain; return the rows of a table."""
    rows: Rows = []
    for tasks in MINIMUM_TASKS:
        scenes = ("plain", f"minimum{tasks}")
        found = [[run(one, kind, jobs)["run"] for one in scenes] for _ in range(repeat)]
        plains, minima = ([*values] for values in zip(*found, strict=True))
        rows.append([str(tasks), spread(plains, 1), spread(minima, 1), ratio(minima, plains)])
        print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def compare_signals(kind: str, repeat: int) -> Rows:
    """Time signals beside pickups; return the row of a table."""
    found = [run("signal", kind, SIGNALS) for _ in range(repeat)]
    pickups, signals = ([one[name] for one in found] for name in ("pickup", "signal"))
    return [[spread(pickups, 2), spread(signals, 2), ratio(signals, pickups)]]


def compare_suspended(kind: str, jobs: int, repeat: int) -> str:
    """Drain plain jobs of a backend without and of one with suspended runs, in turn; return the
    figures as a table.
    """
    found: dict[str, list[float]] = {"beside_none": [], "beside_suspended": []}
    with serve_any(kind) as empty, serve_any(kind) as filled:
        if kind != "memory":
            run_part(filled[0], "fill", large_flows.SUSPENDED, None)
        backends = {"beside_none": empty, "beside_suspended": filled}
        for number in range(repeat):
            scenes = [*backends.items()]
            for scene, (url, server) in scenes if number % 2 else reversed(scenes):
                found[scene].append(run_part(url, scene, jobs, server)["run"])
    none, suspended = found.values()
    head = ["suspended runs", "without, µs a job", "with, µs a job", "without by with"]
    row = [f"{large_flows.SUSPENDED:,}", spread(none, 1), spread(suspended, 1)]
    title = f"{kind}, plain drain of {jobs:,} jobs beside suspended runs"
    return table(title, head, [[*row, ratio(none, suspended)]])


def compare_large(kind: str, repeat: int) -> str:
    """Enqueue a large flow beside plain jobs, in turn; return the figures as a table."""
    members = large_flows.MEMBERS
    plain, flow = [], []
    for _ in range(repeat):
        plain.append(run("large_bulk", kind, members))
        flow.append(run("large_flow", kind, members))
    costs = ([one["enqueue"] for one in some] for some in (plain, flow))
    base, cost = costs
    head = ["members", "plain jobs, µs a job", "the flow, µs a job", "plain by it"]
    head += ["`get_flow`, ms"]
    row = [f"{members:,}", spread(base, 1), spread(cost, 1), ratio(base, cost)]
    return table(
        f"{kind}, enqueue of a large flow",
        head,
        [[*row, spread([one["get_flow"] for one in flow], 2)]],
    )


def time_release(kind: str, repeat: int) -> str:
    """Time the exchanges while a job releases its dependents; return the figures as a table."""
    found = [run("release", kind, large_flows.DEPENDENTS) for _ in range(repeat)]
    head = ["dependents", "exchanges", "median, ms", "longest, ms"]
    row = [f"{large_flows.DEPENDENTS:,}"]
    row += [
        spread([one[name] for one in found], digits)
        for name, digits in (("exchanges", 0), ("median", 2), ("longest", 1))
    ]
    return table(f"{kind}, exchanges while dependents are released and run", head, [row])


def show_durable(kind: str, jobs: int, rows: Rows) -> str:
    """Return the figures of durable functions as a table."""
    head = ["operation", "plain drain, µs a job", "without operations, µs a run"]
    head += ["the operation, µs", "in plain jobs"]
    return table(f"{kind}, {jobs:,} durable runs", head, rows)


def show_minimum(kind: str, jobs: int, rows: Rows) -> str:
    """Return the minimum that a step can cost as a table."""
    head = ["runs side by side", "plain drain, µs a job", "minimum of a step, µs"]
    return table(f"{kind}, {jobs:,} runs without an engine", [*head, "in plain jobs"], rows)


def show_signals(kind: str, rows: Rows) -> str:
    """Return the times of signals as a table."""
    head = ["enqueue to handler, ms", "signal to handler, ms", "signal by enqueue"]
    return table(f"{kind}, {SIGNALS} signals, medians", head, rows)


def show(kind: str, jobs: int, rows: Rows) -> str:
    """Return the figures as a table."""
    head = ["jobs", "plain drain, µs a job", "drain, µs a job", "plain by it"]
    head += ["plain enqueue, µs a job", "enqueue, µs a job", "plain by it"]
    return table(f"{kind}, {jobs:,} jobs", head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the report if asked to."""
    parser = argparse.ArgumentParser(prog="dev.py bench flows", description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", choices=[*ALL, *LARGE_SCENES, []])
    parser.add_argument("--backend", choices=(*KINDS, "memory"), default="sqlite")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.part:
        print(json.dumps(asyncio.run(run_scene(*json.loads(chosen.part)))))
        return 0
    conditions = read_conditions()
    scenes = chosen.scenes or ALL
    if large := [scene for scene in scenes if scene in LARGE_SCENES]:
        measure_large(chosen, large, conditions)
    if len(large) < len(scenes):
        measure(chosen, [scene for scene in scenes if scene in ALL], conditions)
    return 0


def measure(chosen: argparse.Namespace, scenes: Sequence[str], conditions: dict[str, Any]) -> None:
    """Measure the scenes of a few jobs."""
    kind, jobs, repeat = chosen.backend, chosen.jobs, chosen.repeat
    found: dict[str, Rows] = {}
    tables: list[str] = []
    if of_flows := [scene for scene in scenes if scene in SCENES]:
        found["rows"] = compare(kind, of_flows, jobs, repeat)
        tables.append(show(kind, jobs, found["rows"]))
    if of_runs := [scene for scene in scenes if scene in DURABLE_SCENES]:
        found["durable"] = compare_durable(kind, of_runs, jobs, repeat)
        tables.append(show_durable(kind, jobs, found["durable"]))
    if "minimum" in scenes:
        found["minimum"] = compare_minimum(kind, jobs, repeat)
        tables.append(show_minimum(kind, jobs, found["minimum"]))
    if "signal" in scenes:
        found["signal"] = compare_signals(kind, repeat)
        tables.append(show_signals(kind, found["signal"]))
    keep(chosen, f"flows-{kind}", conditions, found, tables)


def measure_large(
    chosen: argparse.Namespace, scenes: Sequence[str], conditions: dict[str, Any]
) -> None:
    """Measure the scenes of many jobs."""
    kind, jobs, repeat = chosen.backend, chosen.jobs, chosen.repeat
    found: dict[str, str] = {}
    for scene in scenes:
        if scene == "suspended":
            found[scene] = compare_suspended(kind, jobs, repeat)
        elif scene == "million":
            found[scene] = compare_large(kind, repeat)
        else:
            found[scene] = time_release(kind, repeat)
    keep(chosen, f"large-flows-{kind}", conditions, found, [*found.values()])


def keep(
    chosen: argparse.Namespace,
    subject: str,
    conditions: dict[str, Any],
    found: Mapping[str, object],
    tables: Sequence[str],
) -> None:
    """Print the tables, and save them if asked to."""
    figures = "\n".join(tables)
    print(figures)
    if chosen.save:
        scenes = "".join(f" {scene}" for scene in chosen.scenes)
        command = f"python3 dev.py bench flows{scenes} --backend {chosen.backend}"
        text = (
            f"# What flows and durable functions cost\n\n`{command} --jobs {chosen.jobs} "
            f"--repeat {chosen.repeat}`\n\n{describe_conditions(conditions)} Medians "
            f"(minimum-maximum) of {chosen.repeat} runs, in turn with the plain drain or enqueue."
            f"\n\n{figures}"
        )
        save(subject, {"conditions": conditions, **found}, text)


if __name__ == "__main__":
    sys.exit(main())
