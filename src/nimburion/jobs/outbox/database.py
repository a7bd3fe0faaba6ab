"""Connections of nimburion's own to the database of an outbox, with any driver.

A connection of a blocking driver is opened and used on one thread. A connection of an async driver
belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from urllib.parse import unquote

from nimburion.backends.caller_connections.registry import ConnectionAdapter, find_adapter
from nimburion.core.errors import ConfigurationError
from nimburion.core.text.redaction import redact_url
from nimburion.core.transactions import CallerConnection

T = TypeVar("T")


def find_connect(database: Any) -> tuple[Callable[[], object], bool]:  # noqa: ANN401
    """Return the function that connects to the database of an outbox, and whether it takes the
    connections from a pool.

    Raises:
        ConfigurationError: the database is not an engine, a function or a URL of a known kind.
    """
    if isinstance(database, str):
        return _find_connect_by_url(database), False
    if hasattr(database, "dialect") and hasattr(database, "connect"):  # Engine, AsyncEngine
        return database.connect, True
    if callable(database):
        return database, False
    raise ConfigurationError(
        f"an outbox needs a URL, an engine of SQLAlchemy, or a function that returns a connection, "
        f"not {type(database).__name__}"
    )


def _find_connect_by_url(url: str) -> Callable[[], object]:
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and "?" not in rest:
        import sqlite3

        return partial(sqlite3.connect, unquote(rest[1:]))
    if scheme in {"postgresql", "postgres"}:
        try:
            import asyncpg
        except ModuleNotFoundError as missing:
            raise ConfigurationError(
                "an outbox with the URL of a PostgreSQL needs 'asyncpg', which is not installed; "
                "pip install 'nimburion[postgres]', or pass a function that connects"
            ) from missing
        # Behind PgBouncer, a statement that is prepared for later use may be gone.
        return partial(asyncpg.connect, url, statement_cache_size=0)
    raise ConfigurationError(
        f"{redact_url(url)!r} is no URL for an outbox: write postgresql://… or sqlite:///…, or "
        "pass an engine of SQLAlchemy or a function that returns a connection"
    )


class _ThreadConnection(CallerConnection):
    """A connection whose work runs on the thread that has opened it."""

    __slots__ = ("_thread",)

    def __init__(self, connection: object, thread: ThreadPoolExecutor) -> None:
        super().__init__(connection)
        self._thread = thread

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class OutboxDatabase:
    """A connection to the database of an outbox. It is opened at the first use, and kept.

    A connection of a pool goes back after each use. After an error, the next use opens another one.
    """

    def __init__(self, connect: Callable[[], object], *, is_pooled: bool) -> None:
        self._connect = connect
        self._is_pooled = is_pooled
        self._thread: ThreadPoolExecutor | None = None
        self._adapter: ConnectionAdapter | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def run(self, work: Callable[[ConnectionAdapter], Awaitable[T]]) -> T:
        """Run `work` in a transaction of its own, and return its result."""
        async with self._lock:
            adapter = await self._open()
            try:
                await adapter.begin()
                result = await work(adapter)
                await adapter.commit()
            except BaseException:
                with suppress(Exception):
                    await adapter.rollback()
                await self._close_connection()
                raise
            if self._is_pooled:
                await self._close_connection()
            return result

    async def close(self) -> None:
        """Close the connection. You can call it repeatedly."""
        async with self._lock:
            await self._close_connection()
            if self._thread is not None:
                self._thread.shutdown(wait=False)
                self._thread = None

    async def _open(self) -> ConnectionAdapter:
        if self._adapter is None:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "nimburion-outbox")
            loop = asyncio.get_running_loop()
            connection = await loop.run_in_executor(self._thread, self._connect)
            if inspect.isawaitable(connection):
                caller = CallerConnection(await connection)
            else:
                caller = _ThreadConnection(connection, self._thread)
            self._adapter = find_adapter(caller)
        return self._adapter

    async def _close_connection(self) -> None:
        """Close the connection. An error is ignored: a broken connection is closed already."""
        adapter, self._adapter = self._adapter, None
        if adapter is None:
            return
        close = cast("Any", adapter.caller.connection).close
        with suppress(Exception):
            closing = await adapter.caller.run(close)
            if inspect.isawaitable(closing):
                await closing
