"""The lifecycle of a running processor: its worker, threads and services, from start to stop.

Start, shutdown and closing happen once each, in this order, however often they are requested.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import signal
from collections.abc import Callable, Mapping, Sequence

from nimburion.core.errors import NotOpen
from nimburion.core.lease import Lease
from nimburion.core.service import Service, wait_for_first
from nimburion.core.session import Vitals
from nimburion.core.settings import Settings
from nimburion.core.version import __version__
from nimburion.jobs.handling.attempt_record import HOLD
from nimburion.jobs.handling.lifespan import Lifespan
from nimburion.jobs.worker.attempt.attempt_runner import MakeAttemptRunner
from nimburion.jobs.worker.attempt.forking import ForkGuard
from nimburion.jobs.worker.attempt.threads import HandlerThreads
from nimburion.jobs.worker.children.pool import ChildPool
from nimburion.jobs.worker.health import Health, read_health
from nimburion.jobs.worker.loop_watchdog import LoopWatchdog
from nimburion.jobs.worker.open_lifespan import OpenLifespan
from nimburion.jobs.worker.stop_conditions import STOPPED_BEFORE_START
from nimburion.jobs.worker.worker import Worker

_log = logging.getLogger("nimburion.worker")

_SERVICES_TIMEOUT = 0.5
"""Seconds that the services have to end before the worker stops. After that, both stop at the same
time.
"""


class RunningWorker:
    """The worker of a processor with its threads and services, from start to stop."""

    def __init__(
        self,
        worker: Worker,
        services: Sequence[Service],
        make_attempt_runner: MakeAttemptRunner,
        settings: Settings,
        *,
        children: ChildPool | None,
        job_names: Sequence[str],
        limits: Mapping[str, object],
        lifespan: Lifespan | None,
        is_real_time: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._guard = ForkGuard(self._loop)
        self._threads = HandlerThreads(settings.concurrency, self._loop, self._guard)
        self._children = children
        self._worker = worker
        self._services = tuple(services)
        self._make_attempt_runner = make_attempt_runner
        self._settings = settings
        self._job_names = tuple(job_names)
        self._limits = dict(limits)
        self._watchdog = LoopWatchdog(
            self._loop, worker, limit=settings.loop_lag_limit, grace=settings.grace
        )
        self._lifespan = OpenLifespan(lifespan)
        self._is_real_time = is_real_time
        self._stop_requested = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._start_decided = asyncio.Event()
        """Set once the worker has started, or will never start."""
        self._stop_is_awaited = False
        """Whether `run` waits for the stop request; with `start`, no caller does."""
        self._stopping: asyncio.Task[None] | None = None
        self._shutdown: asyncio.Task[list[Lease]] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def is_orphaned(self) -> bool:
        """Whether the worker's loop is closed, or this process is a forked child of its process."""
        return self._loop.is_closed() or self._guard.in_child

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was requested, or the worker has ended: it takes no more jobs."""
        task = self._worker.task
        return self._stop_requested.is_set() or (task is not None and task.done())

    async def start(self) -> None:
        """Open the lifespan, then start the worker and its services.

        Raises `LifespanError` if the lifespan fails, and `NotOpen` if the worker is stopped before
        the backend has answered.
        """
        self._guard.enable()
        if self._is_real_time:
            self._watchdog.start()  # before the worker: its first job may block the loop
        try:
            await wait_for_first(self._start_worker(), self._stop_requested.wait())
        finally:
            self._start_decided.set()
        if self._worker.task is None:
            raise NotOpen(STOPPED_BEFORE_START)
        if self._stop_requested.is_set():
            return
        self._log_ready()
        for service in self._services:
            await service.start()

    async def _start_worker(self) -> None:
        """Open the lifespan, then start the worker: no job is reserved before."""
        state = await self._lifespan.open()
        attempts = self._make_attempt_runner(
            self._threads,
            self._worker.report,
            state,
            self._guard,
            record=self._worker.record,
            hold=HOLD,
        )
        await self._worker.start(attempts)

    def _log_ready(self) -> None:
        """Log what the worker serves, and its versions. The log of `open` names the backend."""
        limits = [f"{name}={limit}" for name, limit in self._limits.items()]
        _log.info(
            "ready: concurrency %d; queues %s; jobs %s; limits %s; nimburion %s, Python %s%s",
            self._settings.concurrency,
            ", ".join(self._worker.lanes.queues) or "(none)",
            ", ".join(self._job_names) or "(none is registered)",
            ", ".join(limits) or "(none)",
            __version__,
            platform.python_version(),
            f", code {self._settings.code_version}" if self._settings.code_version else "",
        )

    def read_vitals(self) -> Vitals:
        """Return the vitals of the worker now."""
        return self._worker.vitals.read()

    def install_signal_handlers(self, *, owns_process: bool) -> Callable[[], None]:
        """Stop on SIGTERM and SIGINT; the returned function restores the previous handlers.

        With `owns_process`, a signal that code in this process sends to it aborts the worker.
        """
        both = (signal.SIGTERM, signal.SIGINT)
        ignore_own_signals = self._watch_own_signals(both) if owns_process else lambda: None
        detach = self._watchdog.attach(both, self._on_signal, owns=owns_process)
        self._guard.signals = frozenset(both)

        def restore() -> None:
            self._guard.signals = frozenset()
            detach()
            ignore_own_signals()

        return restore

    def _watch_own_signals(self, signals: Sequence[signal.Signals]) -> Callable[[], None]:
        from nimburion.jobs.worker.own_signals import OwnSignals

        own_signals = OwnSignals(signals, self._worker.abort)
        own_signals.start()
        return own_signals.stop

    def health(self) -> Health:
        """Return the health of the worker and of its services."""
        failures: dict[str, BaseException | None]
        failures = {type(service).__name__.lower(): service.failure for service in self._services}
        failures["loop"] = self._watchdog.failure
        task = self._worker.task
        has_ended = task is not None and task.done()
        is_finishing = self._worker.takes_no_more_jobs and not has_ended
        has_closed = self._closing is not None and self._closing.done()
        is_stopping = (self._stop_requested.is_set() and not has_closed) or is_finishing
        return read_health(self._worker, failures, stopping=is_stopping)

    async def wait_for_stop_request(self) -> None:
        """Wait until a stop is requested, or the reserve loop has ended."""
        self._stop_is_awaited = True
        done = self._worker.task
        if done is not None:
            done.add_done_callback(lambda _: self._stop_requested.set())
        await self._stop_requested.wait()

    def finish(self) -> None:
        """Take no more jobs, and stop when the running ones have ended, however long they run."""
        self._worker.finish()

    def request_stop(self) -> None:
        """Stop as on SIGTERM."""
        self._stop_requested.set()
        if not self._stop_is_awaited and self._stopping is None:
            self._stopping = asyncio.create_task(self.stop(self._settings.grace))

    async def shut_down(self, grace: float) -> list[Lease]:
        """Stop everything except the session; return the leases of handlers that still run.

        Runs once, with the `grace` of the first caller. It continues to the end even if that caller
        is cancelled.
        """
        self._stop_requested.set()
        if self._shutdown is None or self._shutdown.cancelled():  # by who cancelled all tasks
            self._shutdown = asyncio.create_task(self._shut_down(grace))
        return await asyncio.shield(self._shutdown)

    async def close_session(self, stuck: list[Lease]) -> None:
        """Close the session, then the lifespan. Runs once; `stuck` are the leases of handlers that
        still run."""
        if self._closing is None or self._closing.cancelled():
            self._closing = asyncio.create_task(self._close_session(stuck))
        await asyncio.shield(self._closing)

    async def stop(self, grace: float) -> None:
        """Shut down, then close the session."""
        await self.close_session(await self.shut_down(grace))

    async def _shut_down(self, grace: float) -> list[Lease]:
        await self._start_decided.wait()
        if self._worker.task is None:
            return []
        self._worker.stop_reserving()
        services = asyncio.create_task(self._stop_services())
        # A service in the middle of its work must not use up the grace time of the handlers.
        await asyncio.wait({services}, timeout=_SERVICES_TIMEOUT)
        try:
            return await self._worker.stop(grace, self._stop_now)
        finally:
            await services

    async def _stop_services(self) -> None:
        for service in self._services:
            await service.stop()

    async def _close_session(self, stuck: list[Lease]) -> None:
        if self._worker.task is not None:
            await self._worker.close_session(stuck)
        if self._children is not None:
            await self._children.close()
        await self._lifespan.close(self._stop_now)
        self._threads.close()
        self._guard.disable()
        await self._watchdog.stop()

    def _on_signal(self) -> None:
        if self._stop_requested.is_set():
            _log.warning("stopping now")
            self._stop_now.set()
        else:
            _log.info("stopping: no more jobs start; a second signal stops immediately")
            if self._worker.is_aborted:
                _log.error(
                    "code in this process has sent the signal. Each job that does not end within "
                    "%g s counts a loss",
                    self._settings.grace,
                )
            self._stop_requested.set()
