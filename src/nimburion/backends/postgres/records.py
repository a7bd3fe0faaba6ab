"""Records: encode the arguments and decode the rows of the functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nimburion.backends.postgres.encoding import (
    MAX_INT8,
    encode_lookup_text,
    encode_text,
    reject_unstorable_text,
    to_optional_seconds,
    to_seconds,
)
from nimburion.backends.server.encoding import decode_id, encode_id_or_empty
from nimburion.core.maintenance import JobChanges
from nimburion.core.records import (
    NewRecord,
    Record,
    RecordChange,
    RecordKind,
    RecordPage,
    RecordPut,
)
from nimburion.core.timing.clock import to_micros

COLUMNS = ("kind", "position", "id", "version", "created_at", "due", "changed", "held", "body")
"""The columns of `record`, in the order in which `decode_record` expects them."""


@reject_unstorable_text
def encode_put(record: NewRecord, version: int | None, keep: int | None) -> list[Any]:
    """Return the arguments of `put_record_1` after the time."""
    return [
        record.kind,
        encode_text(record.id),
        None if version is None else _clamp_version(version),
        None if record.due is None else to_micros(record.due),
        record.body.decode(),
        keep,
    ]


@reject_unstorable_text
def encode_change(change: RecordChange) -> list[Any]:
    """Return the arguments of `change_jobs_and_record_1` after the states."""
    return [
        change.kind,
        encode_lookup_text(change.id),
        _clamp_version(change.version),
        None if change.due is None else to_micros(change.due),
        change.pause,
        change.body.decode(),
    ]


def _clamp_version(version: int) -> int:
    return version if 0 <= version <= MAX_INT8 else -1


def encode_ids(job_ids: Sequence[str]) -> list[bytes]:
    """Return the ids of jobs as they are stored. Those that cannot be stored match none."""
    return [encode_id_or_empty(job_id) for job_id in job_ids]


def decode_put(outcome: str, columns: Sequence[Any]) -> RecordPut:
    """Decode the result of `put_record_1`."""
    return RecordPut(outcome, decode_record(columns))  # type: ignore[arg-type]


def decode_changes(
    job_ids: Sequence[str], changed: list[bytes], held: list[bytes], record: Record | None
) -> JobChanges:
    """Decode the result of `change_jobs_1`, in the order of the ids."""
    were_changed, were_held = set(map(decode_id, changed)), set(map(decode_id, held))
    return JobChanges(
        [job_id for job_id in job_ids if job_id in were_changed],
        [job_id for job_id in job_ids if job_id in were_held],
        record,
    )


def decode_record(columns: Sequence[Any]) -> Record | None:
    """Decode the columns of a record; None: all are NULL, because there is none."""
    kind, _, record_id, version, created_at, due, changed, held, body = columns
    if kind is None:
        return None
    return Record(
        kind=kind,
        id=record_id,
        body=body.encode(),
        due=to_optional_seconds(due),
        version=version,
        created_at=to_seconds(created_at),
        changed=changed,
        held=held,
    )


def decode_page(rows: list[Any], limit: int) -> RecordPage:
    """Decode the time of the page and its records; one beyond `limit` says that there are more."""
    records = [record for _, *columns in rows if (record := decode_record(columns)) is not None]
    has_more = len(records) > limit > 0
    return RecordPage(
        records[:limit], to_seconds(rows[0][0]), str(rows[limit - 1][2]) if has_more else None
    )


def encode_lookup(kind: RecordKind, record_id: str) -> list[str]:
    """Return the kind and the id for a lookup."""
    return [kind, encode_lookup_text(record_id)]
