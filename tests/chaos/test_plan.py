"""The plan of a run follows from its seed."""

from __future__ import annotations

from collections import Counter
from random import Random

from benchmarks.chaos.fault_plan import Size, make_plan


def test_a_seed_makes_one_plan() -> None:
    size = Size()
    counts = size.count_faults(has_server=True)
    assert make_plan(counts, size, Random(1)) == make_plan(counts, size, Random(1))
    assert make_plan(counts, size, Random(1)) != make_plan(counts, size, Random(2))


def test_a_plan_has_as_many_faults_as_were_asked_for() -> None:
    size = Size()
    counts = size.count_faults(has_server=True)
    plan = make_plan(counts, size, Random(1))
    assert Counter(fault.kind for fault in plan) == Counter(counts)
    assert all(0 <= fault.at <= 1 for fault in plan)


def test_a_pause_is_longer_than_the_ttl() -> None:
    size = Size(ttl=3.0)
    plan = make_plan({"pause": 20}, size, Random(1))
    assert min(fault.seconds for fault in plan) > 3.0


def test_a_file_has_no_network_and_no_server() -> None:
    assert {*Size().count_faults(has_server=False)} == {"kill", "pause", "rolling restart"}
