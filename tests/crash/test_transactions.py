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

Query = Callable[[str], list[tuple[str, ...]]]
TABLE = "CREATE TABLE effect (job TEXT)"
EFFECTS = "SELECT job FROM effect"


class Points:
    """Those that both databases have; one is a subclass with the fixtures `harness` and `query`."""

    @pytest.mark.parametrize(("point", "both"), [("rows", 0), ("bought", 1)])
    async def test_a_caller_dies(
        self, point: str, both: int, harness: ProcessHarness, query: Query
    ) -> None:
        await check_dead_caller(harness, query, point, both)

    @pytest.mark.parametrize("point", ["rows", "completed", "committed", "settled"])
    async def test_a_worker_dies_and_the_effect_happens_once(
        self, point: str, harness: ProcessHarness, query: Query
    ) -> None:
        await check_dead_worker(harness, query, point)


class TestSQLite(Points):
    @pytest.fixture
    def harness(self, sqlite_harness: ProcessHarness) -> ProcessHarness:
        return sqlite_harness

    @pytest.fixture
    def query(self, harness: ProcessHarness) -> Query:
        def query(statement: str) -> list[tuple[str, ...]]:
            with closing(sqlite3.connect(harness.folder / "jobs.db")) as connection, connection:
                return connection.execute(statement).fetchall()

        query(TABLE)
        return query

    async def test_a_caller_dies_within_the_enqueue(
        self, harness: ProcessHarness, query: Query
    ) -> None:
        await check_dead_caller(harness, query, "statement insert_new_ready", 0)

    @pytest.mark.parametrize("statement", ["delete_lease", "finish_job"])
    async def test_a_worker_dies_within_the_completion(
        self, statement: str, harness: ProcessHarness, query: Query
    ) -> None:
        await check_dead_worker(harness, query, f"statement {statement}")


class TestPostgres(Points):
    @pytest.fixture
    def harness(self, postgres_harness: ProcessHarness) -> ProcessHarness:
        return postgres_harness

    @pytest.fixture
    def query(self, clean_postgres: RunningPostgres) -> Query:
        def query(statement: str) -> list[tuple[str, ...]]:
            return clean_postgres.ask(statement, database=clean_postgres.database)

        query("DROP TABLE IF EXISTS effect")
        query(TABLE)
        return query


async def check_dead_caller(harness: ProcessHarness, query: Query, point: str, both: int) -> None:
    """Between its row and its commit, or after it."""
    await harness.wait_until_killed(harness.start_buyer(point))
    assert sum((await harness.backend.reads.count_jobs(budget=None)).values()) == both
    assert len(query(EFFECTS)) == both


async def check_dead_worker(harness: ProcessHarness, query: Query, point: str) -> None:
    """With some of three jobs in hand, each of which writes a row."""
    ids = await harness.enqueue("paying", 3)
    await harness.wait_until_killed(harness.start_worker(point, concurrency=3))
    already = query(EFFECTS)
    assert (await harness.backend.reads.count_jobs(budget=None))[State.COMPLETED] == len(already)
    assert already or point not in {"committed", "settled"}
    harness.start_worker()
    await harness.wait_until_finished()
    assert (await harness.backend.reads.count_jobs(budget=None))[State.COMPLETED] == len(ids)
    assert Counter(row[0] for row in query(EFFECTS)) == Counter(ids)
