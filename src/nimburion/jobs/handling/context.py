"""The context of one attempt, which handlers and middleware receive."""

from __future__ import annotations

import re
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, cast

from nimburion.core.errors import Cancel, InvalidJob, NotOpen, NotSupported, RateLimitExceeded
from nimburion.core.rate_limits import MAX_UNITS
from nimburion.core.settlement import Progressed, Spent
from nimburion.core.size_limits import check_text
from nimburion.core.text.shortening import MAX_MESSAGE_BYTES, clean_text
from nimburion.core.timing.durations import Duration
from nimburion.jobs.handling.attempt_record import (
    AttemptRecord,
    JobLog,
    WorkerServices,
    make_job_log,
)
from nimburion.jobs.handling.lifespan import NO_STATE
from nimburion.jobs.handling.loop_calls import find_running_loop
from nimburion.jobs.handling.transaction import HandlerTransaction

if TYPE_CHECKING:
    from typing import NoReturn, Unpack

    from typing_extensions import TypeVar

    from nimburion.jobs.declaration.job import JobId, JobReturning
    from nimburion.jobs.flows.growing import MemberFlow
    from nimburion.jobs.options.enqueue_options import EnqueueOptions

    StateT_co = TypeVar("StateT_co", covariant=True, default=object)
    R = TypeVar("R")
else:  # Python 3.11 has no defaults of type variables
    from typing import TypeVar

    StateT_co = TypeVar("StateT_co", covariant=True)

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_FOREIGN_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "retry": "write `raise Retry(after=…)`",
        "request": "write `ctx.job_id`, `ctx.attempt`, `ctx.headers` and so on",
        "retries": "write `ctx.failures`",
        "id": "write `ctx.job_id`",
        "task_id": "write `ctx.job_id`",
        "update_state": "write `ctx.progress(0.5, 'half')`",
        "job_try": "write `ctx.attempt`",
    }
)
"""What to write for names of the context of Celery, TaskIQ and arq."""
_DURABLE_NAMES = frozenset(
    {
        *("step", "transact", "sleep", "wait_for", "wait_any", "run", "run_all", "start"),
        *("undo", "options", "changed", "now", "restart"),
    }
)
"""The operations of a `DurableContext`."""
_OWN_HEADERS = "nimburion-"
"""How the names of headers begin that belong to one job, such as the tick of a schedule."""


class RequestContext(NamedTuple):
    """What the jobs that a web request enqueues inherit from it."""

    correlation_id: str | None
    headers: Mapping[str, str]
    tenant: str | None = None

    @classmethod
    def read(cls, request_id: str | None, traceparent: str | None) -> RequestContext | None:
        """Return what the headers `X-Request-ID` and `traceparent` of a request say; None if that
        is nothing. A value that cannot be stored or is malformed is ignored: others send it.
        """
        if request_id is not None:
            try:
                check_text("correlation_id", request_id)
            except InvalidJob:
                request_id = None
        headers = {}
        if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
            headers["traceparent"] = traceparent
        return cls(request_id, headers) if request_id or headers else None


CURRENT: ContextVar[Context | RequestContext | None] = ContextVar("nimburion_current", default=None)
"""The attempt whose handler runs in this task or thread, set by the attempt runner; or the web
request that is answered here, set by an integration.

Jobs that it enqueues inherit its tenant and correlation id.
"""


def inherit_options(
    origin: Context | RequestContext, options: dict[str, Any], *, inherits_headers: bool
) -> None:
    """Add to the options of an enqueue what they leave out and the job or request here has.

    The headers of a job are inherited only with `inherits_headers`, and never those that belong to
    it alone. The headers of the enqueue win.
    """
    if origin.tenant is not None and options.get("tenant") is None:
        options["tenant"] = origin.tenant
    if origin.correlation_id is not None and options.get("correlation_id") is None:
        options["correlation_id"] = origin.correlation_id
    own_headers = options.get("headers") or {}
    if not isinstance(own_headers, Mapping):
        return  # `parse_options` says what is wrong
    if inherits_headers or isinstance(origin, RequestContext):
        inherited = {
            name: value
            for name, value in origin.headers.items()
            if not name.startswith(_OWN_HEADERS)
        }
        if inherited:
            options["headers"] = {**inherited, **own_headers}


def get_record(context: Context) -> AttemptRecord:
    """Return the record that a context shares with the worker. For the worker only."""
    return context._record


def get_current_context() -> Context | None:
    """Return the context of the attempt whose handler runs in this task or thread; None outside."""
    current = CURRENT.get()
    return current if isinstance(current, Context) else None


