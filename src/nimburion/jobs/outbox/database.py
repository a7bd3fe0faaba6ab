"""Connections of nimburion's own to the database of an outbox, with any driver.

A connection of a blocking driver is opened and used on one thread. A connection of an async driver
belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
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

_CLOSE_TIMEOUT = 1.0
"""Seconds that an async driver has to close a connection whose work was cancelled."""


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

        path = unquote(rest[1:])
        if path in {"", ":memory:"}:
            raise ConfigurationError(
                f"{url!r} is a new, empty database for each connection; an outbox needs a file"
            )
        return partial(sqlite3.connect, path)
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
    A use that is cancelled does not wait for a driver that hangs: its thread closes the connection
    once the driver returns.
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
            except Exception:
                with suppress(Exception):
                    await adapter.rollback()
                await self._close_connection()
                raise
            except BaseException:
                await self._abandon_connection()
                raise
            if self._is_pooled:
                await self._close_connection()
            return result

    async def close(self) -> None:
        """Close the connection. You can call it repeatedly."""
        async with self._lock:
            await self._close_connection()
            self._end_thread()

    async def _open(self) -> ConnectionAdapter:
        if self._adapter is None:
            connection = await self._connect_on_thread()
            if inspect.isawaitable(connection):
                caller = CallerConnection(await connection)
            else:
                caller = _ThreadConnection(connection, self._require_thread())
            try:
                self._adapter = find_adapter(caller)
            except Exception:
                await _close_quietly(caller)
                raise
        return self._adapter

    async def _connect_on_thread(self) -> object:
        """Return what `connect` returns. If the call is cancelled, its connection is closed."""
        connecting = self._require_thread().submit(self._connect)
        try:
            return await asyncio.wrap_future(connecting)
        except asyncio.CancelledError:
            self._require_thread().submit(_close_unused, connecting)
            self._end_thread()
            raise

    def _require_thread(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "nimburion-outbox")
        return self._thread

    def _end_thread(self) -> None:
        """Let the thread end after the work that it has."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    async def _close_connection(self) -> None:
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            await _close_quietly(adapter.caller)

    async def _abandon_connection(self) -> None:
        """Close the connection, which rolls back, without waiting for its driver."""
        adapter, self._adapter = self._adapter, None
        if adapter is None:
            return
        if isinstance(adapter.caller, _ThreadConnection):
            self._require_thread().submit(cast("Any", adapter.caller.connection).close)
            self._end_thread()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await _close_quietly(adapter.caller)


async def _close_quietly(caller: CallerConnection) -> None:
    """Close a connection. An error is ignored: a broken connection is closed already."""
    with suppress(Exception):
        closing = await caller.run(cast("Any", caller.connection).close)
        if inspect.isawaitable(closing):
            await closing


def _close_unused(connecting: Future[object]) -> None:
    """Close the connection that a cancelled call has opened."""
    with suppress(Exception):
        connection: Any = connecting.result()
        if inspect.iscoroutine(connection) or not inspect.isawaitable(connection):
            connection.close()
