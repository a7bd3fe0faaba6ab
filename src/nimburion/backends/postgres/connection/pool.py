"""A connection that reconnects after failures, and a pool of connections for many callers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, TypeVar

from nimburion.backends.postgres.connection.connect import (
    OpenConnection,
    PostgresServerInfo,
    connect,
    disconnect,
)
from nimburion.backends.postgres.errors import (
    DRIVER_ERRORS,
    breaks_connection,
    is_retryable,
    map_error,
)
from nimburion.backends.postgres.url import PostgresSettings
from nimburion.backends.server.url import Endpoint
from nimburion.core.errors import BackendReadOnly, BackendUnavailable, NimburionError
from nimburion.core.timing.timers import SharedTimer

MAX_TRIES = 20
"""The largest number of attempts of a call that conflicts with other transactions."""
_PAUSES = (*(0.002 * 2 ** min(n, 6) for n in range(MAX_TRIES - 1)), None)
"""Seconds of pause after each attempt; None after the last."""
_COMMITTED = "read committed"

T = TypeVar("T")
W = TypeVar("W")
Rows = list[Any]
ArgumentBatches = Callable[[], Iterator[Sequence[Any]]]
"""Creates an iterator over the arguments of successive statements; it encodes them on demand."""
Fetch = Callable[..., Awaitable[Rows]]
"""Runs one statement with its arguments, and returns its rows."""
Sleep = Callable[[float], Awaitable[None]]


class PostgresConnection:
    """A connection that is opened on first use, and reopened after a failure.

    A call is one statement and one transaction, at READ COMMITTED whatever the server's default. If
    the server replies with a deadlock or a serialization failure, the call is sent again, because
    nothing was written. Otherwise it is sent once; if the reply is lost, `BackendUnavailable` has
    the outcome `unknown`.

    Statements are prepared once per connection. Behind a pooler such as PgBouncer, each call sends
    its statement again in the same round trip. The connection runs one call at a time; other
    callers wait in order.
    """

    def __init__(self, settings: PostgresSettings, sleep: Sleep) -> None:
        self.settings: PostgresSettings = settings
        self._where = settings.describe()
        self._sleep = sleep
        self.was_used: bool = False
        """Whether a pool has handed it out since it last looked for idle connections."""
        self._session_settings: Sequence[str] = ()
        """Settings of the session, set after connecting. Behind a pooler, each call sets what it
        needs.
        """
        self._current: OpenConnection | None = None
        self._statements: dict[str, Any] = {}
        self._numbers = count()
        """The counter for statement names. The number of cached statements would not do: a call
        that fails after the server has parsed its statement leaves the name in use.
        """
        self._lock = asyncio.Lock()
        self._timer = SharedTimer()
        self._last_endpoint: Endpoint | None = None

    @property
    def server(self) -> PostgresServerInfo:
        """The properties of the last server. Call `connect` first."""
        assert self._current is not None, "not connected yet"
        return self._current.server

    @property
    def driver(self) -> Any:  # noqa: ANN401 - the driver's own connection
        """The driver's own connection, for LISTEN and scripts."""
        assert self._current is not None, "not connected yet"
        return self._current.driver

    @property
    def is_open(self) -> bool:
        """Whether a connection is open, as far as the driver knows."""
        return self._current is not None and not self._current.driver.is_closed()

    async def connect(self) -> None:
        """Connect, unless the connection is open."""
        async with self._lock:
            await self._ensure_connected()

    async def use_session_settings(self, session_settings: Sequence[str]) -> None:
        """Connect, and set these settings of the session, now and after each reconnect."""
        async with self._lock:
            self._session_settings = session_settings
            if self._current is None or not self.is_open:
                await self._ensure_connected()
                return
            try:
                await self._apply_session_settings(self._current)
            except BaseException:  # also when cancelled: the session settings are incomplete
                self.terminate()
                raise

    async def fetch(self, statement: str, *arguments: Any, extra_time: float = 0.0) -> Rows:
        """Run one statement and return its rows. It may take `extra_time` seconds beyond the
        timeout.

        Raises:
            BackendUnavailable: no reply; the outcome says whether the call may have been applied.
            BackendError: the server returned another error, mapped as in `errors.py`.
        """
        within = self.settings.timeout + extra_time
        return await self._call_with_retry(within, self._fetch, statement, arguments)

    async def execute_all_or_rollback(
        self, statement: str, batches: ArgumentBatches, *, extra_time: float = 0.0
    ) -> bool:
        """Run a statement that returns a boolean with each batch of arguments, in one transaction.
        Return False if a run returned false; then nothing was written. Each batch is encoded while
        the server runs the previous one. If the encoder raises an exception, nothing was written.
        Other errors are those of `fetch`.
        """
        within = self.settings.timeout + extra_time
        return await self._call_with_retry(within, self._run_batches, statement, batches)

    async def run_in_transaction(
        self, body: Callable[[Fetch], Awaitable[T]], *, extra_time: float = 0.0
    ) -> T:
        """Run statements in one transaction: `body` gets a function that does so, like `fetch`.

        If `body` raises an exception, nothing was written. It runs again after a deadlock.
        """
        within = self.settings.timeout + extra_time
        return await self._call_with_retry(within, self._run_body, "", body)

    async def listen(
        self, added: Collection[str], removed: Collection[str], callback: Callable[..., None]
    ) -> None:
        """Listen on more channels, and no longer on others. Return when the server has confirmed
        it. After a reconnect, the connection listens on none.

        `callback` gets the notifications of `added`, as the driver's listeners do.
        """
        async with self._lock:
            driver = (await self._ensure_connected()).driver
            try:
                async with asyncio.timeout(self.settings.timeout):
                    for channel in sorted(removed):
                        await driver.remove_listener(channel, callback)
                    for channel in sorted(added):
                        await driver.add_listener(channel, callback)
            except (TimeoutError, asyncio.CancelledError):
                disconnect(driver)  # the next call would read the outstanding reply
                raise
            except DRIVER_ERRORS as error:
                self._terminate_if_broken(error)
                raise map_error(error, self._where, sent=False) from error

    async def fetch_value(self, statement: str, *arguments: Any) -> Any:  # noqa: ANN401 - values of SQL
        """Run one statement and return the first value of its first row."""
        return (await self.fetch(statement, *arguments))[0][0]

    async def close(self) -> None:
        """Disconnect; wait up to 1 s for the server."""
        connection, self._current = self._current, None
        self._timer.stop()
        self._statements.clear()
        if connection is None or connection.driver.is_closed():
            return
        try:
            async with asyncio.timeout(1):
                await connection.driver.close()
        except (*DRIVER_ERRORS, TimeoutError):
            disconnect(connection.driver)

    async def sleep(self, seconds: float) -> None:
        """Sleep for this many seconds, with the sleep function of this connection."""
        await self._sleep(seconds)

    def terminate(self) -> None:
        """Disconnect at once; the next call connects again."""
        if self._current is not None:
            disconnect(self._current.driver)

    # --- steps of a call ------------------------------------------------------------------------

    async def _call_with_retry(
        self,
        timeout: float,
        execute: Callable[[OpenConnection, str, W], Awaitable[T]],
        statement: str,
        what: W,
    ) -> T:
        """Run a call, and repeat it after conflicts with other transactions."""
        async with self._lock:
            for pause in _PAUSES:
                try:
                    connection = self._current
                    if connection is None or connection.driver.is_closed():
                        connection = await self._ensure_connected()
                    try:
                        with self._timer.timeout(timeout):
                            return await execute(connection, statement, what)
                    except (TimeoutError, asyncio.CancelledError):
                        # The next call would read the outstanding reply.
                        disconnect(connection.driver)
                        raise
                except DRIVER_ERRORS as error:
                    self._terminate_if_broken(error)
                    if pause is None or not is_retryable(error):
                        raise map_error(error, self._where, sent=True) from error
                await self._sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _fetch(
        self, connection: OpenConnection, statement: str, arguments: Sequence[Any]
    ) -> Rows:
        """Run one statement in a transaction of its own."""
        if connection.server.pooled and connection.server.isolation != _COMMITTED:
            async with connection.driver.transaction(isolation="read_committed"):
                return await self._fetch_in_transaction(connection, statement, arguments)
        prepared = self._statements.get(statement) or await self._prepare(connection, statement)
        rows: Rows = await prepared.fetch(*arguments)
        return rows

    async def _run_body(
        self, connection: OpenConnection, _: str, body: Callable[[Fetch], Awaitable[T]]
    ) -> T:
        async def fetch(statement: str, *arguments: Any) -> Rows:
            return await self._fetch_in_transaction(connection, statement, arguments)

        transaction = connection.driver.transaction(isolation="read_committed")
        await transaction.start()
        try:
            result = await body(fetch)
        except (TimeoutError, asyncio.CancelledError):
            raise  # the connection is closed
        except BaseException:
            with suppress(*DRIVER_ERRORS):
                await transaction.rollback()
            raise
        await transaction.commit()
        return result

    async def _run_batches(
        self, connection: OpenConnection, statement: str, begin: ArgumentBatches
    ) -> bool:
        parts = begin()
        transaction = connection.driver.transaction(isolation="read_committed")
        started = await _start_sending(transaction.start())
        try:
            try:
                first = next(parts)
            finally:
                await started
            accepted = await self._run_each(connection, statement, first, parts)
        except (TimeoutError, asyncio.CancelledError):
            raise  # the connection is closed
        except BaseException:
            with suppress(*DRIVER_ERRORS):
                await transaction.rollback()
            raise
        await (transaction.commit() if accepted else transaction.rollback())
        return accepted

    async def _run_each(
        self,
        connection: OpenConnection,
        statement: str,
        first: Sequence[Any],
        parts: Iterator[Sequence[Any]],
    ) -> bool:
        arguments: Sequence[Any] | None = first
        while arguments is not None:
            reply = await _start_sending(
                self._fetch_in_transaction(connection, statement, arguments)
            )
            try:
                arguments = next(parts, None)
            finally:
                ((accepted,),) = await reply
            if not accepted:
                return False
        return True

    async def _fetch_in_transaction(
        self, connection: OpenConnection, statement: str, arguments: Sequence[Any]
    ) -> Rows:
        prepared = self._statements.get(statement) or await self._prepare(connection, statement)
        rows: Rows = await prepared.fetch(*arguments)
        return rows

    async def _prepare(self, connection: OpenConnection, statement: str) -> Any:  # noqa: ANN401 - the driver's own
        """Prepare a statement, and keep it for the later calls of this connection."""
        name = "" if connection.server.pooled else f"nimburion_{next(self._numbers)}"
        prepared = await connection.driver.prepare(statement, name=name)
        self._statements[statement] = prepared
        return prepared

    async def _ensure_connected(self) -> OpenConnection:
        if self._current is None or self._current.driver.is_closed():
            self._statements.clear()
            connection = await connect_any(self.settings, first=self._last_endpoint)
            try:
                await self._apply_session_settings(connection)
            except BaseException:  # also when cancelled: the session settings are incomplete
                disconnect(connection.driver)
                raise
            self._current, self._last_endpoint = connection, connection.endpoint
        return self._current

    async def _apply_session_settings(self, connection: OpenConnection) -> None:
        """Apply the session settings. Behind a pooler, do nothing."""
        settings = list(self._session_settings)
        if connection.server.isolation != _COMMITTED:
            settings.append(f"default_transaction_isolation = '{_COMMITTED}'")
        if connection.server.pooled or not settings:
            return
        try:
            async with asyncio.timeout(self.settings.timeout):
                await connection.driver.execute("; ".join(f"SET {setting}" for setting in settings))
        except DRIVER_ERRORS as error:
            raise map_error(error, self._where, sent=False) from error

    def _terminate_if_broken(self, error: Exception) -> None:
        """Close the connection if it is unusable, or if a transaction is still open. No call leaves
        a transaction open, so an open transaction could not be rolled back.
        """
        if breaks_connection(error) or (self.is_open and self.driver.is_in_transaction()):
            self.terminate()


