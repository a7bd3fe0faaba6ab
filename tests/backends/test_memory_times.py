"""The times for which durable runs of the memory backend wait."""

from __future__ import annotations

from nimburion.backends.memory.flows import MIN_TIMES, FlowTables
from nimburion.core.flows import On
from nimburion.core.runs import make_time_source


def test_times_for_which_no_job_waits_are_removed() -> None:
    """A run that waits for a signal with a timeout of a month leaves a time with each signal."""
    tables = FlowTables()
    tables.add_condition(make_time_source(1), "sleeps", 1, On.ANY)
    for at in range(2, 10 * MIN_TIMES):
        tables.add_condition(make_time_source(at), "run", 2, On.ANY)
        tables.remove_condition(make_time_source(at), "run")
    assert len(tables.times) <= MIN_TIMES + 1
    assert tables.find_next_time() == 1


def test_times_are_listed_once_and_in_order() -> None:
    tables = FlowTables()
    for at in (5, 3, 9, 3, 7):
        tables.add_condition(make_time_source(at), f"run-{at}", at, On.ANY)
    assert [int(one.id) for one in tables.iter_times(make_time_source(7))] == [3, 5, 7]
