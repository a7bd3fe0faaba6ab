"""How a processor is, from what it knows itself: the backend is not asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from nimburion.jobs.worker.connectivity import describe_error

if TYPE_CHECKING:
    from nimburion.jobs.worker.worker import Worker

Condition = Literal["stopped", "starting", "ready", "degraded", "unreachable", "stopping"]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a processor is. `processor.health()` makes one, on any thread, without a call.

    >>> Health(state="stopped").running
    0
    """

    state: Condition
    """`stopped`: no worker runs here. `starting`: it has no session yet, or no longer, and takes no
    jobs. `ready`: all is well. `degraded`: it works, but something in `error` or `faults` does
    not. `unreachable`: no call to the backend succeeds; what runs goes on for `lease_seconds_left`
    seconds. `stopping`: it takes no more jobs."""
    session: str | None = None
    """The id that the backend knows this worker by; None while there is none to believe in."""
    running: int = 0
    """Jobs whose handlers run."""
    prefetched: int = 0
    """Jobs that are reserved and have not begun."""
    seconds_since_answer: float | None = None
    """Seconds since the backend last answered this worker; None: it never did."""
    lease_seconds_left: float = 0.0
    """Seconds for which the worker still believes in its leases, should the backend stay silent;
    then it interrupts what runs, before anybody else may begin it."""
    error: str | None = None
    """Why calls fail, as the latest said; None while none does."""
    faults: dict[str, str] = {}
    """What failed at its latest turn, and why: `worker`, `rescuer`, `pruner`, `wakeups`; `loop`:
    what blocks the event loop."""


Failures = Mapping[str, BaseException | None]
"""What services raised last, by name."""

STOPPED = Health(state="stopped")


def read_health(worker: Worker, services: Failures, *, stopping: bool) -> Health:
    """The health of a worker and of what runs beside it."""
    tenure = worker.session if worker.task is not None and not worker.session.is_over else None
    failures = {"worker": worker.failure, "hints": worker.wakeups.failure, **services}
    faults = {name: describe_error(error) for name, error in failures.items() if error is not None}
    found = _choose_state(worker, has_session=tenure is not None, has_faults=bool(faults))
    return Health(
        state="stopping" if stopping else found,
        session=None if tenure is None else tenure.session.id,
        running=worker.running_count,
        prefetched=worker.prefetched_count,
        seconds_since_answer=worker.connectivity.seconds_since_answer,
        lease_seconds_left=tenure.lease_seconds_left if tenure else 0.0,
        error=worker.connectivity.error,
        faults=faults,
    )


def _choose_state(worker: Worker, *, has_session: bool, has_faults: bool) -> Condition:
    if worker.task is not None and worker.task.done():
        return "stopped"
    if worker.connectivity.is_unreachable:
        return "unreachable"
    if not has_session:
        return "starting"
    return "degraded" if worker.connectivity.is_failing or has_faults else "ready"
