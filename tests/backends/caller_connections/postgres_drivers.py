"""One application on each driver for PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any, Unpack

import asyncpg
import psycopg
import sqlalchemy
from django.db import connections, transaction
from psycopg.rows import dict_row
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as alchemy_asyncio

from nimburion.jobs import Processor
from nimburion.jobs.declaration.job import AnyJob
from nimburion.jobs.options.enqueue_options import EnqueueOptions
from tests.backends.caller_connections.applications import (
    INSERT,
    AsyncApplication,
    BlockingApplication,
    Thread,
)
from tests.backends.caller_connections.sqlite_drivers import configure_django


def for_alchemy(url: str, driver: str) -> str:
    """The URL as SQLAlchemy has it."""
    return url.replace("postgresql://", f"postgresql+{driver}://")


class Psycopg(BlockingApplication):
    def connect(self) -> Any:
        return psycopg.connect(self.where)


class PsycopgAutocommit(BlockingApplication):
    """Says BEGIN itself, and has rows of another shape."""

    def connect(self) -> Any:
        shape: Any = dict_row
        return psycopg.connect(self.where, autocommit=True, row_factory=shape)

    async def begin(self) -> None:
        self.connection.execute("BEGIN")


class AlchemyConnection(BlockingApplication):
    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._engine = sqlalchemy.create_engine(for_alchemy(where, "psycopg"))

    def connect(self) -> Any:
        return self._engine.connect()

    def write_on(self, connection: Any) -> Any:
        connection.execute(sqlalchemy.text(INSERT))

    async def insert(self) -> None:
        self.write_on(self.connection)

    async def close(self) -> None:
        self.connection.close()
        self._engine.dispose()


class AlchemySession(AlchemyConnection):
    def connect(self) -> Any:
        return orm.Session(self._engine)


class PsycopgAsync(AsyncApplication):
    async def open(self) -> None:
        self.connection = await psycopg.AsyncConnection.connect(self.where)


class Asyncpg(AsyncApplication):
    """Commits each statement, but inside a transaction."""

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.where)

    async def begin(self) -> None:
        self._transaction = self.connection.transaction()
        await self._transaction.start()

    async def commit(self) -> None:
        await self._transaction.commit()

    async def rollback(self) -> None:
        await self._transaction.rollback()


class AsyncpgPool(Asyncpg):
    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(self.where, min_size=1, max_size=2)
        self.connection = await self._pool.acquire()

    async def close(self) -> None:
        await self._pool.release(self.connection)
        await self._pool.close()


class AsyncAlchemyOnAsyncpg(AsyncApplication):
    driver = "asyncpg"

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._engine = alchemy_asyncio.create_async_engine(for_alchemy(where, self.driver))

    async def open(self) -> None:
        self.connection = await self._engine.connect()

    def write_on(self, connection: Any) -> Any:
        return connection.execute(sqlalchemy.text(INSERT))

    async def close(self) -> None:
        await self.connection.close()
        await self._engine.dispose()


class AsyncAlchemyOnPsycopg(AsyncAlchemyOnAsyncpg):
    driver = "psycopg"


class AsyncAlchemySession(AsyncAlchemyOnAsyncpg):
    async def open(self) -> None:
        self.connection = alchemy_asyncio.AsyncSession(self._engine)


class Django:
    """On a thread of its own, as under a server."""

    is_async = False
    alias = "server"

    def __init__(self, where: str) -> None:
        self.where = where
        self.connection: Any = None
        self._thread = Thread()

    async def open(self) -> None:
        configure_django()
        parts = sqlalchemy.make_url(self.where)
        databases: Any = connections.settings
        databases[self.alias] = databases["default"] | {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts.database,
            "USER": parts.username,
            "PASSWORD": parts.password or "",
            "HOST": parts.host,
            "PORT": str(parts.port),
        }
        await self._thread.run(self._connect)

    def _connect(self) -> None:
        self.connection = connections[self.alias]

    def connected(self) -> AbstractContextManager[Any]:
        return closing(connections[self.alias])

    def write_on(self, given: Any) -> Any:
        given.cursor().execute(INSERT)

    async def begin(self) -> None:
        self._atomic: Any = transaction.atomic(using=self.alias)
        await self._thread.run(self._atomic.__enter__)

    async def insert(self) -> None:
        await self._thread.run(lambda: self.connection.cursor().execute(INSERT))

    async def enqueue(
        self, processor: Processor, job: AnyJob, **options: Unpack[EnqueueOptions]
    ) -> str:
        options["connection"] = self.connection
        job_id: str = await self._thread.run(lambda: processor.sync.enqueue(job, **options))
        return job_id

    async def commit(self) -> None:
        await self._thread.run(lambda: self._atomic.__exit__(None, None, None))

    async def rollback(self) -> None:
        error = ValueError("undo")
        await self._thread.run(lambda: self._atomic.__exit__(ValueError, error, None))

    async def close(self) -> None:
        await self._thread.run(self.connection.close)
        self._thread.end()


POSTGRES: tuple[Callable[[str], Any], ...] = (
    Asyncpg,
    AsyncpgPool,
    Psycopg,
    PsycopgAutocommit,
    PsycopgAsync,
    AlchemyConnection,
    AlchemySession,
    AsyncAlchemyOnAsyncpg,
    AsyncAlchemyOnPsycopg,
    AsyncAlchemySession,
    Django,
)
