"""All errors that nimburion raises, and the signals that a handler may raise.

```
NimburionError
├── ConfigurationError        a setting is wrong: its place and the allowed values
├── DefinitionError           a job class, function or handler cannot be used as declared
├── InvalidJob                the job must not be stored as it is (also a ValueError)
├── JobConflict               a job with another body already has this id
├── DuplicateJob              another job holds the unique key
├── JobNotFound               no record with this id
├── ScheduleNotFound          no schedule with this name
├── BulkOperationNotFound     no bulk operation with this id
├── FlowNotFound              no flow with this id
├── LimitNotFound             no limit of this name, or it was not changed at run time
├── TooManyBulkOperations     the oldest bulk operation that is kept still runs
├── JobNotCompleted           wait(): the job failed or was cancelled
├── WaitTimeout               wait(): the job has not ended in time (also a TimeoutError)
├── ResultNotKept             wait(): the job is completed, but its result could not be stored
├── NothingRegistered         drain(), process_one(): jobs are due, but none has a handler here
├── UseAwait                  processor.sync was called on the processor's own event loop
├── LifespanError             the resources of a worker cannot be opened
├── NotOpen                   a processor or backend was used before open or after close
├── RemoteError               middleware: the handler failed in its child process
├── LeaseLost                 this worker no longer holds the job
├── UnusableConnection        the transaction of a connection cannot be used (also a ValueError)
└── BackendError              an error of the backend; __cause__ is the driver's own error
    ├── BackendUnavailable    no reply; `outcome` is what the caller may conclude
    ├── BackendFull           no room left: nothing was written
    ├── BackendReadOnly       the backend accepts no writes: nothing was written
    ├── BackendCorrupt        the data of the backend cannot be read
    ├── BackendReplaced       the file was deleted or replaced while it was open
    ├── FormatMismatch        another version of nimburion wrote the data
    ├── Unstorable            the backend can never store this data: nothing was written
    ├── SessionLost           the session expired and was rescued; its id cannot be used again
    ├── TransactionExpired    a handler's own transaction took too long and was rolled back
    ├── OutOfOrder            an exchange number that is neither the next nor the last
    ├── StepLost              another process has claimed the step of a bulk operation, or it ended
    └── NotSupported          the backend does not support this operation

PermanentError                raised by a handler: the job failed, and no retry can help
JobSignal                     raised by a handler: not an error
├── Retry                     count a failure, and run again after a delay
├── Snooze                    run again later, and count nothing
├── RateLimitExceeded         a service refused the call: stop the rate limit, and count nothing
└── Cancel                    end the job as cancelled
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from nimburion.core.timing.durations import Duration, read_seconds, to_seconds

if TYPE_CHECKING:
    from nimburion.core.job import AttemptError

Outcome = Literal["not applied", "applied", "unknown"]
"""What the caller may conclude about a write that got no reply."""


class NimburionError(Exception):
    """The base class of all errors that nimburion raises deliberately."""


class ConfigurationError(NimburionError):
    """A setting is wrong. The message names file, line, key path and the allowed values."""


class DefinitionError(NimburionError):
    """A job class, a job function or a handler cannot be used as declared."""


class InvalidJob(NimburionError, ValueError):
    """The job cannot be enqueued as given. The message names the field and the expected value."""


class PastTime(InvalidJob):
    """The end of a pause has passed already; nothing was paused."""


class MissingRight(NimburionError):
    """The operator lacks the right that an action needs; nothing was changed."""

    def __init__(self, name: str, right: str) -> None:
        super().__init__(f"{name!r} lacks the right {right!r} that this needs")
        self.name = name
        self.right = right


class JobConflict(NimburionError):
    """A job with another name or payload already has this `job_id`; nothing was stored."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"job id {job_id!r} already belongs to a job with another name or payload; "
            "use a new id, or the same arguments"
        )
        self.job_id = job_id


class DuplicateJob(NimburionError):
    """The job `existing_id` holds the unique key; nothing was stored.

    The message does not have the key: it may list arguments, and messages are logged and shown to
    operators who may not see the data of jobs.
    """

    def __init__(self, name: str, unique_key: str, existing_id: str) -> None:
        super().__init__(
            f"job {existing_id} holds the unique key of this job {name!r}; "
            "wait for it, or enqueue with unique=Unique(on_duplicate='existing')"
        )
        self.unique_key = unique_key
        self.existing_id = existing_id


class JobNotFound(NimburionError):
    """There is no record of this id: it was never enqueued here, it was pruned, or the transaction
    that enqueued it is not committed."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"no job {job_id!r} in this backend: never enqueued here, pruned since, or enqueued in "
            "a transaction that is not committed"
        )
        self.job_id = job_id


class NotDeadLetter(JobNotFound):
    """The job is not failed, so it is no dead letter."""

    def __init__(self, job_id: str, state: str) -> None:
        NimburionError.__init__(
            self,
            f"job {job_id!r} is {state}, not failed, so it is no dead letter; "
            "`nimburion jobs show` shows it",
        )
        self.job_id = job_id
        self.state = state


class ScheduleNotFound(NimburionError):
    """There is no schedule of this name in this backend."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no schedule {name!r} in this backend")
        self.name = name


