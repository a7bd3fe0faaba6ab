"""State transitions of a single job.

Each also updates lanes, concurrency limits, unique keys and notifications.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, Database, to_micros
from nimburion.backends.sqlite.keyed_limits import pass_turns, release_lease_keys
from nimburion.backends.sqlite.tenants import settle_charges
from nimburion.core.job import AttemptError

COMPLETED, FAILED, CANCELLED = 1, 2, 3
"""The values of `job.state` for finished jobs."""


class LeaseRow(NamedTuple):
    """A row of a statement that reads leases. `started_at` is in microseconds since 1970."""

    session: int
    seq: int
    lane: int
    fence: int
    nonce: bytes
    started_at: int
    cancel_requested: int


class Increments(NamedTuple):
    """The amounts that an attempt adds to the counts of failures and of lost attempts."""

    failures: int = 0
    lost: int = 0


NO_INCREMENTS = Increments()


def end_lease(db: Database, lease: LeaseRow) -> None:
    """Remove the lease of a job and decrement the count of its concurrency limit.

    Its tenant is charged nothing, unless `settle_charge` was called before.
    """
    settle_charges(db, lease.session, [lease.seq], ran=False)
    db.run("delete_lease", lease.session, lease.seq)
    if db.run("release_limit", lease.lane).rowcount:
        db.notify([db.get_lane(lease.lane).queue])
    release_lease_keys(db, [lease.seq])


def finish_leased(
    db: Database,
    lease: LeaseRow,
    state: int,
    *,
    reason: str | None = None,
    increments: Increments = NO_INCREMENTS,
    result: bytes | None = None,
    nonce: bytes | None = None,
    fingerprint: str | None = None,
    keep_payload: bool = False,
) -> None:
    """Put a leased job into a finished state.

    `nonce`: the nonce of the token that settles the job; None if no token does. `fingerprint`: of
    the error that makes the job a dead letter. A dead letter keeps its payload in any case.
    """
    end_lease(db, lease)
    db.run(
        "finish_job",
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
        lease.session,
        fingerprint,
        keep_payload,
    )
    db.run("count_finished", lease.lane, state, 1)
    release_unique_key(db, lease.seq, lease.lane)


def finish_waiting(db: Database, seq: int, lane: int, state: int, reason: str | None) -> None:
    """Put a job without a lease into a finished state."""
    db.run("delete_ready", seq)
    db.run("delete_scheduled", seq)
    if not db.run("delete_parked", seq).rowcount:
        pass_turns(db, lane, seq)
    db.run("finish_job", seq, state, db.now, reason, 0, 0, *(7 * [None]))
    db.run("count_finished", lane, state, 1)
    release_unique_key(db, seq, lane)


def requeue(
    db: Database,
    lease: LeaseRow,
    *,
    delay: float | None = None,
    increments: Increments = NO_INCREMENTS,
    nonce: bytes | None = None,
) -> None:
    """End the lease of a job and make it wait: for `delay` seconds, or at its old position."""
    end_lease(db, lease)
    due = None if delay is None else db.now + max(0, to_micros(delay))
    priority, due, failures = db.fetch_one(  # type: ignore[misc]
        "requeue_job",
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
    """Add a job to its lane if it is due, else to the scheduled jobs; notify its queue."""
    where = "insert_ready" if due <= db.now else "insert_scheduled"
    db.run(where, lane, -priority, due, seq, int(retry))
    db.notify([db.get_lane(lane).queue])


def release_unique_key(db: Database, seq: int, lane: int) -> None:
    """Release a unique key that the job holds only while it is unfinished."""
    if db.run("free_unique_keys", f"[{seq}]").rowcount:
        db.notify([db.get_lane(lane).queue])


def add_error(db: Database, seq: int, error: AttemptError) -> None:
    """Append an error to the history, with the backend's time."""
    dated = msgspec.structs.replace(error, at=db.now / MICRO)
    db.run("insert_attempt_error", seq, msgspec.json.encode(dated).decode())
