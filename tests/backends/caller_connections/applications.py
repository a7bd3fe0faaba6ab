"""What a test asks of a driver, and what drivers of one kind have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol, Unpack

from nimburion.jobs import Processor
from nimburion.jobs.declaration.job import AnyJob
from nimburion.jobs.options.enqueue_options import EnqueueOptions

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


class BlockingApplication:
    """Drivers that block; here used on the loop's thread."""

    is_async = False

    def __init__(self, where: str) -> None:
        self.where = where
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


class AsyncApplication(BlockingApplication):
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


class Thread:
    """One thread that makes the calls it is given, in order."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    async def run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def end(self) -> None:
        self._pool.shutdown()
