"""What a claim passes by: never a job, however late its transaction commits."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.transactions import CallerConnection
from nimburion.testing.contract.harness import HandDrivenWorker, ids
from tests.servers.server_kinds import RunningPostgres


@pytest.fixture
async def backend(clean_postgres: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    made = PostgresBackend(clean_postgres.url, timeout=60.0)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def taker(backend: PostgresBackend) -> HandDrivenWorker:
    """A worker that knows its lane to be empty."""
    session = Session(id="5e" * 16, ttl=600.0, queues=("q",), names=("n",))
    made = HandDrivenWorker(backend, session)
    await made.open()
    await backend.producing.enqueue([NewJob("first", "n", "q", b"{}")])
    assert ids(await made.take(10)) == ["first"]
    assert [ids(await made.take(10)) for _ in range(3)] == [[], [], []]
    return made


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("looks", [1, 2, 5])
async def test_a_job_whose_transaction_commits_late_is_found(
    backend: PostgresBackend,
    taker: HandDrivenWorker,
    clean_postgres: RunningPostgres,
    looks: int,
    others: bool,
) -> None:
    late = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    transaction = late.transaction()
    await transaction.start()
    await backend.producing.enqueue_in(CallerConnection(late), [NewJob("late", "n", "q", b"{}")])
    for n in range(looks):
        assert ids(await taker.take(10)) == []
        if others:
            await backend.producing.enqueue([NewJob(f"other {n}", "m", "q", b"{}")])
    await transaction.commit()
    assert ids(await taker.take(10)) == ["late"]
    await late.close()


async def test_several_that_overlap_are_all_found(
    backend: PostgresBackend, taker: HandDrivenWorker, clean_postgres: RunningPostgres
) -> None:
    """Each begins while the one before runs, and commits after two looks."""
    found: list[str] = []
    running: list[psycopg.Connection] = []
    for n in range(12):
        mine = psycopg.connect(clean_postgres.url)
        await backend.producing.enqueue_in(
            CallerConnection(mine), [NewJob(str(n), "n", "q", b"{}")]
        )
        running.append(mine)
        found += ids(await taker.take(10))
        if len(running) > 2:
            with running.pop(0) as done:
                done.commit()
    for left in running:
        with left:
            left.commit()
    found += ids(await taker.take(10))
    assert sorted(found, key=int) == [str(n) for n in range(12)]
