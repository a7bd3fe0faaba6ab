"""The `Processor`: one object that combines the client, the worker and the maintenance services."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
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
from nimburion.core.timing.clock import Clock
from nimburion.jobs.client.client import Client
from nimburion.jobs.client.registered_job import DeclaresJobs
from nimburion.jobs.client.sync import SyncClient
from nimburion.jobs.declaration.job import Job, JobFunction
from nimburion.jobs.declaration.registry import RawHandler
from nimburion.jobs.handling.context import Context
from nimburion.jobs.handling.handler_setup import AsyncHandlerHook, HandlerHook, HandlerSetup
from nimburion.jobs.handling.lifespan import LifespanFunction, make_lifespan
from nimburion.jobs.handling.loop_calls import find_running_loop, run_on_loop
from nimburion.jobs.handling.middleware import Middleware
from nimburion.jobs.options.failure_hooks import FailureHook, check_failure_hook
from nimburion.jobs.options.policy import PolicyOptions
from nimburion.jobs.worker.children.import_path import check_import_path
from nimburion.jobs.worker.health import STOPPED, Health
from nimburion.jobs.worker.stop_conditions import (
    RUN_UNTIL_STOPPED,
    STOPPED_BEFORE_START,
    StopConditions,
)

if TYPE_CHECKING:
    from nimburion.core.session import Vitals
    from nimburion.jobs.outbox.outbox import Outbox
    from nimburion.jobs.outbox.relay import OutboxRelay
    from nimburion.jobs.worker.assembly import Assembly
    from nimburion.jobs.worker.inline import InlineRunner
    from nimburion.jobs.worker.lifecycle import RunningWorker
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
        self.handler_setup: HandlerSetup = HandlerSetup()
        """What surrounds the handlers: middleware, hooks and the lifespan."""
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
        self.handler_setup.middlewares.append(middleware)

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
        self.handler_setup.add_hook(hook)
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
        return self._add_failure_hook(
            "on_failure", self.handler_setup.failure_hooks.on_failure, hook
        )

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
        return self._add_failure_hook("on_dead", self.handler_setup.failure_hooks.on_dead, hook)

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
        if self.handler_setup.lifespan is not None:
            raise DefinitionError(
                "a processor has one lifespan; open several resources in one function"
            )
        self.handler_setup.lifespan = make_lifespan(function)
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
            from nimburion.jobs.worker.assembly import warn_about_settings

            warn_about_settings(self.registry, self.settings)
            if conditions.until_empty:
                await self._relay_before_burst()
            self._had_worker = True
            self._running = running = self._make_assembly().make_running_worker(
                self.services, conditions, self._request_stop
            )
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
            from nimburion.jobs.worker.assembly import make_relay

            relay = make_relay(self, self.outbox, self._random, lambda: 1)
            self._inline_relay = relay
        try:
            return await relay.relay()
        finally:
            await relay.disconnect()

    # Internals

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

    def _make_assembly(self) -> Assembly:
        """Return what makes a worker or an inline runner. A process that only enqueues does not
        load it."""
        from nimburion.jobs.worker.assembly import Assembly

        return Assembly(
            self,
            self.handler_setup,
            statistics=self._statistics,
            random=self._random,
            entropy=self._entropy,
            import_path=self.import_path,
            make_transaction=self._make_transaction,
            read_exemplar=self._read_exemplar,
            choose_kept_arguments=self._choose_kept_arguments,
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

    def _request_stop(self) -> None:
        if self._running is not None:
            self._running.request_stop()

    def _open_inline_runner(self) -> InlineRunner:
        self._check_open()
        if self._inline_runner is None:
            self._inline_runner = self._make_assembly().make_inline_runner()
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
