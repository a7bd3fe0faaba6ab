"""The moves of one job from one place to another, each with all that belongs to it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, Database, micros
from nimburion.core.job import AttemptError

COMPLETED, FAILED, CANCELLED = 1, 2, 3
"""`job.state` of finished jobs."""


class Held(NamedTuple):
    """A lease as the file has it."""

    session: int
    seq: int
    lane: int
    fence: int
    nonce: bytes
    at: int
    cancel: int


class Counts(NamedTuple):
    """What an attempt adds to the two budgets."""

    failures: int = 0
    lost: int = 0


NONE = Counts()


def end_lease(db: Database, held: Held) -> None:
    """Take the job out of the session's hands, and give back its place under a limit."""
    db.run("lease_drop", held.session, held.seq)
    if db.run("gate_release", held.lane).rowcount:
        db.ring([db.lane(held.lane).queue])


def finish_held(
    db: Database,
    held: Held,
    state: int,
    *,
    reason: str | None = None,
    counts: Counts = NONE,
    result: bytes | None = None,
    nonce: bytes | None = None,
) -> None:
    """End a job that a session holds; `nonce` is that of the token that settles it, if one does."""
    end_lease(db, held)
    db.run(
        "job_finish", held.seq, state, db.now, reason, counts.failures, counts.lost, result,
        held.fence, nonce, held.at,
    )  # fmt: skip
    free_unique(db, held.seq, held.lane)


def finish_waiting(db: Database, seq: int, lane: int, state: int, reason: str | None) -> None:
    """End a job that nobody holds."""
    db.run("ready_remove", seq)
    db.run("scheduled_remove", seq)
    db.run("job_finish", seq, state, db.now, reason, 0, 0, None, None, None, None)
    free_unique(db, seq, lane)


def wait_again(
    db: Database,
    held: Held,
    *,
    delay: float | None = None,
    counts: Counts = NONE,
    nonce: bytes | None = None,
) -> None:
    """Put a job that a session holds back: `delay` seconds from now, or into its old place."""
    end_lease(db, held)
    due = None if delay is None else db.now + max(0, micros(delay))
    priority, due, failures = db.one(  # type: ignore[misc]
        "job_wait", held.seq, due, counts.failures, counts.lost, held.fence, nonce, held.at
    )
    put_in_line(db, held.lane, priority, due, held.seq, retry=failures > 0)


def put_in_line(db: Database, lane: int, priority: int, due: int, seq: int, *, retry: bool) -> None:
    """Let a job stand in its lane, or aside until it is due; ring its queue."""
    where = "ready_put" if due <= db.now else "scheduled_put"
    db.run(where, lane, -priority, due, seq, int(retry))
    db.ring([db.lane(lane).queue])


def free_unique(db: Database, seq: int, lane: int) -> None:
    """Give back the unique key that a job held while it was unfinished."""
    if db.run("unique_free", f"[{seq}]").rowcount:
        db.ring([db.lane(lane).queue])


def add_history(db: Database, seq: int, error: AttemptError) -> None:
    """Keep how an attempt ended, with the store's time."""
    dated = msgspec.structs.replace(error, at=db.now / MICRO)
    db.run("history_add", seq, msgspec.json.encode(dated).decode())
