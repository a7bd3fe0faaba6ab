"""The outbox in a SQLite file, with each driver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.jobs import Processor
from nimburion.jobs.outbox.outbox import Outbox
from tests.backends.caller_connections.applications import Application
from tests.backends.caller_connections.sqlite_drivers import SQLITE, count_accounts, create_table
from tests.jobs.outbox.suite import OutboxSuite


class TestSQLite(OutboxSuite):
    @pytest.fixture
    def where(self, tmp_path: Path) -> str:
        made = str(tmp_path / "app.db")
        create_table(made)
        return made

    @pytest.fixture
    def accounts(self, where: str) -> Any:
        return partial(count_accounts, where)

    @pytest.fixture
    async def outbox(self, where: str) -> Outbox:
        made = Outbox(f"sqlite:///{where}", interval=0.05)
        await made.create_table()
        return made

    @pytest.fixture
    async def sharing(self, where: str, outbox: Outbox) -> AsyncIterator[Processor]:
        async with Processor(SQLiteBackend(where), outbox=outbox) as made:
            yield made

    @pytest.fixture(params=SQLITE, ids=lambda kind: kind.__name__)
    async def application(
        self, request: pytest.FixtureRequest, where: str, processor: Processor, sharing: Processor
    ) -> AsyncIterator[Application]:
        made: Application = request.param(where)
        await made.open()
        yield made
        await made.close()
