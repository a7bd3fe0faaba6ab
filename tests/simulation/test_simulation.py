"""The real worker on a store that loses, delays and repeats, over a thousand seeds.

To run one seed again: `SIMULATION_SEED=417 python3 dev.py test tests/simulation -k one_seed`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import pytest

from tests.simulation.loop import SimulatedLoop, run
from tests.simulation.world import World

SEEDS_EACH = 50
PARTS = 20
MUST_HAPPEN = (
    "lost requests",
    "lost replies",
    "late requests",
    "repeated requests",
    "repeated exchanges",
    "calls during outages",
    "kills",
    "pauses",
    "sessions lost",
    "jobs rescued",
    "stale settles refused",
    "stolen tokens refused",
)


def simulate(seed: int, *, weather: float = 1.0, jobs: int = 20) -> Counter[str]:
    """One simulation from beginning to end; what was injected, and what came of it."""
    loop = SimulatedLoop(Random(seed ^ 0x5EED))
    world = World(loop, seed, weather=weather, jobs=jobs)
    try:
        run(loop, world.story())
    except BaseException as error:
        error.add_note(
            f"simulation seed {seed}; again with: SIMULATION_SEED={seed} "
            "python3 dev.py test tests/simulation -k one_seed"
        )
        raise
    return world.totals()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of expected warnings are of no use to anybody."""
    log = logging.getLogger("nimburion")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


def _many(seeds: range, record_property: Callable[[str, object], None]) -> None:
    totals: Counter[str] = Counter()
    for seed in seeds:
        totals += simulate(seed)
    for kind, count in sorted(totals.items()):
        record_property(f"simulation total: {kind}", count)
    assert [kind for kind in MUST_HAPPEN if not totals[kind]] == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_faults_break_no_promise(part: int, record_property: Callable[[str, object], None]) -> None:
    _many(range(part * SEEDS_EACH, (part + 1) * SEEDS_EACH), record_property)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(PARTS, PARTS + 200))
def test_faults_break_no_promise_over_many_seeds(
    part: int, record_property: Callable[[str, object], None]
) -> None:
    _many(range(part * SEEDS_EACH, (part + 1) * SEEDS_EACH), record_property)


def test_one_seed_is_the_same_each_time() -> None:
    seed = int(os.environ.get("SIMULATION_SEED", "1"))
    assert simulate(seed) == simulate(seed)


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_each_attempt_is_delivered_once(seed: int) -> None:
    totals = simulate(seed, weather=0.0)
    assert totals["repeated exchanges"] == totals["sessions lost"] == 0
