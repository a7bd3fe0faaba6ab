"""Limits at run time: apply what workers declare, with the changes of operators."""

from __future__ import annotations

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, Database
from nimburion.backends.sqlite.keyed_limits import (
    KeyChanges,
    change_key_rate,
    let_return,
    read_key_changes,
    read_keyed_limits,
    set_keyed_limits,
)
from nimburion.backends.sqlite.rate_limits import set_rate
from nimburion.backends.waiters import EVERY_QUEUE
from nimburion.core.keyed_limits import LimitKey, get_limited_queue
from nimburion.core.limit_changes import DeclaredLimits, LimitChange, apply_change

_NOTHING_DECLARED = DeclaredLimits()
_encode = msgspec.json.Encoder().encode
_decode_declared = msgspec.json.Decoder(DeclaredLimits).decode
_decode_change = msgspec.json.Decoder(LimitChange).decode


def declare_limits(db: Database, name: str, declared: DeclaredLimits) -> None:
    """Store what a session declares for a job name, and let it apply."""
    if declared == _NOTHING_DECLARED:
        db.run("delete_declared_limits", name)
    else:
        db.run("put_declared_limits", name, _encode(declared).decode())
    apply_limits(db, name)


def apply_limits(db: Database, name: str) -> None:
    """Let what is declared for a job name apply, with the changes of operators."""
    row = db.fetch_one("get_declared_limits", name)
    declared = _NOTHING_DECLARED if row is None else _decode_declared(row[0])
    changes = {change.name: change for change in _list_changes(db, for_key=0)}
    limits = declared.apply(name, changes)
    if limits.concurrency is None:
        db.run("delete_limit", name)
    else:
        db.run("set_limit", name, limits.concurrency)
    set_rate(db, name, limits.rate)
    set_keyed_limits(db, name, limits.keyed)


def change_limit(db: Database, change: LimitChange) -> None:
    """See `Maintaining.change_limit`."""
    place = (change.name, int(change.key is not None), change.key or "")
    row = db.fetch_one("get_limit_change", *place)
    change = msgspec.structs.replace(change, at=db.now / MICRO)
    if row is not None:
        change = _decode_change(row[0]).merge(change)
    before = read_key_changes(db)
    db.run("put_limit_change", *place, _encode(change).decode())
    _apply_change(db, change.name, change.key, before)


def reset_limit(db: Database, name: str, key: str | None) -> bool:
    """See `Maintaining.reset_limit`."""
    before = read_key_changes(db)
    deleted = db.run("delete_limit_change", name, int(key is not None), key or "").rowcount
    _apply_change(db, name, key, before)
    return deleted > 0


def list_limit_changes(db: Database) -> list[LimitChange]:
    """See `Inspecting.list_limit_changes`."""
    return _list_changes(db, for_key=None)


def _list_changes(db: Database, *, for_key: int | None) -> list[LimitChange]:
    return [_decode_change(body) for (body,) in db.run("list_limit_changes", for_key)]


def _apply_change(db: Database, name: str, key: str | None, before: KeyChanges) -> None:
    if key is None:
        of_queue = get_limited_queue(name) is not None
        listed = db.run("list_known_names") if of_queue else db.run("list_job_names_of_limit", name)
        for job in {job for (job,) in listed} | (set() if of_queue else {name}):
            apply_limits(db, job)
    else:
        _apply_key_change(db, (name, key), before)
    db.notify([EVERY_QUEUE])


def _apply_key_change(db: Database, key: LimitKey, before: KeyChanges) -> None:
    """Carry the rate of a key over, and consider the jobs that are parked for it again."""
    change = read_key_changes(db).get(key)
    count = 1
    for limits in read_keyed_limits(db).values():
        if key[0] in limits:
            old = apply_change(limits[key[0]], before.get(key))
            new = apply_change(limits[key[0]], change)
            change_key_rate(db, key, old.rate, new.rate)
            count = max(count, new.count_at_once())
    let_return(db, key, count)
