"""Schedulers on one backend of each kind, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nimburion.backends import open_backend
from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Backend
from nimburion.core.job import JobRecord
from nimburion.core.queries import JobFilter
from nimburion.core.timing.clock import Clock
from nimburion.jobs import Job, Processor
from nimburion.scheduler import Scheduler
from nimburion.testing import FakeClock
from tests.servers.fixtures import REQUESTED_KINDS, StartedServers

SERVERS = ("valkey", "postgres")
"""One of each family; that the others do the same is the contract's business."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on each kind of backend that the run asks for; on memory where no processes share it."""
    if "kind" in metafunc.fixturenames:
        chosen = [kind for kind in SERVERS if kind in metafunc.config.stash[REQUESTED_KINDS]]
        kinds: list[Any] = [pytest.param(kind, marks=pytest.mark.server) for kind in chosen]
        memory = ["memory"] if "place" in metafunc.fixturenames else []
        metafunc.parametrize("kind", [*memory, "sqlite", *kinds], indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of backend."""
    return str(request.param)


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty backend of this kind."""
    if kind == "memory":
        return "memory://"
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    started: StartedServers = request.getfixturevalue("started_servers")
    server: Any = started[kind]
    (server.empty if kind == "valkey" else server.forget)()
    request.node.user_properties.append(("server", server.name))
    return str(server.url)


BEGIN = 1_767_225_600.0
"""2026-01-01 00:00 UTC."""


class Report(Job, name="report"):
    """What schedules make here."""

    kind: str = "daily"

    def process(self, ctx: object) -> str:
        return self.kind


class Place:
    """A backend, its clock, and as many schedulers as a test asks for."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.clock = FakeClock(BEGIN)
        self.backend: Backend = open_backend(url, clock=self.clock)
        self._url = url
        self._stack = stack

    def new_handle(self) -> Backend:
        """The same backend, as another process has it."""
        if isinstance(self.backend, MemoryBackend):
            return self.backend.new_handle()
        return open_backend(self._url, clock=self.clock)

    async def scheduler(
        self,
        declare: Callable[[Scheduler], object] = lambda _: None,
        *,
        clock: Clock | None = None,
        **settings: Any,
    ) -> Scheduler:
        """A scheduler of its own process, open, that declares something. `clock` is its host's,
        where that is not the backend's."""
        processor = Processor(self.new_handle(), clock=clock or self.clock, **settings)
        processor.register(Report)
        scheduler = Scheduler(processor)
        declare(scheduler)
        await self._stack.enter_async_context(processor)
        return scheduler

    async def jobs(self) -> list[JobRecord]:
        """All jobs that are kept, oldest first."""
        found: list[JobRecord] = []
        after: str | None = None
        while True:
            page = await self.backend.reads.list_jobs(
                JobFilter(), limit=500, after=after, payloads=True
            )
            found += page.jobs
            after = page.next
            if after is None:
                return found[::-1]

    async def ids(self) -> list[str]:
        """Their ids."""
        return [job.id for job in await self.jobs()]

    def at(self, seconds: float) -> None:
        """Let the clock show so many seconds after the beginning."""
        self.clock.advance_to(BEGIN + seconds)


@pytest.fixture
async def place(url: str) -> AsyncIterator[Place]:
    """An empty backend."""
    async with AsyncExitStack() as stack:
        place = Place(url, stack)
        await place.backend.open()
        stack.push_async_callback(place.backend.close)
        yield place
