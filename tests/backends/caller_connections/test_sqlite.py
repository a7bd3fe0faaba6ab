"""Rows and jobs in one SQLite file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.transactions import SQLiteCallerTransaction
from nimburion.jobs import Processor
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
