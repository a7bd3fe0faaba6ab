"""Rows and jobs in one PostgreSQL database."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.transactions import PostgresCallerTransaction
from nimburion.jobs import Processor
from tests.backends.caller_connections.applications import Application
from tests.backends.caller_connections.postgres_drivers import POSTGRES
from tests.backends.caller_connections.suite import CallerConnectionSuite, Count, Greet
from tests.servers.server_kinds import RunningPostgres


class TestPostgres(CallerConnectionSuite):
    transactions = PostgresCallerTransaction

    @pytest.fixture
    def where(self, clean_postgres: RunningPostgres) -> str:
        clean_postgres.ask(
            "DROP TABLE IF EXISTS account;"
            " CREATE TABLE account (id int GENERATED ALWAYS AS IDENTITY, owner text)",
            database=clean_postgres.database,
        )
        return clean_postgres.url

    @pytest.fixture
    def accounts(self, clean_postgres: RunningPostgres) -> Count:
        def count() -> int:
            ((rows,),) = clean_postgres.ask(
                "SELECT count(*) FROM account", database=clean_postgres.database
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
        self, where: str, clean_postgres: RunningPostgres
    ) -> AsyncIterator[Processor]:
        name = f"{clean_postgres.database}_elsewhere_{secrets.token_hex(4)}"
        clean_postgres.ask(f'CREATE DATABASE "{name}"')
        url = where.replace(f"/{clean_postgres.database}", f"/{name}")
        async with Processor(PostgresBackend(url)) as made:
            yield made

    @pytest.fixture(params=POSTGRES, ids=lambda kind: kind.__name__)
    async def application(
        self, request: pytest.FixtureRequest, where: str, processor: Processor
    ) -> AsyncIterator[Application]:
        made: Application = request.param(where)
        await made.open()
        yield made
        await made.close()
