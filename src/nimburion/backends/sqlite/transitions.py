"""State transitions of a single job.

Each also updates lanes, concurrency limits, unique keys and notifications.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import msgspec

from nimburion.backends.planning.settle import Effect
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.keyed_limits import pass_turns, release_lease_keys
from nimburion.backends.sqlite.rate_limits import give_units_back
from nimburion.backends.sqlite.tenants import settle_charges
from nimburion.core.job import State

COMPLETED, FAILED, CANCELLED = 1, 2, 3
"""The values of `job.state` for finished jobs."""
STATE_NUMBERS = MappingProxyType(
    {State.COMPLETED: COMPLETED, State.FAILED: FAILED, State.CANCELLED: CANCELLED}
)


class LeaseRow(NamedTuple):
    """A row of a statement that reads leases. `started_at` is in microseconds since 1970."""

    session: int
    seq: int
    lane: int
    fence: int
    nonce: bytes
    started_at: int
    cancel_requested: int


def apply_effect(db: Database, lease: LeaseRow, effect: Effect) -> None:
    """End the lease of a job as decided."""
    if effect.refunds_units:
        give_units_back(db, lease.lane, lease.seq, lease.started_at)
    if effect.error is not None:
        error = msgspec.json.encode(effect.error).decode()
        db.run("insert_attempt_error", lease.seq, error)
    settle_charges(db, lease.session, [lease.seq], ran=effect.has_run)
    db.run("delete_lease", lease.session, lease.seq)
    if db.run("release_limit", lease.lane).rowcount:
        db.notify([db.get_lane(lease.lane).queue])
    release_lease_keys(db, [lease.seq])
    if effect.state is None:
        requeue(db, lease, effect)
    else:
        finish(db, lease, effect, STATE_NUMBERS[effect.state])


def finish(db: Database, lease: LeaseRow, effect: Effect, state: int) -> None:
    """Put a job whose lease has ended into a finished state."""
    db.run(
        "finish_job",
        lease.seq,
        state,
        db.now,
        effect.reason,
        effect.failures,
        effect.lost,
        effect.result,
        lease.fence,
        lease.nonce if effect.settles else None,
        lease.started_at,
        lease.session,
        effect.error.fingerprint if state == FAILED and effect.error is not None else None,
        effect.keeps_payload,
    )
    db.run("count_finished", lease.lane, state, 1)
    release_unique_key(db, lease.seq, lease.lane)


def requeue(db: Database, lease: LeaseRow, effect: Effect) -> None:
    """Make a job whose lease has ended wait: until its due time, or at its old place."""
    priority, due, failures = db.fetch_one(  # type: ignore[misc]
        "requeue_job",
        lease.seq,
        effect.due,
        effect.failures,
        effect.lost,
        lease.fence,
        lease.nonce if effect.settles else None,
        lease.started_at,
    )
    put_in_lane(db, lease.lane, priority, due, lease.seq, retry=failures > 0)


def cancel_waiting(db: Database, seq: int, lane: int) -> None:
    """Cancel a job without a lease."""
    db.run("delete_ready", seq)
    db.run("delete_scheduled", seq)
    if not db.run("delete_parked", seq).rowcount:
        pass_turns(db, lane, seq)
    db.run("finish_job", seq, CANCELLED, db.now, None, 0, 0, *(6 * [None]), 0)
    db.run("count_finished", lane, CANCELLED, 1)
    release_unique_key(db, seq, lane)


def put_in_lane(db: Database, lane: int, priority: int, due: int, seq: int, *, retry: bool) -> None:
    """Add a job to its lane if it is due, else to the scheduled jobs; notify its queue."""
    where = "insert_ready" if due <= db.now else "insert_scheduled"
    db.run(where, lane, -priority, due, seq, int(retry))
    db.notify([db.get_lane(lane).queue])


def release_unique_key(db: Database, seq: int, lane: int) -> None:
    """Release a unique key that the job holds only while it is unfinished."""
    if db.run("free_unique_keys", f"[{seq}]").rowcount:
        db.notify([db.get_lane(lane).queue])
