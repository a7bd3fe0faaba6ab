"""What an application holds: the guide's `Processor`. Joins client, worker and housekeeping."""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random
from typing import Any, Self, Unpack, cast, overload

import msgspec

from nimburion.backends import open_backend
from nimburion.core.backend import Backend
from nimburion.core.clock import Clock, SystemClock
from nimburion.core.errors import ConfigurationError, DefinitionError, NotOpen
from nimburion.core.ids import Entropy
from nimburion.core.lease import Lease
from nimburion.core.service import Service
from nimburion.core.settings import (
    Bounds,
    Config,
    QueueSettings,
    Settings,
    SettingsOptions,
    read_bounds,
)
from nimburion.jobs.client.client import Client
from nimburion.jobs.client.dead_letters import DeadLetters
from nimburion.jobs.client.sync import SyncClient
from nimburion.jobs.declaration.job import Job, JobFunction
from nimburion.jobs.declaration.middleware import Middleware
from nimburion.jobs.declaration.policy import PolicyOptions
from nimburion.jobs.declaration.registry import RawHandler
from nimburion.jobs.worker.attempt import AttemptRunner
from nimburion.jobs.worker.forking import ForkGuard
from nimburion.jobs.worker.health import STOPPED, Health
from nimburion.jobs.worker.inline import InlineRunner
from nimburion.jobs.worker.lifecycle import STOPPED_BEFORE_START, RunningWorker
from nimburion.jobs.worker.maintenance import Pruner, Rescuer
from nimburion.jobs.worker.threads import HandlerThreads
from nimburion.jobs.worker.unserved_watch import UnservedWatch
from nimburion.jobs.worker.worker import Worker

_log = logging.getLogger("nimburion.worker")

_BOUNDS = read_bounds(Settings)
_QUEUE_BOUNDS = read_bounds(QueueSettings)

DeclaredJob = type[Job] | JobFunction[..., ..., Any]


