"""Runs handlers in child processes: makes the call, and maps its end to what a handler returns or
raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nimburion.core.errors import Cancel, RateLimitExceeded, RemoteError, Snooze
from nimburion.core.lease import Delivery, Lease
from nimburion.core.settlement import Progressed, Spent
from nimburion.jobs.handling.attempt_record import ReportSink
from nimburion.jobs.handling.context import Context
from nimburion.jobs.options.policy import Policy
from nimburion.jobs.worker.attempt.outcome import HandlerNotCalled, describe_child_death
from nimburion.jobs.worker.children.errors import ChildDied, ChildNotStarted
from nimburion.jobs.worker.children.messages import (
    Call,
    NotRun,
    ProgressMade,
    Raised,
    Returned,
    UnitsSpent,
)
from nimburion.jobs.worker.children.pool import ChildPool
from nimburion.telemetry.trace_headers import read_trace

if TYPE_CHECKING:
    from nimburion.jobs.worker.attempt.attempt import Attempt


class NotRunInChild(HandlerNotCalled):
    """The handler has not run, because no child process can run it. The text says why."""


class ProcessCalls:
    """Runs handlers of one worker in its child processes."""

    def __init__(self, pool: ChildPool, report: ReportSink, error_limit: int) -> None:
        self._pool = pool
        self._report = report
        self._error_limit = error_limit

    async def run(self, attempt: Attempt, context: Context, policy: Policy) -> object:
        """Run the handler of an attempt in a child. Return its result as JSON (`msgspec.Raw`).

        The time until a child is free does not count towards the timeout. If this coroutine is
        cancelled, the child is killed.

        Raises what the handler raised if it is a signal (`Snooze`, `RateLimitExceeded`, `Cancel`),
        and `RemoteError` for a failure. `NotRunInChild` is raised if the handler was not called.
        """
        attempt.stop_timeout()
        try:
            child = await self._pool.acquire(policy.memory_limit)
        except ChildNotStarted as error:
            raise NotRunInChild(f"a child process could not start: {error}") from None
        lease = attempt.delivery.lease
        attempt.child = child
        try:
            attempt.start_timeout()
            reply = await child.run(
                _make_call(attempt, context, policy),
                lambda frame: self._report(_make_report(lease, frame)),
            )
        except ChildDied as died:
            raise self._make_error(died, attempt.delivery, policy) from None
        finally:
            attempt.child = None
            self._pool.release(child)
        return _read_reply(reply)

    def _make_error(self, died: ChildDied, delivery: Delivery, policy: Policy) -> RemoteError:
        limit = policy.memory_limit if died.over_memory_limit else None
        error = describe_child_death(
            died.message, died.output, delivery.attempt, self._error_limit, memory_limit=limit
        )
        if limit is not None and policy.retry_over_memory_limit:
            error = msgspec.structs.replace(error, kind="failure")
        return RemoteError(error)


def _make_call(attempt: Attempt, context: Context, policy: Policy) -> Call:
    delivery = attempt.delivery
    if context.payload is not delivery.payload:  # middleware has replaced it
        delivery = msgspec.structs.replace(delivery, payload=context.payload)
    return Call(
        delivery, attempt.session_id, context.remaining(), policy.memory_limit, read_trace()
    )


def _make_report(lease: Lease, frame: ProgressMade | UnitsSpent) -> Progressed | Spent:
    if isinstance(frame, UnitsSpent):
        return Spent(lease, frame.units)
    return Progressed(lease, frame.fraction, frame.message)


def _read_reply(reply: Returned | Raised | NotRun) -> object:
    match reply:
        case Returned(result=result):
            return None if result is None else msgspec.Raw(result)
        case Raised(kind="snoozed"):
            raise Snooze(reply.delay or 0.0)
        case Raised(kind="rate_limited"):
            raise RateLimitExceeded(reply.delay or 0.0)
        case Raised(kind="cancelled"):
            raise Cancel(reply.reason)
        case Raised(error=error) if error is not None:
            raise RemoteError(error, after=reply.delay)
    name = reply.name if isinstance(reply, NotRun) else ""
    raise NotRunInChild(
        f"the processor that the child process imported has no job {name!r}: register it where the "
        'module is imported, not below `if __name__ == "__main__":` or in a function'
    )