class BulkOperationNotFound(NimburionError):
    """There is no bulk operation with this id in this backend."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            f"no bulk operation {operation_id!r} in this backend: never started here, or older "
            "than the newest 1,000, which are kept"
        )
        self.operation_id = operation_id


class FlowNotFound(NimburionError):
    """There is no flow with this id in this backend, or it was pruned."""

    def __init__(self, flow_id: str) -> None:
        super().__init__(f"no flow {flow_id!r} in this backend: never enqueued here, or pruned")
        self.flow_id = flow_id


class BulkOperationConflict(NimburionError):
    """A bulk operation that does something else already has this id; nothing was started."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            f"the bulk operation {operation_id!r} exists already and does something else; use "
            "another id or Idempotency-Key"
        )
        self.operation_id = operation_id


class WorkerNotFound(NimburionError):
    """No worker has this session: it has ended, or there was none."""

    def __init__(self, session: str) -> None:
        super().__init__(
            f"no worker has the session {session!r}; `nimburion workers list` lists them"
        )
        self.session = session


class LimitNotFound(NimburionError):
    """The backend knows no limit of this name, or the limit was not changed at run time."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class TooManyBulkOperations(NimburionError):
    """The backend keeps no more bulk operations, because the oldest one still runs."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            f"bulk operation {operation_id!r} still runs, and 1,000 newer ones were started; "
            "cancel it, or wait until it is done"
        )
        self.operation_id = operation_id


class JobNotCompleted(NimburionError):
    """`wait` found that the job failed or was cancelled; `state` and `reason` give the details."""

    def __init__(self, job_id: str, state: str, reason: str | None) -> None:
        super().__init__(f"job {job_id} ended as {state}" + (f": {reason}" if reason else ""))
        self.job_id = job_id
        self.state = state
        self.reason = reason


class WaitTimeout(NimburionError, TimeoutError):
    """`wait` reached its timeout; the job continues."""


class ResultNotKept(NimburionError):
    """A job is completed, but it has no result: `wait` and durable functions raise this.

    The result has no JSON form, was too large, was returned after `ctx.transaction()` had
    completed the job, or its record was pruned; `reason` says which. The work is done.
    """

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(f"job {job_id} is completed, but it has no result: {reason}")
        self.job_id = job_id
        self.reason = reason


class NothingRegistered(NimburionError):
    """Jobs are due, but no handler is registered here for any of their names."""


class UseAwait(NimburionError):
    """`processor.sync` was used on the processor's own event loop; await the method instead."""


class NotOpen(NimburionError):
    """A processor or a backend was used before it was opened, or after it was closed."""


class LifespanError(NimburionError):
    """The processor's lifespan failed while it opened, so the worker does not start.

    The error of the application is `__cause__`.
    """


class LeaseLost(NimburionError):
    """The attempt has lost its lease: another worker holds the job, or the job has ended.

    Nothing was written. `LeaseLost` is raised where a handler completes its job in its own
    transaction, which is then rolled back. Any other handler that loses its lease is cancelled. A
    late settlement is logged and emitted as the event `StaleSettlement`.
    """

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"this worker does not hold job {job_id} any more: the transaction was rolled back, "
            "and the worker that holds the job now runs it"
        )
        self.job_id = job_id


class RemoteError(NimburionError):
    """The handler failed in its child process: it raised, or the process died.

    Middleware around a handler with `execution="process"` receives it in place of the handler's own
    exception. `type`, `message` and `traceback` are texts of the original.
    """

    def __init__(self, failure: AttemptError, *, after: float | None = None) -> None:
        text = f"{failure.type}: {failure.message}"
        super().__init__(f"{text}\n{failure.traceback}" if failure.traceback else text)
        self.failure: AttemptError = failure
        """The error of the last attempt."""
        self.after: float | None = after
        """Seconds until the next attempt, if the handler set them."""

    @property
    def type(self) -> str:
        """The name of the original exception's class; `ChildProcessDied` if the process died."""
        return self.failure.type

    @property
    def message(self) -> str:
        """The text of the original exception."""
        return self.failure.message

    @property
    def traceback(self) -> str:
        """The traceback of the original exception, or the last output of a dead process."""
        return self.failure.traceback


class UnusableConnection(NimburionError, ValueError):
    """The backend cannot use the transaction of this caller's connection; nothing was written.

    The driver is unknown, the connection belongs to another database, or no transaction is open.
    The message gives the reason.
    """


class BackendError(NimburionError):
    """The backend rejected the call or failed. `__cause__` is the driver's own error."""


