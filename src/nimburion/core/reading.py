"""What people and tools ask a store, and what it answers."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from nimburion.core.errors import (
    BackendError,
    BackendReplaced,
    FormatMismatch,
    InvalidJob,
    NimburionError,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
)
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
    raise InvalidJob(f"{after!r} is not the `next` of a page of this store")


class Replayed(msgspec.Struct, frozen=True):
    """What one bounded replay did."""

    ids: list[str]
    """Became pending again: same id, same payload, history kept, counts begun anew."""
    held: list[str]
    """Stayed failed: another job holds their unique key."""
    next: str | None = None
    """Pass it on to go on; None: everything that matched was looked at."""


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


class Rescued(msgspec.Struct, frozen=True):
    """What one bounded rescue did, by job id."""

    returned: list[str]
    """Waiting again."""
    failed: list[str]
    """Their losses are spent: dead letters, reason `lost`."""
    cancelled: list[str]
    """A cancel had been requested."""
    more: bool = False
    """Expired leases are left: call again."""


class Promoted(msgspec.Struct, frozen=True):
    """What one bounded promotion did."""

    count: int
    next_due: float | None
    """The earliest due time still scheduled (may be past when the bound was reached)."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long finished jobs are kept, in seconds; None: for ever."""

    completed: float | None = 86_400.0
    """Completed and cancelled records."""
    completed_max: int | None = None
    """And at most so many of them."""
    failed: float | None = 90 * 86_400.0
    results: float | None = 86_400.0


class Cancellation(enum.StrEnum):
    """The answer to `cancel`."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    """It runs: its worker is told with the next beat; a completion that comes first wins."""
    FINISHED = "finished"
    """Too late: it had ended."""


Overlap = Literal["allow", "skip", "queue_one", "cancel_previous"]


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as stored. `spec` is the scheduler's own JSON; stores keep it as it is."""

    name: str
    spec: bytes
    owner: str = ""
    paused: bool = False
    last_tick: float | None = None
    """The nominal time of the latest tick that was decided, epoch seconds."""
    last_job: str | None = None
    """The job of the latest tick that enqueued one."""


class Fired(msgspec.Struct, frozen=True):
    """What became of a tick."""

    outcome: Literal["fired", "skipped", "moved", "paused", "missing"]
    """`fired`: the job is stored. `skipped`: the overlap rule let the tick pass without one.
    `moved`: `expected_last` did not hold, somebody else decided this tick. `paused`, `missing`:
    the schedule is; nothing was written."""
    job_id: str | None = None


Verdict = Literal["good", "warning", "error"]
"""Of a finding. `warning`: it works, and something may be lost or slow. `error`: it does not."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that an examination of a store found.

    >>> Finding("disk", "warning", "300 MiB are free", "make room").verdict
    'warning'
    """

    subject: str
    """What was looked at, in one or two words: `durability`, `write lock`."""
    verdict: Verdict
    text: str
    """One line: what was found, with its figures."""
    advice: str = ""
    """One line: what to do; empty where all is good."""


_ADVICE: tuple[tuple[type[NimburionError], str], ...] = (
    (StoreFull, "make room; whoever waits goes on by itself"),
    (StoreReadOnly, "let this user write there, or choose another store"),
    (BackendReplaced, "end every process that uses it, put the right file in place, start again"),
    (StoreCorrupt, "stop every process that uses it, and keep a copy before anything else"),
    (FormatMismatch, "run the nimburion version that fits, or choose another store"),
    (BackendError, "bring the store back or correct its address; workers go on by themselves"),
    (NimburionError, "correct what the configuration says of the store"),
)


def finding_of(subject: str, error: NimburionError) -> Finding:
    """What a store refused, as an examination says it."""
    advice = next(text for kind, text in _ADVICE if isinstance(error, kind))
    return Finding(subject, "error", " ".join(str(error).split()), advice)
