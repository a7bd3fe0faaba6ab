"""Records: what a backend only stores, with a version.

The audit log, bulk operations, schedules and requests for stacks are records. The backend compares
versions, keeps the order and deletes the oldest; it does not read the body. Only `fire` reads and
writes the body of a schedule. `core.audit`, `core.bulk_operations`, `core.schedules` and
`core.stacks` give the bodies their meaning, once for all backends. See decision 0049.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from nimburion.core.errors import Unstorable

RecordKind = Literal["audit", "bulk_operation", "schedule", "stack"]


class NewRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record to store. Kind and id name it."""

    kind: RecordKind
    id: str
    body: bytes
    """A JSON document in UTF-8."""
    due: float | None = None
    """When some process must do something with the record, in epoch seconds; None: never."""


class Record(NewRecord, frozen=True, kw_only=True):
    """A record that a backend keeps."""

    version: int
    """For a new record the time in microseconds. Each write adds 1. So a record that was deleted
    and added again has a version that it never had before.
    """
    created_at: float
    """When the record was first stored, in epoch seconds."""
    changed: int = 0
    """The number of jobs that `change_jobs` changed together with this record."""
    held: int = 0
    """The number of jobs that it could not change, because another job holds their unique key."""


class RecordChange(NewRecord, frozen=True, kw_only=True):
    """What `change_jobs` writes to a record, in the step that changes the jobs."""

    version: int
    """The version that the record must have."""
    pause: float = 0.0
    """Seconds that each changed job adds to `due`."""


def compute_due(due: int, changed: int, pause: float) -> int:
    """Return when a record is due after `changed` jobs were changed. Times are in microseconds.

    >>> compute_due(1_000_000, 3, 1 / 1.5)
    3000000
    """
    return due + math.floor(changed * pause * 1_000_000 + 0.5)


class RecordPut(msgspec.Struct, frozen=True):
    """The result of `put_record`."""

    outcome: Literal["stored", "conflict", "full"]
    """What happened. Only `stored` wrote something.

    - `conflict`: the record does not have the given version.
    - `full`: the oldest record, which would be deleted, has a due time.
    """
    record: Record | None
    """The record as it is kept now; after `full`, the oldest record. None: there is none."""


class RecordPage(msgspec.Struct, frozen=True):
    """A page of records. `next` is the cursor of the next page; None: last."""

    records: list[Record]
    now: float
    """When the page was read, in epoch seconds on the backend's clock."""
    next: str | None = None


_encode = msgspec.json.Encoder().encode


def encode_body(value: msgspec.Struct) -> bytes:
    """Return the body of a record: a value as JSON.

    Raises:
        Unstorable: a text has no UTF-8 form (a lone surrogate).
    """
    try:
        return _encode(value)
    except UnicodeEncodeError as error:
        raise Unstorable(f"a record cannot hold this: {error}") from error
