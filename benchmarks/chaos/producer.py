"""The producer of a chaos run: enqueues jobs at a steady rate, cancels a few, and logs what is
acknowledged.

    python -m benchmarks.chaos.producer JOBS SECONDS SEED

A job whose enqueue was not answered is enqueued again under its id until it is acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from pathlib import Path
from random import Random

import msgspec

from benchmarks.chaos.application import UNWANTED, choose_name, list_instant_names
from benchmarks.chaos.durable import (
    FIRST,
    NAME,
    SECOND,
    PlannedRun,
    expect_signals,
    make_runs,
)
from benchmarks.chaos.event_log import Acknowledged, EventWriter, now
from benchmarks.chaos.flows import PlannedFlow, make_flows
from nimburion import config
from nimburion.core.errors import BackendUnavailable
from nimburion.core.job import State
from nimburion.jobs import Processor

GROUP = 50
"""How many callers enqueue at the same time."""
BACKLOG = 1_000
RUNS_OPEN = 10
"""How many durable runs wait for their second signal while others are enqueued."""
LOOK_AGAIN = 0.1
"""Seconds between two looks at how many jobs wait."""


async def produce(jobs: int, seconds: float, random: Random, writer: EventWriter) -> None:
    """Enqueue `jobs` jobs, spread over so many seconds."""
    instant = list_instant_names()
    names = [
        instant[number % len(instant)] if instant else choose_name(random) for number in range(jobs)
    ]
    backlog = jobs if os.environ["CHAOS_FILLED"] == "1" else BACKLOG
    async with Processor.from_config(config.load()) as processor:
        began = now()
        for start in range(0, jobs, GROUP):
            if start % backlog == 0:
                await wait_for_workers(processor)
            await asyncio.sleep(began + seconds * start / jobs - now())
            group = {f"job-{n}": names[n] for n in range(start, min(jobs, start + GROUP))}
            await asyncio.gather(
                *(enqueue_until_acknowledged(processor, job, name) for job, name in group.items())
            )
            writer.write(Acknowledged(now(), [*group]))
            unwanted = [job for job, name in group.items() if name == UNWANTED]
            await asyncio.gather(*(cancel_until_answered(processor, job) for job in unwanted))


async def produce_flows(flows: int, seconds: float, seed: int, writer: EventWriter) -> None:
    """Enqueue flows over some seconds, and durable runs between them."""
    planned = make_flows(flows, seed)
    runs = make_runs(int(os.environ["CHAOS_DURABLE"]), seed)
    waiting: deque[PlannedRun] = deque()
    async with Processor.from_config(config.load()) as processor:
        began = now()
        for number, flow in enumerate(planned):
            await asyncio.sleep(began + seconds * number / flows - now())
            due = len(runs) * (number + 1) // flows - len(runs) * number // flows
            for run in runs[len(runs) * number // flows :][:due]:
                await enqueue_run_until_acknowledged(processor, run)
                writer.write(Acknowledged(now(), [run.id]))
                waiting.append(run)
                if len(waiting) > RUNS_OPEN:
                    await answer_run(processor, waiting.popleft())
            await enqueue_flow_until_acknowledged(processor, flow)
            writer.write(Acknowledged(now(), [job.id for job in flow.jobs]))
            unwanted = [job.id for job in flow.jobs if job.name == UNWANTED]
            await asyncio.gather(*(cancel_until_answered(processor, job) for job in unwanted))

        for run in waiting:
            await answer_run(processor, run)


async def enqueue_run_until_acknowledged(processor: Processor, run: PlannedRun) -> None:
    """Enqueue a durable run and send its first signal, each until the backend has answered."""
    job = msgspec.json.encode({"end": run.end})
    while True:
        try:
            await processor.enqueue_raw(NAME, job, id=run.id)
            await processor.signal(run.id, FIRST, expect_signals(run)[FIRST.name], id="first")
        except BackendUnavailable:
            continue
        return


async def answer_run(processor: Processor, run: PlannedRun) -> None:
    """Send the second signal of a run, or cancel it, until the backend has answered."""
    if run.end is State.CANCELLED:
        await cancel_until_answered(processor, run.id)
        return
    while True:
        try:
            await processor.signal(run.id, SECOND, expect_signals(run)[SECOND.name], id="second")
        except BackendUnavailable:
            continue
        return


async def enqueue_flow_until_acknowledged(processor: Processor, flow: PlannedFlow) -> None:
    """Enqueue a flow, again and again, until the backend has acknowledged it."""
    while True:
        try:
            await processor.backend.producing.enqueue(flow.jobs, flow.flows)
        except BackendUnavailable:
            continue
        return


async def wait_for_workers(processor: Processor) -> None:
    """Wait while more than `BACKLOG` jobs wait, so that jobs arrive during the whole run."""
    while True:
        try:
            if await processor.queue_size() <= BACKLOG:
                return
        except BackendUnavailable:
            continue
        await asyncio.sleep(LOOK_AGAIN)


async def enqueue_until_acknowledged(processor: Processor, job: str, name: str) -> None:
    """Enqueue a job, again and again under the same id, until the backend has acknowledged it."""
    while True:
        try:
            await processor.enqueue_raw(name, b"{}", id=job)
        except BackendUnavailable:
            continue
        return


async def cancel_until_answered(processor: Processor, job: str) -> None:
    """Cancel a job, again and again until the backend has answered."""
    while True:
        try:
            await processor.cancel(job)
        except BackendUnavailable:
            continue
        return


def main(arguments: list[str]) -> None:
    """Produce what the arguments say."""
    jobs, seconds, seed = int(arguments[0]), float(arguments[1]), int(arguments[2])
    writer = EventWriter(Path(os.environ["CHAOS_FOLDER"]), "producer")
    flows = int(os.environ["CHAOS_FLOWS"])
    if flows:
        asyncio.run(produce_flows(flows, seconds, seed, writer))
    else:
        asyncio.run(produce(jobs, seconds, Random(seed), writer))


if __name__ == "__main__":
    main(sys.argv[1:])
