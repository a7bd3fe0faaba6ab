"""Processors for durable functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nimburion import Processor
from nimburion.backends.memory import MemoryBackend
from nimburion.jobs.client.status import Status
from nimburion.testing import FakeClock

Register = Callable[[Processor], None]


def make_processor(clock: FakeClock | None = None, **settings: Any) -> Processor:
    clock = clock or FakeClock()
    return Processor(MemoryBackend(clock=clock), clock=clock, **{"max_retries": 0, **settings})


async def finish(processor: Processor, job_id: str) -> Status:
    """Run all jobs, also those that are due later, and return the status of one."""
    await processor.drain(advance=True)
    return await processor.get_status(job_id)
