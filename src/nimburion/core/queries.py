"""Filters, pages and results of the read operations of a backend."""

from __future__ import annotations

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.job import FINISHED, JobRecord, State


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter of jobs. A job must match every field that is set; `ids` lists the allowed ids."""

    states: frozenset[State] | None = None
    queue: str | None = None
    name: str | None = None
    reason: str | None = None
    ids: tuple[str, ...] | None = None

    @property
    def failed_states(self) -> frozenset[State]:
        """The states of the jobs that `replay` may select."""
        return _FAILED_ONLY if self.states is None else self.states & _FAILED_ONLY

    @property
    def finished_states(self) -> frozenset[State]:
        """The states of the jobs that `delete` may select."""
        return FINISHED if self.states is None else self.states & FINISHED


_FAILED_ONLY = frozenset({State.FAILED})

EVERY_JOB = JobFilter()


class Page(msgspec.Struct, frozen=True):
    """A page of jobs, most recently enqueued first. `next` is the cursor of the next page; None:
    last.
    """

    jobs: list[JobRecord]
    next: str | None = None


_MAX_DIGITS = 18
_BEYOND_ALL_JOBS = 10**_MAX_DIGITS
"""The largest cursor. Every backend can hold this number, and no job has it."""


def parse_cursor(after: str | None) -> int | None:
    """Return the sequence number before which a page begins; None: start at the newest job.

    Raises:
        InvalidJob: `after` is not the `next` of a page.
    """
    if after is None:
        return None
    if after.isascii() and after.isdigit():
        digits = after.lstrip("0") or "0"
        return int(digits) if len(digits) <= _MAX_DIGITS else _BEYOND_ALL_JOBS
    raise InvalidJob(f"{after!r} is not the `next` of a page of this backend")


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one queue when it was read."""

    name: str
    size: int
    """The number of jobs that are due and not processing."""
    scheduled: int
    """The number of jobs that are not due yet: first attempts and retries."""
    processing: int
    oldest_age: float
    """The longest time that a waiting job has been due, in seconds; 0 if no job is due."""
    paused: bool
    names: dict[str, int] = msgspec.field(default_factory=dict)
    """The number of waiting jobs by name, due or not. Names without waiting jobs are left out."""
