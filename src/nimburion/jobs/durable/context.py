"""The context of a durable function, and the operations that it offers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    NoReturn,
    ParamSpec,
    TypeVar,
    cast,
    overload,
)

from nimburion.core.errors import BackendUnavailable, InvalidStep
from nimburion.core.timing.durations import Duration
from nimburion.jobs.declaration.job import AnyJob, JobReturning, require_declaration
from nimburion.jobs.durable.children import (
    ChildJob,
    enqueue_once,
    start_children,
    wait_for_children,
)
from nimburion.jobs.durable.cleanup import register_undo
from nimburion.jobs.durable.handler import encode_arguments
from nimburion.jobs.durable.journal import ChangedEntry, ChildrenEntry
from nimburion.jobs.durable.phase import ENDED, RunCleanup, RunRestart, RunSuspension
from nimburion.jobs.durable.run import CallSite, DurableRun, find_call_site
from nimburion.jobs.durable.signals import SignalReturning
from nimburion.jobs.durable.steps import (
    NO_OPTIONS,
    StepCall,
    StepOptions,
    make_step_options,
    run_in_transaction,
    run_step,
)
from nimburion.jobs.durable.values import get_function_name
from nimburion.jobs.durable.waits import (
    check_sources,
    read_delay,
    sleep,
    wait_for_first,
    wait_for_signal,
)
from nimburion.jobs.handling.attempt_record import AttemptRecord, WorkerServices
from nimburion.jobs.handling.context import Context
from nimburion.jobs.options.backoff import Backoff, Delays

if TYPE_CHECKING:
    from typing import Unpack

    from typing_extensions import TypeVar as TypeVarWithDefault

    from nimburion.jobs.declaration.job import JobId
    from nimburion.jobs.options.enqueue_options import EnqueueOptions

    StateT_co = TypeVarWithDefault("StateT_co", covariant=True, default=object)
else:  # Python 3.11 has no defaults of type variables
    StateT_co = TypeVar("StateT_co", covariant=True)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
SourceT = TypeVar("SourceT", bound=SignalReturning[Any] | ChildJob[Any])


class DurableOperations:
    """The operations of a durable run: what `DurableContext` and its `options` offer.

    Each operation has a key, by which a later attempt finds what this one has stored. It is the
    name of the function, the job or the signal, unless `options(key=…)` says another one. Two
    operations of one kind cannot have the same key: `InvalidStep` is raised then.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        _run: DurableRun
        _options: StepOptions

    @overload
    def step(
        self, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def step(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    def step(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call a function and store what it returns. A later attempt does not call it again.

        ```python
        account = await ctx.step(create_account, email)
        ```

        An `async def` function runs on the event loop, a `def` function in a thread of the worker.
        The value must have a JSON form of up to 256 KiB. It is read in the annotated return type.
        The call returns when the value is stored.

        The function runs at least once: again if its worker is lost before the value is stored. If
        it raises, so does the call. When the handler catches the error, a later attempt raises
        the same error here. Otherwise the attempt fails, and the next one calls the function again.
        With `options(max_retries=…)`, the step is tried again by itself.

        Errors:

        - `InvalidStep`: the key is used twice, the value cannot be stored, or the run has 10,000
          steps or 16 MiB. It is not retried.
        - `StepFailed`: in place of an error that a later attempt could not raise again, because its
          class is not found by its module and name.
        """
        return run_step(self._run, self._make_call(function, args, kwargs))

    @overload
    def transact(
        self,
        function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def transact(
        self, function: Callable[Concatenate[Any, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    def transact(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call a function in a transaction that stores the step too: its effect happens exactly
        once.

        ```python
        def debit(connection: sqlite3.Connection, account: int, cents: int) -> None: ...


        await ctx.transact(debit, account, cents)
        ```

        The first argument of the function is a connection to the backend's database: a
        `sqlite3.Connection`, or on PostgreSQL an `asyncpg.Connection`. A `def` function runs on the
        event loop, so it must be short, and `options(timeout=…)` is for `async def` functions. Its
        rows and the step are stored in one commit, or neither.

        `NotSupported` is raised on backends without transactions. The others are those of `step`
        and of `ctx.transaction`.
        """
        return run_in_transaction(self._run, self._make_call(function, args, kwargs))

    def run(self, job: JobReturning[R], *, detached: bool = False) -> Coroutine[Any, Any, R]:
        """Run a job as a child of this one, and return its result.

        ```python
        path = await ctx.run(fetch.job("https://example.com/f.csv"))
        ```

        The run is suspended until the job has ended, and holds no slot. The job is an ordinary one,
        with its own retries and limits, in its own queue. It is stored once, whatever happens to
        this run. When this run is cancelled, child jobs that have not ended are cancelled, unless
        they are `detached`.

        Errors:

        - `ChildFailed`: the job has failed for good or was cancelled.
        - `ResultNotKept`: it is completed, but its result or its record is not kept.
        - `InvalidStep`: its result is over 1 MiB.
        - the errors of `enqueue`, if it cannot be stored.

        If the backend does not answer, the attempt ends and counts nothing, and the next one
        continues.
        """
        key = self._get_key(require_declaration(job).name)
        return _run_child(self._run, key, find_call_site(), job, detached=detached)

    def run_all(
        self, jobs: Iterable[JobReturning[R]], *, detached: bool = False
    ) -> Coroutine[Any, Any, list[R]]:
        """Run jobs as children of this one, and return their results in the order of the jobs.

        ```python
        counts = await ctx.run_all(count_rows.job(path, n) for n in range(100))
        ```

        The run is suspended until all have ended. Then the error of the first job without a result
        is raised: `ChildFailed` or `ResultNotKept`, as for `run`. At most 10,000 jobs, and 1 MiB of
        results: `InvalidStep` is raised for more.
        """
        several = list(jobs)
        key = self._get_key(require_declaration(several[0]).name if several else "run_all")
        return _run_children(self._run, key, find_call_site(), several, detached=detached)

    def start(
        self, job: JobReturning[R], *, detached: bool = False
    ) -> Coroutine[Any, Any, ChildJob[R]]:
        """Store a child job and return it without waiting for its end.

        ```python
        report = await ctx.start(make_report.job(counts))
        await ctx.step(notify, report.id)
        body = await report.result()
        ```

        When this run is cancelled, a job that is `detached` continues.
        """
        key = self._get_key(require_declaration(job).name)
        return _start_child(self._run, key, find_call_site(), job, detached=detached)

    @overload
    def wait_for(
        self, signal: SignalReturning[T], /, *, timeout: None = None
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def wait_for(
        self, signal: SignalReturning[T], /, *, timeout: Duration
    ) -> Coroutine[Any, Any, T | None]: ...
    def wait_for(
        self, signal: SignalReturning[T], /, *, timeout: Duration | None = None
    ) -> Coroutine[Any, Any, T | None]:
        """Return the value of the next signal of this kind; None if `timeout` passes first.

        Signals are kept until they are taken, so one may come before the handler waits for it. The
        run is suspended meanwhile. The time of `timeout` begins when an attempt comes here first.

        `processor.signal` sends a signal.
        """
        key = self._get_key(signal.name)
        seconds = None if timeout is None else read_delay("timeout", timeout)
        return wait_for_signal(self._run, key, signal, seconds, find_call_site())

    @overload
    def wait_any(self, *sources: SourceT, timeout: None = None) -> Coroutine[Any, Any, SourceT]: ...
    @overload
    def wait_any(
        self, *sources: SourceT, timeout: Duration
    ) -> Coroutine[Any, Any, SourceT | None]: ...
    def wait_any(
        self, *sources: SourceT, timeout: Duration | None = None
    ) -> Coroutine[Any, Any, SourceT | None]:
        """Return the first of several signals and child jobs that comes; None if `timeout` passes
        first.

        ```python
        report = await ctx.start(make_report.job(7))
        first = await ctx.wait_any(report, withdrawn, timeout="7d")
        if first is report:
            body = await report.result()
        elif first is withdrawn:
            reason = await ctx.wait_for(withdrawn)
        ```

        A child job has come when it has ended, also when it failed: `result` raises its error then.
        The call takes nothing. So the next `wait_for` returns the signal at once, and what came
        later stays for a later wait. A later attempt gets the same answer.

        The key is `wait_any`. `InvalidStep` is raised if a source is neither a `Signal` nor what
        `start` has returned.
        """
        key = self._get_key("wait_any")
        seconds = None if timeout is None else read_delay("timeout", timeout)
        place = find_call_site()
        check_sources(self._run, sources, place)
        return wait_for_first(self._run, key, sources, seconds, place)

    def enqueue(
        self, job: JobReturning[R], **options: Unpack[EnqueueOptions]
    ) -> Coroutine[Any, Any, JobId[R]]:
        """Store a job that is no child of this one, once, and return its id.

        The options are those of `processor.enqueue`. The call is a step, whose key is the name of
        the job. The job is not cancelled with this run, and the run cannot wait for its result:
        `start` stores one for which it can.
        """
        key = self._get_key(require_declaration(job).name)
        return enqueue_once(self._run, key, job, options, find_call_site())

    def undo(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a function later, if the run fails for good or is cancelled.

        ```python
        payment = await ctx.step(charge, order_id)
        ctx.undo(refund, payment)
        ```

        The functions are called in reverse order, each as a step. An undo that fails is tried again
        as the policy of the job says, or `options`. If it fails for good, the job becomes a dead
        letter with the reason `undo_failed`. A replay of a job that is undone begins anew.
        """
        register_undo(self._run, self._make_call(function, args, kwargs))

    def _make_call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StepCall:
        key = self._options.key
        if key is None:
            key = get_function_name(function)
            if not key:
                raise InvalidStep(
                    f"{function!r} has no name that could be its key; write a function with a "
                    "name, or `ctx.options(key=…)`"
                )
        return StepCall(key, function, args, kwargs, self._options, find_call_site())

    def _get_key(self, default: str) -> str:
        """Return the key of what is no function. `InvalidStep` is raised for other options."""
        if self._options != StepOptions(self._options.key):
            raise InvalidStep(
                "max_retries, retry_backoff and timeout are options of steps and undos; a job "
                "declares its own in @job(…)"
            )
        return default if self._options.key is None else self._options.key


class ConfiguredOperations(DurableOperations):
    """The operations of a durable run with options: what `ctx.options` returns."""

    __slots__ = ("_options", "_run")

    def __init__(self, run: DurableRun, options: StepOptions) -> None:
        self._run = run
        self._options = options


class DurableContext(Context[StateT_co], DurableOperations):
    """The context of a durable function: a job that remembers its steps.

    ```python
    @processor.job
    async def onboard(ctx: DurableContext, email: str) -> str:
        account = await ctx.step(create_account, email)
        await ctx.sleep("trial", timedelta(days=3))
        answer = await ctx.wait_for(confirmed, timeout=timedelta(days=7))
        return "expired" if answer is None else f"account {account}"
    ```

    A function is durable because its first parameter has this type. Each attempt calls it from its
    beginning. What an earlier attempt has stored is returned and not done again, so the code
    between two operations must do the same each time. Put all else into steps: calls of services
    and databases, random numbers, the time of the day.

    When all branches of the function wait, it is suspended: its task is cancelled, and it holds no
    slot. So `finally` blocks run then, and may run several times. `except Exception` does not
    catch it. Branches of `asyncio.gather` and of a `TaskGroup` may do operations in any order. A
    branch that awaits something else meanwhile is cancelled too.

    `DurableContext[Resources]` states the type of `state`, as `Context[Resources]` does.
    """

    __slots__ = ("_run",)

    _options = NO_OPTIONS

    def __init__(
        self, record: AttemptRecord, services: WorkerServices, deadline: float | None = None
    ) -> None:
        super().__init__(record, services, deadline)
        self._run: DurableRun = DurableRun(record, services)
        record.run = self._run

    def options(
        self,
        *,
        key: str | None = None,
        max_retries: int | None = None,
        retry_backoff: Delays | Backoff | None = None,
        timeout: Duration | None = None,
    ) -> ConfiguredOperations:
        """Return the operations with options: `await ctx.options(max_retries=5).step(charge, 7)`.

        Args:
            key: in place of the name of the function, the job or the signal.
            max_retries: how often a step that fails is tried again by itself. The run is suspended
                between the tries. An error that is raised to the handler counts for the job.
            retry_backoff: the delays between the tries, as the option of the job, which is the
                default.
            timeout: the time that one try of a step may take. A thread continues after it.
        """
        if max_retries is None and retry_backoff is None and timeout is None:
            return ConfiguredOperations(self._run, StepOptions(key))
        return ConfiguredOperations(
            self._run, make_step_options(key, max_retries, retry_backoff, timeout)
        )

    def enqueue(
        self, job: JobReturning[R], **options: Unpack[EnqueueOptions]
    ) -> Coroutine[Any, Any, JobId[R]]:
        """Store a job that is no child of this one, once. See `DurableOperations.enqueue`."""
        return DurableOperations.enqueue(self, job, **options)

    def sleep(self, key: str, duration: Duration) -> Coroutine[Any, Any, None]:
        """Suspend the run until `duration` has passed since an attempt first came here.

        ```python
        await ctx.sleep("trial", timedelta(days=3))
        ```

        The duration is seconds, a timedelta or a text like `"3d"`, up to ten years. A later version
        of the code does not change the end of a sleep that has begun.
        """
        return sleep(
            self._run, key, read_delay("the duration of a sleep", duration), find_call_site()
        )

    def changed(self, key: str) -> bool:
        """Return whether this run comes here for the first time with the present code.

        ```python
        if ctx.changed("new-mail"):
            await ctx.step(send_new_mail, email)
        else:
            await ctx.step(send_mail, email)
        ```

        True for runs that had not passed this place when the call was added, and for new ones. The
        answer of a run stays the same. Remove the old branch when no older run is open.
        """
        run = self._run
        run.begin("change", key, find_call_site())
        if run.journal.find_passed(ChangedEntry, key) is not None:
            return True
        if run.journal.has_more or run.journal.ending is not None:
            return False
        run.recorder.send(ChangedEntry(key))
        return True

    def now(self) -> datetime:
        """Return the time at which the latest operation ended, in UTC, on the backend's clock.

        It is the same in each attempt. A wait for a signal ends when the signal comes. Before the
        first operation, it is the time at which the job was enqueued.
        """
        return datetime.fromtimestamp(self._run.time, UTC)

    async def restart(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Start the run again, under the same id, with these arguments and without its steps.

        ```python
        async def poll(ctx: DurableContext, cursor: int) -> None:
            cursor = await ctx.step(fetch_news, cursor)
            await ctx.sleep("pause", "1h")
            await ctx.restart(cursor)
        ```

        Use it for endless runs: a run has at most 10,000 steps. Signals that no step has taken
        stay. What `undo` has registered is dropped, and child jobs continue.
        """
        run = self._run
        await run.require_may_begin()
        payload = encode_arguments(self._record, run.services.sizes, args, kwargs)
        await run.begin_anew(payload)
        await run.stop(RunRestart())

    def __repr__(self) -> str:
        return f"<DurableContext {self.name} {self.job_id} attempt {self.attempt}>"


async def call_durably(call: Callable[[Any], Any], context: DurableContext[Any]) -> object:
    """Run a durable handler: `call` decodes the payload and calls it inside its hooks.

    The task is cancelled if the run is suspended or ends, and `RunState.ending` says why.
    `InvalidStep` is raised if the handler swallows this.
    """
    run = context._run
    try:
        await run.load()
    except BackendUnavailable as error:
        from nimburion.jobs.worker.attempt.outcome import HandlerNotCalled

        raise HandlerNotCalled(f"its steps could not be read: {error}") from None
    if run.journal.restart_number:
        context.payload = run.journal.payload or context.payload
    try:
        result: object = await call(context)
        if run.state.phase is ENDED:
            await asyncio.sleep(0)  # the task is cancelled here if it has not seen that yet
        if run.journal.ending is not None:
            await run.stop(RunCleanup())
        if run.state.phase is ENDED and isinstance(run.state.ending, RunSuspension | RunRestart):
            raise InvalidStep(
                "the handler has caught the asyncio.CancelledError with which its run is "
                "suspended; let it pass: catch `Exception`, not `BaseException`, or raise it again"
            )
        run.record.run = None  # it needs no cleanup, and refers to the attempt
        return result
    finally:
        run.close()


def get_run(context: DurableContext[Any]) -> DurableRun:
    """Return the run of a context. For the worker only."""
    return context._run


async def _run_children(
    run: DurableRun, key: str, place: CallSite, jobs: Sequence[JobReturning[Any]], *, detached: bool
) -> list[Any]:
    several = [cast("AnyJob", job) for job in jobs]
    stored = await start_children(run, key, place, several, detached=detached)
    return await wait_for_children(run, stored, several)


async def _run_child(
    run: DurableRun, key: str, place: CallSite, job: JobReturning[R], *, detached: bool
) -> R:
    (result,) = await _run_children(run, key, place, [job], detached=detached)
    return cast("R", result)


async def _start_child(
    run: DurableRun, key: str, place: CallSite, job: JobReturning[R], *, detached: bool
) -> ChildJob[R]:
    jobs = [cast("AnyJob", job)]
    stored = await start_children(run, key, place, jobs, detached=detached)
    entry = cast("ChildrenEntry", stored.entry)
    return ChildJob(run, stored, job, f"{entry.flow}.0")
