"""Numbers of lanes and tenants: free those that nothing uses any more."""

from __future__ import annotations

import msgspec

from nimburion.backends.sqlite.connection.database import Database

MAX_CHECKED = 10_000
"""The most lanes, and the most tenants, that one call checks."""
MAX_LATER_JOBS = 100_000
"""With more scheduled or parked jobs, no number is freed: all of these jobs must be read."""

_encode = msgspec.json.Encoder().encode


def free_numbers(db: Database) -> None:
    """Delete lanes and tenants without jobs. Each call checks some and continues after them.

    A job that has ended keeps its lane. It needs no tenant: a replay finds that of its options.
    """
    if db.fetch_value("has_many_later_jobs", MAX_LATER_JOBS):
        return
    lanes = _delete_idle(db, "list_next_lanes", "delete_idle_lanes")
    if lanes:
        db.run("delete_counts_of_lanes", _encode(lanes).decode())
    tenants = _delete_idle(db, "list_next_tenants", "delete_idle_tenants")
    if lanes or tenants:
        db.change_numbering()


def _delete_idle(db: Database, list_next: str, delete_idle: str) -> list[int]:
    """Delete the idle rows among the next ones; return their numbers."""
    last = db.last_checked.get(list_next, 0)
    numbers = [number for (number,) in db.run(list_next, last, MAX_CHECKED)]
    db.last_checked[list_next] = numbers[-1] if len(numbers) == MAX_CHECKED else 0
    return [number for (number,) in db.run(delete_idle, _encode(numbers).decode())]
