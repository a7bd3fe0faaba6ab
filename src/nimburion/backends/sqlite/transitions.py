"""The moves of one job from one place to another, each with all that belongs to it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, Database, to_micros
from nimburion.core.job import AttemptError

COMPLETED, FAILED, CANCELLED = 1, 2, 3
"""`job.state` of finished jobs."""


class LeaseRow(NamedTuple):
    """A lease as the file has it."""

    session: int
    seq: int
    lane: int
    fence: int
    nonce: bytes
    started_at: int
    cancel_requested: int


class Increments(NamedTuple):
    """What an attempt adds to the two budgets."""

    failures: int = 0
    lost: int = 0


NO_INCREMENTS = Increments()


def end_lease(db: Database, lease: LeaseRow) -> None:
    """Take the job out of the session's hands, and give back its place under a limit."""
    db.run("lease_drop", lease.session, lease.seq)
    if db.run("gate_release", lease.lane).rowcount:
        db.notify([db.get_lane(lease.lane).queue])


def finish_leased(
    db: Database,
    lease: LeaseRow,
    state: int,
    *,
    reason: str | None = None,
    increments: Increments = NO_INCREMENTS,
    result: bytes | None = None,
    nonce: bytes | None = None,
) -> None:
    """End a job that a session holds; `nonce` is that of the token that settles it, if one does."""
    end_lease(db, lease)
    db.run(
        "job_finish",
        lease.seq,
        state,
        db.now,
        reason,
        increments.failures,
        increments.lost,
        result,
        lease.fence,
        nonce,
        lease.started_at,
    )
    release_unique_key(db, lease.seq, lease.lane)


def finish_waiting(db: Database, seq: int, lane: int, state: int, reason: str | None) -> None:
    """End a job that nobody holds."""
    db.run("ready_remove", seq)
    db.run("scheduled_remove", seq)
    db.run("job_finish", seq, state, db.now, reason, 0, 0, None, None, None, None)
    release_unique_key(db, seq, lane)


def requeue(
    db: Database,
    lease: LeaseRow,
    *,
    delay: float | None = None,
    increments: Increments = NO_INCREMENTS,
    nonce: bytes | None = None,
) -> None:
    """Put a job that a session holds back: `delay` seconds from now, or into its old place."""
    end_lease(db, lease)
    due = None if delay is None else db.now + max(0, to_micros(delay))
    priority, due, failures = db.fetch_one(  # type: ignore[misc]
        "job_wait",
        lease.seq,
        due,
        increments.failures,
        increments.lost,
        lease.fence,
        nonce,
        lease.started_at,
    )
    put_in_lane(db, lease.lane, priority, due, lease.seq, retry=failures > 0)


def put_in_lane(db: Database, lane: int, priority: int, due: int, seq: int, *, retry: bool) -> None:
    """Let a job stand in its lane, or aside until it is due; ring its queue."""
    where = "ready_put" if due <= db.now else "scheduled_put"
    db.run(where, lane, -priority, due, seq, int(retry))
    db.notify([db.get_lane(lane).queue])


def release_unique_key(db: Database, seq: int, lane: int) -> None:
    """Give back the unique key that a job held while it was unfinished."""
    if db.run("unique_free", f"[{seq}]").rowcount:
        db.notify([db.get_lane(lane).queue])


def add_error(db: Database, seq: int, error: AttemptError) -> None:
    """Keep how an attempt ended, with the backend's time."""
    dated = msgspec.structs.replace(error, at=db.now / MICRO)
    db.run("history_add", seq, msgspec.json.encode(dated).decode())
