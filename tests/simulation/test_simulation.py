"""The real worker on a backend that loses, delays and repeats, over many seeds.

To run one seed again: `SIMULATION_SEED=417 python3 dev.py test tests/simulation -k one_seed`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.faults import read_seed, simulate, sum_of

SEEDS_EACH = 25
PARTS = 4


def _check_many_seeds(part: int, record_property: Callable[[str, object], None]) -> None:
    seeds = range(part * SEEDS_EACH, (part + 1) * SEEDS_EACH)
    for kind, count in sorted(sum_of(map(simulate, seeds)).items()):
        record_property(f"simulation total: {kind}", count)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.wide) for part in range(1, PARTS))]
)
def test_faults_break_no_promise(part: int, record_property: Callable[[str, object], None]) -> None:
    _check_many_seeds(part, record_property)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(PARTS, PARTS + 436))
def test_faults_break_no_promise_over_many_seeds(
    part: int, record_property: Callable[[str, object], None]
) -> None:
    _check_many_seeds(part, record_property)


def test_one_seed_is_the_same_each_time() -> None:
    assert simulate(read_seed()) == simulate(read_seed())


@pytest.mark.parametrize("seed", range(10))
def test_without_failures_each_attempt_is_delivered_once(seed: int) -> None:
    totals = simulate(seed, weather=0.0)
    assert totals["repeated exchanges"] == totals["sessions lost"] == 0
