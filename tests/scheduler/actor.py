"""A scheduler in a process of its own: `python -m tests.scheduler.actor URL`. It says when it
runs, and is killed by the test."""

from __future__ import annotations

import asyncio
import sys

from nimburion.backends import open_backend
from nimburion.jobs import Processor
from nimburion.scheduler import Scheduler
from tests.scheduler.conftest import Report


async def run(url: str) -> None:
    """Fire a schedule each second until the process ends."""
    processor = Processor(open_backend(url))
    scheduler = Scheduler(processor, in_workers=False)
    scheduler.schedule("@every 1s", Report(), name="each-second", misfire="catch_up")
    async with processor:
        await scheduler.start()
        sys.stdout.write("running\n")
        sys.stdout.flush()
        await scheduler.stopping.wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
