"""One run: a backend, a fleet and a producer, the faults of the plan, and the reconciliation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from random import Random

import msgspec

from benchmarks.chaos.durable import DurableFigures, make_runs, read_journals, reconcile_runs
from benchmarks.chaos.event_log import EventWriter, now
from benchmarks.chaos.fault_injector import FaultInjector
from benchmarks.chaos.fault_plan import Size, make_plan
from benchmarks.chaos.fleet import ROOT, Fleet, make_environment
from benchmarks.chaos.flows import FlowFigures, count_jobs, make_flows, reconcile_flows
from benchmarks.chaos.progress import Progress
from benchmarks.chaos.reconcile import End, Reconciliation, describe_end, read_log, reconcile
from benchmarks.chaos.targets import PROXIES, Target, TargetName, serve
from nimburion.backends import open_backend
from nimburion.core.backend import Backend

PAGE = 1_000


class RunOutcome(msgspec.Struct):
    """A run: what it was about, and what the reconciliation found."""

    target: str
    seed: int
    size: Size
    planned: dict[str, int]
    seconds: float
    """From the start of the workers to the end of the last job."""
    reconciliation: Reconciliation
    durable: DurableFigures | None = None
    """What became of the durable runs; None: there were none."""
    flows: FlowFigures | None = None
    """What became of the flows; None: the run has none."""

    @property
    def violations(self) -> dict[str, list[str]]:
        """The jobs and flows of each violation that occurred."""
        of_flows = {} if self.flows is None else self.flows.violations
        of_runs = {} if self.durable is None else self.durable.violations
        return self.reconciliation.violations | of_flows | of_runs


async def run_chaos(name: TargetName, size: Size, seed: int, folder: str | None) -> RunOutcome:
    """Run the plan of a seed on a backend, and reconcile.

    With `folder`, all files of the run are made in a new folder there, and kept.
    """
    needs_proxies = size.cuts or size.black_holes or size.lost_replies or size.restarts
    proxies = PROXIES if needs_proxies else 0
    if folder is not None:
        kept = Path(tempfile.mkdtemp(prefix=f"chaos-{name}-", dir=folder))
        async with serve(name, kept, proxies) as target:
            return await run_on_target(target, size, seed, kept)
    with tempfile.TemporaryDirectory(prefix="nimburion-chaos-") as path:
        async with serve(name, Path(path), proxies) as target:
            return await run_on_target(target, size, seed, Path(path))


async def run_on_target(target: Target, size: Size, seed: int, folder: Path) -> RunOutcome:
    """Run the plan of a seed on a backend that was started."""
    planned = make_flows(size.flows, seed)
    runs = make_runs(size.durable, seed)
    if size.flows:
        jobs = count_jobs(planned) + sum(run.jobs for run in runs)
        size = msgspec.structs.replace(size, jobs=jobs)
    counts = size.count_faults(has_server=target.has_server)
    plan = make_plan(counts, size, Random(seed))
    began = now()
    async with open_directly(target.url) as backend:
        with (
            closing(EventWriter(folder, "harness")) as writer,
            closing(Fleet(folder, target, size)) as fleet,
        ):
            progress = Progress(backend, fleet, size.jobs)
            if size.filled:
                await produce(folder, target, size, seed, progress)
            fleet.start()
            injector = FaultInjector(target, fleet, writer, progress, size.least_alive)
            async with asyncio.TaskGroup() as group:
                group.create_task(injector.run(plan))
                if not size.filled:
                    group.create_task(produce(folder, target, size, seed, progress))
            with suppress(TimeoutError):  # what has not ended is reported as lost
                await progress.wait_for(1.0)
            seconds = now() - began
            await fleet.stop()
        ends = await read_ends(backend)
        journals = await read_journals(backend, runs)
        infos = [info for one in planned for info in await backend.reads.get_flow(one.flows[0].id)]
    log = read_log(folder)
    outcome = RunOutcome(
        target.title, seed, size, Counter(f.kind for f in plan), seconds, reconcile(log, ends)
    )
    if planned:
        by_id = {info.id: info for info in infos}
        outcome.flows = reconcile_flows(planned, log, ends, by_id)
    if runs:
        outcome.durable = reconcile_runs(runs, log, ends, journals)
    return outcome


@asynccontextmanager
async def open_directly(url: str) -> AsyncIterator[Backend]:
    """A handle of the harness, which passes no proxy."""
    backend = open_backend(url)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


async def produce(folder: Path, target: Target, size: Size, seed: int, progress: Progress) -> None:
    """Run the producer to its end."""
    arguments = [str(size.jobs), str(size.seconds), str(seed)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.chaos.producer", *arguments),
        cwd=ROOT,
        env=make_environment(folder, target.get_url(0), size),
    )
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    if code != 0:
        raise subprocess.CalledProcessError(code, "benchmarks.chaos.producer")
    progress.are_all_enqueued = True


async def read_ends(backend: Backend) -> dict[str, End]:
    """Return what the backend says of each job."""
    clock_offset = await backend.now() - now()
    ends: dict[str, End] = {}
    after: str | None = None
    while True:
        page = await backend.reads.list_jobs(limit=PAGE, after=after)
        ends.update((record.id, describe_end(record, clock_offset)) for record in page.jobs)
        after = page.next
        if after is None:
            return ends
