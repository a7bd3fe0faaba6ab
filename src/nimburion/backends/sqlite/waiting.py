"""Where jobs without a lease wait, and how they end there."""

from __future__ import annotations

from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.limits import pass_turns

COMPLETED, FAILED, CANCELLED = 1, 2, 3
"""The values of `job.state` for finished jobs."""


def put_in_lane(db: Database, lane: int, priority: int, due: int, seq: int, *, retry: bool) -> None:
    """Add a job to its lane if it is due, else to the scheduled jobs; notify its queue."""
    where = "insert_ready" if due <= db.now else "insert_scheduled"
    db.run(where, lane, -priority, due, seq, int(retry))
    db.notify([db.get_lane(lane).queue])


def remove_waiting(db: Database, seq: int, lane: int) -> None:
    """Remove a job from the jobs that wait for a worker. Others have its turn."""
    db.run("delete_ready", seq)
    db.run("delete_scheduled", seq)
    if not db.run("delete_parked", seq).rowcount:
        pass_turns(db, lane, seq)


def end_waiting(
    db: Database, seq: int, lane: int, reason: str | None, *, keeps_payload: bool
) -> None:
    """Put a job that waits nowhere any more into the state `cancelled`."""
    db.run("finish_job", seq, CANCELLED, db.now, reason, 0, 0, *(6 * [None]), keeps_payload)
    db.run("count_finished", lane, CANCELLED, 1)
    release_unique_key(db, seq, lane)


def release_unique_key(db: Database, seq: int, lane: int) -> None:
    """Release a unique key that the job holds only while it is unfinished."""
    if db.run("free_unique_keys", f"[{seq}]").rowcount:
        db.notify([db.get_lane(lane).queue])
