"""A job whose workers are lost ends as a dead letter, and only counted losses end it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nimburion.backends.planning.rescue import OrphanedLease, decide_rescue, note_rescued
from nimburion.core.job import TRANSITIONS, Reason, State
from nimburion.core.lease import SUSPECT_AFTER
from nimburion.core.maintenance import Rescued

NOW = 1_000_000_000
LEASE = OrphanedLease(
    failures=1,
    lost=0,
    started_at=NOW - 5_000_000,
    cancel_requested=False,
    session="s",
    host="here",
    was_left=False,
    held_several=False,
)
leases = st.builds(
    OrphanedLease,
    failures=st.integers(0, 3),
    lost=st.integers(0, 6),
    started_at=st.integers(0, NOW),
    cancel_requested=st.booleans(),
    session=st.just("s"),
    host=st.just("here"),
    was_left=st.booleans(),
    held_several=st.booleans(),
    needs_cleanup=st.booleans(),
)


@given(lease=leases, max_lost=st.integers(1, 6))
def test_a_rescue_ends_in_a_state_that_the_table_allows(
    lease: OrphanedLease, max_lost: int
) -> None:
    effect = decide_rescue(lease, max_lost, NOW)
    _, allowed = TRANSITIONS["rescue"]
    assert effect.state is None or effect.state in allowed
    assert (effect.due, effect.failures, effect.settles, effect.has_run) == (None, 0, False, False)
    is_cancelled = lease.cancel_requested and not lease.needs_cleanup
    assert (effect.state is State.CANCELLED) is is_cancelled
    is_asked = lease.cancel_requested and lease.needs_cleanup and effect.state is None
    assert effect.sends_cancel is is_asked
    assert effect.lost == int(effect.error is not None)


@given(lease=leases, max_lost=st.integers(1, 6))
def test_a_loss_is_counted_unless_the_job_had_not_started_or_was_left(
    lease: OrphanedLease, max_lost: int
) -> None:
    effect = decide_rescue(lease, max_lost, NOW)
    spared = lease.was_left or (lease.lost >= SUSPECT_AFTER and lease.held_several)
    assert effect.lost == int(not spared)
    if spared:
        assert effect.state is not State.FAILED


@given(max_lost=st.integers(1, 20))
def test_a_job_that_loses_each_worker_becomes_a_dead_letter_with_the_last_allowed_loss(
    max_lost: int,
) -> None:
    effects = []
    for lost in range(max_lost):
        effects.append(decide_rescue(LEASE._replace(lost=lost), max_lost, NOW))
        assert effects[-1].error is not None
        assert effects[-1].error.attempt == LEASE.failures + lost + 1
    assert [effect.state for effect in effects[:-1]] == [None] * (max_lost - 1)
    last = effects[-1]
    assert (last.state, last.reason) == (State.FAILED, Reason.LOST)
    assert last.keeps_payload


def test_the_error_names_the_session_that_was_lost() -> None:
    error = decide_rescue(LEASE, 3, NOW).error
    assert error is not None
    assert (error.kind, error.session, error.host) == ("lost", "s", "here")
    assert (error.started_at, error.at) == (995.0, 1000.0)


def test_each_job_is_in_one_list_of_the_result() -> None:
    rescued = Rescued([], [], [])
    for job_id, lease, max_lost in (
        ("waits", LEASE, 3),
        ("failed", LEASE, 1),
        ("cancelled", LEASE._replace(cancel_requested=True), 1),
    ):
        note_rescued(rescued, job_id, decide_rescue(lease, max_lost, NOW))
    assert rescued == Rescued(["waits"], ["failed"], ["cancelled"])
