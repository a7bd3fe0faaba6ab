"""A context for calling a handler directly in a test, without a worker and without a backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nimburion.core.job import JobOptions
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settlement import Progressed, Spent
from nimburion.jobs.handling.lifespan import NO_STATE

if TYPE_CHECKING:
    from nimburion.jobs.client.client import Client
    from nimburion.jobs.handling.context import Context


def make_context(
    *,
    name: str = "test",
    job_id: str = "test-job",
    queue: str = "default",
    priority: int = 5,
    failures: int = 0,
    lost: int = 0,
    headers: Mapping[str, str] | None = None,
    tenant: str | None = None,
    correlation_id: str | None = None,
    timeout: float | None = None,
    cancelled: bool = False,
    payload: bytes = b"{}",
    on_progress: Callable[[float, str], None] = lambda *_: None,
    on_spend: Callable[[int], None] = lambda _: None,
    processor: Client | None = None,
    state: object = NO_STATE,
) -> Context[Any]:
    """Return a context with these values, to pass to a handler.

        async def test_it_gives_up_after_three_failures():
            with pytest.raises(PermanentError):
                await charge(make_context(failures=3), order=7)

    `failures` and `lost` are those of earlier attempts, so `ctx.attempt` is their sum plus one.
    `timeout` is a number of seconds from now. `on_progress` is called with each progress report,
    and `on_spend` with the units of each `ctx.spend`. With a `processor`, `ctx.enqueue` stores jobs
    there; otherwise it raises `NotOpen`, as `ctx.transaction` always does. `state` is `ctx.state`,
    in place of what a lifespan yields.
    """
    from nimburion.jobs.handling.attempt_record import AttemptRecord, WorkerServices
    from nimburion.jobs.handling.context import Context

    def report(report: Progressed | Spent) -> None:
        if isinstance(report, Progressed):
            on_progress(report.fraction, report.message)
        else:
            on_spend(report.units)

    delivery = Delivery(
        Lease(job_id, Token(1, bytes(16))),
        name,
        queue,
        payload,
        priority=priority,
        failures=failures,
        lost=lost,
        options=JobOptions(
            headers=dict(headers or {}), tenant=tenant, correlation_id=correlation_id
        ),
    )
    record = AttemptRecord(delivery, "test-session")
    record.cancel_requested = cancelled
    services = WorkerServices(time.monotonic, report, processor, state=state)
    deadline = None if timeout is None else time.monotonic() + timeout
    return Context(record, services, deadline)
