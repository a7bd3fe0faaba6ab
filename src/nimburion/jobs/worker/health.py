"""How a processor is, from what it knows itself: the store is not asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from nimburion.jobs.worker.connectivity import described

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
    jobs. `ready`: all is well. `degraded`: it works, but something in `error` or `faults` does not.
    `unreachable`: no call to the store succeeds; what runs goes on for `believed_for` seconds.
    `stopping`: it takes no more jobs."""
    session: str | None = None
    """The id that the store knows this worker by; None while there is none to believe in."""
    running: int = 0
    """Jobs whose handlers run."""
    held: int = 0
    """Jobs that are reserved and have not begun."""
    silent_for: float | None = None
    """Seconds since the store last answered this worker; None: it never did."""
    believed_for: float = 0.0
    """Seconds for which the worker still believes in its leases, should the store stay silent; then
    it interrupts what runs, before anybody else may begin it."""
    error: str | None = None
    """Why calls fail, as the latest said; None while none does."""
    faults: dict[str, str] = {}
    """What failed at its latest turn, and why: `worker`, `rescuer`, `pruner`, `hints`; `loop`: what
    blocks the event loop."""


Failures = Mapping[str, BaseException | None]
"""What services raised last, by name."""

STOPPED = Health(state="stopped")


def health_of(worker: Worker, beside: Failures, *, stopping: bool) -> Health:
    """The health of a worker and of what runs beside it."""
    tenure = worker.tenure if worker.done is not None and not worker.tenure.over else None
    failures = {"worker": worker.failure, "hints": worker.hints.failure, **beside}
    faults = {name: described(error) for name, error in failures.items() if error is not None}
    found = _condition(worker, has_session=tenure is not None, has_faults=bool(faults))
    return Health(
        state="stopping" if stopping else found,
        session=None if tenure is None else tenure.session.id,
        running=worker.running,
        held=worker.held,
        silent_for=worker.reach.silent_for,
        believed_for=tenure.believed_for if tenure else 0.0,
        error=worker.reach.error,
        faults=faults,
    )


def _condition(worker: Worker, *, has_session: bool, has_faults: bool) -> Condition:
    if worker.done is not None and worker.done.done():
        return "stopped"
    if worker.reach.lost:
        return "unreachable"
    if not has_session:
        return "starting"
    return "degraded" if worker.reach.failing or has_faults else "ready"
