"""Bulk operations: start, claim and advance them. Each call runs in one `AtomicStep`."""

from __future__ import annotations

import msgspec

from nimburion.backends.memory import operations
from nimburion.backends.memory.state import MICRO, to_micros
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.core.bulk_operations import (
    BulkAction,
    BulkOperation,
    BulkOperationPage,
    BulkState,
    BulkStep,
    Claim,
    NewBulkOperation,
    compute_next_due,
)
from nimburion.core.errors import (
    BulkOperationNotFound,
    InvalidJob,
    JobNotFound,
    StepLost,
    TooManyBulkOperations,
)
from nimburion.core.operations import Cancellation
from nimburion.core.queries import JobFilter


def start(step: AtomicStep, new: NewBulkOperation, keep: int) -> BulkOperation:
    """See `Maintaining.start_bulk_operation`."""
    kept = step.state.bulk_operations
    if new.id in kept:
        return kept[new.id]
    if len(kept) >= keep:
        oldest = next(iter(kept.values()))
        if oldest.state is BulkState.RUNNING:
            raise TooManyBulkOperations(oldest.id)
        del kept[oldest.id]
    now = step.now / MICRO
    operation = BulkOperation(**msgspec.structs.asdict(new), started_at=now, due=now)
    kept[new.id] = operation
    return operation


def claim(step: AtomicStep, ttl: float) -> Claim:
    """See `Maintaining.claim_bulk_operation`."""
    running = [
        (_find_claimable_time(operation), operation)
        for operation in step.state.bulk_operations.values()
        if operation.state is BulkState.RUNNING
    ]
    if not running:
        return Claim(None)
    at, operation = min(running, key=lambda found: found[0])
    if at > step.now:
        return Claim(None, (at - step.now) / MICRO)
    claimed = msgspec.structs.replace(
        operation,
        fence=operation.fence + 1,
        leased_until=(step.now + to_micros(ttl)) / MICRO,
    )
    step.state.bulk_operations[operation.id] = claimed
    return Claim(claimed)


def _find_claimable_time(operation: BulkOperation) -> int:
    return max(to_micros(operation.due), to_micros(operation.leased_until or 0.0))


def advance(atomic: AtomicStep, operation_id: str, fence: int, step: BulkStep) -> BulkOperation:
    """See `Maintaining.advance_bulk_operation`."""
    operation = get(atomic, operation_id)
    if operation.fence != fence:
        raise StepLost(f"bulk operation {operation_id!r}: step {fence} was claimed again, or ended")
    if operation.leased_until is None:
        return operation
    done, failed = _change_jobs(atomic, operation.action, step.ids)
    due = compute_next_due(to_micros(operation.due), atomic.now, done, operation.rate)
    advanced = msgspec.structs.replace(
        operation,
        state=step.end or operation.state,
        ended_at=atomic.now / MICRO if step.end else None,
        done=operation.done + done,
        skipped=operation.skipped + len(step.ids) - done - failed,
        failed=operation.failed + failed,
        error=step.error or operation.error,
        cursor=step.cursor,
        exhausted=step.exhausted,
        due=due / MICRO,
        leased_until=None,
    )
    atomic.state.bulk_operations[operation_id] = advanced
    return advanced


def _change_jobs(step: AtomicStep, action: BulkAction, ids: tuple[str, ...]) -> tuple[int, int]:
    """Change the jobs; return how many were changed, and how many could not be."""
    which, most = JobFilter(ids=ids), len(ids)
    if action is BulkAction.REPLAY:
        replayed = operations.replay(step, which, most, None)
        return len(replayed.ids), len(replayed.held)
    if action is BulkAction.RUN_NOW:
        return len(operations.make_due(step, ids)), 0
    if action is BulkAction.DELETE:
        return len(operations.delete(step, which, most)), 0
    return sum(_cancel(step, job_id) for job_id in ids), 0


def _cancel(step: AtomicStep, job_id: str) -> bool:
    try:
        return operations.cancel(step, job_id) is not Cancellation.FINISHED
    except JobNotFound:
        return False


def cancel(step: AtomicStep, operation_id: str) -> BulkOperation:
    """See `Maintaining.cancel_bulk_operation`."""
    operation = get(step, operation_id)
    if operation.state is BulkState.RUNNING:
        operation = msgspec.structs.replace(
            operation,
            state=BulkState.CANCELLED,
            ended_at=step.now / MICRO,
            fence=operation.fence + 1,
            leased_until=None,
        )
        step.state.bulk_operations[operation_id] = operation
    return operation


def get(step: AtomicStep, operation_id: str) -> BulkOperation:
    """See `Inspecting.get_bulk_operation`."""
    operation = step.state.bulk_operations.get(operation_id)
    if operation is None:
        raise BulkOperationNotFound(operation_id)
    return operation


def list_page(step: AtomicStep, limit: int, after: str | None) -> BulkOperationPage:
    """See `Inspecting.list_bulk_operations`. The cursor is the id of the last one of the page."""
    kept = list(reversed(step.state.bulk_operations.values()))
    start_at = 0
    if after is not None:
        if after not in step.state.bulk_operations:
            raise InvalidJob(f"{after!r} is not the `next` of a page of this backend")
        start_at = next(n for n, operation in enumerate(kept) if operation.id == after) + 1
    page = kept[start_at : start_at + limit]
    has_more = start_at + limit < len(kept)
    return BulkOperationPage(page, page[-1].id if has_more and page else None)
