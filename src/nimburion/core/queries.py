"""Filters, pages and results of the read operations of a backend."""

from __future__ import annotations

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.job import FAILED_ONLY, JobRecord, State


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter of jobs. A job must match every field that is set; `ids` lists the allowed ids.

    Backends have no index for the fields from `created_from` on. `list_jobs` examines records to
    find them, within its budget.
    """

    states: frozenset[State] | None = None
    queue: str | None = None
    name: str | None = None
    reason: str | None = None
    ids: tuple[str, ...] | None = None
    created_from: float | None = None
    """Epoch seconds, inclusive, on the backend's clock."""
    created_to: float | None = None
    """Epoch seconds, exclusive."""
    finished_from: float | None = None
    """Epoch seconds, inclusive. Matches finished jobs only, as `finished_to` does."""
    finished_to: float | None = None
    """Epoch seconds, exclusive."""
    tenant: str | None = None
    correlation_id: str | None = None
    fingerprint: str | None = None
    """The fingerprint of the error that made a job a dead letter. Matches failed jobs only."""
    tag: str | None = None
    """A tag that the job must have; a name, as `check_name` allows it."""
    flow: str | None = None
    """The id of the flow of which a job must be a member (`JobOptions.flow`)."""
    min_failures: int | None = None
    """The least value of `JobRecord.failures`."""

    @property
    def failed_states(self) -> frozenset[State]:
        """The states of the dead letters that may match."""
        return FAILED_ONLY if self.states is None else self.states & FAILED_ONLY

    @property
    def needs_search(self) -> bool:
        """Whether a field without an index is set."""
        return any(getattr(self, field) is not None for field in _SEARCHED_FIELDS)

    def matches_search(self, record: JobRecord) -> bool:
        """Return whether a record matches the fields without an index."""
        return (
            _is_in_range(record.created_at, self.created_from, self.created_to)
            and _is_in_range(record.finished_at, self.finished_from, self.finished_to)
            and self.tenant in (None, record.options.tenant)
            and self.correlation_id in (None, record.options.correlation_id)
            and (self.tag is None or self.tag in record.options.tags)
            and self.fingerprint in (None, record.fingerprint)
            and (self.flow is None or _is_member(record, self.flow))
            and (self.min_failures is None or record.failures >= self.min_failures)
        )


_SEARCHED_FIELDS = (
    "created_from",
    "created_to",
    "finished_from",
    "finished_to",
    "tenant",
    "correlation_id",
    "tag",
    "fingerprint",
    "flow",
    "min_failures",
)


def _is_member(record: JobRecord, flow: str) -> bool:
    return record.options.flow == flow and record.options.counted_flow is not None


def _is_in_range(at: float | None, start: float | None, end: float | None) -> bool:
    if at is None:
        return start is None and end is None
    return (start is None or at >= start) and (end is None or at < end)


def describe_filter(which: JobFilter) -> dict[str, object]:
    """Return the fields of a filter that are set, for people."""
    set_fields = msgspec.structs.asdict(which).items()
    fields = {name: value for name, value in set_fields if value is not None}
    if which.states is not None:
        fields["states"] = ", ".join(sorted(which.states))
    if which.ids is not None:
        fields["ids"] = " ".join(which.ids)
    return fields


EVERY_JOB = JobFilter()


WHOLE_PAYLOAD = 1 << 30
"""More bytes than any payload has."""
SCAN_BUDGET = 10_000
"""The default maximum number of records that one call examines to find matching jobs."""
COUNT_BUDGET = 10_000
"""The default maximum number of waiting jobs and dead letters that one call counts."""


class JobCounts(dict[State, int]):
    """The number of jobs in each state."""

    is_complete: bool = True
    """False: there may be more waiting jobs and dead letters. The count ended at its budget."""


class Page(msgspec.Struct, frozen=True):
    """A page of jobs, most recently enqueued first. `next` is the cursor of the next page; None:
    last.

    A page may have fewer jobs than its limit, even none, and still have a `next`: the call
    stopped at its budget. `next` then continues where it stopped.
    """

    jobs: list[JobRecord]
    next: str | None = None
    examined: int = 0
    """The number of records examined; at least the number of jobs on the page."""


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


def move_cursor(after: str, newer: int) -> str:
    """Return the cursor of a page that begins `newer` jobs before another one, or less.

    >>> move_cursor("120", 100)
    '220'
    """
    return str((parse_cursor(after) or 0) + newer)


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Why a queue is paused. Times are epoch seconds on the backend's clock."""

    by: str = ""
    """Who paused it, as that caller named itself."""
    reason: str = ""
    since: float = 0.0
    until: float | None = None
    """When the pause ends by itself; None: when the queue is resumed."""


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
    pause: Pause | None = None
    """Who paused the queue, when and why; None if it is not paused."""
    names: dict[str, int] = msgspec.field(default_factory=dict)
    """The number of waiting jobs by name, due or not. Names without waiting jobs are left out."""
    size_complete: bool = True
    """False: at least `size` jobs are due. The count ended at its budget."""
    scheduled_complete: bool = True
    """False: at least `scheduled` jobs are not due yet. The count ended at its budget."""
