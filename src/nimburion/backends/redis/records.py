"""Records: encode script arguments and decode replies."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from nimburion.backends.redis.encoding import encode_lookup_text, reject_unstorable_text
from nimburion.backends.redis.record_format import STATE_CODES
from nimburion.backends.server.encoding import decode_id, encode_id_or_empty
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.job import State
from nimburion.core.maintenance import JobChanges
from nimburion.core.queries import parse_cursor
from nimburion.core.records import (
    NewRecord,
    Record,
    RecordChange,
    RecordKind,
    RecordPage,
    RecordPut,
)
from nimburion.core.timing.clock import MICRO, to_micros


class _StoredRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record, as the scripts write it. Times are in microseconds."""

    kind: RecordKind
    id: str
    position: int
    version: int
    created_at: int
    changed: int
    held: int
    body: str
    due: int | None = None


_decode_stored = msgspec.msgpack.Decoder(_StoredRecord).decode


@reject_unstorable_text
def encode_put(record: NewRecord, version: int | None, keep: int | None) -> list[bytes]:
    """Return the arguments of `put_record.lua`."""
    return [
        record.kind.encode(),
        record.id.encode(),
        _encode_number(version),
        _encode_due(record.due),
        record.body,
        _encode_number(keep),
    ]


def encode_changes(
    action: BulkAction,
    job_ids: Sequence[str],
    change: RecordChange | None,
    states: Collection[State] | None,
) -> list[bytes]:
    """Return the arguments of `change_jobs.lua`."""
    written = [b""] * 6
    if change is not None:
        written = [
            change.kind.encode(),
            encode_lookup_text(change.id),
            _encode_number(change.version),
            _encode_due(change.due),
            repr(change.pause).encode(),
            change.body,
        ]
    codes = "".join(STATE_CODES[state] for state in action.narrow_states(states))
    return [action.encode(), *written, codes.encode(), *map(encode_id_or_empty, job_ids)]


def encode_lookup(kind: RecordKind, record_id: str) -> list[bytes]:
    """Return the arguments of `get_record.lua` and `delete_record.lua`."""
    return [kind.encode(), encode_lookup_text(record_id)]


def encode_page(kind: RecordKind, limit: int, after: str | None, *, by_due: bool) -> list[bytes]:
    """Return the arguments of `list_records.lua`.

    Raises:
        InvalidJob: `after` is not the `next` of a page.
    """
    return [
        kind.encode(),
        _encode_number(limit if by_due else limit + 1),
        _encode_number(parse_cursor(after)),
        b"1" if by_due else b"0",
    ]


def _encode_number(number: int | None) -> bytes:
    return b"" if number is None else b"%d" % number


def _encode_due(due: float | None) -> bytes:
    return _encode_number(None if due is None else to_micros(due))


def decode_put(reply: list[Any]) -> RecordPut:
    """Decode the reply of `put_record.lua`."""
    outcome, *kept = reply
    return RecordPut(outcome.decode(), decode_record(*kept) if kept else None)


def decode_changes(job_ids: Sequence[str], reply: list[Any]) -> JobChanges:
    """Decode the reply of `change_jobs.lua`, in the order of the ids."""
    changed, held, *record = reply
    were_changed, were_held = set(map(decode_id, changed)), set(map(decode_id, held))
    return JobChanges(
        [job_id for job_id in job_ids if job_id in were_changed],
        [job_id for job_id in job_ids if job_id in were_held],
        decode_record(*record) if record else None,
    )


def decode_record(packed: bytes | None) -> Record | None:
    """Decode a stored record; None: there is none."""
    if packed is None:
        return None
    stored = _decode_stored(packed)
    return Record(
        kind=stored.kind,
        id=stored.id,
        body=stored.body.encode(),
        due=None if stored.due is None else stored.due / MICRO,
        version=stored.version,
        created_at=stored.created_at / MICRO,
        changed=stored.changed,
        held=stored.held,
    )


def decode_page(reply: list[Any], limit: int) -> RecordPage:
    """Decode the reply of `list_records.lua`; a record beyond `limit` says that there are more."""
    now, packed = reply
    records = [record for one in packed[:limit] if (record := decode_record(one)) is not None]
    has_more = len(packed) > limit > 0
    following = str(_decode_stored(packed[limit - 1]).position) if has_more else None
    return RecordPage(records, now / MICRO, following)
