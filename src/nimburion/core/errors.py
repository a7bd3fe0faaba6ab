"""Every error nimburion raises, in one tree, and the signals a handler may raise.

```
NimburionError
├── ConfigurationError        a setting is wrong: where it stands and what is allowed
├── DefinitionError           a job class, function or handler cannot be what it claims to be
├── InvalidJob                a job that must not be stored as it is (also a ValueError)
├── JobConflict               this id already belongs to another body
├── DuplicateJob              the unique key is held by another job
├── JobNotFound               no record of that id
├── ScheduleNotFound          no schedule of that name
├── JobNotCompleted           wait(): the job ended, but not as completed
├── WaitTimeout               wait(): it has not ended in time (also a TimeoutError)
├── NothingRegistered         drain(), process_one(): work is due, but none that is known here
├── UseAwait                  processor.sync was called on the processor's own loop
├── NotOpen                   a processor or store was used before open or after close
├── LeaseLost                 this worker does not own that job any more
├── UnusableConnection               this connection's transaction cannot be joined (also a
ValueError) └── BackendError              the backend; the driver's own error is the __cause__
    ├── BackendUnavailable    no answer; `.outcome` says what may be concluded
    ├── BackendFull             no room: nothing was written
    ├── BackendReadOnly         the backend takes no writes: nothing was written
    ├── BackendCorrupt          the backend's data cannot be read
    ├── BackendReplaced       its file was deleted or replaced while it was open
    ├── FormatMismatch        written by another version of nimburion
    ├── Unstorable            this data cannot be stored, by anyone, ever: nothing was written
    ├── SessionLost           the session expired and was rescued; its id never lives again
    ├── TransactionExpired    a handler's own transaction took too long and was rolled back
    ├── OutOfOrder            an exchange number that is neither the next nor the last
    └── NotSupported          this backend cannot do that

PermanentError                raised by a handler: failed, and no retry will help
JobSignal                     raised by a handler: not an error
├── Retry                     count a failure, come back after a stated delay
├── Snooze                    come back later, count nothing
└── Cancel                    end as cancelled
```
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

Outcome = Literal["not applied", "applied", "unknown"]
"""What the caller of an unanswered write may conclude."""


class NimburionError(Exception):
    """The root of everything nimburion raises on purpose."""


class ConfigurationError(NimburionError):
    """A setting is wrong. The message names file, line, key path and what is allowed."""


class DefinitionError(NimburionError):
    """A job class, a job function or a handler is not usable as declared."""


class InvalidJob(NimburionError, ValueError):
    """The job cannot be enqueued as given. The message names the field and what was expected."""


class JobConflict(NimburionError):
    """`job_id` already belongs to a job with another name or payload; nothing was stored."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"job id {job_id!r} already belongs to a job with another name or payload; "
            "use a new id, or the same arguments"
        )
        self.job_id = job_id


class DuplicateJob(NimburionError):
    """The unique key is held by the job `existing_id`; nothing was stored."""

    def __init__(self, name: str, unique_key: str, existing_id: str) -> None:
        super().__init__(
            f"unique key {unique_key!r} of {name!r} is held by job {existing_id}; "
            "wait for it, or enqueue with on_duplicate='existing'"
        )
        self.unique_key = unique_key
        self.existing_id = existing_id


class JobNotFound(NimburionError):
    """There is no record of this id: never enqueued here, or pruned since."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r} in this backend: never enqueued here, or pruned since")
        self.job_id = job_id


class ScheduleNotFound(NimburionError):
    """There is no schedule of this name in this backend."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no schedule {name!r} in this backend")
        self.name = name


class JobNotCompleted(NimburionError):
    """`wait` saw the job end as failed or cancelled; `state` and `reason` say which and why."""

    def __init__(self, job_id: str, state: str, reason: str | None) -> None:
        super().__init__(f"job {job_id} ended as {state}" + (f": {reason}" if reason else ""))
        self.job_id = job_id
        self.state = state
        self.reason = reason


