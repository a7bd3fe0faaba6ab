"""Decides what follows an attempt: maps its outcome to a settlement. Pure functions.

A failed attempt is retried, or the job becomes a dead letter. Only this module decides which.
`jobs/options/backoff.py` computes the delay until the next attempt.
"""

from __future__ import annotations

from random import Random
from typing import assert_never

from nimburion.core.job import AttemptError, Reason
from nimburion.core.lease import Delivery
from nimburion.core.settlement import (
    Cancelled,
    Failed,
    RateLimited,
    Released,
    Retried,
    Settlement,
)
from nimburion.jobs.options.backoff import compute_delay
from nimburion.jobs.options.policy import Policy
from nimburion.jobs.worker.attempt.outcome import (
    AttemptFailed,
    CancelRequested,
    Interrupted,
    Outcome,
    OverRateLimit,
    Snoozed,
)

_FINAL_REASONS = {"permanent": Reason.PERMANENT, "unreadable": Reason.UNREADABLE}
"""The kinds of errors that are never retried."""


def decide_settlement(
    delivery: Delivery, outcome: Outcome, policy: Policy, random: Random, now: float
) -> Settlement:
    """Return the settlement of this attempt, which ended at `now` on the backend's clock."""
    match outcome:
        case AttemptFailed():
            return _settle_failure(delivery, outcome, policy, random, now)
        case Snoozed():
            return Released(delivery.lease, outcome.delay)
        case OverRateLimit():
            return RateLimited(delivery.lease, outcome.retry_after)
        case CancelRequested():
            return Cancelled(delivery.lease, outcome.reason)
        case Interrupted():
            return Released(delivery.lease)
    assert_never(outcome)


def _settle_failure(
    delivery: Delivery, outcome: AttemptFailed, policy: Policy, random: Random, now: float
) -> Retried | Failed:
    failures = delivery.failures + 1
    reason = _find_final_reason(outcome.error, failures, _read_max_retries(delivery, policy))
    if reason is not None:
        return Failed(delivery.lease, reason, outcome.error)
    after = outcome.after
    if after is None:
        after = compute_delay(policy.backoff, policy.backoff_max, failures, random)
    if policy.retry_for is not None and now + after > delivery.created_at + policy.retry_for:
        return Failed(delivery.lease, Reason.EXHAUSTED, outcome.error)
    return Retried(delivery.lease, after, outcome.error)


def _find_final_reason(error: AttemptError, failures: int, max_retries: int) -> Reason | None:
    """Return why this failure is final; None if the job is retried."""
    final = _FINAL_REASONS.get(error.kind)
    if final is not None:
        return final
    return Reason.EXHAUSTED if failures > max_retries else None


def _read_max_retries(delivery: Delivery, policy: Policy) -> int:
    max_retries = delivery.options.max_retries
    if max_retries is not None:
        return max_retries
    return policy.max_retries if policy.max_retries is not None else 0