async def _start_sending(request: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a request and return its task. An unobserved failure of the task is not logged."""
    reply = asyncio.ensure_future(request)
    reply.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.sleep(0)
    return reply


async def connect_any(
    settings: PostgresSettings, *, first: Endpoint | None = None
) -> OpenConnection:
    """Connect to the first suitable server; `first` is attempt_status before the others.

    Raises:
        BackendUnavailable: no server is suitable; nothing was written.
        ConfigurationError: a server rejects the connection for a reason that waiting does not fix.
    """
    nodes: list[Endpoint | None] = sorted(settings.endpoints, key=lambda node: node != first) or [
        None
    ]
    problems: list[NimburionError] = []
    for node in nodes:
        try:
            return await connect(settings, node)
        except (BackendUnavailable, BackendReadOnly) as problem:
            problems.append(problem)
    if len(problems) == 1:
        raise problems[0]
    reasons = "; ".join(
        str(problem).removeprefix(f"{settings.describe()}: ") for problem in problems
    )
    raise BackendUnavailable(
        f"{settings.describe()}: {reasons}", outcome="not applied"
    ) from problems[-1]


_IDLE_INTERVAL = 2.0
"""A pool closes connections that were not used for between one and two times these seconds."""


class ConnectionPool:
    """A pool of connections for many callers. It opens a connection when all others are busy, and
    closes those that are not used for some seconds.

    Args:
        settings: the settings of the backend.
        sleep: the pause between the tries of a call.
        kept: a connection of the pool that stays open; None: an idle pool has no connection.
    """

    def __init__(
        self, settings: PostgresSettings, sleep: Sleep, kept: PostgresConnection | None = None
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        self._kept = kept
        self._all: list[PostgresConnection] = [] if kept is None else [kept]
        self._idle: list[PostgresConnection] = [*self._all]
        """The next call takes the last one."""
        self._given_up: PostgresConnection | None = None
        """The connection that was in use when the pool gave it up."""
        self._waiters: deque[asyncio.Future[PostgresConnection]] = deque()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def give_up_kept(self) -> None:
        """Remove the connection that stays open: it belongs to the caller from now on."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        self._all.remove(kept)
        if kept in self._idle:
            self._idle.remove(kept)
        else:
            self._given_up = kept

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[PostgresConnection]:
        """Acquire a connection for the duration of the block. The most recently used idle one comes
        first.
        """
        connection = await self._acquire()
        connection.was_used = True
        try:
            yield connection
        finally:
            self._release(connection)

    async def fetch(self, statement: str, *arguments: Any, extra_time: float = 0.0) -> Rows:
        """See `PostgresConnection.fetch`; runs on any connection of the pool."""
        connection = self._idle.pop() if self._idle else await self._acquire()
        connection.was_used = True
        try:
            return await connection.fetch(statement, *arguments, extra_time=extra_time)
        finally:
            self._release(connection)

    async def execute_all_or_rollback(
        self, statement: str, batches: ArgumentBatches, *, extra_time: float = 0.0
    ) -> bool:
        """See `PostgresConnection.execute_all_or_rollback`; runs on any connection of the pool."""
        async with self.acquire() as connection:
            return await connection.execute_all_or_rollback(
                statement, batches, extra_time=extra_time
            )

    async def fetch_value(self, statement: str, *arguments: Any) -> Any:  # noqa: ANN401 - values of SQL
        """See `PostgresConnection.fetch_value`; runs on any connection of the pool."""
        async with self.acquire() as connection:
            return await connection.fetch_value(statement, *arguments)

    async def close(self) -> None:
        """Close all connections."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        for connection in self._all:
            await connection.close()
        await asyncio.gather(*self._closing)

    async def _acquire(self) -> PostgresConnection:
        if self._idle:
            return self._idle.pop()
        if len(self._all) < self._settings.connections:
            return self._add_connection()
        waiter: asyncio.Future[PostgresConnection] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # a connection was assigned just before
                self._release(waiter.result())
            raise

    def _add_connection(self) -> PostgresConnection:
        """Return a new connection of the pool. Its first call opens it."""
        self._all.append(connection := PostgresConnection(self._settings, self._sleep))
        if self._idle_timer is None:
            self._start_idle_timer()
        return connection

    def _release(self, connection: PostgresConnection) -> None:
        """Assign the connection to the caller that has waited longest, else keep it as idle."""
        if connection is self._given_up:
            self._given_up, connection = None, self._add_connection()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)

    def _start_idle_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._idle_timer = loop.call_later(_IDLE_INTERVAL, self._close_unused)

    def _close_unused(self) -> None:
        """Close the idle connections that were not used since the last time."""
        kept = self._kept
        for connection in [*self._idle]:
            if not connection.was_used and connection is not kept:
                self._idle.remove(connection)
                self._all.remove(connection)
                task = asyncio.get_running_loop().create_task(connection.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            connection.was_used = False
        self._idle.sort(key=lambda connection: connection is kept)  # so that it is used first
        self._idle_timer = None
        if self._all != ([] if kept is None else [kept]):
            self._start_idle_timer()
