"""A process dies around a commit that covers rows and jobs: both are there, or neither; and a job
that is completed in its handler's transaction has its effect exactly once."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing

import pytest

from nimburion.core.job import State
from tests.crash.harness import ProcessHarness
from tests.servers.server_kinds import RunningPostgres

pytestmark = pytest.mark.slow

Ask = Callable[[str], list[tuple[str, ...]]]
TABLE = "CREATE TABLE effect (job TEXT)"
EFFECTS = "SELECT job FROM effect"


class Points:
    """Those that both databases have; one is a subclass with the fixtures `stage` and `ask`."""

    @pytest.mark.parametrize(("point", "both"), [("rows", 0), ("bought", 1)])
    async def test_a_caller_dies(
        self, point: str, both: int, stage: ProcessHarness, ask: Ask
    ) -> None:
        await a_caller_dies(stage, ask, point, both)

    @pytest.mark.parametrize("point", ["rows", "completed", "committed", "settled"])
    async def test_a_worker_dies_and_the_effect_happens_once(
        self, point: str, stage: ProcessHarness, ask: Ask
    ) -> None:
        await a_worker_dies(stage, ask, point)


class TestSQLite(Points):
    @pytest.fixture
    def stage(self, sqlite_stage: ProcessHarness) -> ProcessHarness:
        return sqlite_stage

    @pytest.fixture
    def ask(self, stage: ProcessHarness) -> Ask:
        def ask(statement: str) -> list[tuple[str, ...]]:
            with closing(sqlite3.connect(stage.folder / "jobs.db")) as connection, connection:
                return connection.execute(statement).fetchall()

        ask(TABLE)
        return ask

    async def test_a_caller_dies_within_the_enqueue(self, stage: ProcessHarness, ask: Ask) -> None:
        await a_caller_dies(stage, ask, "statement ready_add_new", 0)

    @pytest.mark.parametrize("statement", ["lease_drop", "job_finish"])
    async def test_a_worker_dies_within_the_completion(
        self, statement: str, stage: ProcessHarness, ask: Ask
    ) -> None:
        await a_worker_dies(stage, ask, f"statement {statement}")


class TestPostgres(Points):
    @pytest.fixture
    def stage(self, postgres_stage: ProcessHarness) -> ProcessHarness:
        return postgres_stage

    @pytest.fixture
    def ask(self, postgres_server: RunningPostgres) -> Ask:
        def ask(statement: str) -> list[tuple[str, ...]]:
            return postgres_server.ask(statement, database=postgres_server.database)

        ask(TABLE)
        return ask


async def a_caller_dies(stage: ProcessHarness, ask: Ask, point: str, both: int) -> None:
    """Between its row and its commit, or after it."""
    await stage.wait_until_killed(stage.start_buyer(point))
    assert sum((await stage.backend.counts()).values()) == both
    assert len(ask(EFFECTS)) == both


async def a_worker_dies(stage: ProcessHarness, ask: Ask, point: str) -> None:
    """With some of three jobs in hand, each of which writes a row."""
    ids = await stage.enqueue("paying", 3)
    await stage.wait_until_killed(stage.start_worker(point, concurrency=3))
    already = ask(EFFECTS)
    assert (await stage.backend.counts())[State.COMPLETED] == len(already)
    assert already or point not in {"committed", "settled"}
    stage.start_worker()
    await stage.wait_until_finished()
    assert (await stage.backend.counts())[State.COMPLETED] == len(ids)
    assert Counter(row[0] for row in ask(EFFECTS)) == Counter(ids)
