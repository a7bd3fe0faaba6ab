"""The reconciliation of durable runs sees each violation, in journals that are made up."""

from __future__ import annotations

import pytest
from msgspec import Raw, structs

from benchmarks.chaos.durable import (
    CHILDREN,
    FIRST,
    FIRST_OF_TWO,
    RACER,
    SECOND,
    STEPS,
    DurableFigures,
    PlannedRun,
    compute_digest,
    expect_signals,
    make_runs,
    reconcile_runs,
)
from benchmarks.chaos.event_log import Fault, StepRan
from benchmarks.chaos.reconcile import End, EventLog
from nimburion.core.job import Reason, State
from nimburion.core.runs import RecordedStep
from nimburion.jobs.durable.journal import (
    AnyEntry,
    OutcomeEntry,
    SignalEntry,
    StepEntry,
    UndoEntry,
    encode_entry,
)

RUN = PlannedRun("durable-0", State.COMPLETED)
NONCE = "00" * 8


def make_value(fence: int) -> str:
    return f"{RUN.id}/{fence}/{NONCE} 1"


def call(step: str, fence: int) -> StepRan:
    value = make_value(fence)
    return StepRan(1.0, RUN.id, step, value.partition(" ")[0], value)


class Made:
    """A run that completed, each step in an execution of its own. A test changes a part."""

    def __init__(self) -> None:
        self.run = RUN
        values = {step: make_value(fence) for fence, step in enumerate(STEPS, 1)}
        signals = expect_signals(RUN)
        self.entries: list[AnyEntry] = [
            *(StepEntry(step, Raw(f'"{value}"'.encode())) for step, value in values.items()),
            *(SignalEntry(name, Raw(f'"{value}"'.encode())) for name, value in signals.items()),
            OutcomeEntry("child"),
            OutcomeEntry("part"),
            OutcomeEntry(RACER),
            SignalEntry(FIRST_OF_TWO, Raw(f'{{"job":"{RUN.id}.{RACER}.0"}}'.encode())),
        ]
        self.faults: list[Fault] = []
        self.calls = [call(step, fence) for fence, step in enumerate(STEPS, 1)]
        children = [f"{RUN.id}.part.{number}" for number in range(CHILDREN)]
        self.ends = {
            job: End(State.COMPLETED, token=f"token of {job}")
            for job in [f"{RUN.id}.child.0", f"{RUN.id}.{RACER}.0", *children]
        }
        parts = [f"token of {job}" for job in children]
        order = [values["one"], values["two"], signals[FIRST.name], values["three"]]
        order += [f"token of {RUN.id}.child.0", values["four"], *parts, values["five"]]
        order += ["child", f"token of {RUN.id}.{RACER}.0", signals[SECOND.name], values["six"]]
        self.ends[RUN.id] = End(State.COMPLETED, token="t", value=compute_digest(order))

    def end_undone(self, *undone: str) -> None:
        """Let the run fail as planned, with these undos."""
        self.run = RUN._replace(end=State.FAILED)
        self.ends[RUN.id] = End(State.FAILED)
        self.entries += [UndoEntry(key) for key in undone]
        self.calls += [call(f"undo {key}", 9) for key in undone]

    def reconcile(self) -> DurableFigures:
        steps = [
            RecordedStep(number, encode_entry(entry), float(number))
            for number, entry in enumerate(self.entries, 1)
        ]
        lines: list[StepRan | Fault] = [*self.calls, *self.faults]
        log = EventLog([(1, one) for one in lines])
        return reconcile_runs([self.run], log, self.ends, {RUN.id: steps})


def test_a_run_as_it_should_be() -> None:
    figures = Made().reconcile()
    assert figures.violations == {}
    assert (figures.runs, figures.completed, figures.recorded) == (1, 1, len(STEPS))


def test_a_call_whose_worker_was_lost_is_no_violation() -> None:
    made = Made()
    made.calls.append(call("two", 1))  # before that of fence 2, which was recorded
    figures = made.reconcile()
    assert figures.violations == {}
    assert figures.calls_again == 1


def test_a_call_under_a_lease_that_a_restart_of_the_server_forgot_is_no_violation() -> None:
    made = Made()
    forgotten = call("two", 5)  # the fences begin again behind what the server had synced
    made.calls = [structs.replace(one, at=3.0) for one in made.calls] + [forgotten]
    made.faults.append(Fault(at=2.0, kind="restart", until=2.5, processes=[], down=2.0))
    assert made.reconcile().violations == {}


def test_a_run_that_has_not_ended_is_stuck() -> None:
    made = Made()
    made.ends[RUN.id] = End(State.SUSPENDED)
    assert made.reconcile().violations == {"durable run is stuck": [RUN.id]}


def test_another_end_than_planned() -> None:
    made = Made()
    made.ends[RUN.id] = End(State.FAILED)
    assert made.reconcile().ended_otherwise == [RUN.id]


def test_a_run_that_lost_its_worker_too_often_may_fail_and_undo_nothing() -> None:
    made = Made()
    made.end_undone()
    made.ends[RUN.id] = End(State.FAILED, reason=Reason.LOST)
    figures = made.reconcile()
    assert figures.violations == {}
    assert figures.lost == 1


def test_two_records_of_a_step() -> None:
    made = Made()
    made.entries.append(made.entries[0])
    assert made.reconcile().recorded_twice == [f"{RUN.id} step one"]


@pytest.mark.parametrize("fence", [1, 4])
def test_a_call_after_the_record_or_twice_in_an_execution(fence: int) -> None:
    made = Made()
    made.calls.append(call("one", fence))
    assert made.reconcile().called_again == [f"{RUN.id} one"]


def test_a_record_without_a_call() -> None:
    made = Made()
    del made.calls[2]
    assert made.reconcile().not_called == [f"{RUN.id} three"]


@pytest.mark.parametrize("lost", ["part.1", "child.0"])
def test_a_result_that_does_not_follow_from_the_children(lost: str) -> None:
    made = Made()
    made.ends[f"{RUN.id}.{lost}"] = End(State.COMPLETED, token="another")
    assert made.reconcile().violations == {"result of a durable run is wrong": [RUN.id]}


def test_a_result_without_a_signal() -> None:
    made = Made()
    made.entries = [one for one in made.entries if one.key != FIRST.name]
    assert made.reconcile().wrong == [RUN.id]


def test_a_run_that_is_undone() -> None:
    made = Made()
    made.end_undone("four", "one")
    assert made.reconcile().violations == {}


@pytest.mark.parametrize("undone", [(), ("four",), ("one", "four")])
def test_an_undo_that_is_missing_or_in_another_order(undone: tuple[str, ...]) -> None:
    made = Made()
    made.end_undone(*undone)
    assert made.reconcile().not_called == [f"{RUN.id} undo"]


def test_the_runs_follow_from_the_seed_and_end_in_each_way() -> None:
    runs = make_runs(50, 1)
    assert runs == make_runs(50, 1)
    assert {run.end for run in runs} == {State.COMPLETED, State.FAILED, State.CANCELLED}


def test_a_result_that_names_another_source_as_the_first() -> None:
    made = Made()
    second = Raw(f'{{"signal":"{SECOND.name}"}}'.encode())
    kept = [one for one in made.entries if one.key != FIRST_OF_TWO]
    made.entries = [*kept, SignalEntry(FIRST_OF_TWO, second)]
    assert made.reconcile().wrong == [RUN.id]
