"""Processes die between the commit and the relay, and between the relay and the delete of its rows:
no job is lost, and none runs twice."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing

import pytest

from nimburion.core.job import State
from tests.crash.actor import make_outbox
from tests.crash.harness import ProcessHarness

pytestmark = pytest.mark.slow

ROUNDS = 3
"""In each round, three processes die."""


async def test_on_sqlite(sqlite_harness: ProcessHarness) -> None:
    await check_rounds(sqlite_harness, ROUNDS)


async def test_on_redis(redis_harness: ProcessHarness) -> None:
    await check_rounds(redis_harness, ROUNDS)


async def test_on_postgres(postgres_harness: ProcessHarness) -> None:
    await check_rounds(postgres_harness, ROUNDS)


@pytest.mark.deep
async def test_two_hundred_times(sqlite_harness: ProcessHarness) -> None:
    await check_rounds(sqlite_harness, 200)


async def check_rounds(harness: ProcessHarness, rounds: int) -> None:
    """In each round one caller dies before its commit, one after it, and one relay after it has
    sent what is there. A worker without the outbox runs the jobs meanwhile."""
    await make_outbox(harness.folder).create_table()
    query(harness, "CREATE TABLE effect (job TEXT)")
    harness.start_worker()
    for number in range(rounds):
        await harness.wait_until_killed(harness.start_shopper("rows", f"quick-undone-{number}"))
        await harness.wait_until_killed(harness.start_shopper("bought", f"quick-{number}"))
        await harness.wait_until_killed(harness.start_relayer("enqueued"))
    assert count_rows(harness) == rounds  # each was sent again and again, and none deleted
    harness.start_worker(outbox=True)

    async def is_relayed() -> bool:
        return count_rows(harness) == 0

    await harness.wait_until(is_relayed, "the outbox is empty")
    await harness.wait_until_finished()
    ids = [f"quick-{number}" for number in range(rounds)]
    assert [row[0] for row in query(harness, "SELECT job FROM effect")] == ids
    counts = await harness.backend.reads.count_jobs(budget=None)
    assert counts[State.COMPLETED] == sum(counts.values()) == rounds
    for what in ("start", "end"):
        assert Counter(line["job"] for line in harness.find_events(what)) == Counter(ids)


def count_rows(harness: ProcessHarness) -> int:
    """How many jobs are in the outbox."""
    return int(query(harness, "SELECT count(*) FROM nimburion_outbox")[0][0])


def query(harness: ProcessHarness, statement: str) -> list[tuple[str, ...]]:
    """What the database of the application answers."""
    with closing(sqlite3.connect(harness.folder / "app.db")) as connection, connection:
        return connection.execute(statement).fetchall()
