"""Bulk operations: replay, make due, cancel or delete all jobs that match a filter, step by step.

An operator starts a bulk operation. The backend keeps it, and any process continues it step by step
until no more jobs match. See decision 0028.
"""

from __future__ import annotations

import enum
import math
from types import MappingProxyType

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.job import FAILED_ONLY, FINISHED, UNFINISHED, State
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.core.size_limits import check_name

MAX_STEP = 500
"""The maximum number of jobs that one step changes."""
MAX_IDS = 1_000
"""The maximum number of ids in the filter of a bulk operation."""
MAX_CATCH_UP = 1.0
"""An operation with a rate makes up for delays of at most this many seconds."""
_MICRO = 1_000_000
_MAX_RATE = 1_000_000.0
_MIN_RATE = 0.001


class BulkAction(enum.StrEnum):
    """What a bulk operation does with each job."""

    REPLAY = "replay"
    """Make a dead letter pending again, as `Maintaining.replay` does."""
    RUN_NOW = "run_now"
    """Make a job due that waits for a later time, as `Maintaining.make_due` does."""
    CANCEL = "cancel"
    """Cancel an unfinished job, as `Producing.cancel` does."""
    DELETE = "delete"
    """Delete a finished job permanently, as `Maintaining.delete` does."""

    @property
    def states(self) -> frozenset[State]:
        """The states of the jobs that the action can change."""
        return _STATES[self]


_STATES = MappingProxyType(
    {
        BulkAction.REPLAY: FAILED_ONLY,
        BulkAction.RUN_NOW: frozenset({State.SCHEDULED, State.RETRYING}),
        BulkAction.CANCEL: UNFINISHED,
        BulkAction.DELETE: FINISHED,
    }
)


class BulkState(enum.StrEnum):
    """The state of a bulk operation."""

    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    """An operator ended it. What it had changed stays changed."""
    FAILED = "failed"
    """It cannot continue; `error` says why."""


