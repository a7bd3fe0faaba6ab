"""End expired sessions, and rescue their jobs."""

from __future__ import annotations

from collections.abc import Iterator

from nimburion.backends.memory.state import JobEntry, LeaseEntry, MemoryState
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.backends.planning.rescue import OrphanedLease, decide_rescue, note_rescued
from nimburion.core.operations import Rescued


def rescue(step: AtomicStep, limit: int, max_lost: int, monotonic: float) -> Rescued:
    """See `Consuming.rescue`."""
    for session in step.state.sessions.values():
        if not session.is_ended and session.expires_at <= monotonic:
            session.ended_at = step.now
            session.held_several = len(session.leased_jobs) > 1
    orphans = list(_iter_orphans(step.state))
    rescued = Rescued([], [], [], more=len(orphans) > limit)
    for entry, lease in orphans[:limit]:
        effect = decide_rescue(_describe(entry, lease), max_lost, step.now)
        step.apply_effect(entry, effect)
        note_rescued(rescued, entry.id, effect)
    return rescued


def _iter_orphans(state: MemoryState) -> Iterator[tuple[JobEntry, LeaseEntry]]:
    """Yield the jobs of ended sessions with their leases."""
    for session in state.sessions.values():
        if session.is_ended:
            for entry in session.leased_jobs.values():
                if entry.leased is not None:
                    yield entry, entry.leased


def _describe(entry: JobEntry, lease: LeaseEntry) -> OrphanedLease:
    return OrphanedLease(
        failures=entry.failures,
        lost=entry.lost,
        started_at=lease.started_at,
        cancel_requested=lease.cancel_requested,
        session=lease.session.session.id,
        host=lease.session.session.host,
        was_left=lease.session.left,
        held_several=lease.session.held_several,
    )
