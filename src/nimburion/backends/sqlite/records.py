"""Records: store and read one."""

from __future__ import annotations

from nimburion.backends.sqlite.connection.database import Database, Row
from nimburion.core.records import (
    NewRecord,
    Record,
    RecordChange,
    RecordKind,
    RecordPut,
    compute_due,
)
from nimburion.core.timing.clock import MICRO, to_micros


def put_record(
    db: Database, new: NewRecord, version: int | None = None, keep: int | None = None
) -> RecordPut:
    """Store a record if it has this version; keep the newest `keep` records of its kind."""
    kept = get_record(db, new.kind, new.id)
    if version not in (None, 0 if kept is None else kept.version):
        return RecordPut("conflict", kept)
    due = None if new.due is None else to_micros(new.due)
    if kept is not None:
        db.run("write_record", new.kind, new.id, due, new.body.decode(), 0, 0)
        return RecordPut("stored", get_record(db, new.kind, new.id))
    if keep is not None and (oldest := db.fetch_one("find_due_surplus", new.kind, keep)):
        return RecordPut("full", make_record(new.kind, oldest))
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


def get_record(db: Database, kind: RecordKind, record_id: str) -> Record | None:
    """Return a record, or None if there is none with this id."""
    row = db.fetch_one("get_record", kind, record_id)
    return None if row is None else make_record(kind, row)


def make_record(kind: RecordKind, row: Row) -> Record:
    """Convert the columns of a record to a `Record`."""
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