class Processor(Client):
    """Enqueues jobs, registers their handlers and, when asked to, runs them.

    ```python
    processor = Processor("memory://")
    processor.register(SendEmail)
    async with processor:
        await processor.enqueue(SendEmail(to="a@example.com", subject="Hi"))
        await processor.drain()
    ```

    `backend` is what `open_backend` returns, or the URL to give to it. `settings` come from
    `nimburion.config`, or single ones as keywords (`concurrency=20`). `clock`,
    `random` and `entropy` are for tests. A processor belongs to the event loop that opened it;
    `processor.sync` is for all other code.
    """

    def __init__(
        self,
        backend: Backend | str,
        settings: Settings | None = None,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        entropy: Entropy = os.urandom,
        **single_settings: Unpack[SettingsOptions],
    ) -> None:
        if isinstance(backend, str):
            backend = open_backend(backend)
        chosen = _merge_settings(settings or Settings(), single_settings)
        super().__init__(backend, settings=chosen, clock=clock, entropy=entropy)
        self._random = random or Random()  # noqa: S311 (jitter, nothing secret)
        self._middlewares: list[Middleware] = []
        self._inline_runner: InlineRunner | None = None
        self._running: RunningWorker | None = None
        self.services: list[Service] = []
        """What is started and stopped with the worker; see `add_service`."""
        self.dead: DeadLetters = DeadLetters(backend)
        """The failed jobs: list, show, replay, purge."""
        self.sync: SyncClient = SyncClient(self)
        """The same methods for code that is not async."""

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """A processor as configured: `Processor.from_config(config.load())`."""
        processor = cls(open_backend(config.jobs.url), config.jobs)
        _log.info("settings: %s", config.source or "defaults (no file) and environment")
        return processor

    # What it can do

    @overload
    def register(
        self,
        job: str,
        handler: RawHandler,
        /,
        *,
        queue: str = "default",
        **policy: Unpack[PolicyOptions],
    ) -> None: ...

    @overload
    def register(self, job: DeclaredJob, /, *jobs: DeclaredJob) -> None: ...

    def register(
        self,
        job: str | DeclaredJob,
        /,
        *rest: DeclaredJob | RawHandler,
        queue: str | None = None,
        **policy: Unpack[PolicyOptions],
    ) -> None:
        """Register typed jobs, `register(SendEmail, report)`, or a handler of raw bytes,
        `register("send_email", handler)`, called as `handler(ctx, data)`.

        A raw handler takes the policy of `@job` as keywords: `queue`, `max_retries`, `timeout` ...
        `DefinitionError` where a name is taken by something else, or a worker runs already.
        """
        if self._running is not None:
            raise DefinitionError("register jobs before the processor is started")
        if not isinstance(job, str):
            options = [*policy] if queue is None else ["queue", *policy]
            if options:
                raise DefinitionError(
                    f"{', '.join(options)}: options of a typed job stand where it is declared, in "
                    "@job(…) or in its class statement; only a raw handler takes them here"
                )
            self.registry.add(job, *cast("tuple[DeclaredJob, ...]", rest))
        elif len(rest) == 1:
            handler = cast("RawHandler", rest[0])
            self.registry.add_raw(
                job, handler, queue="default" if queue is None else queue, **policy
            )
        else:
            raise DefinitionError(f"register({job!r}, handler) takes exactly one handler")

    def use(self, middleware: Middleware) -> None:
        """Wrap every run in `async def middleware(ctx, call_next)`; the first used is outermost.
        `DefinitionError` where a worker runs already."""
        if self._running is not None:
            raise DefinitionError("use middleware before the processor is started")
        if not callable(middleware):
            raise DefinitionError(f"a middleware is an async function, not {middleware!r}")
        self._middlewares.append(middleware)

    def add_service(self, service: Service) -> None:
        """Start and stop this with the worker, as a `Scheduler` asks for. `DefinitionError` where
        a worker runs already."""
        if self._running is not None:
            raise DefinitionError("make a scheduler before the processor is started")
        self.services.append(service)

    # Coming and going

    async def open(self) -> None:
        """Open the backend, on this loop. Runs no job. Repeatable."""
        owner = self._loop
        await super().open()
        if self._loop is not owner:
            _log.info("store: %s", self.backend.describe())

    async def close(self) -> None:
        """Stop what runs and close the backend. Repeatable."""
        try:
            await self.stop()
            for companion in self.services:
                await companion.stop()
            if self._inline_runner is not None:
                stepper, self._inline_runner = self._inline_runner, None
                await stepper.close()
        finally:
            await super().close()

    # Running jobs

    async def start(self) -> None:
        """Begin to run jobs in the background of this loop; returns at once. Repeatable."""
        await self.open()
        self._clear_orphaned()
        if self._running is None:
            self._warn_about_unserved_queues()
            self._running = running = self._make_running_worker()
            try:
                await running.start()
            except BaseException:
                self._clear_running(running)
                await running.stop(0.0)
                raise

    async def stop(self, grace: float | None = None) -> None:
        """Take no more jobs, hand back what has not started, let handlers finish for `grace`
        seconds (default: the setting), interrupt and release the rest. Repeatable."""
        self._clear_orphaned()
        if self._running is not None:
            running = self._running
            await running.stop(self.settings.grace if grace is None else grace)
            self._clear_running(running)

    async def run(self, *, signals: bool = True, owns_process: bool = False) -> None:
        """A worker in this process: start, wait to be told to stop, stop.

        Cancelled, it stops at once: what runs is interrupted and given back. `NotOpen` when it is
        stopped before it has started.

        `signals`: SIGTERM and SIGINT stop it, a second one at once; only on the main thread.
        `owns_process`: where a `def` handler will not end, release its job as the last act and end
        the process; else its session stays until it expires.
        """
        await self.start()
        running = self._running
        if running is None:
            raise NotOpen(STOPPED_BEFORE_START)
        async with AsyncExitStack() as stack:
            if signals and threading.current_thread() is threading.main_thread():
                stack.callback(running.install_signal_handlers(owns_process=owns_process))
            try:
                await running.wait_for_stop_request()
            except asyncio.CancelledError:
                await self.stop(0.0)
                raise
            stuck = await running.shut_down(self.settings.grace)
            if stuck and owns_process:
                await self._end_process(running)
            await running.close_session(stuck)
            self._clear_running(running)

    def health(self) -> Health:
        """How the worker here is, from what it knows itself: the backend is not asked. On any
        thread."""
        running = self._running
        return STOPPED if running is None or running.is_orphaned else running.health()

    async def process_one(self) -> bool:
        """Run one due job here and now, with its middleware; False when none is due.

        Promotes, rescues, reserves exactly one, runs it, settles it; no thread or task outlives
        it. `NothingRegistered` when all that is due has no handler here.
        """
        return await self._open_inline_runner().step()

    async def drain(self, *, advance: bool = False) -> int:
        """Run due jobs, one after another, until none is left; the number of attempts.

        With `advance`, and a fake clock, also what is scheduled: the clock moves to each due time.
        """
        return await self._open_inline_runner().drain(advance=advance)

    # Inside

    def _make_running_worker(self) -> RunningWorker:
        """A worker with its threads and services, not started."""
        worker = self._make_worker()
        return RunningWorker(
            worker,
            (*self.services, *self._make_maintenance(worker)),
            self._make_attempt_runner,
            self.settings,
            job_names=self.registry.names,
            is_real_time=isinstance(self.clock, SystemClock),
        )

    def _make_attempt_runner(
        self,
        threads: HandlerThreads,
        report: Callable[[Lease, float, str], None],
        guard: ForkGuard | None = None,
    ) -> AttemptRunner:
        """What performs attempts for a worker or a stepper of this processor."""
        return AttemptRunner(
            self.registry,
            self._middlewares,
            threads=threads,
            report=report,
            clock=self.clock,
            random=self._random,
            events=self.events,
            limits=self.settings.limits,
            client=self,
            guard=guard,
        )

    def _make_worker(self) -> Worker:
        """A worker of this processor, not started."""
        return Worker(
            self.backend,
            self.registry,
            self.settings,
            clock=self.clock,
            entropy=self._entropy,
            events=self.events,
            heartbeat_in_thread=isinstance(self.clock, SystemClock),
        )

    def _make_maintenance(self, worker: Worker) -> tuple[Service, ...]:
        """What every worker does for all of them."""
        rescuer = Rescuer(
            self.backend,
            self.clock,
            self._random,
            self.events,
            ttl=self.settings.session_ttl,
            max_lost=self.settings.max_lost,
            no_rescue_before=lambda: worker.session.heartbeat.no_rescue_before,
        )
        pruner = Pruner(self.backend, self.clock, self._random, self.settings)
        watch = UnservedWatch(
            self.backend, self.clock, self._random, lambda: worker.session.session.id
        )
        return rescuer, pruner, watch

    def _open_inline_runner(self) -> InlineRunner:
        self._check_open()
        if self._inline_runner is None:
            self._inline_runner = InlineRunner(
                self.backend,
                self.registry,
                self.settings,
                self._make_attempt_runner,
                clock=self.clock,
                entropy=self._entropy,
            )
        return self._inline_runner

    def _clear_running(self, running: RunningWorker) -> None:
        if self._running is running:
            self._running = None

    def _clear_orphaned(self) -> None:
        """Nothing of it runs here: its loop was closed under it, and its session expires by itself;
        or this is a forked child, and it runs in the parent."""
        if self._running is not None and self._running.is_orphaned:
            self._running = None

    def _warn_about_unserved_queues(self) -> None:
        if not self.registry.names:
            _log.warning(
                "no job is registered: this worker runs none. Before it starts, write "
                "processor.register(SendEmail, report) for your Job classes and @job functions, "
                "and import the modules that do"
            )
        served = {queue.name for queue in self.settings.queues}
        for handler in self.registry.handlers if served else ():
            if handler.queue not in served:
                _log.warning(
                    "job %r goes to queue %r, which this worker does not serve (it serves %s)",
                    handler.name,
                    handler.queue,
                    ", ".join(sorted(served)),
                )

    async def _end_process(self, running: RunningWorker) -> None:
        _log.warning("a handler does not end; its job is released and the process ends now")
        await running.close_session([])
        await self.backend.close()
        logging.shutdown()
        os._exit(0)


