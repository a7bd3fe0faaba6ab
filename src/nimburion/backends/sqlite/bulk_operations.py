"""Bulk operations: start, claim, advance, cancel and read them."""

from __future__ import annotations

from typing import Any

import msgspec

from nimburion.backends.sqlite import operations
from nimburion.backends.sqlite.connection.database import MICRO, Database, to_micros
from nimburion.backends.sqlite.queries import parse_position
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
    JobNotFound,
    StepLost,
    TooManyBulkOperations,
)
from nimburion.core.operations import Cancellation
from nimburion.core.queries import JobFilter

_encode = msgspec.json.Encoder().encode
_decode_new = msgspec.json.Decoder(NewBulkOperation).decode


def start(db: Database, new: NewBulkOperation, keep: int) -> BulkOperation:
    """See `Maintaining.start_bulk_operation`."""
    row = db.fetch_one("get_bulk_operation", new.id)
    if row is not None:
        return _make_operation(row)
    surplus = db.fetch_one("find_surplus_bulk_operation", keep)
    if surplus is not None:
        number, oldest, state = surplus
        if state == BulkState.RUNNING:
            raise TooManyBulkOperations(oldest)
        db.run("delete_bulk_operation", number)
    db.run("add_bulk_operation", new.id, _encode(new).decode(), db.now)
    return get(db, new.id)


def find_wait(db: Database) -> Claim | None:
    """Return the claim of a moment in which no step is due; None: one is due."""
    row = db.fetch_one("find_next_bulk_operation")
    if row is None:
        return Claim(None)
    return Claim(None, (row[1] - db.now) / MICRO) if row[1] > db.now else None


def claim(db: Database, ttl: float) -> Claim:
    """See `Maintaining.claim_bulk_operation`."""
    row = db.fetch_one("find_next_bulk_operation")
    if row is None:
        return Claim(None)
    operation_id, claimable = row
    if claimable > db.now:
        return Claim(None, (claimable - db.now) / MICRO)
    db.run("claim_bulk_operation", operation_id, db.now + to_micros(ttl))
    return Claim(get(db, operation_id))


def advance(db: Database, operation_id: str, fence: int, step: BulkStep) -> BulkOperation:
    """See `Maintaining.advance_bulk_operation`."""
    operation = get(db, operation_id)
    if operation.fence != fence:
        raise StepLost(f"bulk operation {operation_id!r}: step {fence} was claimed again, or ended")
    if operation.leased_until is None:
        return operation
    done, failed = _change_jobs(db, operation.action, step.ids)
    db.run(
        "advance_bulk_operation",
        operation_id,
        done,
        len(step.ids) - done - failed,
        failed,
        step.cursor,
        step.exhausted,
        compute_next_due(to_micros(operation.due), db.now, done, operation.rate),
        step.end or operation.state,
        db.now if step.end else None,
        step.error,
    )
    return get(db, operation_id)


def _change_jobs(db: Database, action: BulkAction, ids: tuple[str, ...]) -> tuple[int, int]:
    """Change the jobs; return how many were changed, and how many could not be."""
    if not ids:
        return 0, 0
    which, most = JobFilter(ids=ids), len(ids)
    if action is BulkAction.REPLAY:
        replayed = operations.replay(db, which, most, None)
        return len(replayed.ids), len(replayed.held)
    if action is BulkAction.RUN_NOW:
        return len(operations.make_due(db, ids)), 0
    if action is BulkAction.DELETE:
        return len(operations.delete(db, which, most)), 0
    return sum(_cancel(db, job_id) for job_id in ids), 0


def _cancel(db: Database, job_id: str) -> bool:
    try:
        return operations.cancel(db, job_id) is not Cancellation.FINISHED
    except JobNotFound:
        return False


def cancel(db: Database, operation_id: str) -> BulkOperation:
    """See `Maintaining.cancel_bulk_operation`."""
    db.run("cancel_bulk_operation", operation_id, db.now)
    return get(db, operation_id)


def get(db: Database, operation_id: str) -> BulkOperation:
    """See `Inspecting.get_bulk_operation`."""
    row = db.fetch_one("get_bulk_operation", operation_id)
    if row is None:
        raise BulkOperationNotFound(operation_id)
    return _make_operation(row)


def list_page(db: Database, limit: int, after: str | None) -> BulkOperationPage:
    """See `Inspecting.list_bulk_operations`."""
    rows = db.run("list_bulk_operations", parse_position(after), limit + 1).fetchall()
    has_more = len(rows) > limit > 0
    found = [_make_operation(row) for row in rows[:limit]]
    return BulkOperationPage(found, str(rows[limit - 1][0]) if has_more else None)


def _make_operation(row: tuple[Any, ...]) -> BulkOperation:
    (
        _, body, state, started_at, ended_at, done, skipped, failed, error, cursor, exhausted, due,
        fence, leased_until,
    ) = row  # fmt: skip
    return BulkOperation(
        **msgspec.structs.asdict(_decode_new(body)),
        state=BulkState(state),
        started_at=started_at / MICRO,
        ended_at=None if ended_at is None else ended_at / MICRO,
        done=done,
        skipped=skipped,
        failed=failed,
        error=error,
        cursor=cursor,
        exhausted=bool(exhausted),
        due=due / MICRO,
        fence=fence,
        leased_until=None if leased_until is None else leased_until / MICRO,
    )
