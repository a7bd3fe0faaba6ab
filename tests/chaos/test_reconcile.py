"""The reconciliation sees each violation, in logs that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.event_log import (
    Acknowledged,
    EventWriter,
    Fault,
    Line,
    Reserved,
    RunStarted,
    SessionOver,
    Settled,
    read_events,
)
from benchmarks.chaos.reconcile import End, EventLog, Reconciliation, reconcile
from nimburion.core.job import State

FIRST, SECOND = 11, 12
"""The pids of two workers; their sessions are `s11` and `s12`."""


class History:
    """A made-up run of the job `j`: each step takes a second of its log."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Line]] = [(1, Acknowledged(0.0, ["j"]))]
        self._at = 0.0

    def deliver(self, pid: int, token: str, *, runs: bool = True) -> None:
        """A worker receives the job, and runs it."""
        self._add(pid, Reserved(self._next(), f"s{pid}", [("j", token)]))
        if runs:
            self._add(pid, RunStarted(self._next(), "j", 1, token))

    def settle(self, pid: int, token: str, kind: str = "completed", result: str = "done") -> None:
        """The backend answers a settlement."""
        sent = self._next()
        self._add(pid, Settled(self._next(), f"s{pid}", sent, [(token, kind, result)]))

    def fail(self, kind: str, pids: Sequence[int]) -> None:
        """A fault hits these workers."""
        at = self._next()
        down = at if kind == "restart" else None
        self._add(99, Fault(at, kind, at, list(pids), down))

    def lose_session(self, pid: int) -> None:
        """A worker learns that its session has expired."""
        self._add(pid, SessionOver(self._next(), f"s{pid}", "lost"))

    def reconcile(self, end: End | None) -> Reconciliation:
        """Compare it with what the backend says of the job."""
        return reconcile(EventLog(self.events), {} if end is None else {"j": end})

    def _add(self, pid: int, event: Line) -> None:
        self.events.append((pid, event))

    def _next(self) -> float:
        self._at += 1.0
        return self._at


def make_token(fence: int, nonce: str = "aa") -> str:
    return f"j/{fence}/{nonce}"


def completed_under(token: str, pid: int, rescued_at: float | None = None) -> End:
    rescued = () if rescued_at is None else ((f"s{FIRST}", rescued_at),)
    return End(State.COMPLETED, token, f"s{pid}", lost=len(rescued), rescued=rescued)


def test_a_job_that_ran_once_is_no_violation() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.settle(FIRST, make_token(1))
    outcome = history.reconcile(completed_under(make_token(1), FIRST))
    assert outcome.violations == {}
    assert (outcome.acknowledged, outcome.completed, outcome.runs) == (1, 1, 1)
    assert outcome.extra_runs == 0


def test_a_job_that_the_backend_does_not_know_is_lost() -> None:
    assert History().reconcile(None).violations == {"lost": ["j"]}


def test_a_job_that_has_not_ended_is_lost() -> None:
    assert History().reconcile(End(State.PROCESSING)).violations == {"lost": ["j"]}


def test_a_job_of_a_killed_worker_runs_again() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.fail("kill", [FIRST])  # at 3
    history.deliver(SECOND, make_token(2))  # at 4
    history.settle(SECOND, make_token(2))
    outcome = history.reconcile(completed_under(make_token(2), SECOND, rescued_at=3.5))
    assert outcome.violations == {}
    assert (outcome.runs, outcome.extra_runs) == (2, 1)
    kill = outcome.faults["kill"]
    assert (kill.count, kill.held, kill.runs_again) == (1, 1, 1)
    assert (kill.rescued, kill.delivered, kill.rescued_undisturbed) == ([0.5], [1.0], [0.5])


def test_a_completion_under_an_old_token_is_stale() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.fail("pause", [FIRST])
    history.deliver(SECOND, make_token(2))
    history.settle(FIRST, make_token(1))
    outcome = history.reconcile(completed_under(make_token(1), FIRST))
    assert outcome.violations["stale settlement accepted"] == ["j"]


def test_a_completion_under_a_token_that_nobody_received_is_stale() -> None:
    history = History()
    outcome = history.reconcile(completed_under(make_token(1), FIRST))
    assert outcome.violations == {"stale settlement accepted": ["j"]}


def test_a_retry_under_an_old_token_is_stale() -> None:
    """Also if the job then ended under its newest token."""
    history = History()
    history.deliver(FIRST, make_token(1))
    history.fail("pause", [FIRST])
    history.deliver(SECOND, make_token(2))
    history.settle(FIRST, make_token(1), "retried")
    history.settle(SECOND, make_token(2))
    outcome = history.reconcile(completed_under(make_token(2), SECOND))
    assert outcome.violations == {"stale settlement accepted": ["j"]}


def test_a_refused_completion_is_no_violation() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.fail("pause", [FIRST])
    history.deliver(SECOND, make_token(2))
    history.settle(FIRST, make_token(1), result="stale")
    history.settle(SECOND, make_token(2))
    outcome = history.reconcile(completed_under(make_token(2), SECOND))
    assert outcome.violations == {}
    assert outcome.refused == 1


