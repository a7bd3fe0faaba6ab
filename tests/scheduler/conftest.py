"""Schedulers on one store, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.job import JobRecord
from nimburion.core.reading import JobFilter
from nimburion.jobs import Job, Processor
from nimburion.scheduler import Scheduler
from nimburion.testing import FakeClock


class Report(Job, name="report"):
    """What schedules make here."""

    kind: str = "daily"

    def process(self, ctx: object) -> str:
        return self.kind


class Place:
    """A store, its clock, and as many schedulers as a test asks for."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.clock = FakeClock(1_767_225_600.0)  # 2026-01-01 00:00 UTC
        self.store = MemoryBackend(clock=self.clock)
        self._stack = stack

    async def scheduler(
        self, declare: Callable[[Scheduler], object] = lambda _: None, **settings: Any
    ) -> Scheduler:
        """A scheduler of its own process, open, that declares something."""
        processor = Processor(self.store.sibling(), clock=self.clock, **settings)
        processor.register(Report)
        scheduler = Scheduler(processor)
        declare(scheduler)
        await self._stack.enter_async_context(processor)
        return scheduler

    async def jobs(self) -> list[JobRecord]:
        """All jobs that are kept, oldest first."""
        await self.store.open()
        found: list[JobRecord] = []
        after: str | None = None
        while True:
            page = await self.store.list_jobs(JobFilter(), limit=500, after=after, payloads=True)
            found += page.jobs
            after = page.next
            if after is None:
                return found[::-1]

    async def ids(self) -> list[str]:
        """Their ids."""
        return [job.id for job in await self.jobs()]

    def at(self, seconds: float) -> None:
        """Let the clock show so many seconds after the beginning."""
        self.clock.advance_to(1_767_225_600.0 + seconds)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    """An empty store."""
    async with AsyncExitStack() as stack:
        yield Place(stack)
