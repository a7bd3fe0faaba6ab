"""The effect of a settlement, and of the end of a lease that no attempt settles.

A backend checks the token of the lease, decides, and applies the effect in the same atomic step. It
may complete many jobs at once without an effect for each: `Completed` always has the same one.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from nimburion.core.flows import WaitSource
from nimburion.core.job import AttemptError, State
from nimburion.core.lease import Token
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    RateLimited,
    Released,
    Retried,
    Settled,
    Suspended,
)
from nimburion.core.timing.clock import MICRO, to_micros

FinalSettlement = Completed | Retried | Failed | Released | RateLimited | Cancelled | Suspended
"""The settlements that end a lease: all but reports of an attempt that continues."""


class Effect(msgspec.Struct, frozen=True):
    """What becomes of a job when its lease ends.

    The lease is removed in any case, and counts in no limit any more. Its tenant pays for its run
    time, or for nothing.
    """

    state: State | None = None
    """The finished state of the job, which frees its unique key unless that has a fixed end. None:
    the job waits again."""
    due: int | None = None
    """When the waiting job is due. None: it returns to its old place."""
    reason: str | None = None
    """Why the job failed or was cancelled."""
    failures: int = 0
    """The number of failures to add."""
    lost: int = 0
    """The number of lost attempts to add."""
    error: AttemptError | None = None
    """The error to add to the history."""
    result: bytes | None = None
    keeps_payload: bool = True
    settles: bool = False
    """Whether the token of the lease settles the job, so that a repeat is `ALREADY`."""
    has_run: bool = False
    """Whether the tenant of the job pays for the time since it was reserved."""
    refunds_units: bool = False
    """Whether the job gives its units of rate limits back."""
    sources: tuple[WaitSource, ...] | None = None
    """What the durable run waits for, which is suspended; None: the job is not suspended."""
    sends_cancel: bool = False
    """Whether the durable run gets the signal that asks it to end (`CANCEL_SIGNAL`)."""


WAITS_AGAIN = Effect()
"""The lease ends without an attempt. The job returns to its place, and nothing is counted."""
CANCELLED = Effect(State.CANCELLED, keeps_payload=False)
"""A job that waits is cancelled."""


def decide_effect(
    settlement: FinalSettlement,
    now: int,
    *,
    cancel_requested: bool,
    needs_cleanup: bool = False,
    is_rate_blocked: bool = False,
) -> Effect:
    """Return the effect of a settlement whose token matches the lease.

    `cancel_requested`: of the lease. `needs_cleanup`: whether the job has the step `CLEANUP_STEP`;
    it matters only if a cancel was requested. `is_rate_blocked`: of `RateLimited`, whether the job
    has a rate limit, which the backend has blocked for that time.
    """
    match settlement:
        case Completed():
            return Effect(
                State.COMPLETED,
                result=settlement.result,
                keeps_payload=settlement.keep_payload,
                settles=True,
                has_run=True,
            )
        case Retried():
            effect = Effect(
                due=compute_retry_due(settlement.delay, now),
                failures=1,
                error=date_error(settlement.error, now),
                settles=True,
                has_run=True,
            )
        case Failed():
            return Effect(
                State.FAILED,
                reason=settlement.reason,
                failures=1,
                error=date_error(settlement.error, now),
                settles=True,
                has_run=True,
            )
        case Cancelled():
            return Effect(
                State.CANCELLED,
                reason=settlement.reason,
                keeps_payload=False,
                settles=True,
                has_run=True,
            )
        case Released():
            effect = Effect(
                due=compute_retry_due(settlement.delay, now),
                settles=True,
                has_run=not settlement.unstarted,
                refunds_units=settlement.unstarted,
            )
        case RateLimited():
            delay = None if is_rate_blocked else settlement.retry_after
            effect = Effect(due=compute_retry_due(delay, now), settles=True, has_run=True)
        case Suspended():
            sources = list_wait_sources(settlement, now)
            effect = Effect(settles=True, has_run=True, sources=sources)
        case _:
            assert_never(settlement)
    return cancel_if_requested(
        effect, cancel_requested=cancel_requested, needs_cleanup=needs_cleanup
    )


def decide_release(
    *, cancel_requested: bool, settles: bool, unstarted: bool, needs_cleanup: bool = False
) -> Effect:
    """Return the effect of the end of a lease that the worker returns, or never received.

    `unstarted`: its handler was not called, so the job gives its units of rate limits back.
    """
    effect = Effect(settles=settles, refunds_units=unstarted)
    return cancel_if_requested(
        effect, cancel_requested=cancel_requested, needs_cleanup=needs_cleanup
    )


def cancel_if_requested(
    effect: Effect, *, cancel_requested: bool, needs_cleanup: bool = False
) -> Effect:
    """Return the effect that ends a job as cancelled in place of waiting, if that was requested.

    With `needs_cleanup`, a worker ends the durable run: it waits again, and gets a signal.
    """
    if not cancel_requested:
        return effect
    if needs_cleanup:
        return msgspec.structs.replace(effect, due=None, sources=None, sends_cancel=True)
    return msgspec.structs.replace(
        effect, state=State.CANCELLED, due=None, sources=None, keeps_payload=False
    )


def list_wait_sources(suspended: Suspended, now: int) -> tuple[WaitSource, ...]:
    """Return all that a suspended run waits for, with the time of its delay."""
    from nimburion.core.runs import make_time_source  # most jobs are never suspended

    if suspended.delay is None:
        return suspended.sources
    due = now + max(0, to_micros(suspended.delay))
    return (*suspended.sources, make_time_source(due))


def decide_unmatched(token: Token, settled_token: Token | None) -> Settled:
    """Return the result of a settlement without a matching lease.

    `settled_token`: the token that settled the job last; None: none did, or there is no such job.
    """
    return Settled.ALREADY if token == settled_token else Settled.STALE


def compute_retry_due(delay: float | None, now: int) -> int | None:
    """Return when a job is due after a delay in seconds; None: it keeps its due time."""
    return None if delay is None else now + max(0, to_micros(delay))


def date_error(error: AttemptError, now: int) -> AttemptError:
    """Return an error with the time at which it is added to the history."""
    return msgspec.structs.replace(error, at=now / MICRO)
