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
    def where(self, postgres_store: RunningPostgres) -> str:
        postgres_store.ask(
            "DROP TABLE IF EXISTS account;"
            " CREATE TABLE account (id int GENERATED ALWAYS AS IDENTITY, owner text)",
            database=postgres_store.database,
        )
        return postgres_store.url

    @pytest.fixture
    def accounts(self, postgres_store: RunningPostgres) -> Count:
        def count() -> int:
            ((rows,),) = postgres_store.ask(
                "SELECT count(*) FROM account", database=postgres_store.database
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
        self, where: str, postgres_store: RunningPostgres
    ) -> AsyncIterator[Processor]:
        name = f"{postgres_store.database}_elsewhere_{secrets.token_hex(4)}"
        postgres_store.ask(f'CREATE DATABASE "{name}"')
        url = where.replace(f"/{postgres_store.database}", f"/{name}")
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
