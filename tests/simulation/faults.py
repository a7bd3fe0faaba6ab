"""Simulations from a seed, one or many, and what must have happened in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

from tests.simulation.loop import SimulatedLoop, run
from tests.simulation.world import Begin, Make, World, begin_late, in_memory

MUST_HAPPEN = (
    "lost requests",
    "lost replies",
    "late requests",
    "repeated requests",
    "repeated exchanges",
    "lost wake-ups",
    "wake-ups for nothing",
    "calls during outages",
    "poisoned connections",
    "exchanges on poisoned connections",
    "kills",
    "pauses",
    "sessions lost",
    "jobs rescued",
    "stale settles refused",
    "stolen tokens refused",
    "suspects in a batch",
    "replies too large for their connection",
    "deliveries released",
    "rates stopped",
    "keys full",
    "jobs replaced",
    "bursts",
    "jobs with two full keys",
    "new tenants",
    "callers' transactions",
    "exchanges beside open transactions",
    "clock steps back",
    "handlers that cancelled everything",
    "flows",
    "flows enqueued again",
    "flows cancelled",
    "members cancelled for others",
    "members replayed",
    "members reopened",
    "members pruned",
)
"""What no run of many seeds may lack. Requests too large for their connection are not among them:
in a storm they are rare, and `test_scenarios.SlowConnection` makes them in every run."""


RUNS, JOBS_BESIDE_RUNS = 8, 6
"""The durable runs and the other jobs of a simulation with runs."""
RUNS_MUST_HAPPEN = (
    "runs",
    "steps",
    "runs suspended",
    "runs cancelled",
    "workers of runs crashed",
    "sessions of runs lost",
    "signals stored",
    "signals exists",
    "signals finished",
    "lost replies",
    "repeated exchanges",
    "jobs rescued",
)
"""The same for simulations with durable runs."""


def simulate(
    seed: int,
    *,
    weather: float = 1.0,
    jobs: int = 20,
    runs: int = 0,
    make: Make = in_memory,
    begin: Begin = begin_late,
) -> Counter[str]:
    """One simulation from beginning to end; what was injected, and what came of it."""
    loop = SimulatedLoop(Random(seed ^ 0x5EED))
    world = World(loop, seed, weather=weather, jobs=jobs, runs=runs, make=make, begin=begin)
    try:
        run(loop, world.check_promises())
    except BaseException as error:
        error.add_note(
            f"simulation seed {seed}; again with: SIMULATION_SEED={seed} "
            "python3 dev.py test tests/simulation -k one_seed"
        )
        raise
    return world.totals()


def sum_of(
    storms: Iterable[Counter[str]], must_happen: Sequence[str] = MUST_HAPPEN
) -> Counter[str]:
    """The totals of many; none of what must happen may be missing."""
    totals: Counter[str] = Counter()
    for one in storms:
        totals += one
    assert [kind for kind in must_happen if not totals[kind]] == []
    return totals


def read_seed() -> int:
    """The seed that the environment names."""
    return int(os.environ.get("SIMULATION_SEED", "1"))
