"""The same storms on real backends: SQLite, and each server that the run asks for.

Virtual time waits for the backend (see `real_backends.py`), so a seed goes there as it goes in
memory, kill by kill: beside all that the ledger checks, the totals must be the same.

To run one seed again: `SIMULATION_SEED=417 python3 dev.py test tests/simulation -k one_seed`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.redis import RedisBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.core.errors import BackendUnavailable
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.settlement import Settlement
from nimburion.core.timing.clock import Clock
from tests.backends.postgres.reset import truncate_all
from tests.overridden import OverridableBackend
from tests.servers.server_kinds import RunningPostgres, RunningRedis
from tests.simulation.faults import JOBS_BESIDE_RUNS, MUST_HAPPEN, RUNS, read_seed, simulate, sum_of
from tests.simulation.real_backends import DEADLINE, Elsewhere
from tests.simulation.world import Make, in_memory

SEEDS_EACH = 20
FIRST_SEED = 62
"""From here on, each fault occurs in 20 seeds, with and without notifications. In seed 61, Redis
parks a job with a key one exchange earlier than the memory backend, so others are woken.
"""
SEEDS_BEFORE_OTHERS = 10
"""How many of them `dev.py test` simulates; `dev.py wide` simulates the others."""
PARTS = 1
DEEP_PARTS = 50

_MEMORY = Path("/dev/shm")  # nobody cuts the power here, so no file needs a disk


def play(seed: int, make: Make, *, jobs: int = 20, runs: int = 0) -> Counter[str]:
    """A simulation on a real backend."""
    with Elsewhere() as elsewhere:
        return simulate(
            seed,
            make=lambda clock: elsewhere.wrap(make(clock)),
            begin=elsewhere.begin_transaction,
            jobs=jobs,
            runs=runs,
        )


def check_same_as_in_memory(seed: int, make: Make, *, comparable: bool = True) -> Counter[str]:
    """The same, compared with the written reference, where it can be."""
    totals = play(seed, make)
    if comparable:
        assert totals == play(seed, in_memory), f"seed {seed} went otherwise than in memory"
    return totals


class Tired(OverridableBackend):
    """A backend that does not answer its hundredth exchange."""

    exchanges = 0

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        Tired.exchanges += 1
        if Tired.exchanges == 100:
            raise BackendUnavailable("I am tired")
        return await super().exchange(session_id, number, settlements, request)


def test_errors_of_the_backend_are_not_taken_for_network_errors() -> None:
    with pytest.raises(AssertionError, match=r"the backend failed at exchange.*I am tired"):
        play(1, lambda clock: Tired(clock=clock))


@pytest.mark.timeout(600)
class Storms:
    """What each backend stands; a backend is a subclass whose fixture `make` makes empty ones."""

    @pytest.fixture
    def comparable(self) -> bool:
        """Whether the same workers are woken at the same times as in memory."""
        return True

    def _check_part(
        self, part: int, make: Make, comparable: bool, record: Callable[[str, object], None]
    ) -> None:
        first = FIRST_SEED + part * SEEDS_EACH
        self._check_many_seeds(range(first, first + SEEDS_EACH), make, comparable, record)

    def _check_many_seeds(
        self, seeds: range, make: Make, comparable: bool, record: Callable[[str, object], None]
    ) -> None:
        totals = sum_of(
            check_same_as_in_memory(seed, make, comparable=comparable) for seed in seeds
        )
        name = type(self).__name__.removeprefix("Test").lower()
        for kind in ("deliveries", *MUST_HAPPEN):
            record(f"simulation on {name} total: {kind}", totals[kind])

    @pytest.mark.slow
    @pytest.mark.parametrize("part", range(PARTS))
    def test_faults_break_no_promise(
        self,
        part: int,
        make: Make,
        comparable: bool,
        record_property: Callable[[str, object], None],
    ) -> None:
        self._check_part(part, make, comparable, record_property)

    @pytest.mark.deep
    @pytest.mark.parametrize("part", range(PARTS, PARTS + DEEP_PARTS))
    def test_faults_break_no_promise_over_many_seeds(
        self,
        part: int,
        make: Make,
        comparable: bool,
        record_property: Callable[[str, object], None],
    ) -> None:
        self._check_part(part, make, comparable, record_property)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "seed", [1, *(pytest.param(seed, marks=pytest.mark.wide) for seed in range(2, 5))]
    )
    def test_durable_runs_stand_it(self, seed: int, make: Make) -> None:
        """It is not compared: the step that resumes a run whose time has come may be another one
        than in memory, so the run is due a moment later.
        """
        totals = play(seed, make, jobs=JOBS_BESIDE_RUNS, runs=RUNS)
        assert totals["deliveries"] > JOBS_BESIDE_RUNS

    def test_one_seed_goes_as_in_memory(self, make: Make, comparable: bool) -> None:
        check_same_as_in_memory(read_seed(), make, comparable=comparable)


class TestSQLite(Storms):
    @pytest.fixture
    def make(self) -> Iterator[Make]:
        """A file each."""
        where = _MEMORY if _MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="nb-simulation-", dir=where) as folder:
            numbers = count()
            yield lambda clock: SQLiteBackend(Path(folder) / f"{next(numbers)}.db", clock=clock)

    @pytest.mark.slow
    @pytest.mark.wide
    @pytest.mark.parametrize("part", range(2))
    def test_faults_break_no_promise(
        self,
        part: int,
        make: Make,
        comparable: bool,
        record_property: Callable[[str, object], None],
    ) -> None:
        middle = FIRST_SEED + SEEDS_BEFORE_OTHERS
        seeds = (range(FIRST_SEED, middle), range(middle, FIRST_SEED + SEEDS_EACH))[part]
        self._check_many_seeds(seeds, make, comparable, record_property)


def make_on(server: RunningRedis) -> Make:
    """The server, emptied each time."""

    def make(clock: Clock) -> Backend:
        server.empty()
        return RedisBackend(server.url, clock=clock, timeout=DEADLINE)

    return make


class TestRedis(Storms):
    @pytest.fixture
    def make(self, single_redis: RunningRedis) -> Make:
        return make_on(single_redis)


class TestPostgres(Storms):
    @pytest.fixture
    def comparable(self) -> bool:
        """Wake-ups follow a commit by up to 5 ms of real time, and behind a pooler none arrives. So
        another worker may take a job than in memory; the promises hold all the same.
        """
        return False

    @pytest.fixture
    def make(self, postgres_server: RunningPostgres) -> Make:
        """The server, emptied each time."""

        def make(clock: Clock) -> Backend:
            truncate_all(postgres_server)
            return PostgresBackend(postgres_server.url, clock=clock, timeout=DEADLINE)

        return make


@pytest.mark.timeout(600)
def test_one_seed_goes_as_in_memory_however_the_server_is_reached(
    redis_server: RunningRedis,
) -> None:
    check_same_as_in_memory(read_seed(), make_on(redis_server))
