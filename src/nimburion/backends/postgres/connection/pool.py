"""Links to the database: one that mends itself, and a few of them for many callers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
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
from nimburion.core.timers import SharedTimer

MAX_TRIES = 20
"""How often a call that others were in the way of is tried."""
_PAUSES = (*(0.002 * 2 ** min(n, 6) for n in range(MAX_TRIES - 1)), None)
"""Seconds behind each try; there is none behind the last."""
_COMMITTED = "read committed"

T = TypeVar("T")
W = TypeVar("W")
Rows = list[Any]
ArgumentBatches = Callable[[], Iterator[Sequence[Any]]]
"""Begins to pack the arguments of one statement after another."""
Sleep = Callable[[float], Awaitable[None]]


class PostgresConnection:
    """One connection that is made when it is needed, and anew after it broke.

    A call is one statement and one transaction, at READ COMMITTED whatever the server's default.
    It is sent once: what the server answers with `repeat` (a deadlock) is sent again, as nothing
    was written; when the answer is lost, `BackendUnavailable` says `unknown`.

    Statements are prepared once a connection. Where something like PgBouncer lends us a connection
    for a transaction, each call brings its statement along instead, in the same trip. One call at
    a time; others wait in turn.
    """

    def __init__(
        self, settings: PostgresSettings, sleep: Sleep, session_settings: Sequence[str] = ()
    ) -> None:
        self.settings: PostgresSettings = settings
        self._where = settings.describe()
        self._sleep = sleep
        self._session_settings = session_settings
        """What a connection of our own is set to. Where connections are lent, who calls sets it."""
        self._current: OpenConnection | None = None
        self._statements: dict[str, Any] = {}
        self._numbers = count()
        """For the names of statements. Not their count: a call that failed after the server had
        parsed its statement leaves a name behind."""
        self._lock = asyncio.Lock()
        self._timer = SharedTimer()
        self._last_endpoint: Endpoint | None = None

    @property
    def server(self) -> PostgresServerInfo:
        """What the last connection said of its server. Connect first."""
        assert self._current is not None, "not connected yet"
        return self._current.server

    @property
    def driver(self) -> Any:  # noqa: ANN401 - the driver's own connection
        """The driver's own connection, for what is not a call: LISTEN, scripts."""
        assert self._current is not None, "not connected yet"
        return self._current.driver

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as anybody knows."""
        return self._current is not None and not self._current.driver.is_closed()

    async def connect(self) -> None:
        """Connect, unless it is."""
        async with self._lock:
            await self._ensure_connected()

    async def fetch(self, statement: str, *arguments: Any, extra_time: float = 0.0) -> Rows:
        """Run one statement; its rows. A large one may take `extra_time` seconds above the timeout.

        Raises:
            BackendUnavailable: with what may be concluded.
            BackendError: what else the server refuses, as `faults` says it.
        """
        within = self.settings.timeout + extra_time
        return await self._call_with_retry(
            within, self._fetch_in_own_transaction, statement, arguments
        )

    async def execute_all_or_rollback(
        self, statement: str, batches: ArgumentBatches, *, extra_time: float = 0.0
    ) -> bool:
        """Run a statement that answers yes or no with each of these arguments, all in one
        transaction; no: one answered so, and nothing was written. Each is packed while the server
        is at the one before. What packing raises, and the errors of `rows`: nothing was written.
        """
        within = self.settings.timeout + extra_time
        return await self._call_with_retry(within, self._run_batches, statement, batches)

    async def fetch_value(self, statement: str, *arguments: Any) -> Any:  # noqa: ANN401 - values of SQL
        """Run one statement; the first value of its first row."""
        return (await self.fetch(statement, *arguments))[0][0]

    async def close(self) -> None:
        """Hang up."""
        call, self._current = self._current, None
        self._timer.stop()
        self._statements.clear()
        if call is None or call.driver.is_closed():
            return
        try:
            async with asyncio.timeout(1):
                await call.driver.close()
        except (*DRIVER_ERRORS, TimeoutError):
            disconnect(call.driver)

    async def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        await self._sleep(seconds)

    def terminate(self) -> None:
        """Hang up at once; the next call connects anew."""
        if self._current is not None:
            disconnect(self._current.driver)

    # --- steps ----------------------------------------------------------------------------------

    async def _call_with_retry(
        self,
        timeout: float,
        execute: Callable[[OpenConnection, str, W], Awaitable[T]],
        statement: str,
        what: W,
    ) -> T:
        """Ask, and again where others were in the way."""
        async with self._lock:
            for pause in _PAUSES:
                try:
                    return await self._call_once(timeout, execute, statement, what)
                except DRIVER_ERRORS as error:
                    self._terminate_if_broken(error)
                    if pause is None or not is_retryable(error):
                        raise map_error(error, self._where, sent=True) from error
                await self._sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _call_once(
        self,
        timeout: float,
        execute: Callable[[OpenConnection, str, W], Awaitable[T]],
        statement: str,
        what: W,
    ) -> T:
        call = await self._ensure_connected()
        try:
            with self._timer.timeout(timeout):
                return await execute(call, statement, what)
        except (TimeoutError, asyncio.CancelledError):
            disconnect(call.driver)  # its answer would be taken for that of the next call
            raise

    async def _fetch_in_own_transaction(
        self, connection: OpenConnection, statement: str, arguments: Sequence[Any]
    ) -> Rows:
        if connection.server.pooled and connection.server.isolation != _COMMITTED:
            async with connection.driver.transaction(isolation="read_committed"):
                return await self._fetch(connection, statement, arguments)
        return await self._fetch(connection, statement, arguments)

    async def _run_batches(
        self, connection: OpenConnection, statement: str, begin: ArgumentBatches
    ) -> bool:
        parts = begin()
        transaction = connection.driver.transaction(isolation="read_committed")
        begun = await _start_sending(transaction.start())
        try:
            try:
                first = next(parts)
            finally:
                await begun
            agreed = await self._run_each(connection, statement, first, parts)
        except (TimeoutError, asyncio.CancelledError):
            raise  # the connection is given up
        except BaseException:
            with suppress(*DRIVER_ERRORS):
                await transaction.rollback()
            raise
        await (transaction.commit() if agreed else transaction.rollback())
        return agreed

    async def _run_each(
        self,
        connection: OpenConnection,
        statement: str,
        first: Sequence[Any],
        parts: Iterator[Sequence[Any]],
    ) -> bool:
        arguments: Sequence[Any] | None = first
        while arguments is not None:
            answer = await _start_sending(self._fetch(connection, statement, arguments))
            try:
                arguments = next(parts, None)
            finally:
                ((agreed,),) = await answer
            if not agreed:
                return False
        return True

    async def _fetch(
        self, connection: OpenConnection, statement: str, arguments: Sequence[Any]
    ) -> Rows:
        prepared = self._statements.get(statement)
        if prepared is None:
            name = "" if connection.server.pooled else f"nimburion_{next(self._numbers)}"
            prepared = await connection.driver.prepare(statement, name=name)
            self._statements[statement] = prepared
        rows: Rows = await prepared.fetch(*arguments)
        return rows

    async def _ensure_connected(self) -> OpenConnection:
        if self._current is None or self._current.driver.is_closed():
            self._statements.clear()
            call = await connect_any(self.settings, first=self._last_endpoint)
            try:
                await self._apply_session_settings(call)
            except BaseException:  # also when cancelled: it is not set as the calls rely on
                disconnect(call.driver)
                raise
            self._current, self._last_endpoint = call, call.endpoint
        return self._current

    async def _apply_session_settings(self, connection: OpenConnection) -> None:
        """Set what a connection of our own may keep."""
        settings = list(self._session_settings)
        if connection.server.isolation != _COMMITTED:
            settings.append(f"default_transaction_isolation = '{_COMMITTED}'")
        if connection.server.pooled or not settings:
            return
        try:
            async with asyncio.timeout(self.settings.timeout):
                await connection.driver.execute("; ".join(f"SET {one}" for one in settings))
        except DRIVER_ERRORS as error:
            raise map_error(error, self._where, sent=False) from error

    def _terminate_if_broken(self, error: Exception) -> None:
        """Give the connection up where it is of no use any more. No call leaves a transaction open:
        one that is open now could not be rolled back."""
        if breaks_connection(error) or (self.is_open and self.driver.is_in_transaction()):
            self.terminate()


async def _start_sending(request: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """What answers a question that is on its way. Nobody may be there to hear of its failure."""
    answer = asyncio.ensure_future(request)
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.sleep(0)
    return answer


async def connect_any(
    settings: PostgresSettings, *, first: Endpoint | None = None
) -> OpenConnection:
    """Connect to the first server that will do, beginning with `first`.

    Raises:
        BackendUnavailable: none of them; nothing was written.
        ConfigurationError: one refuses us in a way that waiting does not mend.
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
    told = "; ".join(str(one).removeprefix(f"{settings.describe()}: ") for one in problems)
    raise BackendUnavailable(f"{settings.describe()}: {told}", outcome="not applied") from problems[
        -1
    ]


