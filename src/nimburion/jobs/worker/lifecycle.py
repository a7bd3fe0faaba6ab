"""A processor at work: its worker, threads and housekeeping, from start to stop.

Starting, winding down and leaving each happen once, in this order, however many ask for them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence

from nimburion.core.errors import NotOpen
from nimburion.core.lease import Lease
from nimburion.core.service import Service, first_of
from nimburion.core.settings import Settings
from nimburion.jobs.worker.attempt import Attempts, Report
from nimburion.jobs.worker.forking import ForkGuard
from nimburion.jobs.worker.health import Health, health_of
from nimburion.jobs.worker.loop_watchdog import LoopWatchdog
from nimburion.jobs.worker.threads import Threads
from nimburion.jobs.worker.worker import Worker

_log = logging.getLogger("nimburion.worker")

MakeAttemptRunner = Callable[[Threads, Report, ForkGuard], Attempts]
"""Makes what performs the attempts of a worker, from its threads and its report of progress."""

STOPPED_TOO_SOON = "the processor was stopped before it had started"


class Running:
    """A processor's worker, threads and housekeeping, from start to stop."""

    def __init__(
        self,
        worker: Worker,
        services: Sequence[Service],
        make_attempt_runner: MakeAttemptRunner,
        settings: Settings,
        *,
        job_names: Sequence[str],
        is_real_time: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._guard = ForkGuard(self._loop)
        self._threads = Threads(settings.concurrency, self._loop, self._guard)
        self._worker = worker
        self._services = tuple(services)
        self._make_attempt_runner = make_attempt_runner
        self._settings = settings
        self._job_names = tuple(job_names)
        self._watchdog = LoopWatchdog(
            self._loop, worker, limit=settings.loop_lag_limit, grace=settings.grace
        )
        self._is_real_time = is_real_time
        self._asked = asyncio.Event()
        self._hurry = asyncio.Event()
        self._decided = asyncio.Event()
        """Whether the worker has started, or never will."""
        self._winding: asyncio.Task[list[Lease]] | None = None
        self._leaving: asyncio.Task[None] | None = None

    @property
    def orphaned(self) -> bool:
        """Whether its loop is closed, or this process is a forked child of the one it runs in."""
        return self._loop.is_closed() or self._guard.in_child

    async def start(self) -> None:
        """Begin; `NotOpen` when it is stopped before the store has answered."""
        self._guard.arm()
        if self._is_real_time:
            self._watchdog.start()  # first: the first job may block
        attempts = self._make_attempt_runner(self._threads, self._worker.report, self._guard)
        try:
            await first_of(self._worker.start(attempts), self._asked.wait())
        finally:
            self._decided.set()
        if self._worker.done is None:
            raise NotOpen(STOPPED_TOO_SOON)
        if self._asked.is_set():
            return
        self._say_what_is_served()
        for service in self._services:
            await service.start()

    def _say_what_is_served(self) -> None:
        """What an operator wants to know first."""
        _log.info(
            "ready: %d at once; queues %s; jobs %s",
            self._settings.concurrency,
            ", ".join(self._worker.demand.queues) or "(none)",
            ", ".join(self._job_names) or "(none is registered)",
        )

    def listen_to_signals(self, *, owns_process: bool) -> Callable[[], None]:
        """Stop at SIGTERM and SIGINT; the returned function ends that."""
        both = (signal.SIGTERM, signal.SIGINT)
        detach = self._watchdog.attach(both, self._on_signal, owns=owns_process)
        self._guard.signals = frozenset(both)

        def restore() -> None:
            self._guard.signals = frozenset()
            detach()

        return restore

    def health(self) -> Health:
        """How the worker is, and what runs beside it."""
        failures: dict[str, BaseException | None]
        failures = {type(one).__name__.lower(): one.failure for one in self._services}
        failures["loop"] = self._watchdog.failure
        return health_of(self._worker, failures, stopping=self._asked.is_set())

    async def until_asked(self) -> None:
        """Return when it should stop: asked to, or because the reserve loop has died."""
        done = self._worker.done
        if done is not None:
            done.add_done_callback(lambda _: self._asked.set())
        await self._asked.wait()

    async def wind_down(self, grace: float) -> list[Lease]:
        """Stop everything but the session; the leases of handlers that nobody could stop. Done
        once, with the grace of whoever asks first, and to the end even if the asker is gone."""
        self._asked.set()
        if self._winding is None:
            self._winding = asyncio.create_task(self._wind_down(grace))
        return await asyncio.shield(self._winding)

    async def leave(self, stuck: list[Lease]) -> None:
        """Close the session; once."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(stuck))
        await asyncio.shield(self._leaving)

    async def stop(self, grace: float) -> None:
        """Wind down and leave."""
        await self.leave(await self.wind_down(grace))

    async def _wind_down(self, grace: float) -> list[Lease]:
        await self._decided.wait()
        if self._worker.done is None:
            return []
        self._worker.take_no_more()
        for service in self._services:
            await service.stop()
        return await self._worker.stop(grace, self._hurry)

    async def _leave(self, stuck: list[Lease]) -> None:
        if self._worker.done is not None:
            await self._worker.leave(stuck)
        self._threads.close()
        self._guard.disarm()
        await self._watchdog.stop()

    def _on_signal(self) -> None:
        if self._asked.is_set():
            _log.warning("stopping now")
            self._hurry.set()
        else:
            _log.info("stopping: no more jobs are taken; a second signal stops at once")
            self._asked.set()
