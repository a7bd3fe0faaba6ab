"""Rows and jobs in one PostgreSQL database."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.joining import LentTransaction
from nimburion.jobs import Processor
from tests.joining.driving import Application
from tests.joining.postgres_drivers import POSTGRES
from tests.joining.together import Count, Greet, Together
from tests.servers.kinds import RunningPostgres


class TestPostgres(Together):
    transactions = LentTransaction

    @pytest.fixture
    def where(self, postgres_server: RunningPostgres) -> str:
        postgres_server.ask(
            "CREATE TABLE account (id int GENERATED ALWAYS AS IDENTITY, owner text)",
            database=postgres_server.database,
        )
        return postgres_server.url

    @pytest.fixture
    def accounts(self, postgres_server: RunningPostgres) -> Count:
        def count() -> int:
            ((rows,),) = postgres_server.ask(
                "SELECT count(*) FROM account", database=postgres_server.database
            )
            return int(rows)

        return count

    @pytest.fixture
    async def processor(self, where: str) -> AsyncIterator[Processor]:
        made = Processor(PostgresBackend(where))
        made.register(Greet)
        async with made:
            yield made

    @pytest.fixture
    async def elsewhere(
        self, where: str, postgres_server: RunningPostgres
    ) -> AsyncIterator[Processor]:
        name = f"{postgres_server.database}_elsewhere_{secrets.token_hex(4)}"
        postgres_server.ask(f'CREATE DATABASE "{name}"')
        url = where.replace(f"/{postgres_server.database}", f"/{name}")
        async with Processor(PostgresBackend(url)) as made:
            yield made

    @pytest.fixture(params=POSTGRES, ids=lambda kind: kind.__name__)
    async def app(
        self, request: pytest.FixtureRequest, where: str, processor: Processor
    ) -> AsyncIterator[Application]:
        made: Application = request.param(where)
        await made.open()
        yield made
        await made.close()
