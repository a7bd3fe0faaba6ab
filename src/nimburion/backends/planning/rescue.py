"""The effect of a rescue: a job whose session has ended waits again, or becomes a dead letter.

Each loss of a worker is counted. A job with `SUSPECT_AFTER` losses is a suspect, which runs alone.
One with `max_lost` losses becomes a dead letter.
"""

from __future__ import annotations

from typing import NamedTuple

from nimburion.backends.planning.settle import (
    WAITS_AGAIN,
    Effect,
    cancel_if_requested,
    date_error,
)
from nimburion.core.job import AttemptError, Reason, State
from nimburion.core.lease import SUSPECT_AFTER
from nimburion.core.maintenance import Rescued
from nimburion.core.text.fingerprints import LOST_FINGERPRINT
from nimburion.core.timing.clock import MICRO


class OrphanedLease(NamedTuple):
    """A lease whose session has ended, with what is known about its job."""

    failures: int
    lost: int
    """The losses of the job before this one."""
    started_at: int
    cancel_requested: bool
    session: str
    """The id of the session."""
    host: str
    """The host of the session."""
    was_left: bool
    """Whether the session was closed while the handler still ran."""
    held_several: bool
    """Whether the session held more than one job when it expired."""
    needs_cleanup: bool = False
    """Whether the job has the step `CLEANUP_STEP`. It matters only if a cancel was requested."""

    @property
    def is_loss(self) -> bool:
        """Whether a loss is counted.

        None is counted if the worker closed its session. A suspect that was held beside other jobs
        had not started, because a suspect runs alone.
        """
        is_suspect = self.lost >= SUSPECT_AFTER
        return not (self.was_left or (is_suspect and self.held_several))


def decide_rescue(lease: OrphanedLease, max_lost: int, now: int) -> Effect:
    """Return what becomes of the job of an orphaned lease."""
    if not lease.is_loss:
        return _cancel_if_requested(WAITS_AGAIN, lease)
    error = make_lost_error(lease, now)
    is_cancelled = lease.cancel_requested and not lease.needs_cleanup
    if lease.lost + 1 >= max_lost and not is_cancelled:
        return Effect(State.FAILED, reason=Reason.LOST, lost=1, error=error)
    return _cancel_if_requested(Effect(lost=1, error=error), lease)


def _cancel_if_requested(effect: Effect, lease: OrphanedLease) -> Effect:
    return cancel_if_requested(
        effect, cancel_requested=lease.cancel_requested, needs_cleanup=lease.needs_cleanup
    )


def make_lost_error(lease: OrphanedLease, now: int) -> AttemptError:
    """Return the error of an attempt whose worker was lost."""
    error = AttemptError(
        lease.failures + lease.lost + 1,
        "lost",
        "WorkerLost",
        "its worker's session expired",
        started_at=lease.started_at / MICRO,
        session=lease.session,
        host=lease.host,
        fingerprint=LOST_FINGERPRINT,
    )
    return date_error(error, now)


def note_rescued(rescued: Rescued, job_id: str, effect: Effect) -> None:
    """Add a job to the result of a rescue."""
    if effect.state is None:
        rescued.returned.append(job_id)
    elif effect.state is State.FAILED:
        rescued.failed.append(job_id)
    else:
        rescued.cancelled.append(job_id)
