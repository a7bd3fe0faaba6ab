"""One application on each driver: a table `reconcile` beside the jobs, and transactions on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any, Unpack

import aiosqlite
import django
import sqlalchemy
from django.conf import settings
from django.db import connection, connections, transaction
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


class Sqlite3(BlockingApplication):
    def connect(self) -> Any:
        return sqlite3.connect(self.where)


class Sqlite3ManualTransactions(BlockingApplication):
    """Says BEGIN and COMMIT itself."""

    def connect(self) -> Any:
        return sqlite3.connect(self.where, isolation_level=None)

    async def begin(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        self.connection.execute("COMMIT")


class AlchemyConnection(BlockingApplication):
    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._engine = sqlalchemy.create_engine(f"sqlite:///{where}")

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


class AlchemyScopedSession(AlchemyConnection):
    def connect(self) -> Any:
        return orm.scoped_session(orm.sessionmaker(self._engine))


class Aiosqlite(AsyncApplication):
    async def open(self) -> None:
        self.connection = await aiosqlite.connect(self.where)


class AsyncAlchemyConnection(AsyncApplication):
    async def open(self) -> None:
        self._engine = alchemy_asyncio.create_async_engine(f"sqlite+aiosqlite:///{self.where}")
        self.connection = await self._engine.connect()

    def write_on(self, connection: Any) -> Any:
        return connection.execute(sqlalchemy.text(INSERT))

    async def close(self) -> None:
        await self.connection.close()
        await self._engine.dispose()


class AsyncAlchemySession(AsyncAlchemyConnection):
    async def open(self) -> None:
        self._engine = alchemy_asyncio.create_async_engine(f"sqlite+aiosqlite:///{self.where}")
        self.connection = alchemy_asyncio.AsyncSession(self._engine)


def configure_django() -> None:
    """As a settings.py would, once a process; the files come later."""
    if not settings.configured:
        engine = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        settings.configure(DATABASES={"default": engine}, USE_TZ=True)
        django.setup()


class Django:
    """On a thread of its own, as under a server: Django refuses to work on a running loop."""

    is_async = False

    def __init__(self, where: str) -> None:
        self.where = where
        self.connection: Any = None
        self._thread = Thread()

    async def open(self) -> None:
        configure_django()
        databases: Any = connections.settings
        databases["default"]["NAME"] = self.where
        await self._thread.run(self._connect)

    def _connect(self) -> None:
        self.connection = connections["default"]  # one a thread
        self.connection.close()
        self.connection.settings_dict["NAME"] = self.where

    def connected(self) -> AbstractContextManager[Any]:
        return closing(connection)  # what each application imports

    def write_on(self, given: Any) -> Any:
        given.cursor().execute(INSERT)

    async def begin(self) -> None:
        self._atomic: Any = transaction.atomic()
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


class ThroughSync(Sqlite3):
    """sqlite3 on a thread of its own, whose connection nobody else may touch."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._thread = Thread()

    async def open(self) -> None:
        self.connection = await self._thread.run(lambda: sqlite3.connect(self.where))

    async def insert(self) -> None:
        await self._thread.run(lambda: self.connection.execute(INSERT))

    async def enqueue(
        self, processor: Processor, job: AnyJob, **options: Unpack[EnqueueOptions]
    ) -> str:
        options["connection"] = self.connection
        job_id: str = await self._thread.run(lambda: processor.sync.enqueue(job, **options))
        return job_id

    async def commit(self) -> None:
        await self._thread.run(self.connection.commit)

    async def rollback(self) -> None:
        await self._thread.run(self.connection.rollback)

    async def close(self) -> None:
        await self._thread.run(self.connection.close)
        self._thread.end()


SQLITE: tuple[Callable[[str], Any], ...] = (
    Sqlite3,
    Sqlite3ManualTransactions,
    ThroughSync,
    Aiosqlite,
    AlchemyConnection,
    AlchemySession,
    AlchemyScopedSession,
    AsyncAlchemyConnection,
    AsyncAlchemySession,
    Django,
)


def create_table(where: str) -> None:
    """The application's own table."""
    with closing(sqlite3.connect(where)) as connection, connection:
        connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT)")


def count_accounts(where: str) -> int:
    """How many rows everybody can see."""
    with closing(sqlite3.connect(where)) as connection:
        return int(connection.execute("SELECT count(*) FROM account").fetchone()[0])