class ConnectionPool:
    """A few links for many callers, each made when all others are busy."""

    def __init__(self, settings: PostgresSettings, sleep: Sleep) -> None:
        self._settings = settings
        self._sleep = sleep
        self._idle: list[PostgresConnection] = []
        self._all: list[PostgresConnection] = []
        self._waiters: deque[asyncio.Future[PostgresConnection]] = deque()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[PostgresConnection]:
        """A link for as long as the block lasts; the one that was used last, if any is idle."""
        link = await self._acquire()
        try:
            yield link
        finally:
            self._release(link)

    async def fetch(self, statement: str, *arguments: Any, extra_time: float = 0.0) -> Rows:
        """As `Link.fetch`, on any of them."""
        link = await self._acquire()
        try:
            return await link.fetch(statement, *arguments, extra_time=extra_time)
        finally:
            self._release(link)

    async def execute_all_or_rollback(
        self, statement: str, batches: ArgumentBatches, *, extra_time: float = 0.0
    ) -> bool:
        """As `Link.execute_all_or_rollback`, on any of them."""
        async with self.acquire() as link:
            return await link.execute_all_or_rollback(statement, batches, extra_time=extra_time)

    async def fetch_value(self, statement: str, *arguments: Any) -> Any:  # noqa: ANN401 - values of SQL
        """As `Link.fetch_value`, on any of them."""
        async with self.acquire() as link:
            return await link.fetch_value(statement, *arguments)

    async def close(self) -> None:
        """Hang up, all of them."""
        for link in self._all:
            await link.close()

    async def _acquire(self) -> PostgresConnection:
        if self._idle:
            return self._idle.pop()
        if len(self._all) < self._settings.connections:
            self._all.append(link := PostgresConnection(self._settings, self._sleep))
            return link
        waiter: asyncio.Future[PostgresConnection] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # it was given one just before
                self._release(waiter.result())
            raise

    def _release(self, connection: PostgresConnection) -> None:
        """Hand it to who has waited longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)