class WaitTimeout(NimburionError, TimeoutError):
    """`wait` gave up; the job goes on."""


class NothingRegistered(NimburionError):
    """Jobs are due, but none of a name that is registered here."""


class UseAwait(NimburionError):
    """`processor.sync` was used on the loop that owns the processor: await the method instead."""


class NotOpen(NimburionError):
    """A processor or a backend was used before it was opened, or after it was closed."""


class LeaseLost(NimburionError):
    """The job this attempt works on belongs to another worker now, or has ended; nothing was
    written.

    Raised where a handler completes its job in its own transaction, which is rolled back. All other
    handlers that lose their lease are cancelled, and a late settlement is logged and told as the
    event `StaleSettlement`.
    """

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"this worker does not hold job {job_id} any more: the transaction was rolled back, "
            "and whoever holds the job now does its work"
        )
        self.job_id = job_id


class UnusableConnection(NimburionError, ValueError):
    """This connection's transaction cannot be joined: it is of an unknown driver or of another
    database, or no transaction is open. The message says which; nothing was written."""


class BackendError(NimburionError):
    """The backend refused or failed. The driver's own error is kept as `__cause__`."""


class BackendUnavailable(BackendError):
    """The backend did not answer.

    `outcome` is what the caller may conclude about the write: `not applied`, `applied` or
    `unknown`; `job_id` is the id to ask for again, where one job was enqueued.
    """

    def __init__(
        self, message: str, *, outcome: Outcome = "unknown", job_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.outcome: Outcome = outcome
        self.job_id = job_id


class BackendFull(BackendError):
    """The backend has no room left; nothing was written. It recovers when there is room again."""


class BackendReadOnly(BackendError):
    """The backend takes no writes; nothing was written."""


class BackendCorrupt(BackendError):
    """What the backend holds cannot be read. Nothing was changed; see the message for what to
    do."""


class BackendReplaced(BackendError):
    """The file of the backend was deleted or replaced while this process had it open. Everything
    is refused until the same file is back, or the backend is closed and opened again. What was
    committed in the last moment before may lie in the file that is gone."""


class FormatMismatch(BackendError):
    """The backend was written by another version of nimburion; the message names the command."""


class Unstorable(BackendError):
    """The data itself is refused: trying again cannot help. Nothing of the call was applied."""


class SessionLost(BackendError):
    """The session expired and was rescued: its leases are gone and its id never lives again."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id} is not alive in this backend; open a new one")
        self.session_id = session_id


class TransactionExpired(BackendError):
    """A handler's own transaction held the backend's write lock for too long and was rolled back;
    nothing was written. Do slow work before the first write."""


class OutOfOrder(BackendError):
    """An exchange number must be the last one (a repeat) or the one after it."""


class NotSupported(BackendError):
    """This backend cannot do that; `Capabilities` says what it can."""


class PermanentError(Exception):
    """Raised by a handler: this job failed and no retry will help. It becomes a dead letter."""


class JobSignal(Exception):
    """What a handler raises to say how its attempt ended, other than by failing."""


class Retry(JobSignal):
    """Count a failure and try again after `after` seconds (or a timedelta; default: backoff)."""

    def __init__(self, reason: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after: float | None = to_seconds(after) if after is not None else None


class Snooze(JobSignal):
    """Come back after `for_` seconds (or a timedelta); counts neither as failure nor as loss."""

    def __init__(self, for_: float | timedelta) -> None:
        super().__init__(f"snoozed for {for_}")
        self.for_: float = to_seconds(for_)


class Cancel(JobSignal):
    """End this job as cancelled."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


def to_seconds(duration: float | timedelta) -> float:
    """The duration in seconds; negative ones count as zero."""
    if isinstance(duration, timedelta):
        return max(0.0, duration.total_seconds())
    return max(0.0, float(duration))
