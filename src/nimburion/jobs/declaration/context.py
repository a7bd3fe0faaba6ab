"""What a handler knows about the attempt it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from nimburion.core.errors import Cancel, LeaseLost, NotOpen
from nimburion.core.lease import Delivery, Lease
from nimburion.jobs.declaration.codec import UnstorableResult
from nimburion.jobs.declaration.transaction import HandlerTransaction
from nimburion.jobs.worker.outcome import MAX_MESSAGE_BYTES, clean_text

if TYPE_CHECKING:
    from typing import Unpack

    from nimburion.core.transactions import Transaction
    from nimburion.jobs.declaration.job import AnyJob
    from nimburion.jobs.declaration.options import EnqueueOptions

_log = logging.getLogger("nimburion.job")

CURRENT: ContextVar[Context | None] = ContextVar("nimburion_current_attempt", default=None)
"""The attempt whose handler is running here; set by the engine. Jobs enqueued meanwhile inherit
its tenant and correlation id."""

ProgressSink = Callable[[Lease, float, str], None]
"""Takes note of a report: lease, fraction, message. Callable from any thread."""


class ResultEncoder(Protocol):
    """What is told of the handler."""

    @property
    def name(self) -> str:
        """The name of its jobs."""
        ...

    def encode_result(self, value: object) -> bytes | None:
        """What to keep of a result."""
        ...


class EnqueueClient(Protocol):
    """The way in, as a context uses it."""

    async def enqueue(self, job: AnyJob, **options: Unpack[EnqueueOptions]) -> str:
        """Store one job; its id."""
        ...

    def _make_transaction(self, connection: object) -> Transaction:
        """What a handler's own transaction is made of."""
        ...


class Context:
    """One attempt, from delivery to settlement.

    Middleware may replace `payload` (before decoding) and read `job` (the arguments, once they are
    decoded; the bytes themselves for a raw handler). Everything here may be used from the thread
    of a `def` handler, but for `enqueue`, which is awaited.
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
        """The engine's own view of the attempt."""
        self.deadline: float | None = deadline
        """When the attempt times out, on the worker's monotonic clock; None: never."""
        self.payload: bytes = delivery.payload
        self.job: Any = None
        self.cancelled: bool = False
        """Whether somebody asked to cancel this job. An `async def` handler is cancelled as a
        task; a `def` handler looks here, or calls `raise_if_cancelled`."""
        self._completed: bool = False
        """Whether a transaction of the handler has completed the job: whatever follows, it is."""
        self._lease_lost: LeaseLost | None = None
        """What a transaction of the handler raised when it found that the job is another's."""
        self._result: object = None
        """What `set_result` was told."""

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
        """The queue it came from."""
        return self._delivery.queue

    @property
    def attempt(self) -> int:
        """1 for the first try."""
        return self._delivery.attempt

    @property
    def failures(self) -> int:
        """How many attempts before this one ended in failure or timeout."""
        return self._delivery.failures

    @property
    def lost(self) -> int:
        """How many attempts before this one lost their worker."""
        return self._delivery.lost

    @property
    def fence(self) -> int:
        """Rises with each delivery of this job: hand it to systems that fence by number.

        Deliveries are not waited for until they are on the disk. After a crash of the backend's
        server, or a failover, the last numbers can be handed out again, to another attempt: write
        once and accept only a higher number, or make the write safe to repeat by `job_id`.
        """
        return self._delivery.lease.token.fence

    @property
    def priority(self) -> int:
        """0 to 9, higher first."""
        return self._delivery.priority

    @property
    def headers(self) -> dict[str, str]:
        """What travelled with the job. Read it; changes go nowhere."""
        return self._delivery.options.headers

    @property
    def tenant(self) -> str | None:
        """The tenant the job was enqueued for."""
        return self._delivery.options.tenant

    @property
    def correlation_id(self) -> str | None:
        """What ties it to the request or job that caused it."""
        return self._delivery.options.correlation_id

    @property
    def unique_key(self) -> str | None:
        """The unique key it holds."""
        return self._delivery.options.unique_key

    @property
    def log(self) -> JobLog:
        """A logger whose records carry job_id, job_name, queue, attempt, correlation_id, tenant."""
        if self._log is None:
            self._log = JobLog(_log, _make_log_fields(self._delivery))
        return self._log

    def remaining(self) -> float | None:
        """Seconds until the attempt times out, 0 when it has; None: there is no timeout."""
        return None if self.deadline is None else max(0.0, self.deadline - self._now())

    def progress(self, fraction: float, message: str = "") -> None:
        """Note how far the work has come, 0.0 to 1.0; the newest note goes out with the next call
        to the backend, cut to 1024 bytes. Cheap: call it as often as you like."""
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"progress must be from 0.0 to 1.0, not {fraction!r}")
        self._sink(
            self._delivery.lease, float(fraction), clean_text(str(message), MAX_MESSAGE_BYTES)
        )

    def set_result(self, value: object) -> None:
        """The result of this job, for a handler whose transaction completes it: say it inside the
        block, and the commit that completes the job stores it. What the handler returns comes too
        late there; elsewhere it counts before this, unless it is None."""
        if self._completed:
            self.log.warning(
                "job %s: set_result comes too late, the job is completed; call it inside the "
                "block of ctx.transaction()",
                self.job_id,
            )
            return
        self._result = value

    def _encode_result(self) -> bytes | None:
        """What is kept of it. A result that cannot be is no reason to do the work again."""
        if self._result is None or self._handler is None:
            return None
        try:
            return self._handler.encode_result(self._result)
        except UnstorableResult as error:
            self.log.warning("the result of job %s is not kept: %s", self.job_id, error)
            return None

    def _request_cancel(self) -> None:
        """Somebody wants this job cancelled: from now on `cancelled` is True."""
        self.cancelled = True

    def raise_if_cancelled(self) -> None:
        """End the job as cancelled if that was asked for: raises `Cancel`."""
        if self.cancelled:
            raise Cancel("cancelled on request")

    async def enqueue(self, job: AnyJob, **options: Unpack[EnqueueOptions]) -> str:
        """Store another job, as `processor.enqueue` does; tenant and correlation id are this
        job's, unless given."""
        if self._client is None:
            raise NotOpen("this context has no processor to enqueue with")
        return await self._client.enqueue(job, **options)

    def transaction(self, connection: object = None) -> HandlerTransaction:
        """Write rows and complete this job in one commit, so that its effect happens exactly once.

        ```python
        async with ctx.transaction() as conn:  # with ctx.transaction() in a `def` handler
            conn.execute("UPDATE account SET balance = balance + ?", (self.amount,))
        ```

        `connection`: one of your own to the backend's database, begun here if need be, and
        committed here; without, the backend opens one (a `sqlite3.Connection`; on PostgreSQL an
        `asyncpg.Connection`). An error inside rolls back, and the attempt fails as always. A result
        is stored by the same commit where `set_result` was called inside; what the handler returns
        afterwards is not kept, as the job has ended. `LeaseLost`: another worker has
        the job by now; nothing was kept. `NotSupported`: this backend has no transactions.
        `UnusableConnection`: the connection does not fit.
        `TransactionExpired`: on SQLite, nobody else could write for five seconds.
        """
        if self._client is None:
            raise NotOpen("this context has no processor, and so no backend to write to")
        return HandlerTransaction(self, self._client._make_transaction, connection)

    def __repr__(self) -> str:
        return f"<Context {self.name} {self.job_id} attempt {self.attempt}>"


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """Adds what is known of the job to each record, beside the `extra_time` of the call."""

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        """Merge both extras; the call's wins."""
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
