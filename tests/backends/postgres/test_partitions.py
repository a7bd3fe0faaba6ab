"""The days of history: made ahead, dropped when forgotten, by a role that may make nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.operations import Retention
from tests.backends.postgres.roles import WORKER, opened_by_worker
from tests.servers.server_kinds import RunningPostgres

pytestmark = pytest.mark.parametrize(
    "postgres_server", ["postgres", "postgres15", "postgres17"], indirect=True
)

DEADLINE = 30.0
FOREVER = Retention(completed=None, failed=None, results=None)


@pytest.fixture
async def store(postgres_server: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    async with opened_by_worker(postgres_server) as made:
        yield made


@pytest.fixture
def asked(postgres_server: RunningPostgres) -> Asked:
    return Asked(postgres_server)


class Asked:
    """What the server says of the days of one database."""

    def __init__(self, server: RunningPostgres) -> None:
        self._server = server

    def ask(self, text: str) -> list[tuple[object, ...]]:
        return self._server.ask(text, database=self._server.database)

    def days(self, table: str = "done") -> list[date]:
        """The days that have a partition, oldest first."""
        names = self.ask(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            f"WHERE i.inhparent = CAST('nimburion.{table}' AS regclass) ORDER BY 1"
        )
        parsed = [str(name).rpartition("_d")[2] for (name,) in names]
        return [
            datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC).date()
            for day in parsed
            if day.isdigit()
        ]

    def make(self, day: date) -> None:
        for table in ("done", "result"):
            self.ask(f"SELECT nimburion.make_day_1('nimburion.{table}', '{day}')")

    def end(self, job_id: str, day: date) -> None:
        """Have a job that ended on this day."""
        self.ask(
            "INSERT INTO nimburion.done (seq, due, created, finished, lane, failures, lost, state, "
            f"id, digest) SELECT count(*) + 1, 0, 0, {micros(day)}, 1, 0, 0, 1, '{job_id}', '' "
            "FROM nimburion.done"
        )


def today() -> date:
    return datetime.now(UTC).date()


def micros(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp() * 1e6)


async def test_today_and_three_days_more_are_there_once_it_is_open(
    store: PostgresBackend, asked: Asked
) -> None:
    before = today()
    for table in ("done", "result"):
        found = asked.days(table)
        assert found[-1] - found[0] == timedelta(3)
        assert len(found) == 4
        assert before in found


async def test_a_day_that_is_missing_is_made_by_the_next_prune(
    store: PostgresBackend, asked: Asked
) -> None:
    gone = asked.days()[2]
    asked.ask(f"DROP TABLE nimburion.done_d{gone:%Y%m%d}")
    assert gone not in asked.days()
    await store.prune(FOREVER, 100)
    assert gone in asked.days()


async def test_days_that_are_forgotten_whole_are_dropped(
    store: PostgresBackend, asked: Asked
) -> None:
    kept, forgotten = today() - timedelta(4), [today() - timedelta(n) for n in (5, 6, 40)]
    asked.ask("INSERT INTO nimburion.lane (queue, name, rank) VALUES ('q', 'n', 4)")
    for day in (kept, *forgotten):
        asked.make(day)
        asked.end(f"of-{day}", day)
    morning = datetime(kept.year, kept.month, kept.day, 6, tzinfo=UTC)
    span = (datetime.now(UTC) - morning).total_seconds()
    while await store.prune(Retention(completed=span, failed=None, results=span), 2):
        pass
    assert asked.days()[0] == asked.days("result")[0] == kept
    assert asked.ask("SELECT convert_from(id, 'UTF8') FROM nimburion.done") == [(f"of-{kept}",)]


async def test_who_reads_history_keeps_a_day_until_the_next_time(
    store: PostgresBackend, asked: Asked, postgres_server: RunningPostgres
) -> None:
    old = today() - timedelta(9)
    asked.make(old)
    asked.ask(f"UPDATE nimburion.horizon SET finished = {micros(today())}")
    with psycopg.connect(postgres_server.url) as reader:
        reader.execute("SELECT count(*) FROM nimburion.done").fetchall()
        await asyncio.wait_for(store.prune(FOREVER, 100), DEADLINE)
        assert old in asked.days()
        reader.rollback()
    await store.prune(FOREVER, 100)
    assert old not in asked.days()


async def test_rows_of_a_day_that_was_not_made_are_kept_and_forgotten_with_it(
    store: PostgresBackend, asked: Asked
) -> None:
    """They lie among those of other days. Then the day cannot be made, and nothing fails."""
    late, other = asked.days()[1:3]
    asked.ask("INSERT INTO nimburion.lane (queue, name, rank) VALUES ('q', 'n', 4)")
    for day in (late, other):
        asked.ask(f"DROP TABLE nimburion.done_d{day:%Y%m%d}")
    asked.end("late", late)
    await store.prune(FOREVER, 100)
    assert late not in asked.days()
    assert other in asked.days()
    assert asked.ask("SELECT count(*) FROM nimburion.done_other") == [(1,)]
    assert (await store.get("late")).id == "late"
    asked.ask(f"UPDATE nimburion.horizon SET finished = {micros(late) + 1}")
    await store.prune(FOREVER, 100)
    assert asked.ask("SELECT count(*) FROM nimburion.done_other") == [(0,)]
    await store.prune(FOREVER, 100)
    assert late in asked.days()


async def test_two_at_once_do_not_wait_for_each_other(
    store: PostgresBackend, asked: Asked, postgres_server: RunningPostgres
) -> None:
    gone = asked.days()[3]
    asked.ask(f"DROP TABLE nimburion.done_d{gone:%Y%m%d}")
    with psycopg.connect(postgres_server.url) as first:
        assert first.execute("SELECT nimburion.days_1()").fetchall() == [(1,)]
        assert asked.ask("SELECT nimburion.days_1()") == [(0,)]
        assert gone not in asked.days()
        first.commit()
    assert gone in asked.days()
    stores = [PostgresBackend(postgres_server.url_for(WORKER)) for _ in range(4)]
    await asyncio.gather(*(one.open() for one in stores))
    await asyncio.gather(*(one.close() for one in stores))
    assert len(asked.days()) == 4


async def test_the_worker_itself_may_make_none(
    store: PostgresBackend, asked: Asked, postgres_server: RunningPostgres
) -> None:
    with (
        psycopg.connect(postgres_server.url_for(WORKER)) as worker,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        worker.execute(
            "SELECT nimburion.make_day_1('nimburion.done', %s)", [today() + timedelta(9)]
        )
    assert len(asked.days()) == 4
