"""The producer of a chaos run: enqueues jobs at a steady rate, cancels a few, and logs what is
acknowledged.

    python -m benchmarks.chaos.producer JOBS SECONDS SEED

A job whose enqueue was not answered is enqueued again under its id until it is acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from random import Random

from benchmarks.chaos.application import UNWANTED, choose_name, list_instant_names
from benchmarks.chaos.event_log import Acknowledged, EventWriter, now
from benchmarks.chaos.flows import PlannedFlow, make_flows
from nimburion import config
from nimburion.core.errors import BackendUnavailable
from nimburion.jobs import Processor

GROUP = 50
"""How many callers enqueue at the same time."""
BACKLOG = 1_000
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
    """Enqueue so many flows, spread over so many seconds."""
    planned = make_flows(flows, seed)
    async with Processor.from_config(config.load()) as processor:
        began = now()
        for number, flow in enumerate(planned):
            await asyncio.sleep(began + seconds * number / flows - now())
            await enqueue_flow_until_acknowledged(processor, flow)
            writer.write(Acknowledged(now(), [job.id for job in flow.jobs]))
            unwanted = [job.id for job in flow.jobs if job.name == UNWANTED]
            await asyncio.gather(*(cancel_until_answered(processor, job) for job in unwanted))


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
