"""Records: store, delete and read them."""

from __future__ import annotations

from typing import Any

from nimburion.backends.sqlite.connection.database import MICRO, Database, to_micros
from nimburion.backends.sqlite.queries import parse_position
from nimburion.core.records import (
    NewRecord,
    Record,
    RecordChange,
    RecordKind,
    RecordPage,
    RecordPut,
    compute_due,
)


def put_record(db: Database, new: NewRecord, version: int | None, keep: int | None) -> RecordPut:
    """See `Maintaining.put_record`."""
    kept = get_record(db, new.kind, new.id)
    if version not in (None, 0 if kept is None else kept.version):
        return RecordPut("conflict", kept)
    due = None if new.due is None else to_micros(new.due)
    if kept is not None:
        db.run("write_record", new.kind, new.id, due, new.body.decode(), 0, 0)
        return RecordPut("stored", get_record(db, new.kind, new.id))
    if keep is not None and (oldest := db.fetch_one("find_due_surplus", new.kind, keep)):
        return RecordPut("full", _make_record(new.kind, oldest))
    db.run("add_record", new.kind, new.id, db.now, due, new.body.decode())
    if keep is not None:
        db.run("delete_surplus_records", new.kind, keep)
    return RecordPut("stored", get_record(db, new.kind, new.id))


def has_version(db: Database, change: RecordChange) -> bool:
    """Return whether the record of a change has its version."""
    kept = get_record(db, change.kind, change.id)
    return kept is not None and kept.version == change.version


def write_change(db: Database, change: RecordChange, changed: int, held: int) -> Record | None:
    """Write the change of a record, after `changed` jobs were changed."""
    due = None if change.due is None else compute_due(to_micros(change.due), changed, change.pause)
    db.run("write_record", change.kind, change.id, due, change.body.decode(), changed, held)
    return get_record(db, change.kind, change.id)


def delete_record(db: Database, kind: RecordKind, record_id: str) -> bool:
    """See `Maintaining.delete_record`."""
    return db.run("delete_record", kind, record_id).rowcount > 0


def get_record(db: Database, kind: RecordKind, record_id: str) -> Record | None:
    """See `Inspecting.get_record`."""
    row = db.fetch_one("get_record", kind, record_id)
    return None if row is None else _make_record(kind, row)


def list_records(
    db: Database, kind: RecordKind, limit: int, after: str | None, *, by_due: bool
) -> RecordPage:
    """See `Inspecting.list_records`."""
    now = db.now / MICRO
    if by_due:
        rows = db.run("list_due_records", kind, limit).fetchall()
        return RecordPage([_make_record(kind, row) for row in rows], now)
    rows = db.run("list_records", kind, parse_position(after), limit + 1).fetchall()
    found = [_make_record(kind, row) for row in rows[:limit]]
    return RecordPage(found, now, str(rows[limit - 1][0]) if len(rows) > limit > 0 else None)


def _make_record(kind: RecordKind, row: tuple[Any, ...]) -> Record:
    _, record_id, version, created_at, due, changed, held, body = row
    return Record(
        kind=kind,
        id=record_id,
        body=body.encode(),
        due=None if due is None else due / MICRO,
        version=version,
        created_at=created_at / MICRO,
        changed=changed,
        held=held,
    )