class Context(Generic[StateT_co]):
    """One attempt of a job, from delivery to settlement.

    `Context[Resources]` states the type of `state`, what the processor's lifespan yields.

    Middleware may replace `payload` before it is decoded. `job` holds the decoded arguments (the
    `Job` instance, or the arguments of a `@job` function); a raw handler finds the bytes there.

    You can use every member from the thread of a `def` handler, except `enqueue`, which is awaited.
    """

    __slots__ = ("_log", "_record", "_services", "deadline", "job", "payload")

    def __init__(
        self, record: AttemptRecord, services: WorkerServices, deadline: float | None = None
    ) -> None:
        self._record = record
        self._services = services
        self._log: JobLog | None = None
        self.deadline: float | None = deadline
        """When the attempt times out, in seconds of the worker's monotonic clock; None: never."""
        self.payload: bytes = record.delivery.payload
        """The arguments as they were stored. Middleware may replace them before they are decoded.
        """
        self.job: Any = None
        """The decoded arguments; None before the handler is called."""

    @property
    def cancelled(self) -> bool:
        """Whether cancellation of this job was requested.

        An `async def` handler is cancelled as a task. A `def` handler checks this attribute, or
        calls `raise_if_cancelled`.
        """
        return self._record.cancel_requested

    @property
    def state(self) -> StateT_co:
        """What the lifespan of this worker yielded; see `Processor.lifespan`.

        `NotOpen` is raised when the processor has no lifespan.
        """
        state = self._services.state
        if state is NO_STATE:
            raise NotOpen(
                "ctx.state: this processor has no lifespan; decorate a generator function that "
                "yields the state with @processor.lifespan"
            )
        return cast("StateT_co", state)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Say what to write for a name that tasks of other job systems have."""
            if name in _FOREIGN_NAMES:
                raise AttributeError(f"the context has no {name!r}; {_FOREIGN_NAMES[name]}")
            if name in _DURABLE_NAMES:
                raise AttributeError(
                    f"{name!r} is an operation of durable functions, and this is a plain Context; "
                    "write `ctx: DurableContext`. A test runs the job with `processor.drain(…)`: "
                    "`make_context` makes no DurableContext"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._record.delivery.lease.job_id

    @property
    def name(self) -> str:
        """The job's name."""
        return self._record.delivery.name

    @property
    def queue(self) -> str:
        """The queue that the job was reserved from."""
        return self._record.delivery.queue

    @property
    def attempt(self) -> int:
        """The number of this attempt; 1 for the first."""
        return self._record.delivery.attempt

    @property
    def failures(self) -> int:
        """The number of earlier attempts that failed or timed out."""
        return self._record.delivery.failures

    @property
    def lost(self) -> int:
        """The number of earlier attempts that lost their worker."""
        return self._record.delivery.lost

    @property
    def worker_id(self) -> str:
        """The id of the session of the worker that runs this attempt."""
        return self._record.session_id

    @property
    def fence(self) -> int:
        """A number that rises with each delivery of this job, for systems that reject stale
        writers.

        Deliveries are not flushed to disk before workers receive them. After a crash of the
        backend's server, or a failover, the backend can repeat the last numbers for another
        attempt. Write once and accept only a higher number, or make the write safe to repeat by
        `job_id`.
        """
        return self._record.delivery.lease.token.fence

    @property
    def priority(self) -> int:
        """The job's priority, 0 to 9; higher runs first."""
        return self._record.delivery.priority

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the job was enqueued with. Changes to the dict are not stored."""
        return self._record.delivery.options.headers

    @property
    def tenant(self) -> str | None:
        """The tenant that the job was enqueued for."""
        return self._record.delivery.options.tenant

    @property
    def correlation_id(self) -> str | None:
        """The id that links the job to the request or job that caused it."""
        return self._record.delivery.options.correlation_id

    @property
    def unique_key(self) -> str | None:
        """The unique key that the job holds."""
        return self._record.delivery.options.unique_key

    @property
    def log(self) -> JobLog:
        """A logger whose records carry job_id, job_name, queue, attempt, correlation_id and
        tenant."""
        if self._log is None:
            self._log = make_job_log(self._record.delivery)
        return self._log

    def remaining(self) -> float | None:
        """Return the seconds until the attempt times out; 0 when it has, None without a timeout."""
        return (
            None if self.deadline is None else max(0.0, self.deadline - self._services.monotonic())
        )

    def progress(self, fraction: float, message: str = "") -> None:
        """Report the progress of the work, as a fraction from 0.0 to 1.0 and a message.

        The latest report is sent with the next call to the backend; the message is cut to 1024
        bytes. The call is cheap, so you can report as often as you like. A fraction out of range
        raises `ValueError`.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"progress must be from 0.0 to 1.0, not {fraction!r}")
        text = clean_text(str(message), MAX_MESSAGE_BYTES)
        self._services.report(Progressed(self._record.delivery.lease, float(fraction), text))

    def rate_limited(self, retry_after: Duration) -> NoReturn:
        """End the attempt because a service refused it, and stop its rate limit for everybody.

        ```python
        response = await client.post(url)
        if response.status_code == 429:
            ctx.rate_limited(float(response.headers["Retry-After"]))
        ```

        No job of this name starts for `retry_after` (seconds or a timedelta). This job then runs
        first. Nothing is counted: no failure, no retry. A job without a rate limit waits alone, as
        with `Snooze`.

        The method raises `RateLimitExceeded`, which you can also raise yourself.
        """
        raise RateLimitExceeded(retry_after)

    def spend(self, units: int) -> None:
        """Take `units` more from the rate limit of this job, beyond its `cost`.

        Use it when the real cost is known only afterwards, for example the tokens of an answer. A
        negative number gives units back. The units are sent with the next call to the backend.
        Without a rate limit, the call changes nothing. `ValueError` is raised for more than a
        million units.
        """
        number: object = units
        if not isinstance(number, int) or not -MAX_UNITS <= number <= MAX_UNITS:
            raise ValueError(
                f"spend takes a whole number of units, at most {MAX_UNITS:,}, not {units!r}"
            )
        if units:
            self._services.report(Spent(self._record.delivery.lease, units))

    def set_result(self, value: object) -> None:
        """Set the job's result, for a handler whose transaction completes the job.

        Call it inside the block of `ctx.transaction()`: the commit that completes the job stores
        the result. The handler's return value is not stored then. Without a transaction, a return
        value other than None takes precedence over this one. After the job is completed, the call
        only logs a warning.
        """
        if self._record.completed:
            self.log.warning(
                "job %s: set_result was called after the job was completed; call it inside the "
                "block of ctx.transaction()",
                self.job_id,
            )
            return
        self._record.result, self._record.has_result = value, True

    def raise_if_cancelled(self) -> None:
        """Raise `Cancel`, which ends the job as cancelled, if cancellation was requested."""
        if self.cancelled:
            raise Cancel("cancelled on request")

    def enqueue(
        self, job: JobReturning[R], **options: Unpack[EnqueueOptions]
    ) -> Coroutine[Any, Any, JobId[R]]:
        """Store another job, as `await processor.enqueue(…)` does, and return its id.

        Tenant and correlation id are those of this job, unless you pass your own. `NotSupported` is
        raised in a `def` handler, which cannot await: `processor.sync.enqueue` is for these.
        """
        client = self._services.client
        if client is None:
            raise NotOpen("this context has no processor to enqueue with")
        if find_running_loop() is None:  # the coroutine would never run, and the job would be lost
            raise NotSupported(
                "`ctx.enqueue` needs `await`, and this handler is a `def`: write "
                "`processor.sync.enqueue(…)`, which takes tenant and correlation id from this job "
                "too"
            )
        return client.enqueue(job, **options)

    @property
    def flow(self) -> MemberFlow:
        """The flow that this job belongs to: `await ctx.flow.add(job)` adds a member.

        `InvalidJob` is raised if the job is no member of a flow, as a callback is none.
        """
        from nimburion.jobs.flows.growing import MemberFlow

        return MemberFlow(self._record, cast("Any", self._services.client))

    def transaction(self, connection: object = None) -> HandlerTransaction:
        """Write rows and settle this job in one commit, so that its effect happens exactly once.

        ```python
        async with ctx.transaction() as conn:  # with ctx.transaction() in a `def` handler
            conn.execute("UPDATE account SET balance = balance + ?", (self.amount,))
        ```

        `connection` is your own connection to the backend's database. A transaction is begun on it
        if needed, and it is committed here. Without `connection`, the backend opens one: a
        `sqlite3.Connection`, or on PostgreSQL an `asyncpg.Connection`.

        In a hook `on_failure` or `on_dead`, the commit stores the outcome of the failed attempt:
        the rows and the dead letter, or neither.

        An error inside the block rolls back, and the attempt fails as usual. To store a result with
        the same commit, call `set_result` inside the block. The handler's return value is not
        stored, as the job has already ended: if its annotation promises one, `wait` raises
        `ResultNotKept`.

        Errors:

        - `LeaseLost`: another worker has the job by now; nothing was stored.
        - `DefinitionError`: in a hook, the outcome is stored already, or the job lost its worker.
        - `NotSupported`: this backend has no transactions.
        - `UnusableConnection`: the connection does not fit the backend.
        - `TransactionExpired`: on SQLite, the transaction blocked all other writers for five
          seconds.
        """
        make_transaction = self._services.make_transaction
        if make_transaction is None:
            raise NotOpen("this context has no processor, and so no backend to write to")
        return HandlerTransaction(self._record, make_transaction, connection)

    def __repr__(self) -> str:
        return f"<Context {self.name} {self.job_id} attempt {self.attempt}>"