def _merge_settings(settings: Settings, single: SettingsOptions) -> Settings:
    """The settings with single ones over them; a wrong name or type is a `ConfigurationError`."""
    known = settings.__struct_fields__
    for name in single.keys() - set(known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"there is no setting {name!r}{hint}")
    asked = {name: getattr(settings, name) for name in known} | dict(single)
    _check_bounds(asked)
    try:
        return msgspec.convert(asked, Settings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"a setting is wrong: {error}") from error


def _check_bounds(asked: dict[str, Any]) -> None:
    """`ConfigurationError` for a number outside of its bounds; types are checked elsewhere."""
    for name, bounds in _BOUNDS.items():
        if not _is_allowed(asked[name], bounds):
            raise ConfigurationError(f"the setting {name!r} must be {bounds}, not {asked[name]!r}")
    for queue in asked["queues"]:
        for name, bounds in _QUEUE_BOUNDS.items() if isinstance(queue, QueueSettings) else ():
            value = getattr(queue, name)
            if not _is_allowed(value, bounds):
                hint = "; to serve it not at all, leave it out of `queues`" if value == 0 else ""
                raise ConfigurationError(
                    f"the {name} of queue {queue.name!r} must be {bounds}, not {value!r}{hint}"
                )


def _is_allowed(value: object, bounds: Bounds) -> bool:
    return not isinstance(value, int | float) or bounds.allow(value)
