"""What people and tools ask a backend, and what it answers."""

from __future__ import annotations

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.job import FINISHED, JobRecord, State


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs; everything given must hold. `ids` narrows to those ids."""

    states: frozenset[State] | None = None
    queue: str | None = None
    name: str | None = None
    reason: str | None = None
    ids: tuple[str, ...] | None = None

    @property
    def failed_states(self) -> frozenset[State]:
        """The states of the jobs that a replay may take."""
        return _FAILED_ONLY if self.states is None else self.states & _FAILED_ONLY

    @property
    def finished_states(self) -> frozenset[State]:
        """The states of the jobs that a delete may take."""
        return FINISHED if self.states is None else self.states & FINISHED


_FAILED_ONLY = frozenset({State.FAILED})

EVERY_JOB = JobFilter()


class Page(msgspec.Struct, frozen=True):
    """Some jobs, newest enqueue first, and where the next page begins (None: this is the last)."""

    jobs: list[JobRecord]
    next: str | None = None


def parse_cursor(after: str | None) -> int | None:
    """Return the seq before which a page begins; None: at the newest job.

    Raises:
        InvalidJob: `after` is not the `next` of a page.
    """
    if after is None:
        return None
    if after.isascii() and after.isdigit():
        return int(after)
    raise InvalidJob(f"{after!r} is not the `next` of a page of this backend")


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One queue, as read."""

    name: str
    size: int
    """Due now and not processing."""
    scheduled: int
    """Waiting for their time (first tries and retries)."""
    processing: int
    oldest_age: float
    """Seconds that the longest-due waiting job has been due; 0 when none is."""
    paused: bool
    names: dict[str, int] = msgspec.field(default_factory=dict)
    """How many jobs of each name wait, due or not; names of which none waits are left out."""
