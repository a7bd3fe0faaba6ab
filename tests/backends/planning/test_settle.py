"""Each end of a lease leaves the job in a state that the table of transitions allows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nimburion.backends.planning.settle import (
    Effect,
    FinalSettlement,
    decide_effect,
    decide_release,
    decide_unmatched,
)
from nimburion.core.job import FINISHED, TRANSITIONS, AttemptError, Reason, State
from nimburion.core.lease import Lease, Token
from nimburion.core.runs import make_signal_source, make_time_source
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

NOW = 1_000_000_000
SECOND = 1_000_000
LEASE = Lease("a", Token(1, b"n" * 16))
ERROR = AttemptError(1, "failure", "ValueError", "no luck", fingerprint="f" * 16)

SETTLEMENTS: tuple[tuple[str, FinalSettlement], ...] = (
    ("complete", Completed(LEASE)),
    ("complete", Completed(LEASE, b"1", keep_payload=True)),
    ("retry", Retried(LEASE, 2.0, ERROR)),
    ("fail", Failed(LEASE, Reason.EXHAUSTED, ERROR)),
    ("release", Released(LEASE)),
    ("release", Released(LEASE, 2.0)),
    ("release", Released(LEASE, unstarted=True)),
    ("release", RateLimited(LEASE, 2.0)),
    ("cancel", Cancelled(LEASE, "no more")),
    ("suspend", Suspended(LEASE)),
    ("suspend", Suspended(LEASE, (make_signal_source("a", "go"),), 2.0)),
)
FINAL = (Completed, Failed, Cancelled)


def find_state(effect: Effect) -> State:
    """Return the state of a job without earlier failures after an effect."""
    if effect.state is not None:
        return effect.state
    if effect.sources is not None:
        return State.SUSPENDED
    if effect.failures:
        return State.RETRYING
    return State.SCHEDULED if (effect.due or 0) > NOW else State.PENDING


@pytest.mark.parametrize("cancel_requested", [False, True])
@pytest.mark.parametrize(("operation", "settlement"), SETTLEMENTS)
def test_a_settlement_ends_in_a_state_that_the_table_allows(
    operation: str, settlement: FinalSettlement, cancel_requested: bool
) -> None:
    effect = decide_effect(settlement, NOW, cancel_requested=cancel_requested)
    _, allowed = TRANSITIONS[operation]
    assert find_state(effect) in allowed
    assert effect.settles
    assert effect.failures == int(isinstance(settlement, Retried | Failed))
    assert effect.lost == 0
    if effect.state in FINISHED:
        assert effect.due is None


@pytest.mark.parametrize(("_operation", "settlement"), SETTLEMENTS)
def test_a_cancel_request_ends_what_would_wait_and_changes_nothing_else(
    _operation: str, settlement: FinalSettlement
) -> None:
    without = decide_effect(settlement, NOW, cancel_requested=False)
    effect = decide_effect(settlement, NOW, cancel_requested=True)
    if isinstance(settlement, FINAL):
        assert effect == without
    else:
        assert without.state is None
        assert effect.state is State.CANCELLED
        assert not effect.keeps_payload
        assert (effect.failures, effect.error) == (without.failures, without.error)


@pytest.mark.parametrize(("operation", "settlement"), SETTLEMENTS)
def test_a_run_that_needs_cleanup_is_asked_and_waits_at_its_place(
    operation: str, settlement: FinalSettlement
) -> None:
    without = decide_effect(settlement, NOW, cancel_requested=False, needs_cleanup=True)
    assert without == decide_effect(settlement, NOW, cancel_requested=False)
    effect = decide_effect(settlement, NOW, cancel_requested=True, needs_cleanup=True)
    if isinstance(settlement, FINAL):
        assert effect == without
        return
    assert (effect.state, effect.due, effect.sources) == (None, None, None)
    assert effect.sends_cancel
    assert find_state(effect) in TRANSITIONS[operation][1]
    assert (effect.failures, effect.error, effect.has_run, effect.refunds_units) == (
        (without.failures, without.error, without.has_run, without.refunds_units)
    )


def test_a_released_run_that_needs_cleanup_is_asked() -> None:
    effect = decide_release(
        cancel_requested=True, settles=False, unstarted=False, needs_cleanup=True
    )
    assert (effect.state, effect.sends_cancel) == (None, True)


@pytest.mark.parametrize(
    ("delay", "ends"),
    [(None, ()), (2.0, (NOW + 2 * SECOND,)), (0.0, (NOW,)), (-5.0, (NOW,))],
)
def test_a_delay_is_a_source(delay: float | None, ends: tuple[int, ...]) -> None:
    paid = make_signal_source("a", "paid")
    effect = decide_effect(Suspended(LEASE, (paid,), delay), NOW, cancel_requested=False)
    assert effect.sources == (paid, *map(make_time_source, ends))
    assert (effect.state, effect.failures, effect.has_run, effect.due) == (None, 0, True, None)


def test_an_error_gets_the_time_of_the_step() -> None:
    for settlement in (Retried(LEASE, 0.0, ERROR), Failed(LEASE, "r", ERROR)):
        effect = decide_effect(settlement, NOW, cancel_requested=False)
        assert effect.error is not None
        assert effect.error.at == NOW / SECOND
        assert effect.error.fingerprint == ERROR.fingerprint


def test_a_delay_counts_from_now_and_is_never_negative() -> None:
    make: tuple[Callable[[float], FinalSettlement], ...] = (
        lambda delay: Retried(LEASE, delay, ERROR),
        lambda delay: Released(LEASE, delay),
        lambda delay: RateLimited(LEASE, delay),
    )
    for each in make:
        for delay, due in ((2.0, NOW + 2 * SECOND), (0.0, NOW), (-1.0, NOW)):
            assert decide_effect(each(delay), NOW, cancel_requested=False).due == due
    assert decide_effect(Released(LEASE), NOW, cancel_requested=False).due is None


def test_a_job_keeps_its_place_while_its_rate_is_blocked() -> None:
    settlement = RateLimited(LEASE, 2.0)
    effect = decide_effect(settlement, NOW, cancel_requested=False, is_rate_blocked=True)
    assert (effect.state, effect.due) == (None, None)


def test_dead_letters_keep_their_payload_and_completed_jobs_only_on_request() -> None:
    kept = {
        type(settlement): decide_effect(settlement, NOW, cancel_requested=False).keeps_payload
        for settlement in (Completed(LEASE), Failed(LEASE, "r", ERROR), Cancelled(LEASE))
    }
    assert kept == {Completed: False, Failed: True, Cancelled: False}
    completed = Completed(LEASE, keep_payload=True)
    assert decide_effect(completed, NOW, cancel_requested=False).keeps_payload


@pytest.mark.parametrize("unstarted", [False, True])
def test_only_a_job_that_has_run_is_charged_and_only_one_that_has_not_is_refunded(
    unstarted: bool,
) -> None:
    effect = decide_effect(Released(LEASE, unstarted=unstarted), NOW, cancel_requested=False)
    assert effect.has_run is not unstarted
    assert effect.refunds_units is unstarted
    given_back = decide_release(cancel_requested=False, settles=True, unstarted=unstarted)
    assert not given_back.has_run
    assert given_back.refunds_units is unstarted


def test_a_token_settles_once() -> None:
    token, other = LEASE.token, Token(1, b"m" * 16)
    assert decide_unmatched(token, token) is Settled.ALREADY
    assert decide_unmatched(token, other) is Settled.STALE
    assert decide_unmatched(token, None) is Settled.STALE