class BackendUnavailable(BackendError):
    """The backend did not answer.

    `outcome` is what the caller may conclude about the write: `not applied`, `applied` or
    `unknown`. `job_id` is the id to enqueue again with, if the call enqueued a single job.
    """

    def __init__(
        self, message: str, *, outcome: Outcome = "unknown", job_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.outcome: Outcome = outcome
        """Whether the call changed something: `not applied`, `applied` or `unknown`."""
        self.job_id = job_id


class EnqueueBlocked(BackendUnavailable):
    """A transaction that is still open enqueued the same id or unique key; nothing was written.

    The backend raises it in place of waiting for that transaction. A client repeats the call.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, outcome="not applied")


class BackendFull(BackendError):
    """The backend has no room left; nothing was written. Writes succeed again once there is
    room.
    """


class BackendReadOnly(BackendError):
    """The backend accepts no writes; nothing was written."""


class BackendCorrupt(BackendError):
    """The data of the backend cannot be read. Nothing was changed; the message gives the next
    step.
    """


class BackendReplaced(BackendError):
    """The file of the backend was deleted or replaced while this process had it open.

    All calls fail until the same file is back, or until the backend is closed and opened again. The
    latest commits before the replacement may be in the file that is gone.
    """


class FormatMismatch(BackendError):
    """Another version of nimburion wrote the data; the message names the command to run."""


class Unstorable(BackendError):
    """The backend can never store this data, so a retry cannot help. Nothing of the call was
    applied.
    """


class SessionLost(BackendError):
    """The session expired and was rescued: its leases are gone, and its id cannot be used again."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id} is not alive in this backend; open a new one")
        self.session_id = session_id


class TransactionExpired(BackendError):
    """A handler's own transaction held the write lock of the backend for too long.

    It was rolled back and nothing was written. Do slow work before the first write.
    """


class OutOfOrder(BackendError):
    """The number of an exchange is neither the last one (a repeat) nor the next one."""


class StepLost(BackendError):
    """Another process has claimed this step of a bulk operation, or the operation has ended.
    Nothing was written.
    """


class NotSupported(BackendError):
    """The backend does not support this operation; see its `Capabilities`."""


class PermanentError(Exception):
    """Raised by a handler: the job failed and no retry can help. The job becomes a dead letter."""


class ChildFailed(NimburionError, PermanentError):
    """A job that a durable run started has failed or was cancelled.

    If the run does not catch it, the run fails for good: another attempt finds the same job.
    """

    def __init__(self, job_id: str, name: str, state: str, reason: str | None = None) -> None:
        super().__init__(
            f"job {name} {job_id} ended as {state}" + (f": {reason}" if reason else "")
        )
        self.job_id: str = job_id
        """The id of the child job."""
        self.name: str = name
        """The name of the job."""
        self.state: str = state
        """`failed` or `cancelled`."""
        self.reason: str | None = reason
        """The class and the text of its last error, or why it was cancelled."""


class InvalidStep(NimburionError, PermanentError):
    """A durable run does what it cannot: it uses a key twice, or a value is too large or has no
    JSON form. The message says what to write.
    """


class StepFailed(NimburionError):
    """A step failed with an error whose class cannot be found again by its module and name.

    A later execution of the run could not raise it. `type` and `message` describe it. In the
    execution in which the step ran, it is `__cause__`.
    """

    def __init__(self, key: str, type: str, message: str) -> None:  # noqa: A002 (as RemoteError)
        super().__init__(f"step {key!r} failed: {type}: {message}")
        self.key: str = key
        """The key of the step."""
        self.type: str = type
        """The name of the original exception's class."""
        self.message: str = message
        """The text of the original exception."""


class TooManySignals(NimburionError):
    """The job has as many unread signals as it may have. Nothing was stored."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"job {job_id} has 1,000 unread signals; send fewer, or let its handler wait for them"
        )
        self.job_id = job_id


class JobSignal(Exception):
    """The base class of what a handler raises to end its attempt other than by a failure."""


class Retry(JobSignal):
    """Count a failure and run the job again after `after`: seconds, a timedelta or a text like
    `5m`. The default is the job's backoff.
    """

    def __init__(self, reason: str = "", *, after: Duration | None = None) -> None:
        if read_seconds(reason) is not None and not isinstance(reason, str):
            raise TypeError(
                f"the reason of Retry is a text; for a delay, write `Retry(after={reason!r})`"
            )
        super().__init__(reason)
        self.reason = reason
        self.after: float | None = to_seconds(after) if after is not None else None
        """Seconds until the next attempt; None: as the job's backoff says."""


class Snooze(JobSignal):
    """Run the job again after `after` (seconds or a timedelta). Counts neither a failure nor a
    loss.
    """

    def __init__(self, after: Duration) -> None:
        super().__init__(f"snoozed for {after}")
        self.after: float = to_seconds(after)
        """Seconds until the job runs again."""


class RateLimitExceeded(JobSignal):
    """Start no job of this name for `retry_after` (seconds or a timedelta), then run this one
    again.

    Counts neither a failure nor a loss. A job whose name has no rate limit waits alone.
    """

    def __init__(self, retry_after: Duration) -> None:
        super().__init__(f"refused for {retry_after}")
        self.retry_after: float = to_seconds(retry_after)
        """Seconds for which no job of this name starts."""


class Cancel(JobSignal):
    """End the job as cancelled."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
