"""The reconciliation of flows sees each violation, in ends that are made up."""

from __future__ import annotations

import pytest

from benchmarks.chaos.application import JOIN
from benchmarks.chaos.event_log import Joined
from benchmarks.chaos.flows import FlowFigures, make_flows, reconcile_flows
from benchmarks.chaos.reconcile import End, EventLog
from nimburion.core.flows import FlowInfo
from nimburion.core.job import NewJob, State

SEED = 3
(PLANNED,) = make_flows(1, SEED)
GROUP = PLANNED.flows[1]


def make_end(job: NewJob) -> End:
    """Return how a job ends if all members complete."""
    if any(condition.on == "failure" for condition in job.options.conditions):
        return End(State.CANCELLED, reason="not needed")
    return End(State.COMPLETED, token=f"token of {job.id}")


class Ends:
    """The end of a flow whose members all complete. A test changes a part."""

    def __init__(self) -> None:
        self.ends = {job.id: make_end(job) for job in PLANNED.jobs}
        (self.join,) = (job for job in PLANNED.jobs if job.name == JOIN)
        self.results = [end.token for job, end in self.ends.items() if job.startswith(GROUP.id)]

    def reconcile(self) -> FlowFigures:
        infos = {
            flow.id: FlowInfo(
                id=flow.id,
                name=flow.name,
                members=flow.members,
                unfinished=0,
                completed=flow.members,
                max_failed=flow.max_failed,
            )
            for flow in PLANNED.flows
        }
        log = EventLog([(1, Joined(1.0, self.join.id, [*map(str, self.results)]))])
        return reconcile_flows([PLANNED], log, self.ends, infos)


def test_a_flow_as_it_should_be() -> None:
    assert Ends().reconcile().violations == {}


def test_a_join_that_waits_is_missing() -> None:
    made = Ends()
    made.ends[made.join.id] = End(State.SUSPENDED)
    assert made.reconcile().missing == [made.join.id]


def test_a_join_that_was_cancelled_for_nothing_is_missing() -> None:
    made = Ends()
    made.ends[made.join.id] = End(State.CANCELLED, reason="dependency")
    assert made.join.id in made.reconcile().missing


def test_a_callback_that_ran_for_nothing() -> None:
    made = Ends()
    (callback,) = (job.id for job in PLANNED.jobs if job.id.endswith(".failure"))
    made.ends[callback] = End(State.COMPLETED)
    assert made.reconcile().needless == [callback]


@pytest.mark.parametrize(
    "change", [lambda results: results.pop(), lambda results: results.reverse()]
)
def test_results_that_are_not_those_of_the_members(change: object) -> None:
    made = Ends()
    change(made.results)  # type: ignore[operator]
    assert made.reconcile().wrong == [made.join.id]


def test_a_flow_that_counts_wrongly() -> None:
    made = Ends()
    made.ends[f"{GROUP.id}.0"] = End(State.FAILED)
    assert GROUP.id in made.reconcile().running