class NewBulkOperation(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk operation to start."""

    id: str
    """Chosen by the caller, so that starting it again changes nothing."""
    action: BulkAction
    which: JobFilter = EVERY_JOB
    """The jobs to change; all fields are allowed, those without an index too."""
    by: str = ""
    """Who started it: the name of a token, or the user and host of a command."""
    origin: str = ""
    """Through what: `cli`, `api`, `dashboard` or `python`."""
    rate: float | None = None
    """The maximum number of jobs that it changes per second; None: as fast as it can."""
    limit: int | None = None
    """The maximum number of jobs that it changes; None: all that match."""

    @property
    def step_size(self) -> int:
        """The number of jobs of one step: those of one second, at most `MAX_STEP`."""
        return MAX_STEP if self.rate is None else max(1, min(MAX_STEP, math.ceil(self.rate)))

    def check(self) -> None:
        """Check the values before a backend stores them.

        Raises:
            InvalidJob: a value is outside of its range, or the filter excludes every job that the
                action can change.
        """
        check_name("id", self.id)
        if self.rate is not None and not _MIN_RATE <= self.rate <= _MAX_RATE:
            raise InvalidJob(
                f"rate: {self.rate} jobs per second; choose {_MIN_RATE:g} to {_MAX_RATE:g}"
            )
        if self.limit is not None and self.limit < 1:
            raise InvalidJob(f"limit: {self.limit} jobs; choose at least 1, or leave it out")
        if self.which.ids is not None and len(self.which.ids) > MAX_IDS:
            raise InvalidJob(f"ids: {len(self.which.ids)} ids; give at most {MAX_IDS}, or a filter")
        if not narrow_to_action(self.which, self.action).states:
            states = ", ".join(sorted(self.action.states))
            raise InvalidJob(f"states: {self.action} changes only jobs that are {states}")


def narrow_to_action(which: JobFilter, action: BulkAction) -> JobFilter:
    """Return the filter, limited to the states of jobs that the action can change."""
    states = action.states if which.states is None else which.states & action.states
    return msgspec.structs.replace(which, states=states)


class BulkOperation(NewBulkOperation, frozen=True, kw_only=True):
    """A bulk operation that a backend keeps, with its progress.

    Times are epoch seconds on the backend's clock.
    """

    state: BulkState = BulkState.RUNNING
    started_at: float = 0.0
    ended_at: float | None = None
    done: int = 0
    """Jobs that it replayed, cancelled or deleted; a cancel request to a worker counts too."""
    skipped: int = 0
    """Jobs that matched, but had another state, or were deleted, when their step came."""
    failed: int = 0
    """Dead letters that could not be replayed, because another job holds their unique key."""
    error: str = ""
    """The last error, on one line."""
    cursor: str | None = None
    """Where the next step continues, as the `next` of a page of `list_jobs`; None: at the start."""
    exhausted: bool = False
    """All jobs that match were processed. The next step only ends the operation."""
    due: float = 0.0
    """When the next step may run; later than now if the operation has a rate."""
    fence: int = 0
    """The number of claims. A step is written only under the number of the last claim."""
    leased_until: float | None = None
    """Until when a process has claimed the next step; None: it is free."""

    @property
    def step_filter(self) -> JobFilter:
        """The filter of the jobs to change. It leaves out jobs that came after the start, and dead
        letters that failed after it.
        """
        which = narrow_to_action(self.which, self.action)
        until = self.started_at + 1 / _MICRO
        if self.action in {BulkAction.CANCEL, BulkAction.RUN_NOW}:
            return msgspec.structs.replace(which, created_to=_find_earlier(which.created_to, until))
        return msgspec.structs.replace(which, finished_to=_find_earlier(which.finished_to, until))

    @property
    def next_step_size(self) -> int:
        """The number of jobs of the next step; `limit` may leave fewer than `step_size`."""
        return self.step_size if self.limit is None else min(self.step_size, self.limit - self.done)

    @property
    def has_finished_work(self) -> bool:
        """Whether only its end is left: all matching jobs are processed, or `limit` is reached."""
        return self.exhausted or (self.limit is not None and self.done >= self.limit)


def _find_earlier(time: float | None, other: float) -> float:
    return other if time is None else min(time, other)


def compute_next_due(due: int, now: int, done: int, rate: float | None) -> int:
    """Return when the step after one that changed `done` jobs may run. Times are in microseconds.

    `due` is when the step was due. A step that came late shortens the pause, but by no more than
    `MAX_CATCH_UP`.
    """
    pause = 0 if rate is None else math.floor(done * _MICRO / rate + 0.5)
    return max(due, now - round(MAX_CATCH_UP * _MICRO)) + pause


class Claim(msgspec.Struct, frozen=True):
    """The result of one attempt to claim a step."""

    operation: BulkOperation | None
    """The operation whose next step the caller runs now; None: no step is due."""
    wait: float | None = None
    """Without an operation: seconds until a step is due; None: no operation is running."""


class BulkStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a bulk operation: the jobs to change, and where the next step continues."""

    ids: tuple[str, ...] = ()
    """At most `MAX_STEP` jobs, each once."""
    cursor: str | None = None
    exhausted: bool = False
    end: BulkState | None = None
    """Set to `done` or `failed`: this is the last step."""
    error: str = ""
    """Replaces the last error, unless it is empty."""

    def check(self) -> None:
        """Check the ids before a backend runs the step.

        Raises:
            InvalidJob: there are more than `MAX_STEP` ids, or one of them twice.
        """
        if len(self.ids) > MAX_STEP or len(set(self.ids)) < len(self.ids):
            raise InvalidJob(
                f"a step has {len(self.ids)} ids, {len(set(self.ids))} of them different; "
                f"give at most {MAX_STEP}, each once"
            )


class BulkOperationPage(msgspec.Struct, frozen=True):
    """A page of bulk operations, newest first. `next`: the cursor of the next page; None: last."""

    operations: list[BulkOperation]
    next: str | None = None
