"""Bulk operations: encode script arguments and decode records."""

from __future__ import annotations

from typing import Any

import msgspec

from nimburion.backends.redis.encoding import encode_lookup_text, reject_unstorable_text
from nimburion.backends.server.encoding import MICRO, encode_id_or_empty, encode_json
from nimburion.core.bulk_operations import (
    BulkOperation,
    BulkOperationPage,
    BulkState,
    BulkStep,
    Claim,
    NewBulkOperation,
)
from nimburion.core.errors import BulkOperationNotFound, StepLost, TooManyBulkOperations


class _StoredOperation(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a bulk operation, as the scripts write it. Times are in microseconds."""

    body: str
    state: BulkState
    started_at: int
    due: int
    fence: int
    done: int
    skipped: int
    failed: int
    error: str
    exhausted: bool
    ended_at: int | None = None
    leased_until: int | None = None
    cursor: str | None = None


_decode_new = msgspec.json.Decoder(NewBulkOperation).decode
_decode_stored = msgspec.msgpack.Decoder(_StoredOperation).decode


@reject_unstorable_text
def encode_new(operation: NewBulkOperation, keep: int) -> list[bytes]:
    """Return the arguments of `start_bulk_operation.lua`."""
    return [operation.id.encode(), encode_json(operation), b"%d" % keep]


@reject_unstorable_text
def encode_step(operation_id: str, fence: int, step: BulkStep) -> list[bytes]:
    """Return the arguments of `advance_bulk_operation.lua`."""
    return [
        encode_lookup_text(operation_id),
        b"%d" % fence,
        (step.cursor or "").encode(),
        b"1" if step.exhausted else b"0",
        (step.end or "").encode(),
        step.error.encode(),
        *(encode_id_or_empty(job_id) for job_id in step.ids),
    ]


def decode_started(reply: Any) -> BulkOperation:  # noqa: ANN401 - a reply
    """Decode the reply of `start_bulk_operation.lua`.

    Raises:
        TooManyBulkOperations: the oldest operation still runs.
    """
    if isinstance(reply, list):
        raise TooManyBulkOperations(reply[0].decode())
    return _decode(reply)


def decode_claim(reply: bytes | int) -> Claim:
    """Decode the reply of `claim_bulk_operation.lua`."""
    if isinstance(reply, int):
        return Claim(None, None if reply < 0 else reply / MICRO)
    return Claim(_decode(reply))


def decode_advanced(reply: list[bytes], operation_id: str) -> BulkOperation:
    """Decode the reply of `advance_bulk_operation.lua`.

    Raises:
        BulkOperationNotFound: there is no such operation.
        StepLost: the fence is not that of the last claim.
    """
    outcome, *records = reply
    if outcome == b"missing":
        raise BulkOperationNotFound(operation_id)
    if outcome == b"lost":
        raise StepLost(f"bulk operation {operation_id!r}: the step was claimed again, or ended")
    return _decode(records[0])


def decode_operation(record: bytes | None, operation_id: str) -> BulkOperation:
    """Decode the record of a bulk operation.

    Raises:
        BulkOperationNotFound: there is no record.
    """
    if record is None:
        raise BulkOperationNotFound(operation_id)
    return _decode(record)


def decode_page(reply: list[Any]) -> BulkOperationPage:
    """Decode the reply of `list_bulk_operations.lua`."""
    following, records = reply
    return BulkOperationPage([_decode(record) for record in records], following.decode() or None)


def _decode(record: bytes) -> BulkOperation:
    stored = _decode_stored(record)
    return BulkOperation(
        **msgspec.structs.asdict(_decode_new(stored.body)),
        state=stored.state,
        started_at=stored.started_at / MICRO,
        ended_at=None if stored.ended_at is None else stored.ended_at / MICRO,
        done=stored.done,
        skipped=stored.skipped,
        failed=stored.failed,
        error=stored.error,
        cursor=stored.cursor,
        exhausted=stored.exhausted,
        due=stored.due / MICRO,
        fence=stored.fence,
        leased_until=None if stored.leased_until is None else stored.leased_until / MICRO,
    )
