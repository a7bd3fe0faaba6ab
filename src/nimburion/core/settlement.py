"""Settlements: what a worker reports to the backend about an attempt.

Each settlement names its lease; a settlement with a stale lease writes nothing. If a cancel was
requested, `Retried`, `Released`, `RateLimited` and `Suspended` end the job as cancelled. A durable
run with the step `CLEANUP_STEP` is not ended so: it waits again, with the signal `CANCEL_SIGNAL`.
The final settlements `Completed`, `Failed` and `Cancelled` take precedence over the request.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from nimburion.core.flows import WaitSource
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


class Recorded(msgspec.Struct, frozen=True, tag="recorded"):
    """The attempt continues and stores a step of its durable run. The worker keeps the lease.

    If the run has a step with this number, nothing changes. Otherwise the failures and the losses
    of the job become 0, unless the step is `CLEANUP_STEP`: a run that gets on does not wear out.
    """

    lease: Lease
    number: int
    body: bytes
    takes: int | None = None
    """The number of the signal that the step takes, which is then no longer unread."""
    forgets: bool = False
    """Whether all other steps of the run are removed, also `CLEANUP_STEP`: it begins anew."""


class Suspended(msgspec.Struct, frozen=True, tag="suspended"):
    """The run waits without a worker. Nothing is counted.

    The job is resumed by the first of these: a source is met, or `delay` seconds have passed on the
    backend's clock. It is due then. A flow that is unknown or has ended is met at once, and so is a
    signal that is unread. Without sources and delay, only a cancel ends the wait.
    """

    lease: Lease
    sources: tuple[WaitSource, ...] = ()
    """Flows and signals of this job; at most `MAX_SOURCES`, each once."""
    delay: float | None = None


Settlement = (
    Completed
    | Retried
    | Failed
    | Released
    | RateLimited
    | Cancelled
    | Progressed
    | Spent
    | Recorded
    | Suspended
)


class Settled(enum.StrEnum):
    """The result of one settlement."""

    DONE = "done"
    ALREADY = "already"
    """The same token settled the job before; nothing was written now."""
    STALE = "stale"
    """The job is not held under this token, or not any more; nothing was written."""


SETTLED_BY_LETTER: Mapping[str, Settled] = MappingProxyType({each[0]: each for each in Settled})
"""The results by their first letters, which backends store."""
