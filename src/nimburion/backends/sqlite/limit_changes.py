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
from nimburion.core.limits import (
    LimitChange,
    LimitKey,
    LimitRule,
    apply_changes,
    get_limited_job,
    get_limited_queue,
    make_job_limit_name,
)

_encode = msgspec.json.Encoder().encode
_decode_declared = msgspec.json.Decoder(dict[str, LimitRule]).decode
_decode_change = msgspec.json.Decoder(LimitChange).decode


def declare_limits(db: Database, name: str, declared: dict[str, LimitRule]) -> None:
    """Store what a session declares for a job name, and let it apply."""
    if declared:
        db.run("put_declared_limits", name, _encode(declared).decode())
    else:
        db.run("delete_declared_limits", name)
    apply_limits(db, name)


def apply_limits(db: Database, name: str) -> None:
    """Let what is declared for a job name apply, with the changes of operators."""
    row = db.fetch_one("get_declared_limits", name)
    declared = {} if row is None else _decode_declared(row[0])
    changes = {change.name: change for change in _list_changes(db, for_key=0)}
    keyed = apply_changes(name, declared, changes)
    own = keyed.pop(make_job_limit_name(name), LimitRule())
    if own.concurrency is None:
        db.run("delete_limit", name)
    else:
        db.run("set_limit", name, own.concurrency)
    set_rate(db, name, own.rate)
    set_keyed_limits(db, name, keyed)


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
    """Return the changes in force."""
    return _list_changes(db, for_key=None)


def _list_changes(db: Database, *, for_key: int | None) -> list[LimitChange]:
    return [_decode_change(body) for (body,) in db.run("list_limit_changes", for_key)]


def _apply_change(db: Database, name: str, key: str | None, before: KeyChanges) -> None:
    if key is None:
        of_queue = get_limited_queue(name) is not None
        listed = db.run("list_known_names") if of_queue else db.run("list_job_names_of_limit", name)
        jobs: set[str] = {job for (job,) in listed}
        own = get_limited_job(name)
        for job in jobs if own is None else jobs | {own}:
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
            old = limits[key[0]].apply(before.get(key))
            new = limits[key[0]].apply(change)
            change_key_rate(db, key, old.rate, new.rate)
            count = max(count, new.count_at_once())
    let_return(db, key, count)
