"""Bulk operations: replay, make due, cancel or delete all jobs that match a filter, step by step.

An operator starts a bulk operation. The backend keeps its record, and any process continues it step
by step until no more jobs match. See decision 0028.

The due time of the record says when the next step can be claimed. A claim moves it behind the time
of the claim, and a process that does not write its step loses it then. An operation that has ended
has no due time.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from nimburion.core.errors import (
    BulkOperationNotFound,
    InvalidJob,
    StepLost,
    TooManyBulkOperations,
)
from nimburion.core.job import FAILED_ONLY, FINISHED, UNFINISHED, State
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.core.records import NewRecord, Record, RecordChange, encode_body
from nimburion.core.size_limits import check_name
from nimburion.core.timing.clock import MICRO

if TYPE_CHECKING:
    from nimburion.core.backend import Backend

MAX_BULK_OPERATIONS = 1_000
"""The number of bulk operations that a backend keeps, the newest ones."""
MAX_CATCH_UP = 1.0
"""An operation with a rate makes up for delays of at most this many seconds."""
MAX_STEP = 500
"""The maximum number of jobs that one step changes."""
MAX_IDS = 1_000
"""The maximum number of ids in the filter of a bulk operation."""
_MAX_RATE = 1_000_000.0
_MIN_RATE = 0.001


class BulkAction(enum.StrEnum):
    """What a bulk operation does with each job."""

    REPLAY = "replay"
    """Make a dead letter pending again."""
    RUN_NOW = "run_now"
    """Make a job due that waits for a later time."""
    CANCEL = "cancel"
    """Cancel an unfinished job."""
    DELETE = "delete"
    """Delete a finished job permanently."""

    @property
    def states(self) -> frozenset[State]:
        """The states of the jobs that the action can change."""
        return _STATES[self]

    def narrow_states(self, states: Collection[State] | None) -> frozenset[State]:
        """Return those of these states whose jobs the action can change; None: of all states."""
        return self.states if states is None else self.states.intersection(states)


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
    return msgspec.structs.replace(which, states=action.narrow_states(which.states))


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
    version: int = 0
    """The version of its record. A step is written only under the version that its claim made."""

    @property
    def step_filter(self) -> JobFilter:
        """The filter of the jobs to change. It leaves out jobs that came after the start, and dead
        letters that failed after it.
        """
        which = narrow_to_action(self.which, self.action)
        until = self.started_at + 1 / MICRO
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


class Claim(msgspec.Struct, frozen=True):
    """The result of one attempt to claim a step."""

    operation: BulkOperation | None
    """The operation whose next step the caller runs now; None: no step is due."""
    wait: float | None = None
    """Without an operation: seconds until a step is due; None: no operation is running."""
    now: float = 0.0
    """The time of the claim, in epoch seconds on the backend's clock."""


class BulkStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a bulk operation: the jobs to change, and where the next step continues."""

    ids: tuple[str, ...] = ()
    """At most `MAX_STEP` jobs, each once."""
    cursor: str | None = None
    exhausted: bool = False


def check_job_ids(job_ids: Sequence[str]) -> None:
    """Check the ids before a backend changes their jobs.

    Raises:
        InvalidJob: there are more than `MAX_STEP` ids, or one of them twice.
    """
    if len(job_ids) > MAX_STEP or len(set(job_ids)) < len(job_ids):
        raise InvalidJob(
            f"a step has {len(job_ids)} ids, {len(set(job_ids))} of them different; "
            f"give at most {MAX_STEP}, each once"
        )


class BulkOperationPage(msgspec.Struct, frozen=True):
    """A page of bulk operations, newest first. `next`: the cursor of the next page; None: last."""

    operations: list[BulkOperation]
    next: str | None = None


class _OperationBody(NewBulkOperation, frozen=True, kw_only=True):
    """The body of the record of a bulk operation: what its columns do not say."""

    state: BulkState
    ended_at: float | None
    error: str
    cursor: str | None
    exhausted: bool
    examined: int
    """The number of jobs of all steps."""
    due: float | None
    """When the next step may run, while it is claimed; None: when the record is due."""


_decode = msgspec.json.Decoder(_OperationBody).decode


async def start_bulk_operation(
    backend: Backend, new: NewBulkOperation, *, keep: int = MAX_BULK_OPERATIONS
) -> BulkOperation:
    """Store a bulk operation, and return it as it is kept.

    Some process then claims and runs its steps. If an operation with this id is kept, the call
    changes nothing and returns that one. The backend keeps the newest `keep` operations.

    Raises:
        InvalidJob: `new.check` rejects a value.
        TooManyBulkOperations: the oldest operation, which would be deleted, still runs.
    """
    new.check()
    operation = BulkOperation(**msgspec.structs.asdict(new))
    record = _make_record(operation, due=await backend.now())
    put = await backend.maintenance.put_record(record, version=0, keep=keep)
    if put.record is None:  # it was deleted at this moment
        raise BulkOperationNotFound(new.id)
    if put.outcome == "full":
        raise TooManyBulkOperations(put.record.id)
    return _make_operation(put.record)


async def claim_bulk_operation(backend: Backend, ttl: float) -> Claim:
    """Claim the next step of the running operation that has been due for the longest time.

    No other call claims this step for `ttl` seconds. After that, the claim stays valid until
    another process claims the step.
    """
    while True:
        page = await backend.reads.list_records("bulk_operation", limit=1, by_due=True)
        if not page.records:
            return Claim(None)
        (record,) = page.records
        wait = (record.due or 0.0) - page.now
        if wait > 0:
            return Claim(None, wait, page.now)
        claimed = _make_record(
            operation := _make_operation(record), due=page.now + ttl, operation_due=operation.due
        )
        put = await backend.maintenance.put_record(claimed, version=record.version)
        if put.outcome == "stored" and put.record is not None:
            return Claim(_make_operation(put.record), None, page.now)


async def run_bulk_step(backend: Backend, claim: Claim, step: BulkStep) -> BulkOperation:
    """Run a claimed step: change its jobs and record the progress, in one atomic step.

    Jobs whose state the filter or the action excludes by now count as skipped. The step ends the
    claim. With a rate, the next step becomes due `done / rate` seconds after this one was due, but
    is at most `MAX_CATCH_UP` seconds early.

    Raises:
        InvalidJob: there are too many ids, or one of them twice.
        StepLost: another process claimed or wrote the step, or the operation was cancelled. Nothing
            was written.
    """
    operation = _get_claimed(claim)
    advanced = _make_record(
        msgspec.structs.replace(
            operation,
            cursor=step.cursor,
            exhausted=step.exhausted,
            skipped=operation.skipped + len(step.ids),
        ),
        due=max(operation.due, claim.now - MAX_CATCH_UP),
    )
    change = RecordChange(
        **msgspec.structs.asdict(advanced),
        version=operation.version,
        pause=0.0 if operation.rate is None else 1 / operation.rate,
    )
    changes = await backend.maintenance.change_jobs(
        operation.action, step.ids, change, states=operation.step_filter.states
    )
    return _require_written(operation, changes.record)


async def end_bulk_operation(
    backend: Backend, claim: Claim, state: BulkState, error: str = ""
) -> BulkOperation:
    """End a claimed operation: it is done or has failed. Raises `StepLost` as `run_bulk_step`."""
    operation = _get_claimed(claim)
    ended = msgspec.structs.replace(
        operation, state=state, ended_at=await backend.now(), error=error or operation.error
    )
    record = _make_record(ended, due=None, operation_due=operation.due)
    put = await backend.maintenance.put_record(record, version=operation.version)
    return _require_written(operation, put.record if put.outcome == "stored" else None)


async def cancel_bulk_operation(backend: Backend, operation_id: str) -> BulkOperation:
    """End a running operation as cancelled, and return it. A step that was claimed is lost.

    An operation that has ended stays as it is.

    Raises:
        BulkOperationNotFound: there is no operation with this id.
    """
    operation = await get_bulk_operation(backend, operation_id)
    while operation.state is BulkState.RUNNING:
        ended = msgspec.structs.replace(
            operation, state=BulkState.CANCELLED, ended_at=await backend.now()
        )
        put = await backend.maintenance.put_record(
            _make_record(ended, due=None, operation_due=operation.due), version=operation.version
        )
        operation = _require_operation(put.record, operation_id)
    return operation


async def get_bulk_operation(backend: Backend, operation_id: str) -> BulkOperation:
    """Return a bulk operation.

    Raises:
        BulkOperationNotFound: there is no operation with this id.
    """
    return _require_operation(
        await backend.reads.get_record("bulk_operation", operation_id), operation_id
    )


async def list_bulk_operations(
    backend: Backend, *, limit: int = 100, after: str | None = None
) -> BulkOperationPage:
    """Return a page of bulk operations, most recently started first.

    `after` is the `next` of the previous page. Raises `InvalidJob` if it is not.
    """
    page = await backend.reads.list_records("bulk_operation", limit=limit, after=after)
    return BulkOperationPage([_make_operation(record) for record in page.records], page.next)


def _get_claimed(claim: Claim) -> BulkOperation:
    if claim.operation is None:
        raise StepLost("no step was claimed")
    return claim.operation


def _require_written(operation: BulkOperation, record: Record | None) -> BulkOperation:
    if record is None:
        raise StepLost(f"bulk operation {operation.id!r}: the step was claimed again, or ended")
    return _make_operation(record)


def _require_operation(record: Record | None, operation_id: str) -> BulkOperation:
    if record is None:
        raise BulkOperationNotFound(operation_id)
    return _make_operation(record)


def _make_record(
    operation: BulkOperation, *, due: float | None, operation_due: float | None = None
) -> NewRecord:
    """Return the record of an operation. Backends add the numbers of jobs and the times."""
    body = _OperationBody(
        **{field: getattr(operation, field) for field in _SAME_FIELDS},
        examined=operation.done + operation.skipped + operation.failed,
        due=operation_due,
    )
    return NewRecord(kind="bulk_operation", id=operation.id, body=encode_body(body), due=due)


def _make_operation(record: Record) -> BulkOperation:
    body = _decode(record.body)
    return BulkOperation(
        **{field: getattr(body, field) for field in _SAME_FIELDS},
        started_at=record.created_at,
        done=record.changed,
        skipped=body.examined - record.changed - record.held,
        failed=record.held,
        due=(record.due or 0.0) if body.due is None else body.due,
        version=record.version,
    )


_SAME_FIELDS = tuple(
    field
    for field in _OperationBody.__struct_fields__
    if field in BulkOperation.__struct_fields__ and field != "due"
)
