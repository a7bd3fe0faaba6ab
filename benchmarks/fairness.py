"""How long the jobs of small tenants wait beside a tenant with many jobs, or with long ones.

    python -m benchmarks.fairness [--backend NAME] [--save NAME] [SCENE ...]

All jobs wait when one worker with ten slots starts. Their handlers sleep. The run ends when the
jobs of the light tenants have started. The waits of a light tenant are compared with those that it
would have alone, with its share of the slots (ten, divided by the number of tenants). The wait
without turns is computed: the jobs of the heavy tenant come first.

- `flood`: one tenant has 100,000 jobs, twenty have 50 each. A job takes 0.1 s.
- `long`: one tenant has 100 jobs of 10 s, five have 400 jobs of 0.1 s each. No run time is known at
  the beginning.

What other programs on the machine take from the worker counts as waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.limits import KINDS, serve
from benchmarks.report import table
from nimburion.jobs import Context, Processor, job

RESULTS = Path(__file__).parent / "results"
SLOTS = 10
HEAVY = "heavy"
_BATCH = 1_000


class Scene(NamedTuple):
    """One heavy tenant and several light ones. Times are in seconds."""

    title: str
    heavy_jobs: int
    heavy_seconds: float
    light_tenants: int
    light_jobs: int
    light_seconds: float

    def list_tenants(self) -> list[str]:
        """Return the light tenants."""
        return [f"tenant-{n}" for n in range(self.light_tenants)]

    def compute_wait(self) -> float:
        """Return the mean wait of a light tenant's jobs if it had its share for itself."""
        rate = SLOTS / (self.light_tenants + 1) / self.light_seconds
        return (self.light_jobs - 1) / 2 / rate

    def compute_wait_without_turns(self) -> float:
        """Return the mean wait of the light tenants' jobs in the order of enqueueing."""
        light = self.light_tenants * self.light_jobs * self.light_seconds / 2
        return (self.heavy_jobs * self.heavy_seconds + light) / SLOTS


SCENES = {
    "flood": Scene("100,000 jobs of one, 50 of each of twenty", 100_000, 0.1, 20, 50, 0.1),
    "long": Scene("jobs of 10 s of one, of 0.1 s of five", 100, 10.0, 5, 400, 0.1),
}


@job(queue="bench", name="wait")
async def wait(seconds: float) -> None:
    """Take this time."""
    await asyncio.sleep(seconds)


async def fill(processor: Processor, scene: Scene) -> None:
    """Enqueue the jobs of the heavy tenant, then those of the others, tenant by tenant."""
    counts = {HEAVY: scene.heavy_jobs, **dict.fromkeys(scene.list_tenants(), scene.light_jobs)}
    for tenant, count in counts.items():
        seconds = scene.heavy_seconds if tenant == HEAVY else scene.light_seconds
        for start in range(0, count, _BATCH):
            jobs = [wait.job(seconds=seconds) for _ in range(min(_BATCH, count - start))]
            await processor.enqueue_many(jobs, tenant=tenant)


async def measure(url: str, scene: Scene) -> list[float]:
    """Run the jobs until those of the light tenants have started; return the means by tenant."""
    waits: dict[str, list[float]] = {tenant: [] for tenant in scene.list_tenants()}
    missing = scene.light_tenants * scene.light_jobs
    started = 0.0
    done = asyncio.Event()

    async def note(ctx: Context, call_next: object) -> object:
        nonlocal missing
        if ctx.tenant in waits:
            waits[ctx.tenant].append(time.monotonic() - started)
            missing -= 1
            if missing == 0:
                done.set()
        return await call_next(ctx)  # type: ignore[operator]

    async with Processor(url, concurrency=SLOTS, grace=0.0) as processor:
        processor.register(wait)
        processor.use(note)
        await fill(processor, scene)
        started = time.monotonic()
        await processor.start()
        await done.wait()
        await processor.stop()
    return [statistics.fmean(one) for one in waits.values()]


def compare(kind: str, names: list[str]) -> str:
    """Run the scenes; return the figures as a table."""
    rows = []
    for name in names:
        scene = SCENES[name]
        alone, last = scene.compute_wait(), scene.compute_wait_without_turns()
        with serve(kind) as (url, _):
            found = asyncio.run(measure(url, scene))
        mean, most = statistics.fmean(found), max(found)
        print(name, mean, most, alone, file=sys.stderr, flush=True)
        rows.append(
            [
                scene.title,
                f"{alone:.2f}",
                f"{mean:.2f}",
                f"{most:.2f}",
                f"{most / alone:.2f}",
                f"{last:,.0f}",
            ]
        )
    head = ["tenants", "alone, with its share, s", "mean wait of a light tenant, s"]
    head += ["of the slowest of them, s", "the slowest, to alone", "without turns, s"]
    return table(f"{kind}, {SLOTS} slots", head, rows)


def main() -> None:
    """Measure, print, and keep the report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", choices=[*SCENES, []])
    parser.add_argument("--backend", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.md")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    kinds = list(KINDS) if chosen.backend == "all" else [chosen.backend]
    figures = "\n".join(compare(kind, chosen.scenes or list(SCENES)) for kind in kinds)
    print(figures)
    if chosen.save:
        conditions = f"One run of each; {os.cpu_count()} cores, load before: {load:.1f}."
        path = RESULTS / f"{chosen.save}.md"
        command = f"python -m benchmarks.fairness --backend {chosen.backend}"
        path.write_text(f"# Waits of small tenants\n\n`{command}`\n\n{conditions}\n\n{figures}")


if __name__ == "__main__":
    main()