def test_two_ends_of_a_job_are_a_violation() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.settle(FIRST, make_token(1))
    history.fail("kill", [FIRST])
    history.deliver(SECOND, make_token(2))
    history.settle(SECOND, make_token(2))
    outcome = history.reconcile(completed_under(make_token(2), SECOND))
    assert outcome.violations["ended twice"] == ["j"]


def test_an_end_that_a_restarted_server_forgot_is_counted_apart() -> None:
    """The server gives the same fence out again, with another random half."""
    history = History()
    history.deliver(FIRST, make_token(1))
    history.settle(FIRST, make_token(1))
    history.fail("restart", [FIRST, SECOND])
    history.deliver(SECOND, make_token(1, "bb"))
    history.settle(SECOND, make_token(1, "bb"))
    outcome = history.reconcile(completed_under(make_token(1, "bb"), SECOND))
    assert outcome.violations == {}
    assert (outcome.forgotten, outcome.extra_runs) == (1, 1)
    assert outcome.faults["restart"].held == 1


def test_a_fence_that_a_restarted_server_forgot_comes_again() -> None:
    """The delivery after the restart is the newer, although its fence is lower."""
    history = History()
    history.deliver(FIRST, make_token(1), runs=False)
    history.settle(FIRST, make_token(1), "released")
    history.deliver(FIRST, make_token(2))
    history.settle(FIRST, make_token(2))
    history.fail("restart", [FIRST, SECOND])
    history.deliver(SECOND, make_token(1, "bb"))
    history.settle(SECOND, make_token(1, "bb"))
    outcome = history.reconcile(completed_under(make_token(1, "bb"), SECOND))
    assert outcome.violations == {}
    assert outcome.forgotten == 1


def test_a_completion_from_before_a_restart_is_stale_after_the_next_delivery() -> None:
    history = History()
    history.deliver(FIRST, make_token(2))
    history.fail("restart", [FIRST, SECOND])
    history.deliver(SECOND, make_token(1, "bb"))
    history.settle(FIRST, make_token(2))
    outcome = history.reconcile(completed_under(make_token(2), FIRST))
    assert outcome.stale_accepted == ["j"]


def test_a_run_again_without_a_fault_is_a_violation() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.deliver(SECOND, make_token(2))
    history.settle(SECOND, make_token(2))
    history.fail("kill", [FIRST])  # too late to explain it
    outcome = history.reconcile(completed_under(make_token(2), SECOND))
    assert outcome.violations == {"ran again without a fault": ["j"]}


def test_a_fault_of_another_worker_explains_nothing() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.fail("kill", [SECOND])
    history.deliver(SECOND, make_token(2))
    outcome = history.reconcile(completed_under(make_token(2), SECOND))
    assert outcome.violations == {"ran again without a fault": ["j"]}


def test_a_session_that_expired_without_a_fault_is_counted_apart() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.deliver(SECOND, make_token(2))
    history.settle(SECOND, make_token(2))
    history.lose_session(FIRST)
    outcome = history.reconcile(completed_under(make_token(2), SECOND))
    assert outcome.violations == {}
    assert (outcome.expired_without_fault, outcome.extra_runs) == (1, 1)


def test_a_retry_is_no_run_again() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.settle(FIRST, make_token(1), "retried")
    history.deliver(SECOND, make_token(2))
    history.settle(SECOND, make_token(2))
    end = End(State.COMPLETED, make_token(2), f"s{SECOND}", failures=1, failed_in=(("s11", 1),))
    outcome = history.reconcile(end)
    assert outcome.violations == {}
    assert (outcome.runs, outcome.extra_runs) == (2, 0)


def test_a_line_that_a_killed_process_did_not_finish_is_left_out(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, "producer")
    writer.write(Acknowledged(1.0, ["j"]))
    writer.close()
    (path,) = tmp_path.glob("producer-*.jsonl")
    path.write_bytes(path.read_bytes() + b'{"type":"Acknow')
    assert [event for _, event in read_events(tmp_path)] == [Acknowledged(1.0, ["j"])]


def cancelled_by_rescue(pid: int, rescued_at: float) -> End:
    session = f"s{pid}"
    return End(State.CANCELLED, session=session, lost=1, rescued=((session, rescued_at),))


def test_a_rescue_may_end_a_cancelled_job_whose_delivery_was_not_logged() -> None:
    assert History().reconcile(cancelled_by_rescue(FIRST, 5.0)).violations == {}
    history = History()
    history.deliver(SECOND, make_token(1))
    history.fail("kill", [SECOND])
    assert history.reconcile(cancelled_by_rescue(FIRST, 9.0)).violations == {}


def test_an_end_by_a_session_that_was_rescued_before_is_stale() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.fail("kill", [FIRST])
    history.deliver(SECOND, make_token(2))
    history.fail("kill", [SECOND])
    found = history.reconcile(cancelled_by_rescue(FIRST, 3.5))
    assert found.violations == {"stale settlement accepted": ["j"]}


def test_a_run_again_is_explained_by_a_rescue_from_a_session_that_could_not_log_its_end() -> None:
    history = History()
    history.deliver(FIRST, make_token(1))
    history.deliver(SECOND, make_token(2))
    history.settle(SECOND, make_token(2))
    found = history.reconcile(completed_under(make_token(2), SECOND, rescued_at=2.5))
    assert found.violations == {}
    assert found.expired_without_fault == 1
