"""The real worker on a backend that loses, delays and repeats, over many seeds.

To run one seed again: `SIMULATION_SEED=417 python3 dev.py test tests/simulation -k one_seed`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.faults import (
    JOBS_BESIDE_RUNS,
    RUNS,
    RUNS_MUST_HAPPEN,
    read_seed,
    simulate,
    sum_of,
)

USUAL_SEEDS = 10
"""In `dev.py test`: the fewest with which all that must happen does, several times."""
MORE_SEEDS = [range(10, 40), range(40, 70), range(70, 100)]
"""In `dev.py wide`."""
SEEDS_EACH = 25
DEEP_PARTS = range(4, 440)


def _check_many_seeds(seeds: range, record_property: Callable[[str, object], None]) -> None:
    for kind, count in sorted(sum_of(map(simulate, seeds)).items()):
        record_property(f"simulation total: {kind}", count)


@pytest.mark.slow
def test_faults_break_no_promise(record_property: Callable[[str, object], None]) -> None:
    _check_many_seeds(range(USUAL_SEEDS), record_property)


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.parametrize("seeds", MORE_SEEDS, ids=str)
def test_faults_break_no_promise_over_more_seeds(
    seeds: range, record_property: Callable[[str, object], None]
) -> None:
    _check_many_seeds(seeds, record_property)


@pytest.mark.deep
@pytest.mark.parametrize("part", DEEP_PARTS)
def test_faults_break_no_promise_over_many_seeds(
    part: int, record_property: Callable[[str, object], None]
) -> None:
    _check_many_seeds(range(part * SEEDS_EACH, (part + 1) * SEEDS_EACH), record_property)


@pytest.mark.slow
def test_faults_break_no_promise_to_durable_runs(
    record_property: Callable[[str, object], None],
) -> None:
    check_runs(range(USUAL_SEEDS), record_property)


@pytest.mark.slow
@pytest.mark.wide
def test_faults_break_no_promise_to_more_durable_runs(
    record_property: Callable[[str, object], None],
) -> None:
    check_runs(range(USUAL_SEEDS, SEEDS_EACH), record_property)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(1, 40))
def test_faults_break_no_promise_to_many_durable_runs(
    part: int, record_property: Callable[[str, object], None]
) -> None:
    check_runs(range(part * SEEDS_EACH, (part + 1) * SEEDS_EACH), record_property)


def check_runs(seeds: range, record: Callable[[str, object], None]) -> None:
    """Simulate durable runs, and few other jobs."""
    storms = (simulate(seed, jobs=JOBS_BESIDE_RUNS, runs=RUNS) for seed in seeds)
    for kind, count in sorted(sum_of(storms, RUNS_MUST_HAPPEN).items()):
        record(f"simulation of runs total: {kind}", count)


def test_one_seed_of_durable_runs_is_the_same_each_time() -> None:
    first, second = (simulate(read_seed(), jobs=JOBS_BESIDE_RUNS, runs=RUNS) for _ in range(2))
    assert first == second


def test_one_seed_is_the_same_each_time() -> None:
    assert simulate(read_seed()) == simulate(read_seed())


@pytest.mark.parametrize("seed", range(10))
def test_without_failures_each_attempt_is_delivered_once(seed: int) -> None:
    totals = simulate(seed, weather=0.0)
    assert totals["repeated exchanges"] == totals["sessions lost"] == 0
