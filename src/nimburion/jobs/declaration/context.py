"""The context of one attempt, which handlers and middleware receive."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from nimburion.core.errors import Cancel, LeaseLost, NotOpen
from nimburion.core.lease import Delivery, Lease
from nimburion.jobs.declaration.codec import UnstorableResult
from nimburion.jobs.declaration.transaction import HandlerTransaction
from nimburion.jobs.worker.attempt.outcome import MAX_MESSAGE_BYTES, clean_text

if TYPE_CHECKING:
    from typing import Unpack

    from nimburion.core.transactions import Transaction
    from nimburion.jobs.declaration.job import AnyJob
    from nimburion.jobs.declaration.options import EnqueueOptions

_log = logging.getLogger("nimburion.job")

CURRENT: ContextVar[Context | None] = ContextVar("nimburion_current_attempt", default=None)
"""The attempt whose handler runs in this task or thread; set by the attempt runner.

Jobs that it enqueues inherit its tenant and correlation id.
"""

ProgressSink = Callable[[Lease, float, str], None]
"""Records a progress report: lease, fraction, message. Can be called from any thread."""


class ResultEncoder(Protocol):
    """The part of a handler that a context uses."""

    @property
    def name(self) -> str:
        """The name of the handler's jobs."""
        ...

    def encode_result(self, value: object) -> bytes | None:
        """Return the bytes to store for a result; None to store nothing."""
        ...


class EnqueueClient(Protocol):
    """The part of a client that a context uses."""

    async def enqueue(self, job: AnyJob, **options: Unpack[EnqueueOptions]) -> str:
        """Store one job and return its id."""
        ...

    def _make_transaction(self, connection: object) -> Transaction:
        """Return the backend's transaction for a handler."""
        ...


def get_current_context() -> Context | None:
    """Return the context of the attempt whose handler runs in this task or thread; None outside."""
    return CURRENT.get()


