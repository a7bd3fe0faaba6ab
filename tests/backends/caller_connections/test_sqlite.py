"""Rows and jobs in one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from nimburion.backends.sql_files import Statements
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.transactions import SQLiteCallerTransaction, check_file
from nimburion.core.job import NewJob, State
from nimburion.core.transactions import CallerConnection
from nimburion.jobs import Processor
from nimburion.testing import FakeClock
from tests.backends.caller_connections.applications import Application
from tests.backends.caller_connections.sqlite_drivers import SQLITE, count_accounts, create_table
from tests.backends.caller_connections.suite import CallerConnectionSuite, Count, Greet


class TestSQLite(CallerConnectionSuite):
    transactions = SQLiteCallerTransaction

    @pytest.fixture
    def where(self, tmp_path: Path) -> str:
        made = str(tmp_path / "app.db")
        create_table(made)
        return made

    @pytest.fixture
    def accounts(self, where: str) -> Count:
        return partial(count_accounts, where)

    @pytest.fixture
    async def processor(self, where: str) -> AsyncIterator[Processor]:
        made = Processor(SQLiteBackend(where))
        made.register(Greet)
        async with made:
            yield made

    @pytest.fixture
    async def elsewhere(self, tmp_path: Path) -> AsyncIterator[Processor]:
        async with Processor(SQLiteBackend(tmp_path / "other.db")) as made:
            yield made

    @pytest.fixture(params=SQLITE, ids=lambda kind: kind.__name__)
    async def application(
        self, request: pytest.FixtureRequest, where: str, processor: Processor
    ) -> AsyncIterator[Application]:
        made: Application = request.param(where)
        await made.open()
        yield made
        await made.close()


async def test_the_check_of_the_file_reads_nothing(tmp_path: Path) -> None:
    """A transaction that has read cannot write any more once another connection has written."""
    backend = SQLiteBackend(tmp_path / "jobs.db")
    await backend.open()
    with closing(sqlite3.connect(backend.path, isolation_level=None)) as caller:
        caller.execute("BEGIN")
        statements = Statements("nimburion.backends.sqlite", "sql")
        check_file(Database(caller, statements, FakeClock(), ""), backend.path)
        await backend.producing.enqueue([NewJob("other", "note", "default", b"{}")])
        results = await backend.producing.enqueue_in(
            CallerConnection(caller), [NewJob("a", "note", "default", b"{}")]
        )
        caller.execute("COMMIT")
    assert [one.outcome for one in results] == ["created"]
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 2
    await backend.close()
