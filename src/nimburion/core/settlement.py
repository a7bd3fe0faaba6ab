"""Settlements: what a worker reports to the backend about an attempt.

Each settlement names its lease; a settlement with a stale lease writes nothing. If a cancel was
requested, `Retried`, `Released` and `RateLimited` end the job as cancelled. The final settlements
`Completed`, `Failed` and `Cancelled` take precedence over the request.
"""

from __future__ import annotations

import enum

import msgspec

from nimburion.core.job import AttemptError
from nimburion.core.lease import Lease


class Completed(msgspec.Struct, frozen=True, gc=False, tag="completed"):
    """The handler returned. `result` is JSON, or None if there is nothing to keep.

    With `keep_payload`, the record keeps its payload for as long as it is kept itself. Otherwise
    only the digest stays.
    """

    lease: Lease
    result: bytes | None = None
    keep_payload: bool = False


class Retried(msgspec.Struct, frozen=True, tag="retried"):
    """The attempt failed, and the job is due again in `delay` seconds on the backend's clock.

    Counts a failure and adds `error` to the history.
    """

    lease: Lease
    delay: float
    error: AttemptError


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The last attempt failed: the job becomes a dead letter. Counts a failure."""

    lease: Lease
    reason: str
    error: AttemptError


class Released(msgspec.Struct, frozen=True, gc=False, tag="released"):
    """The job returns to its queue; nothing is counted.

    Without a delay, the job keeps its old place in the queue. With a delay (a snooze), it is due
    `delay` seconds from now.
    """

    lease: Lease
    delay: float | None = None
    unstarted: bool = False
    """Whether the handler was never called: the job then gives its units of a rate limit back."""


class RateLimited(msgspec.Struct, frozen=True, gc=False, tag="rate_limited"):
    """A service refused the attempt, and asks for a pause of `retry_after` seconds.

    The rate limit of the job's name allows no job until then. The job returns to its old place;
    nothing is counted. If its name has no rate limit, the job is due in `retry_after` seconds.
    """

    lease: Lease
    retry_after: float


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled"):
    """The attempt ended the job as cancelled."""

    lease: Lease
    reason: str = ""


class Progressed(msgspec.Struct, frozen=True, tag="progressed"):
    """The attempt continues and reports its progress (0.0 to 1.0). The worker keeps the lease."""

    lease: Lease
    fraction: float
    message: str = ""


class Spent(msgspec.Struct, frozen=True, gc=False, tag="spent"):
    """The attempt continues and has taken `units` more of the rate limit of its name.

    A negative number gives units back. The worker keeps the lease.
    """

    lease: Lease
    units: int


Settlement = Completed | Retried | Failed | Released | RateLimited | Cancelled | Progressed | Spent


class Settled(enum.StrEnum):
    """The result of one settlement."""

    DONE = "done"
    ALREADY = "already"
    """The same token settled the job before; nothing was written now."""
    STALE = "stale"
    """The job is not held under this token, or not any more; nothing was written."""
