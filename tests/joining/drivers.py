"""One application on each driver: a table `account` beside the jobs, and transactions on it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Protocol, Unpack

import aiosqlite
import django
import sqlalchemy
from django.conf import settings
from django.db import connection, connections, transaction
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as alchemy_asyncio

from nimburion.jobs import Processor
from nimburion.jobs.job import AnyJob
from nimburion.jobs.terms import EnqueueOptions

INSERT = "INSERT INTO account (owner) VALUES ('Ada')"


class Application(Protocol):
    """What a test asks of a driver."""

    connection: Any
    is_async: bool
    """Whether its connections belong to the loop, so that `async def` handlers use them."""

    async def open(self) -> None:
        """Connect; nothing is begun."""
        ...

    async def begin(self) -> None:
        """What an application does before it writes."""
        ...

    async def insert(self) -> None:
        """Write a row."""
        ...

    async def enqueue(
        self, processor: Processor, job: AnyJob, **options: Unpack[EnqueueOptions]
    ) -> str:
        """Enqueue a job in the same transaction."""
        ...

    def connected(self) -> AbstractContextManager[Any]:
        """A connection for the thread of a `def` handler."""
        ...

    def write_on(self, connection: Any) -> Any:
        """Write a row, in a handler; awaitable where the driver is async."""
        ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...

    async def close(self) -> None: ...


class OfThread:
    """Drivers that block; here used on the loop's thread."""

    is_async = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection: Any = None

    async def begin(self) -> None:
        """It begins by itself."""

    async def insert(self) -> None:
        self.connection.execute(INSERT)

    async def enqueue(
        self, processor: Processor, job: AnyJob, **options: Unpack[EnqueueOptions]
    ) -> str:
        options["connection"] = self.connection
        return await processor.enqueue(job, **options)

    def connect(self) -> Any:
        """A new connection."""
        raise NotImplementedError

    def connected(self) -> AbstractContextManager[Any]:
        return closing(self.connect())

    def write_on(self, connection: Any) -> Any:
        connection.execute(INSERT)

    async def open(self) -> None:
        self.connection = self.connect()

    async def commit(self) -> None:
        self.connection.commit()

    async def rollback(self) -> None:
        self.connection.rollback()

    async def close(self) -> None:
        self.connection.close()


class Sqlite3(OfThread):
    def connect(self) -> Any:
        return sqlite3.connect(self.path)


class Sqlite3ByHand(OfThread):
    """Says BEGIN and COMMIT itself."""

    def connect(self) -> Any:
        return sqlite3.connect(self.path, isolation_level=None)

    async def begin(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        self.connection.execute("COMMIT")


class AlchemyConnection(OfThread):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._engine = sqlalchemy.create_engine(f"sqlite:///{path}")

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


class Awaited(OfThread):
    is_async = True

    def write_on(self, connection: Any) -> Any:
        return connection.execute(INSERT)

    async def insert(self) -> None:
        await self.write_on(self.connection)

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()

    async def close(self) -> None:
        await self.connection.close()


class Aiosqlite(Awaited):
    async def open(self) -> None:
        self.connection = await aiosqlite.connect(self.path)


class AsyncAlchemyConnection(Awaited):
    async def open(self) -> None:
        self._engine = alchemy_asyncio.create_async_engine(f"sqlite+aiosqlite:///{self.path}")
        self.connection = await self._engine.connect()

    def write_on(self, connection: Any) -> Any:
        return connection.execute(sqlalchemy.text(INSERT))

    async def close(self) -> None:
        await self.connection.close()
        await self._engine.dispose()


class AsyncAlchemySession(AsyncAlchemyConnection):
    async def open(self) -> None:
        self._engine = alchemy_asyncio.create_async_engine(f"sqlite+aiosqlite:///{self.path}")
        self.connection = alchemy_asyncio.AsyncSession(self._engine)


class Django:
    """On a thread of its own, as under a server: Django refuses to work on a running loop."""

    is_async = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection: Any = None
        self._thread = Thread()

    async def open(self) -> None:
        if not settings.configured:
            engine = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
            settings.configure(DATABASES={"default": engine}, USE_TZ=True)
            django.setup()
        databases: Any = connections.settings
        databases["default"]["NAME"] = str(self.path)
        await self._thread.run(self._connect)

    def _connect(self) -> None:
        self.connection = connections["default"]  # one a thread
        self.connection.close()
        self.connection.settings_dict["NAME"] = str(self.path)

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


class Thread:
    """One thread that does what it is told, in order."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    async def run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def end(self) -> None:
        self._pool.shutdown()


class ThroughSync(Sqlite3):
    """sqlite3 on a thread of its own, whose connection nobody else may touch."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._thread = Thread()

    async def open(self) -> None:
        self.connection = await self._thread.run(lambda: sqlite3.connect(self.path))

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


SQLITE: tuple[Callable[[Path], Any], ...] = (
    Sqlite3,
    Sqlite3ByHand,
    ThroughSync,
    Aiosqlite,
    AlchemyConnection,
    AlchemySession,
    AlchemyScopedSession,
    AsyncAlchemyConnection,
    AsyncAlchemySession,
    Django,
)


def make_table(path: Path) -> None:
    """The application's own table."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT)")


def accounts(path: Path) -> int:
    """How many rows everybody can see."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM account").fetchone()[0])