class Context:
    """One attempt of a job, from delivery to settlement.

    Middleware may replace `payload` before it is decoded. `job` holds the decoded arguments (the
    `Job` instance, or the arguments of a `@job` function); a raw handler finds the bytes there.

    You can use every member from the thread of a `def` handler, except `enqueue`, which is awaited.
    """

    __slots__ = (
        "_attempt",
        "_client",
        "_completed",
        "_delivery",
        "_handler",
        "_lease_lost",
        "_log",
        "_now",
        "_result",
        "_sink",
        "cancelled",
        "deadline",
        "job",
        "payload",
    )

    def __init__(  # noqa: PLR0917 (made once per attempt: keywords cost)
        self,
        delivery: Delivery,
        handler: ResultEncoder | None,
        now: Callable[[], float],
        sink: ProgressSink,
        deadline: float | None,
        client: EnqueueClient | None = None,
    ) -> None:
        self._delivery: Delivery = delivery
        self._handler = handler
        self._now = now
        self._sink = sink
        self._client = client
        self._log: JobLog | None = None
        self._attempt: Any = None
        """The worker's own record of the attempt."""
        self.deadline: float | None = deadline
        """When the attempt times out, in seconds of the worker's monotonic clock; None: never."""
        self.payload: bytes = delivery.payload
        self.job: Any = None
        self.cancelled: bool = False
        """Whether cancellation of this job was requested.

        An `async def` handler is cancelled as a task. A `def` handler checks this attribute, or
        calls `raise_if_cancelled`.
        """
        self._completed: bool = False
        """Whether a transaction of the handler has completed the job; nothing that follows changes
        that."""
        self._lease_lost: LeaseLost | None = None
        """The error of a transaction of the handler that found another worker on the job."""
        self._result: object = None
        """The value passed to `set_result`."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._delivery.lease.job_id

    @property
    def name(self) -> str:
        """The job's name."""
        return self._delivery.name

    @property
    def queue(self) -> str:
        """The queue that the job was reserved from."""
        return self._delivery.queue

    @property
    def attempt(self) -> int:
        """The number of this attempt; 1 for the first."""
        return self._delivery.attempt

    @property
    def failures(self) -> int:
        """The number of earlier attempts that failed or timed out."""
        return self._delivery.failures

    @property
    def lost(self) -> int:
        """The number of earlier attempts that lost their worker."""
        return self._delivery.lost

    @property
    def fence(self) -> int:
        """A number that rises with each delivery of this job, for systems that reject stale
        writers.

        Deliveries are not flushed to disk before they are handed out. After a crash of the
        backend's server, or a failover, the backend can hand out the last numbers again, to another
        attempt. Write once and accept only a higher number, or make the write safe to repeat by
        `job_id`.
        """
        return self._delivery.lease.token.fence

    @property
    def priority(self) -> int:
        """The job's priority, 0 to 9; higher runs first."""
        return self._delivery.priority

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the job was enqueued with. Changes to the dict are not stored."""
        return self._delivery.options.headers

    @property
    def tenant(self) -> str | None:
        """The tenant that the job was enqueued for."""
        return self._delivery.options.tenant

    @property
    def correlation_id(self) -> str | None:
        """The id that links the job to the request or job that caused it."""
        return self._delivery.options.correlation_id

    @property
    def unique_key(self) -> str | None:
        """The unique key that the job holds."""
        return self._delivery.options.unique_key

    @property
    def log(self) -> JobLog:
        """A logger whose records carry job_id, job_name, queue, attempt, correlation_id and
        tenant."""
        if self._log is None:
            self._log = JobLog(_log, _make_log_fields(self._delivery))
        return self._log

    def remaining(self) -> float | None:
        """Return the seconds until the attempt times out; 0 when it has, None without a timeout."""
        return None if self.deadline is None else max(0.0, self.deadline - self._now())

    def progress(self, fraction: float, message: str = "") -> None:
        """Report the progress of the work, as a fraction from 0.0 to 1.0 and a message.

        The latest report is sent with the next call to the backend; the message is cut to 1024
        bytes. The call is cheap, so you can report as often as you like. A fraction out of range
        raises `ValueError`.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"progress must be from 0.0 to 1.0, not {fraction!r}")
        self._sink(
            self._delivery.lease, float(fraction), clean_text(str(message), MAX_MESSAGE_BYTES)
        )

    def set_result(self, value: object) -> None:
        """Set the job's result, for a handler whose transaction completes the job.

        Call it inside the block of `ctx.transaction()`: the commit that completes the job stores
        the result. The handler's return value is not stored then. Without a transaction, a return
        value other than None takes precedence over this one. After the job is completed, the call
        only logs a warning.
        """
        if self._completed:
            self.log.warning(
                "job %s: set_result comes too late, the job is completed; call it inside the "
                "block of ctx.transaction()",
                self.job_id,
            )
            return
        self._result = value

    def _encode_result(self) -> bytes | None:
        """Return the bytes to store for the result.

        A result that cannot be stored is logged and dropped: the work must not run again because of
        it.
        """
        if self._result is None or self._handler is None:
            return None
        try:
            return self._handler.encode_result(self._result)
        except UnstorableResult as error:
            self.log.warning("the result of job %s is not kept: %s", self.job_id, error)
            return None

    def _request_cancel(self) -> None:
        """Record that cancellation was requested: `cancelled` is True from now on."""
        self.cancelled = True

    def raise_if_cancelled(self) -> None:
        """Raise `Cancel`, which ends the job as cancelled, if cancellation was requested."""
        if self.cancelled:
            raise Cancel("cancelled on request")

    async def enqueue(self, job: AnyJob, **options: Unpack[EnqueueOptions]) -> str:
        """Store another job, as `processor.enqueue` does, and return its id.

        Tenant and correlation id are those of this job, unless you pass your own.
        """
        if self._client is None:
            raise NotOpen("this context has no processor to enqueue with")
        return await self._client.enqueue(job, **options)

    def transaction(self, connection: object = None) -> HandlerTransaction:
        """Write rows and complete this job in one commit, so that its effect happens exactly once.

        ```python
        async with ctx.transaction() as conn:  # with ctx.transaction() in a `def` handler
            conn.execute("UPDATE account SET balance = balance + ?", (self.amount,))
        ```

        `connection` is your own connection to the backend's database. A transaction is begun on it
        if needed, and it is committed here. Without `connection`, the backend opens one: a
        `sqlite3.Connection`, or on PostgreSQL an `asyncpg.Connection`.

        An error inside the block rolls back, and the attempt fails as usual. To store a result with
        the same commit, call `set_result` inside the block. The handler's return value is not
        stored, as the job has already ended.

        Errors:

        - `LeaseLost`: another worker has the job by now; nothing was stored.
        - `NotSupported`: this backend has no transactions.
        - `UnusableConnection`: the connection does not fit the backend.
        - `TransactionExpired`: on SQLite, the transaction blocked all other writers for five
          seconds.
        """
        if self._client is None:
            raise NotOpen("this context has no processor, and so no backend to write to")
        return HandlerTransaction(self, self._client._make_transaction, connection)

    def __repr__(self) -> str:
        return f"<Context {self.name} {self.job_id} attempt {self.attempt}>"


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the fields of the job to each log record, next to the `extra` of the call."""

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        """Merge both sets of fields; a field of the call takes precedence."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def _make_log_fields(delivery: Delivery) -> dict[str, object]:
    return {
        "job_id": delivery.lease.job_id,
        "job_name": delivery.name,
        "queue": delivery.queue,
        "attempt": delivery.attempt,
        "correlation_id": delivery.options.correlation_id,
        "tenant": delivery.options.tenant,
    }
