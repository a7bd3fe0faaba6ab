"""What the worker and the context of one attempt share. Internal: handlers see the context only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from nimburion.core.errors import LeaseLost
from nimburion.core.lease import Delivery
from nimburion.core.result_errors import encode_result_error
from nimburion.core.settlement import Failed, Progressed, Recorded, Retried, Spent
from nimburion.core.transactions import Transaction
from nimburion.jobs.handling.lifespan import NO_STATE
from nimburion.jobs.payloads.codec import UnstorableResult

if TYPE_CHECKING:
    from typing import Unpack

    from nimburion.jobs.declaration.job import JobId, JobReturning
    from nimburion.jobs.durable.run import DurableRun
    from nimburion.jobs.durable.services import RunServices
    from nimburion.jobs.options.enqueue_options import EnqueueOptions

_log = logging.getLogger("nimburion.job")

R = TypeVar("R")

RETURNED_TOO_LATE = (
    "ctx.transaction() completed the job before its handler returned a value; call "
    "ctx.set_result(value) inside the block"
)
"""Why a job has no result whose handler returned it after its own transaction."""

ReportSink = Callable[[Progressed | Spent], None]
"""Records what an attempt that continues reports. Can be called from any thread."""


class ResultEncoder(Protocol):
    """The part of a handler that an attempt uses for its result."""

    @property
    def returns_value(self) -> bool:
        """Whether the handler says that it returns a value, which is kept."""
        ...

    @property
    def keeps_result(self) -> bool:
        """Whether what the handler returns is kept."""
        ...

    def encode_result(self, value: object) -> bytes | None:
        """Return the bytes to store for a result; None to store nothing."""
        ...


class EnqueueClient(Protocol):
    """The part of a client that a context uses."""

    async def enqueue(self, job: JobReturning[R], **options: Unpack[EnqueueOptions]) -> JobId[R]:
        """Store one job and return its id."""
        ...


HOLD = 1.0
"""The longest sleep for which a durable run keeps the slot of its worker, in seconds."""


class StepAnswer(Protocol):
    """Gets the answer of the backend to a step."""

    def note_stored(self, at: float, /) -> None:
        """Note when the step was stored, in epoch seconds on the backend's clock."""
        ...

    def note_failure(self, error: Exception, /) -> None:
        """Note why the step is not stored: `LeaseLost`, `Unstorable` or another error."""
        ...


class RecordStep(Protocol):
    """Sends a step with the next exchange."""

    def __call__(self, recorded: Recorded, answer: StepAnswer, /, *, is_awaited: bool) -> None:
        """Send a step. `is_awaited`: whether the handler waits for the answer.

        Otherwise it may be sent later, as the end of an attempt. There is no answer if
        the session ends first: the attempt is interrupted then.
        """
        ...


class WorkerServices(NamedTuple):
    """What all contexts of one worker use of it."""

    monotonic: Callable[[], float]
    """The worker's monotonic clock."""
    report: ReportSink
    client: EnqueueClient | None = None
    """Enqueues the jobs of handlers; None in a context without a processor."""
    make_transaction: Callable[[object], Transaction] | None = None
    """Returns the backend's transaction on a caller's connection, or on a new one for None."""
    state: object = NO_STATE
    """What the lifespan of the worker or child process yielded."""
    runs: RunServices | None = None
    """What durable runs use; None in a context without a worker."""


class AttemptRecord:
    """One attempt, as its context and the handler's transactions use it.

    The worker extends it with its own state. The initial values are class attributes: each job has
    an attempt, and most attempts set few of these values.
    """

    handler: ResultEncoder | None = None
    """The handler that runs; None before it is found."""
    keep_payload: bool = False
    """Whether the record of the job keeps its payload if the job is completed."""
    task: asyncio.Task[Any] | None = None
    """The task that performs the attempt."""
    cancel_requested: bool = False
    """Whether the worker asked the handler to end."""
    completed: bool = False
    """Whether a transaction of the handler has completed the job; later events do not change
    that."""
    is_decided: bool = False
    """Whether the attempt has failed and its hooks are called: no transaction may complete the job
    any more."""
    failure: Retried | Failed | None = None
    """In the record of hooks: the outcome that their transaction stores. None: it is stored, the
    hooks have ended, or the job lost its worker."""
    added_members: int = 0
    """How many members the handler has added to the flow of the job without a key of their own."""
    lease_lost: LeaseLost | None = None
    """The error of a transaction of the handler that found another worker on the job."""
    result: object = None
    """The value that the handler passed to `Context.set_result`."""
    has_result: bool = False
    """Whether the handler called `Context.set_result`."""
    run: DurableRun | None = None
    """The durable run; None for other jobs."""
    no_answer: str = ""
    """Why the attempt ended without a result, and is repeated: the backend did not answer."""
    keeps_none: bool = False
    """A copy of `JobOptions.keeps_none`, set for members only: other jobs need not read it."""

    def __init__(self, delivery: Delivery, session_id: str) -> None:
        self.delivery: Delivery = delivery
        self.session_id: str = session_id
        """The id of the session that holds the lease."""

    @property
    def must_end(self) -> bool:
        """Whether the worker stops or has lost the lease, so that the attempt must end now."""
        return False

    def clear(self) -> None:
        """Forget the task of the ended attempt."""
        self.task = None

    def encode_transaction_result(self) -> bytes | None:
        """Return the bytes to store with a transaction that completes the job.

        If the handler set no result and says that it returns one, they are the reason why its
        return value will be missing: it comes after the commit.
        """
        is_missing = self.handler is not None and self.handler.returns_value and not self.has_result
        return encode_result_error(RETURNED_TOO_LATE) if is_missing else self.encode_result()

    def encode_result(self) -> bytes | None:
        """Return the bytes to store for `result`; None if there is no result.

        A result that cannot be stored is logged, and the reason is stored in its place: the work
        must not run again because of it.
        """
        if self.handler is None:
            return None
        if self.result is None:
            return b"null" if self.keeps_none and self.handler.keeps_result else None
        try:
            return self.handler.encode_result(self.result)
        except UnstorableResult as error:
            log = make_job_log(self.delivery)
            log.warning("the result of job %s is not stored: %s", self.delivery.lease.job_id, error)
            return encode_result_error(str(error))


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the fields of the job to each log record, next to the `extra` of the call."""

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        """Merge both sets of fields; a field of the call takes precedence."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def make_job_log(delivery: Delivery) -> JobLog:
    """Return the logger of a delivered job."""
    fields = {
        "job_id": delivery.lease.job_id,
        "job_name": delivery.name,
        "queue": delivery.queue,
        "attempt": delivery.attempt,
        "correlation_id": delivery.options.correlation_id,
        "tenant": delivery.options.tenant,
    }
    return JobLog(_log, fields)
