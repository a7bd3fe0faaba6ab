"""Records: store and read one. Each call runs in one `AtomicStep`."""

from __future__ import annotations

from msgspec.structs import replace

from nimburion.backends.memory.transitions import AtomicStep
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
    step: AtomicStep, new: NewRecord, version: int | None = None, keep: int | None = None
) -> RecordPut:
    """Store a record if it has this version; keep the newest `keep` records of its kind."""
    kind = step.state.records[new.kind]
    position, kept = kind.get(new.id, (step.state.record_positions, None))
    if version not in (None, 0 if kept is None else kept.version):
        return RecordPut("conflict", kept)
    due = None if new.due is None else to_micros(new.due) / MICRO
    if kept is not None:
        record = replace(kept, body=new.body, due=due, version=kept.version + 1)
    else:
        surplus = [] if keep is None else list(kind)[: max(0, len(kind) + 1 - keep)]
        for record_id in surplus:
            _, oldest = kind[record_id]
            if oldest.due is not None:
                return RecordPut("full", oldest)
        for record_id in surplus:
            del kind[record_id]
        step.state.record_positions += 1
        record = Record(
            kind=new.kind,
            id=new.id,
            body=new.body,
            due=due,
            version=step.now,
            created_at=step.now / MICRO,
        )
    kind[new.id] = position, record
    return RecordPut("stored", record)


def find_version(step: AtomicStep, change: RecordChange) -> Record | None:
    """Return the record that has the version of the change; None: it has another one."""
    kept = get_record(step, change.kind, change.id)
    return kept if kept is not None and kept.version == change.version else None


def write_change(
    step: AtomicStep, kept: Record, change: RecordChange, changed: int, held: int
) -> Record:
    """Write the change of a record, after `changed` jobs were changed."""
    due = (
        None
        if change.due is None
        else compute_due(to_micros(change.due), changed, change.pause) / MICRO
    )
    record = replace(
        kept,
        body=change.body,
        due=due,
        version=kept.version + 1,
        changed=kept.changed + changed,
        held=kept.held + held,
    )
    kind = step.state.records[change.kind]
    kind[change.id] = kind[change.id][0], record
    return record


def get_record(step: AtomicStep, kind: RecordKind, record_id: str) -> Record | None:
    """Return a record, or None if there is none with this id."""
    return step.state.records[kind].get(record_id, (0, None))[1]
