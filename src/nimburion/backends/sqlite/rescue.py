"""End expired sessions, and rescue their jobs."""

from __future__ import annotations

from nimburion.backends.planning.rescue import OrphanedLease, decide_rescue, note_rescued
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.settle import LeaseRow, apply_effect
from nimburion.backends.waiters import make_session_name
from nimburion.core.operations import Rescued


def rescue(db: Database, limit: int, max_lost: int) -> Rescued:
    """See `Consuming.rescue`."""
    expired = db.run("expire_sessions", db.now, db.boot_time, db.boot_id).fetchall()
    # A worker that lives learns that its session has ended; the socket of a dead one is removed.
    db.notify(make_session_name(session_id) for (session_id,) in expired)
    rows = db.run("list_orphaned_leases", limit + 1).fetchall()
    rescued = Rescued([], [], [], more=len(rows) > limit)
    for *fields, job_id, failures, lost, session_id, host, was_left, held_several in rows[:limit]:
        lease = LeaseRow(*fields)
        orphan = OrphanedLease(
            failures=failures,
            lost=lost,
            started_at=lease.started_at,
            cancel_requested=bool(lease.cancel_requested),
            session=session_id,
            host=host,
            was_left=bool(was_left),
            held_several=bool(held_several),
        )
        effect = decide_rescue(orphan, max_lost, db.now)
        apply_effect(db, lease, effect)
        note_rescued(rescued, job_id, effect)
    return rescued
