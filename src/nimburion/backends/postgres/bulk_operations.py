"""Bulk operations: encode the arguments and decode the rows of the functions."""

from __future__ import annotations

from typing import Any

import msgspec

from nimburion.backends.postgres.encoding import (
    MAX_INT8,
    encode_text,
    reject_unstorable_text,
    to_optional_seconds,
    to_seconds,
)
from nimburion.backends.server.encoding import encode_id_or_empty, encode_json
from nimburion.core.bulk_operations import (
    BulkOperation,
    BulkOperationPage,
    BulkState,
    BulkStep,
    NewBulkOperation,
)
from nimburion.core.errors import BulkOperationNotFound, StepLost

_decode_new = msgspec.json.Decoder(NewBulkOperation).decode

COLUMNS = """position, id, body, state, started_at, ended_at, done, skipped, failed, error,
    continue_after, exhausted, due, fence, leased_until"""
"""The columns of `bulk_operation`, in the order in which `decode_operation` expects them."""


@reject_unstorable_text
def encode_new(operation: NewBulkOperation, keep: int) -> list[Any]:
    """Return the arguments of `start_bulk_operation_1` after the time."""
    body = encode_json(operation).decode()
    return [encode_text(operation.id), body, keep]


@reject_unstorable_text
def encode_step(operation_id: str, fence: int, step: BulkStep) -> list[Any]:
    """Return the arguments of `advance_bulk_operation_1` after the time."""
    return [
        encode_text(operation_id),
        fence if 0 <= fence <= MAX_INT8 else -1,
        [encode_id_or_empty(job_id) for job_id in step.ids],
        None if step.cursor is None else encode_text(step.cursor),
        step.exhausted,
        step.end,
        encode_text(step.error),
    ]


def decode_advanced(outcome: str, columns: list[Any], operation_id: str) -> BulkOperation:
    """Decode the result of `advance_bulk_operation_1`.

    Raises:
        BulkOperationNotFound: there is no such operation.
        StepLost: the fence is not that of the last claim.
    """
    if outcome == "lost":
        raise StepLost(f"bulk operation {operation_id!r}: the step was claimed again, or ended")
    return decode_operation(columns, operation_id)


def decode_operation(columns: list[Any], operation_id: str) -> BulkOperation:
    """Decode the columns of a bulk operation.

    Raises:
        BulkOperationNotFound: all are NULL, because there is no such operation.
    """
    (
        position, _, body, state, started_at, ended_at, done, skipped, failed, error, cursor,
        exhausted, due, fence, leased_until,
    ) = columns  # fmt: skip
    if position is None:
        raise BulkOperationNotFound(operation_id)
    return BulkOperation(
        **msgspec.structs.asdict(_decode_new(body)),
        state=BulkState(state),
        started_at=to_seconds(started_at),
        ended_at=to_optional_seconds(ended_at),
        done=done,
        skipped=skipped,
        failed=failed,
        error=error,
        cursor=cursor,
        exhausted=exhausted,
        due=to_seconds(due),
        fence=fence,
        leased_until=to_optional_seconds(leased_until),
    )


def decode_page(rows: list[Any], limit: int) -> BulkOperationPage:
    """Decode the rows of a page; a row beyond `limit` says that there are more."""
    found = [decode_operation(row, "") for row in rows[:limit]]
    return BulkOperationPage(found, str(rows[limit - 1][0]) if len(rows) > limit > 0 else None)
