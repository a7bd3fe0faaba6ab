"""Unique keys: which job holds one, and give one to a job."""

from __future__ import annotations

import msgspec

from nimburion.backends.planning.enqueue import compute_key_end, holds_key
from nimburion.backends.sqlite.connection.database import Database
from nimburion.core.job import JobOptions, State

_encode = msgspec.json.Encoder().encode
_decode_options = msgspec.json.Decoder(JobOptions).decode
_decode_states = msgspec.json.Decoder(frozenset[State]).decode


def find_key_holder(db: Database, name: str, key: str) -> str | None:
    """Return the id of the job that holds a unique key now, or None."""
    row = db.fetch_one("find_unique_key", name, key)
    if row is None:
        return None
    job_id, valid_until, listed = row
    states = state = None
    if listed is not None:
        states, found = _decode_states(listed), db.fetch_one("get_job_state", job_id, db.now)
        state = None if found is None else State(found[0])
    return job_id if holds_key(db.now, valid_until, states, state) else None


def take_key(db: Database, name: str, job_id: str, options: JobOptions) -> None:
    """Assign its unique key to a stored job; do nothing for a job without a key."""
    if options.unique_key is None:
        return
    states, until = options.unique_while, compute_key_end(options, db.now)
    listed = None if states is None else _encode(states).decode()
    db.run("take_unique_key", name, options.unique_key, job_id, until, listed)


def retake_key(db: Database, job_id: str, lane: int, options: str | None) -> bool:
    """Assign the unique key to a job again, if no other job holds it.

    Returns False if another job holds the key; True also for a job without a key.
    """
    if options is None:
        return True
    stored_options = _decode_options(options)
    if stored_options.unique_key is None:
        return True
    name = db.get_lane(lane).name
    holder = find_key_holder(db, name, stored_options.unique_key)
    if holder is not None and holder != job_id:
        return False
    if holder is None:
        take_key(db, name, job_id, stored_options)
    return True
