"""The `Processor`: one object that combines the client, the worker and the maintenance services."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from random import Random
from typing import (
    TYPE_CHECKING,
    Any,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import msgspec

from nimburion.backends import open_backend, parse_scheme
from nimburion.core.backend import Backend
from nimburion.core.errors import ConfigurationError, DefinitionError, NotOpen, UseAwait
from nimburion.core.ids import Entropy
from nimburion.core.service import Service
from nimburion.core.settings import (
    Config,
    Settings,
    SettingsOptions,
    TelemetrySettings,
    merge_settings,
)
from nimburion.core.timing.clock import Clock, SystemClock
from nimburion.jobs.client.client import Client, read_records, send_jobs, share_outage_log
from nimburion.jobs.client.registered_job import DeclaresJobs
from nimburion.jobs.client.sync import SyncClient
from nimburion.jobs.declaration.job import Job, JobFunction
from nimburion.jobs.declaration.registry import RawHandler
from nimburion.jobs.handling.attempt_record import WorkerServices
from nimburion.jobs.handling.context import Context
from nimburion.jobs.handling.handler_hooks import (
    AsyncHandlerHook,
    HandlerHook,
    HandlerHooks,
)
from nimburion.jobs.handling.lifespan import (
    Lifespan,
    LifespanFunction,
    make_lifespan,
)
from nimburion.jobs.handling.loop_calls import find_running_loop, run_on_loop
from nimburion.jobs.handling.middleware import Middleware
from nimburion.jobs.options.failure_hooks import (
    FailureHook,
    FailureHooks,
    check_failure_hook,
)
from nimburion.jobs.options.policy import PolicyOptions
from nimburion.jobs.worker.children.import_path import check_import_path, find_import_path
from nimburion.jobs.worker.health import STOPPED, Health
from nimburion.jobs.worker.stop_conditions import (
    RUN_UNTIL_STOPPED,
    STOPPED_BEFORE_START,
    StopConditions,
)

if TYPE_CHECKING:
    from nimburion.core.session import Vitals
    from nimburion.jobs.handling.attempt_record import RecordStep, ReportSink
    from nimburion.jobs.outbox.outbox import Outbox
    from nimburion.jobs.outbox.relay import OutboxRelay
    from nimburion.jobs.worker.attempt.attempt_runner import AttemptRunner
    from nimburion.jobs.worker.attempt.forking import ForkGuard
    from nimburion.jobs.worker.attempt.threads import HandlerThreads
    from nimburion.jobs.worker.children.pool import ChildPool
    from nimburion.jobs.worker.inline import InlineRunner
    from nimburion.jobs.worker.lifecycle import RunningWorker
    from nimburion.jobs.worker.worker import Worker
    from nimburion.telemetry.registry import MetricsRegistry

_log = logging.getLogger("nimburion.worker")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
ContextT = TypeVar("ContextT", bound=Context[Any])
HookT = TypeVar("HookT", bound=HandlerHook | AsyncHandlerHook)
FailureHookT = TypeVar("FailureHookT", bound=FailureHook)
LifespanT = TypeVar("LifespanT", bound=LifespanFunction)

DeclaredJob = type[Job] | JobFunction[..., ..., Any, Any]


def _open_backend(url: str, clock: Clock | None) -> Backend:
    """Return the backend of a URL; one in memory uses the clock of its processor."""
    if clock is not None and parse_scheme(url) == "memory":
        return open_backend(url, clock=clock)
    return open_backend(url)


class Processor(DeclaresJobs, Client):
    """Enqueues jobs, registers their handlers and, once you start it, runs them.

    ```python
    processor = Processor("memory://")
    processor.register(SendEmail)
    async with processor:
        await processor.enqueue(SendEmail(to="a@example.com", subject="Hi"))
        await processor.drain()
    ```

    `backend` is an object that `open_backend` returned, or a URL to pass to it. `settings` come
    from `nimburion.config`; keywords override single settings (`concurrency=20`). An unknown
    setting or a value outside its bounds raises `ConfigurationError`. `clock`, `random` and
    `entropy` are for tests; a backend in memory that a URL names uses the clock too.

    `outbox` is an `Outbox` for jobs that are enqueued in a transaction of another database than the
    backend's. Workers relay them.

    `import_path` (`"myapp.jobs:processor"`) is where child processes find the processor, for jobs
    with `execution="process"`. Without it, the processor is found if it is a global variable of a
    module, or if `nimburion worker MODULE:NAME` runs it.

    A processor belongs to the event loop that opened it. All other code uses `processor.sync`.
    """

    def __init__(
        self,
        backend: Backend | str,
        settings: Settings | None = None,
        *,
        outbox: Outbox | None = None,
        import_path: str | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        entropy: Entropy = os.urandom,
        **single_settings: Unpack[SettingsOptions],
    ) -> None:
        if isinstance(backend, Config):
            raise ConfigurationError(
                f"{type(self).__name__} takes a backend or a URL; for a configuration, write "
                f"`{type(self).__name__}.from_config(…)`"
            )
        if isinstance(backend, str):
            backend = _open_backend(backend, clock)
        chosen = merge_settings(settings or Settings(), single_settings)
        if outbox is None and chosen.outbox_url:
            from nimburion.jobs.outbox.outbox import Outbox

            outbox = Outbox(chosen.outbox_url)
        super().__init__(
            backend, settings=chosen, outbox=outbox, clock=clock, random=random, entropy=entropy
        )
        self.import_path: str | None = (
            None if import_path is None else check_import_path(import_path)
        )
        """Where child processes find this processor, as `module:name`; None: it is searched for."""
        self._middlewares: list[Middleware] = []
        self._handler_hooks: HandlerHooks = HandlerHooks()
        """The hooks that run where a handler runs; see `around_handler`."""
        self._failure_hooks = FailureHooks()
        self._lifespan: Lifespan | None = None
        """Opens the resources of a worker or of a child process; see `lifespan`."""
        self._inline_runner: InlineRunner | None = None
        self._inline_relay: OutboxRelay | None = None
        self._running: RunningWorker | None = None
        self.services: list[Service] = []
        """The services that start and stop with the worker; see `add_service`."""
        self.sync: SyncProcessor = SyncProcessor(self)
        """The blocking form of the methods, for code that is not async."""
        self._open_process: int | None = None
        """The id of the process that opened the processor."""
        self._had_worker = False
        """Whether a worker was started since the processor was opened."""

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        outbox: Outbox | None = None,
        import_path: str | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        entropy: Entropy = os.urandom,
    ) -> Self:
        """Return a processor built from loaded configuration, with the keywords of `Processor`:
        `Processor.from_config(config.load(), outbox=outbox)`."""
        processor = cls(
            config.jobs.url,
            config.jobs,
            outbox=outbox,
            import_path=import_path,
            clock=clock,
            random=random,
            entropy=entropy,
        )
        trace_as_configured(processor, config.telemetry)
        _log.info("settings: %s", config.source or "defaults (no file) and environment")
        return processor

    # Registration

    def _find_processor(self) -> Processor:
        return self

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
        """Register typed jobs, or one handler of raw bytes.

        `register(SendEmail, report)` registers `Job` classes and `@job` functions.
        `register("send_email", handler)` registers a raw handler, called as `handler(ctx, data)`.

        A raw handler takes its policy as keywords, with the options of `@job`: `queue`,
        `max_retries`, `timeout` and so on. A typed job declares its own. `DefinitionError` is
        raised when another job has the name, when an option is not allowed, or when a worker runs
        already.
        """
        if self._running is not None:
            raise DefinitionError("register jobs before the processor is started")
        if not isinstance(job, str):
            options = [*policy] if queue is None else ["queue", *policy]
            if options:
                raise DefinitionError(
                    f"{', '.join(options)}: declare the options of a typed job in @job(…) or in "
                    "its class statement; register() takes them only for a raw handler"
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
        """Wrap every attempt in `async def middleware(ctx, call_next)`.

        The first middleware you add is the outermost. `DefinitionError` is raised when a worker
        runs already, or when `middleware` is not callable.
        """
        if self._running is not None:
            raise DefinitionError("use middleware before the processor is started")
        if not callable(middleware):
            raise DefinitionError(f"a middleware is an async function, not {middleware!r}")
        self._middlewares.append(middleware)

    def around_handler(self, hook: HookT, /) -> HookT:
        """Run a generator function around handlers, where they run: `@processor.around_handler`.

        ```python
        @processor.around_handler
        def database_connections(ctx: Context) -> Iterator[None]:
            close_old_connections()
            try:
                yield  # the handler runs
            finally:
                close_old_connections()
        ```

        A `def` hook surrounds each `def` handler, in its thread or child process. An `async def`
        hook surrounds each `async def` handler, on the event loop. The first hook you add is the
        outermost; middleware is outside of all hooks.

        An exception of the handler is raised at the `yield`. An exception that leaves the hook is
        the failure of the attempt. A hook that catches the exception completes the job without a
        result. `DefinitionError` is raised when a worker runs already, or when `hook` has no
        `yield`.
        """
        if self._running is not None:
            raise DefinitionError("add hooks before the processor is started")
        self._handler_hooks.add(hook)
        return hook

    def on_failure(self, hook: FailureHookT, /) -> FailureHookT:
        """Call `hook(ctx, error)` when an attempt has failed and the job is retried.

        ```python
        @processor.on_failure
        def count_failures(ctx: Context, error: AttemptError) -> None:
            statsd.increment("failures", tags=[ctx.name, error.type])
        ```

        The worker calls the hook when the outcome is decided, before it sends the outcome to the
        backend. A hook for jobs of one name is the option `on_failure` of the job. See `on_dead`
        for the rules.
        """
        return self._add_failure_hook("on_failure", self._failure_hooks.on_failure, hook)

    def on_dead(self, hook: FailureHookT, /) -> FailureHookT:
        """Call `hook(ctx, error)` when a job becomes a dead letter.

        ```python
        @processor.on_dead
        async def alert(ctx: Context, error: AttemptError) -> None:
            await pager.send(f"{ctx.name} {ctx.job_id}: {error.message}")
        ```

        - An `async def` hook runs on the event loop, a `def` hook in a thread. A hook for jobs of
          one name is the option `on_dead` of the job; it is called first.
        - The hook is called before the dead letter is stored. If the worker loses the job or dies
          in between, the job runs again, and the hook may be called again.
        - For a job whose workers were lost `max_lost` times, the worker that finds this calls the
          hook after the dead letter is stored, at most once.
        - An error in a hook is logged and changes nothing. The hooks of one attempt may take ten
          seconds together; then they are interrupted. Enqueue a job for work that must be done.

        `DefinitionError` is raised when a worker runs already, or when `hook` cannot be called with
        a context and an error.
        """
        return self._add_failure_hook("on_dead", self._failure_hooks.on_dead, hook)

    def _add_failure_hook(
        self, what: str, hooks: list[FailureHook], hook: FailureHookT
    ) -> FailureHookT:
        if self._running is not None:
            raise DefinitionError("add hooks before the processor is started")
        check_failure_hook(what, hook)
        hooks.append(hook)
        return hook

    def lifespan(self, function: LifespanT, /) -> LifespanT:
        """Open resources once for each worker, and share them as `ctx.state`.

        ```python
        @processor.lifespan
        async def resources() -> AsyncIterator[Resources]:
            async with httpx.AsyncClient() as client:
                yield Resources(client)


        @processor.job()
        async def fetch(ctx: Context[Resources], url: str) -> int:
            return (await ctx.state.client.get(url)).status_code
        ```

        The function runs to its `yield` before the worker takes a job, and on when the last handler
        has ended or the grace time is over. `process_one` and `drain` open it at their first call
        and `close` closes it. Each child process opens its own. Opening the processor to enqueue
        does not run it.

        An error before the `yield` stops the worker: `start` and `run` raise `LifespanError`. An
        error after it is logged. `DefinitionError` is raised when a worker runs already, when the
        processor has a lifespan, or when `function` has parameters or no `yield`.
        """
        if self._running is not None:
            raise DefinitionError("add the lifespan before the processor is started")
        if self._lifespan is not None:
            raise DefinitionError(
                "a processor has one lifespan; open several resources in one function"
            )
        self._lifespan = make_lifespan(function)
        return function

    def add_service(self, service: Service) -> None:
        """Start and stop a service, such as a `Scheduler`, together with the worker.

        `DefinitionError` is raised when a worker runs already.
        """
        if self._running is not None:
            raise DefinitionError("add services before the processor is started")
        self.services.append(service)

    # Opening and closing

    async def open(self) -> None:
        """Open the backend on this event loop, without running any job. You can call it repeatedly.

        `NotOpen` is raised when the processor is open on another event loop that still runs.
        """
        owner = self._loop
        await super().open()
        if self._loop is not owner:
            self._open_process = os.getpid()
            _log.info("backend: %s", self.backend.describe())

    async def close(self) -> None:
        """Stop the worker and its services, then close the backend. You can call it repeatedly."""
        try:
            await self.stop()
            for service in self.services:
                await service.stop()
            if self._inline_runner is not None:
                runner, self._inline_runner = self._inline_runner, None
                await runner.close()
        finally:
            self._open_process, self._had_worker = None, False
            await super().close()

    # Running jobs

    async def start(self) -> None:
        """Start to run jobs in the background of this event loop, and return immediately.

        Opens the backend if needed. You can call it repeatedly. A worker that stops, because an
        operator told it to, is waited for; then a new one starts.
        """
        await self._start(RUN_UNTIL_STOPPED)

    async def _start(self, conditions: StopConditions) -> None:
        await self.open()
        self._clear_orphaned()
        if self._running is not None and self._running.is_stopping:
            await self.stop()
        if self._statistics.writer is None:
            await self._statistics.start(self.backend)
        if self._running is not None and conditions != RUN_UNTIL_STOPPED:
            raise DefinitionError("until_empty and max_jobs need a worker that does not run yet")
        if self._running is None:
            self._warn_about_unserved_queues()
            self._warn_about_processes()
            for message in self.registry.find_unknown_names():
                _log.warning("limits in the settings: %s", message)
            if conditions.until_empty:
                await self._relay_before_burst()
            self._had_worker = True
            self._running = running = self._make_running_worker(conditions)
            try:
                await running.start()
            except BaseException:
                self._clear_running(running)
                await running.stop(0.0)
                raise

    async def stop(self, grace: float | None = None) -> None:
        """Stop the worker; running handlers get `grace` seconds to finish (default: the setting).

        The worker reserves no more jobs and releases those that have not started. After `grace` it
        interrupts the handlers that still run and releases their jobs. You can call it repeatedly.
        """
        self._clear_orphaned()
        if self._running is not None:
            running = self._running
            await running.stop(self.settings.grace if grace is None else grace)
            self._clear_running(running)

    async def run(
        self,
        *,
        signals: bool = True,
        owns_process: bool = False,
        until_empty: bool = False,
        max_jobs: int | None = None,
    ) -> None:
        """Run a worker in this process: start it, wait for a stop request, stop it.

        With `signals`, SIGTERM and SIGINT request the stop, and a second signal stops immediately.
        Signal handlers are installed only on the main thread.

        With `owns_process`, a `def` handler that does not end does not delay the exit: its job is
        released and the process ends. Otherwise the session of such a worker stays until it
        expires.

        With `until_empty`, the worker stops when no job is due that it may start, and none runs
        here. Jobs that are due later, such as retries, are not waited for. With `max_jobs`, it
        starts this many jobs and stops when they have ended. Neither interrupts a job, and both
        need a worker that does not run yet (`DefinitionError`).

        When this coroutine is cancelled, the worker stops immediately: running handlers are
        interrupted and their jobs are released. `NotOpen` is raised when the worker is stopped
        before it has started.
        """
        if max_jobs is not None and max_jobs < 1:
            raise ConfigurationError(f"max_jobs must be 1 or more, not {max_jobs}")
        await self._start(StopConditions(until_empty, max_jobs))
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

    def finish(self) -> None:
        """Take no more jobs, and stop when the running ones have ended, however long they run.

        Call it on the event loop of the worker. A later `stop` or signal counts as the first one:
        it gives the handlers their grace time.
        """
        if self._running is not None:
            self._running.finish()

    def health(self) -> Health:
        """Return the health of this process's worker, from local state: the backend is not queried.

        In a process that only enqueues, the state is `open`, or `unreachable` if the backend did
        not answer the latest enqueue. You can call it from any thread.
        """
        running = self._running
        if running is None or running.is_orphaned:
            return self._read_enqueue_health()
        return running.health()

    async def process_one(self) -> bool:
        """Run one due job here and now, with its middleware. Return False when no job is due.

        Promotes and rescues jobs, reserves exactly one, runs it and settles it. No thread or task
        outlives the call, except the lifespan, which `close` ends. `NothingRegistered` is raised
        when no due job has a handler in this processor.
        """
        await self._relay_outbox()
        return await self._open_inline_runner().step()

    async def drain(self, *, advance: bool = False) -> int:
        """Run due jobs, one after another, until no job is due. Return the number of attempts.

        With `advance` and a fake clock, scheduled jobs run too: the clock moves to each due time.
        `BackendUnavailable` is raised if attempts at ten due times in succession get no answer that
        they need.
        """
        runner = self._open_inline_runner()
        await self._relay_outbox()
        attempts = await runner.drain(advance=advance)
        while await self._relay_outbox():  # the jobs have stored others in it
            attempts += await runner.drain(advance=advance)
        return attempts

    async def _relay_before_burst(self) -> None:
        """Relay the outbox: a worker that ends when no job is due might end before its relay."""
        try:
            await self._relay_outbox()
        except Exception as error:  # noqa: BLE001 (of any driver)
            _log.warning("the outbox cannot be relayed, its jobs wait: %s", error)

    async def _relay_outbox(self) -> int:
        """Relay the jobs of the outbox here and now, and return their number."""
        self._check_open()
        if self.outbox is None:
            return 0
        relay = self._inline_relay
        if relay is None or relay.outbox is not self.outbox:
            # Kept: it knows the rows that the log has named.
            relay = self._inline_relay = self._make_outbox_relay(self.outbox, lambda: 1)
        try:
            return await relay.relay()
        finally:
            await relay.disconnect()

    # Internals. The parts of a worker are imported where they are made: a process that only
    # enqueues loads none of them.

    def _read_enqueue_health(self) -> Health:
        """Return the health of a processor without a worker."""
        state = self._enqueue_state
        error = state.error
        is_own = self._open_process == os.getpid()  # else its worker, if any, is in the parent
        is_open = is_own or self.sync.is_open or error is not None
        if not is_open or (is_own and self._had_worker):
            return STOPPED
        return Health(
            state="open" if error is None else "unreachable",
            seconds_since_answer=state.seconds_since_answer,
            error=error,
        )

    def _make_metrics(self) -> MetricsRegistry:
        from nimburion.telemetry.worker_metrics import WorkerMetrics

        metrics = super()._make_metrics()
        metrics.add_source(WorkerMetrics(self._read_vitals))
        if self.outbox is not None:
            from nimburion.jobs.outbox.outbox import get_rows
            from nimburion.telemetry.outbox_metrics import OutboxMetrics

            metrics.add_source(OutboxMetrics(get_rows(self.outbox).counters))
        return metrics

    def _read_exemplar(self, job_id: str, attempt: int) -> Mapping[str, str] | None:
        source = None if self._metrics is None else self._metrics.exemplar_source
        return None if source is None else source(job_id, attempt)

    def _read_vitals(self) -> Vitals | None:
        running = self._running
        return None if running is None or running.is_orphaned else running.read_vitals()

    def _make_running_worker(self, conditions: StopConditions) -> RunningWorker:
        """Return a worker with its threads and services, not started."""
        from nimburion.jobs.worker.lifecycle import RunningWorker

        worker = self._make_worker(conditions)
        children = self._make_children()
        services = (*self.services, *self._make_maintenance(worker))
        for service in services:
            share_outage_log(self, service)
        return RunningWorker(
            worker,
            services,
            partial(self._make_attempt_runner, children=children),
            self.settings,
            children=children,
            job_names=self.registry.names,
            limits=self.registry.describe_limits(),
            lifespan=self._lifespan,
            is_real_time=isinstance(self.clock, SystemClock),
        )

    def _make_attempt_runner(
        self,
        threads: HandlerThreads,
        report: ReportSink,
        state: object,
        guard: ForkGuard | None = None,
        children: ChildPool | None = None,
        *,
        record: RecordStep | None = None,
        hold: float = 0.0,
    ) -> AttemptRunner:
        """Return an attempt runner for a worker or an inline runner of this processor."""
        from nimburion.jobs.worker.attempt.attempt_end import AttemptEnd
        from nimburion.jobs.worker.attempt.attempt_runner import AttemptRunner
        from nimburion.jobs.worker.attempt.forking import ForkGuard
        from nimburion.jobs.worker.attempt.handler_chains import HandlerChains
        from nimburion.jobs.worker.attempt.process_calls import ProcessCalls
        from nimburion.jobs.worker.attempt.reporter import AttemptReporter

        sizes = self.settings.sizes
        reporter = AttemptReporter(
            self._statistics.jobs,
            self.events,
            self.clock,
            log_attempts=self.settings.log_attempts,
            read_exemplar=self._read_exemplar,
        )
        runs = None
        if record is not None and self.registry.has_durable:
            from nimburion.jobs.durable.services import RunServices

            runs = RunServices(self, record, threads.start, reporter, self._random, hold=hold)
        guard = guard or ForkGuard()
        end = AttemptEnd(self.clock, self._random, reporter, max_error=sizes.error)
        chains = HandlerChains(
            self.registry,
            self._middlewares,
            self._handler_hooks,
            threads=threads,
            guard=guard,
            process_calls=None if children is None else ProcessCalls(children, report, sizes.error),
            end=end,
        )
        return AttemptRunner(
            self.registry,
            chains,
            WorkerServices(self.clock.monotonic, report, self, self._make_transaction, state, runs),
            self._failure_hooks,
            end=end,
            guard=guard,
            clock=self.clock,
            sizes=sizes,
            reporter=reporter,
            keeps_arguments=self._choose_kept_arguments(),
            read_records=partial(read_records, self),
        )

    def _make_children(self) -> ChildPool | None:
        """Return the pool of child processes, which start when they are needed.

        None: no job needs one, and the processor is not found where a child could import it.
        `DefinitionError` is raised if a job needs one nevertheless.
        """
        from nimburion.jobs.worker.children.pool import ChildPool, count_children

        names = self.registry.process_names
        application = find_import_path(self, self.import_path)
        if application is None and names:
            raise DefinitionError(
                f'job {min(names)!r} has execution="process": a child process must import the '
                "processor, and it is not a global variable of a module. Write "
                'Processor(…, import_path="myapp.jobs:processor"), where the name is that of the '
                "processor, or of a function without arguments that makes it"
            )
        if application is None or (application.script is not None and not names):
            return None
        settings = self.settings
        return ChildPool(
            count_children(settings),
            application,
            settings.child_recycle,
            partial(send_jobs, self),
            asyncio.get_running_loop(),
        )

    def _choose_kept_arguments(self) -> tuple[bool, dict[str, bool]]:
        """Return whether completed jobs keep their arguments, and the queues that differ."""
        chosen = self.settings.keep_arguments
        default = self.backend.capabilities.keeps_arguments if chosen == "auto" else chosen == "yes"
        by_queue = {
            queue.name: queue.keep_arguments == "yes"
            for queue in self.settings.queues
            if queue.keep_arguments != "auto"
        }
        return default, by_queue

    def _make_worker(self, conditions: StopConditions) -> Worker:
        """Return a worker of this processor, not started."""
        from nimburion.jobs.worker.worker import Worker

        return Worker(
            self.backend,
            self.registry,
            self.settings,
            clock=self.clock,
            entropy=self._entropy,
            events=self.events,
            heartbeat_in_thread=isinstance(self.clock, SystemClock),
            calls=self._statistics.calls,
            outage=self._outage,
            request_stop=self._request_stop,
            stop_conditions=conditions,
        )

    def _request_stop(self) -> None:
        if self._running is not None:
            self._running.request_stop()

    def _make_maintenance(self, worker: Worker) -> tuple[Service, ...]:
        """Return the maintenance services, which every worker runs on behalf of the whole fleet."""
        from nimburion.jobs.bulk_operations import BulkOperationRunner
        from nimburion.jobs.worker.maintenance import Pruner, Rescuer
        from nimburion.jobs.worker.unserved_watch import UnservedWatch

        def count_workers() -> int:
            return worker.session.heartbeat.fleet_size

        rescuer = Rescuer(
            self.backend,
            self.clock,
            self._random,
            self.events,
            self._statistics.jobs,
            ttl=self.settings.session_ttl,
            max_lost=self.settings.max_lost,
            no_rescue_before=lambda: worker.session.heartbeat.no_rescue_before,
            report_dead=worker.report_dead,
        )
        pruner = Pruner(
            self.backend,
            self.clock,
            self._random,
            self.settings,
            self._statistics.jobs,
            count_workers=count_workers,
        )
        watch = UnservedWatch(self.backend, self.clock, self._random, lambda: worker.session.id)
        runner = BulkOperationRunner(
            self.backend, self.clock, self._random, count_workers=count_workers
        )
        services = (rescuer, pruner, watch, runner)
        if self.outbox is None:
            return services
        return (*services, self._make_outbox_relay(self.outbox, count_workers))

    def _make_outbox_relay(self, outbox: Outbox, count_workers: Callable[[], int]) -> OutboxRelay:
        from nimburion.jobs.outbox.relay import OutboxRelay

        return OutboxRelay(
            outbox,
            partial(send_jobs, self),
            self.clock,
            self._random,
            count_workers=count_workers,
        )

    def _open_inline_runner(self) -> InlineRunner:
        self._check_open()
        if self._inline_runner is None:
            from nimburion.jobs.worker.inline import InlineRunner

            self._inline_runner = InlineRunner(
                self.backend,
                self.registry,
                self.settings,
                self._make_attempt_runner,
                self._lifespan,
                clock=self.clock,
                entropy=self._entropy,
            )
        return self._inline_runner

    def _clear_running(self, running: RunningWorker) -> None:
        if self._running is running:
            self._running = None

    def _clear_orphaned(self) -> None:
        """Forget a worker that does not run in this process any more.

        There are two cases. Its event loop was closed before it stopped: its session expires by
        itself. Or this process is a forked child: the worker runs in the parent.
        """
        if self._running is not None and self._running.is_orphaned:
            self._running = None

    def _warn_about_unserved_queues(self) -> None:
        if not self.registry.names:
            _log.warning(
                "no job is registered, so this worker runs none. Call "
                "processor.register(SendEmail, report) with your Job classes and @job functions "
                "before the worker starts, and import the modules that call it"
            )
        served = {queue.name for queue in self.settings.queues}
        for handler in self.registry.handlers if served else ():
            if handler.queue not in served:
                _log.warning(
                    "job %r goes to queue %r, which this worker does not serve (it serves %s); add "
                    "the queue to `queues` or to --queues, or start a worker for it",
                    handler.name,
                    handler.queue,
                    ", ".join(sorted(served)),
                )

    def _warn_about_processes(self) -> None:
        if self.settings.processes > 1:
            _log.warning(
                "the setting processes is %d, but this worker runs in one process. Run `nimburion "
                "worker MODULE:NAME --processes %d`",
                self.settings.processes,
                self.settings.processes,
            )

    async def _end_process(self, running: RunningWorker) -> None:
        _log.warning("a handler does not end; its job is released and the process ends now")
        await running.close_session([])
        await self.backend.close()
        logging.shutdown()
        os._exit(0)


def trace_as_configured(processor: Processor, settings: TelemetrySettings) -> None:
    """Trace the jobs of a processor with OpenTelemetry, as the section `telemetry` says.

    Call it before other middleware is added. `ConfigurationError` is raised if OpenTelemetry is
    wanted and not installed.
    """
    if settings.traces == "none":
        return
    try:
        from nimburion.telemetry.tracing import Tracing, instrument
    except ImportError as error:
        raise ConfigurationError(
            f"telemetry.traces is {settings.traces!r}, and OpenTelemetry is not installed: "
            "pip install 'nimburion[opentelemetry]'"
        ) from error
    tracing = Tracing(
        attempts=settings.traces,
        span_name=settings.span_name,
        tenant=settings.trace_tenant,
        baggage=settings.trace_baggage,
        record_exceptions=settings.trace_exceptions,
    )
    instrument(processor, tracing)


def copy_processor(
    processor: Processor, backend: Backend, clock: Clock, random: Random
) -> Processor:
    """Return a processor with the handlers, middleware, hooks, lifespan and settings of another.
    For tests.
    """
    settings = msgspec.structs.replace(processor.settings, outbox_url="")
    copy = Processor(backend, settings, clock=clock, random=random)
    copy.registry = processor.registry
    copy._middlewares += processor._middlewares  # noqa: SLF001
    copy._handler_hooks = processor._handler_hooks  # noqa: SLF001
    copy._failure_hooks = processor._failure_hooks  # noqa: SLF001
    copy._lifespan = processor._lifespan  # noqa: SLF001
    return copy


def get_handler_hooks(processor: Processor) -> HandlerHooks:
    """Return the hooks around the handlers of a processor. For child processes only."""
    return processor._handler_hooks  # noqa: SLF001


def get_lifespan(processor: Processor) -> Lifespan | None:
    """Return what opens the resources of a worker or a child process. For child processes only."""
    return processor._lifespan  # noqa: SLF001


class SyncProcessor(SyncClient):
    """The blocking methods of a processor: those of `SyncClient`, `drain` and `process_one`.

    ```python
    job_id = processor.sync.enqueue(SendEmail(to="a@example.com", subject="Hi"))
    processor.sync.drain()  # in a test or a script; elsewhere a worker runs the job
    ```
    """

    def __init__(self, processor: Processor) -> None:
        super().__init__(processor)
        self._processor = processor

    def drain(self, *, advance: bool = False) -> int:
        """Run due jobs, one after another, until no job is due. Return the number of attempts.

        With `advance` and a fake clock, scheduled jobs run too: the clock moves to each due time.

        If the processor is open on a running event loop, the jobs run there. Otherwise the call
        opens the processor on an event loop of its own, and closes it at the end. `UseAwait` is
        raised on a thread that runs an event loop: await the processor's own method there.
        `NothingRegistered` is raised when no due job has a handler in this processor.
        """
        return self._run("drain", lambda: self._processor.drain(advance=advance))

    def process_one(self) -> bool:
        """Run one due job here and now. Return False when no job is due.

        The event loop and the errors are those of `drain`.
        """
        return self._run("process_one", self._processor.process_one)

    def _run(self, name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = self._find_owning_loop()
        if loop is not None:
            return run_on_loop(loop, make, instead=f"write `await processor.{name}()`")
        if find_running_loop() is not None:
            raise UseAwait(
                f"this thread runs an event loop, and `sync.{name}` would block it: write "
                f"`async with processor:` and `await processor.{name}()`"
            )
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(self._open_and_run(make))

    async def _open_and_run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self._processor:
            return await make()
