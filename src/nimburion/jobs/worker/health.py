"""The health of a processor, from its own state. Never calls the backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from nimburion.jobs.worker.worker import Worker

Condition = Literal["stopped", "open", "starting", "ready", "degraded", "unreachable", "stopping"]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The health of a processor, as `processor.health()` returns it.

    `processor.health()` is safe on any thread and makes no call to the backend.

    >>> Health(state="stopped").running
    0
    """

    state: Condition
    """The condition of the processor.

    `stopped`: no worker runs here. `open`: the processor can enqueue, and has started no worker.
    `starting`: the worker has no session (not yet, or it was lost) and takes no jobs. `ready`:
    nothing fails. `degraded`: the worker runs, but `error` or `failures` says what fails.
    `unreachable`: no call to the backend succeeds (without a worker: the latest enqueue failed);
    running jobs continue for `lease_seconds_left` seconds. `stopping`: the worker takes no more
    jobs.
    """
    session: str | None = None
    """The id of the worker's session; None while it has no valid session."""
    running: int = 0
    """The number of jobs whose handlers run."""
    prefetched: int = 0
    """The number of jobs that are reserved and have not started."""
    seconds_since_answer: float | None = None
    """Seconds since the backend last answered this worker; None if it never did.

    Without a worker: since it answered an enqueue.
    """
    seconds_since_exchange: float | None = None
    """Seconds since the worker last made an exchange, answered or not.

    None if no exchange is due, because every slot is busy or the worker takes no jobs.
    """
    lease_seconds_left: float = 0.0
    """Seconds for which the leases stay valid if the backend does not answer again.

    Then the worker interrupts its running jobs, before another worker can start them.
    """
    error: str | None = None
    """The latest error of calls to the backend; None while no call fails."""
    failures: dict[str, str] = {}
    """The latest failure by component, for components that fail now.

    The keys include `worker`, `rescuer`, `pruner` and `wakeups`. `loop` describes what blocks the
    event loop.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the health as plain JSON values, for the answer of a web handler."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


Failures = Mapping[str, BaseException | None]
"""The last exception of each service, by its name."""

STOPPED = Health(state="stopped")


def read_health(worker: Worker, services: Failures, *, stopping: bool) -> Health:
    """Return the health of a worker and of its services."""
    session = worker.session if worker.task is not None and not worker.session.is_over else None
    wakeups = worker.fetcher.wakeups.failure or worker.fetcher.due_timer.failure
    raised = {"worker": worker.failure, "wakeups": wakeups, **services}
    describe = worker.connectivity.describe_error
    failures = {name: describe(error) for name, error in raised.items() if error is not None}
    found = _choose_state(worker, has_session=session is not None, has_failures=bool(failures))
    return Health(
        state="stopping" if stopping else found,
        session=None if session is None else session.id,
        running=worker.running_count,
        prefetched=worker.prefetched_count,
        seconds_since_answer=worker.connectivity.seconds_since_answer,
        seconds_since_exchange=worker.seconds_since_exchange,
        lease_seconds_left=session.lease_seconds_left if session else 0.0,
        error=worker.connectivity.error,
        failures=failures,
    )


def _choose_state(worker: Worker, *, has_session: bool, has_failures: bool) -> Condition:
    if worker.task is not None and worker.task.done():
        return "stopped"
    if worker.connectivity.is_unreachable:
        return "unreachable"
    if not has_session:
        return "starting"
    return "degraded" if worker.connectivity.is_failing or has_failures else "ready"
