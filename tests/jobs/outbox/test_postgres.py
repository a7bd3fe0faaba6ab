"""The outbox in a PostgreSQL database, with each driver."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.jobs import Processor
from nimburion.jobs.outbox.outbox import Outbox
from tests.backends.caller_connections.applications import Application
from tests.backends.caller_connections.postgres_drivers import POSTGRES
from tests.jobs.outbox.suite import Greet, OutboxSuite
from tests.servers.server_kinds import RunningPostgres


class TestPostgres(OutboxSuite):
    @pytest.fixture
    def where(self, clean_postgres: RunningPostgres) -> str:
        clean_postgres.ask(
            "DROP TABLE IF EXISTS account, nimburion_outbox;"
            " CREATE TABLE account (id int GENERATED ALWAYS AS IDENTITY, owner text)",
            database=clean_postgres.database,
        )
        return clean_postgres.url

    @pytest.fixture
    def accounts(self, clean_postgres: RunningPostgres) -> Any:
        def count() -> int:
            ((rows,),) = clean_postgres.ask(
                "SELECT count(*) FROM account", database=clean_postgres.database
            )
            return int(rows)

        return count

    @pytest.fixture
    async def outbox(self, where: str) -> Outbox:
        made = Outbox(where, interval=0.05)
        await made.create_table()
        return made

    @pytest.fixture
    async def sharing(self, where: str, outbox: Outbox) -> AsyncIterator[Processor]:
        async with Processor(PostgresBackend(where), outbox=outbox) as made:
            yield made

    @pytest.fixture(params=POSTGRES, ids=lambda kind: kind.__name__)
    async def application(
        self, request: pytest.FixtureRequest, where: str, processor: Processor, sharing: Processor
    ) -> AsyncIterator[Application]:
        made: Application = request.param(where)
        await made.open()
        yield made
        await made.close()


class TestEmptyDatabase:
    """The database of the application has no schema of nimburion; the backend is a PostgreSQL."""

    @pytest.fixture
    def where(self, clean_postgres: RunningPostgres) -> Iterator[str]:
        name = f"{clean_postgres.database}_app_{secrets.token_hex(4)}"
        clean_postgres.ask(f'CREATE DATABASE "{name}"')
        yield clean_postgres.url.replace(f"/{clean_postgres.database}", f"/{name}")
        clean_postgres.ask(f'DROP DATABASE "{name}" WITH (FORCE)')

    @pytest.mark.parametrize("kind", POSTGRES, ids=lambda kind: kind.__name__)
    async def test_the_check_of_the_database_leaves_the_transaction_usable(
        self, kind: Any, where: str, clean_postgres: RunningPostgres
    ) -> None:
        outbox = Outbox(where)
        await outbox.create_table()
        application: Application = kind(where)
        await application.open()
        async with Processor(PostgresBackend(clean_postgres.url), outbox=outbox) as processor:
            processor.register(Greet)
            await application.begin()
            job_id = await application.enqueue(processor, Greet(whom="Ada"))
            await application.commit()
            await application.close()
            assert await processor.drain() == 1
            assert await processor.wait(job_id) == "hello Ada"
