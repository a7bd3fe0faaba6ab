"""The days of history: made ahead, dropped when forgotten, by a role that may make nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.maintenance import Retention
from tests.backends.postgres.roles import WORKER, open_as_worker_role
from tests.servers.server_kinds import RunningPostgres

pytestmark = pytest.mark.parametrize(
    "postgres_server", ["postgres", "postgres15", "postgres17"], indirect=True
)

DEADLINE = 30.0
FOREVER = Retention(completed=None, failed=None, results=None)


@pytest.fixture
async def backend(postgres_server: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    async with open_as_worker_role(postgres_server) as made:
        yield made


@pytest.fixture
def queries(postgres_server: RunningPostgres) -> PartitionQueries:
    return PartitionQueries(postgres_server)


class PartitionQueries:
    """What the server says of the days of one database."""

    def __init__(self, server: RunningPostgres) -> None:
        self._server = server

    def fetch(self, text: str) -> list[tuple[object, ...]]:
        return self._server.ask(text, database=self._server.database)

    def list_days(self, table: str = "finished_job") -> list[date]:
        """The days that have a partition, oldest first."""
        names = self.fetch(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            f"WHERE i.inhparent = CAST('nimburion.{table}' AS regclass) ORDER BY 1"
        )
        parsed = [str(name).rpartition("_d")[2] for (name,) in names]
        return [
            datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC).date()
            for day in parsed
            if day.isdigit()
        ]

    def make_partition(self, day: date) -> None:
        for table in ("finished_job", "result"):
            self.fetch(f"SELECT nimburion.create_partition_1('nimburion.{table}', '{day}')")

    def finish_job_on(self, job_id: str, day: date) -> None:
        """Have a job that ended on this day."""
        self.fetch(
            "INSERT INTO nimburion.finished_job "
            "(seq, due, created_at, finished_at, lane, failures, lost, state, id, digest) "
            f"SELECT count(*) + 1, 0, 0, {to_micros(day)}, 1, 0, 0, 1, '{job_id}', '' "
            "FROM nimburion.finished_job"
        )


def today() -> date:
    return datetime.now(UTC).date()


def to_micros(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp() * 1e6)


async def test_today_and_three_days_more_are_there_once_it_is_open(
    backend: PostgresBackend, queries: PartitionQueries
) -> None:
    before = today()
    for table in ("finished_job", "result"):
        found = queries.list_days(table)
        assert found[-1] - found[0] == timedelta(3)
        assert len(found) == 4
        assert before in found


async def test_a_day_that_is_missing_is_made_by_the_next_prune(
    backend: PostgresBackend, queries: PartitionQueries
) -> None:
    gone = queries.list_days()[2]
    queries.fetch(f"DROP TABLE nimburion.finished_job_d{gone:%Y%m%d}")
    assert gone not in queries.list_days()
    await backend.maintenance.prune(FOREVER, 100)
    assert gone in queries.list_days()


async def test_a_day_that_is_forgotten_whole_is_not_made(
    backend: PostgresBackend, queries: PartitionQueries
) -> None:
    first, *others = queries.list_days()
    queries.fetch(f"DROP TABLE nimburion.finished_job_d{first:%Y%m%d}")
    queries.fetch(f"UPDATE nimburion.horizon SET finished_at = {to_micros(others[0])}")
    assert queries.fetch("SELECT nimburion.maintain_partitions_1()") == [(1,)], "of `result`"
    assert queries.list_days() == queries.list_days("result") == others


async def test_days_that_are_forgotten_whole_are_dropped(
    backend: PostgresBackend, queries: PartitionQueries
) -> None:
    kept, forgotten = today() - timedelta(4), [today() - timedelta(n) for n in (5, 6, 40)]
    queries.fetch("INSERT INTO nimburion.lane (queue, name, rank) VALUES ('q', 'n', 4)")
    for day in (kept, *forgotten):
        queries.make_partition(day)
        queries.finish_job_on(f"of-{day}", day)
    morning = datetime(kept.year, kept.month, kept.day, 6, tzinfo=UTC)
    span = (datetime.now(UTC) - morning).total_seconds()
    while await backend.maintenance.prune(Retention(completed=span, failed=None, results=span), 2):
        pass
    assert queries.list_days()[0] == queries.list_days("result")[0] == kept
    assert queries.fetch("SELECT convert_from(id, 'UTF8') FROM nimburion.finished_job") == [
        (f"of-{kept}",)
    ]


async def test_who_reads_history_keeps_a_day_until_the_next_time(
    backend: PostgresBackend, queries: PartitionQueries, postgres_server: RunningPostgres
) -> None:
    old = today() - timedelta(9)
    queries.make_partition(old)
    queries.fetch(f"UPDATE nimburion.horizon SET finished_at = {to_micros(today())}")
    with psycopg.connect(postgres_server.url) as reader:
        reader.execute("SELECT count(*) FROM nimburion.finished_job").fetchall()
        await asyncio.wait_for(backend.maintenance.prune(FOREVER, 100), DEADLINE)
        assert old in queries.list_days()
        reader.rollback()
    await backend.maintenance.prune(FOREVER, 100)
    assert old not in queries.list_days()


async def test_after_a_lock_that_is_held_the_rest_is_left_to_the_next_time(
    backend: PostgresBackend, queries: PartitionQueries, postgres_server: RunningPostgres
) -> None:
    """Each wait for such a lock delays who needs the table meanwhile."""
    gone = queries.list_days()[3]
    for table in ("finished_job", "result"):
        queries.fetch(f"DROP TABLE nimburion.{table}_d{gone:%Y%m%d}")
    with psycopg.connect(postgres_server.url) as reader:
        reader.execute("SELECT count(*) FROM nimburion.finished_job").fetchall()
        await asyncio.wait_for(backend.maintenance.prune(FOREVER, 100), DEADLINE)
        assert gone not in queries.list_days("finished_job")
        assert gone not in queries.list_days("result")
        reader.rollback()
    await backend.maintenance.prune(FOREVER, 100)
    assert queries.list_days("finished_job")[-1] == queries.list_days("result")[-1] == gone


async def test_rows_of_a_day_that_was_not_made_are_kept_and_forgotten_with_it(
    backend: PostgresBackend, queries: PartitionQueries
) -> None:
    """They lie among those of other days. Then the day cannot be made, and nothing fails."""
    late, other = queries.list_days()[1:3]
    queries.fetch("INSERT INTO nimburion.lane (queue, name, rank) VALUES ('q', 'n', 4)")
    for day in (late, other):
        queries.fetch(f"DROP TABLE nimburion.finished_job_d{day:%Y%m%d}")
    queries.finish_job_on("late", late)
    await backend.maintenance.prune(FOREVER, 100)
    assert late not in queries.list_days()
    assert other in queries.list_days()
    assert queries.fetch("SELECT count(*) FROM nimburion.finished_job_default") == [(1,)]
    assert (await backend.reads.get_job("late")).id == "late"
    queries.fetch(f"UPDATE nimburion.horizon SET finished_at = {to_micros(late) + 1}")
    await backend.maintenance.prune(FOREVER, 100)
    assert queries.fetch("SELECT count(*) FROM nimburion.finished_job_default") == [(0,)]
    await backend.maintenance.prune(FOREVER, 100)
    assert late in queries.list_days()


async def test_two_at_once_do_not_wait_for_each_other(
    backend: PostgresBackend, queries: PartitionQueries, postgres_server: RunningPostgres
) -> None:
    gone = queries.list_days()[3]
    queries.fetch(f"DROP TABLE nimburion.finished_job_d{gone:%Y%m%d}")
    with psycopg.connect(postgres_server.url) as first:
        assert first.execute("SELECT nimburion.maintain_partitions_1()").fetchall() == [(1,)]
        assert queries.fetch("SELECT nimburion.maintain_partitions_1()") == [(0,)]
        assert gone not in queries.list_days()
        first.commit()
    assert gone in queries.list_days()
    backends = [PostgresBackend(postgres_server.url_for(WORKER)) for _ in range(4)]
    await asyncio.gather(*(one.open() for one in backends))
    await asyncio.gather(*(one.close() for one in backends))
    assert len(queries.list_days()) == 4


async def test_the_worker_itself_may_make_none(
    backend: PostgresBackend, queries: PartitionQueries, postgres_server: RunningPostgres
) -> None:
    with (
        psycopg.connect(postgres_server.url_for(WORKER)) as worker,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        worker.execute(
            "SELECT nimburion.create_partition_1('nimburion.finished_job', %s)",
            [today() + timedelta(9)],
        )
    assert len(queries.list_days()) == 4
