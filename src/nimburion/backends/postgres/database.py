"""`PostgresDatabase`: runs statements on the connections of one handle of a backend."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from nimburion.backends.postgres import migrations
from nimburion.backends.postgres import transactions as caller_transactions
from nimburion.backends.postgres.connection.pool import ConnectionPool, PostgresConnection
from nimburion.backends.postgres.notifications import PostgresNotifications
from nimburion.backends.postgres.schema import insert_schema
from nimburion.backends.postgres.url import PostgresSettings
from nimburion.backends.server.handle import OpenHandle
from nimburion.core.listener import ShareListener
from nimburion.core.timing.clock import Clock, SystemClock, to_micros


def make_call(function: str, count: int) -> str:
    """Return the statement that calls a database function with `count` arguments."""
    places = ", ".join(f"${n}" for n in range(1, count + 1))
    return f"SELECT * FROM {{schema}}.{function}({places})"  # noqa: S608 - names of ours


@cache
def make_named_call(function: str, parameters: tuple[str, ...]) -> str:
    """Return the statement that calls a database function with arguments for these parameters.

    >>> make_named_call("get_time_1", ("now",))
    'SELECT * FROM {schema}.get_time_1(p_now => $1)'
    """
    places = ", ".join(f"p_{name} => ${n}" for n, name in enumerate(parameters, 1))
    return f"SELECT * FROM {{schema}}.{function}({places})"  # noqa: S608 - names of ours


JOBS_PER_SECOND = 1000
"""The number of jobs for which a busy server may take one second beyond the timeout."""
LARGE_READ_TIMEOUT = 60.0
"""Seconds beyond the timeout that reading a long history may take."""
_PLANNER_SETTINGS = (
    "enable_seqscan = off",
    "enable_bitmapscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "enable_material = off",
    "enable_memoize = off",
    "jit = off",
    "plan_cache_mode = force_generic_plan",
)
"""Session settings of the connection that runs exchanges; `exchange_pooled_1` sets the same for
each call.
"""


class PostgresDatabase:
    """Runs statements on the connections that are open, and notifies.

    Args:
        settings: the settings of the backend.
        test_clock: the clock of a test; None: the server's own time counts.
    """

    def __init__(self, settings: PostgresSettings, test_clock: Clock | None) -> None:
        self.settings: PostgresSettings = settings
        self.test_clock: Clock | None = test_clock
        self.clock: Clock = test_clock or SystemClock()
        self.share_listener: ShareListener | None = None
        """Returns a listener that processes share; None: the handle listens itself."""
        self.handle: OpenHandle[PostgresConnections] = OpenHandle(
            settings.describe(), lambda: PostgresConnections(settings, self.share_listener)
        )
        self.get_connections: Callable[[], PostgresConnections] = self.handle.get
        """Returns the open connections. Raises `NotOpen`."""

    def now(self) -> int | None:
        """Return the time of the test clock; without one, the function reads the server's time."""
        return None if self.test_clock is None else to_micros(self.test_clock.now())

    def monotonic(self) -> int | None:
        """Return the monotonic time of the test clock; without one, as `now` does."""
        return None if self.test_clock is None else to_micros(self.test_clock.monotonic())

    async def fetch(self, statement: str, *arguments: Any, extra_time: float = 0.0) -> list[Any]:
        """Run a statement on a connection of the pool, and return its rows."""
        opened = self.get_connections()
        return await opened.pool.fetch(
            opened.insert_schema(statement), *arguments, extra_time=extra_time
        )

    async def fetch_for_worker(
        self, statement: str, *arguments: Any, extra_time: float = 0.0
    ) -> list[Any]:
        """Run a statement of a worker itself, such as a heartbeat or a sweep, and return its rows.

        It runs on the connection that stays open, so that an idle worker needs no other. It should
        be short, because exchanges wait for it.
        """
        opened = self.get_connections()
        return await opened.fetch_for_worker(
            opened.insert_schema(statement), *arguments, extra_time=extra_time
        )

    def notify(self, names: Iterable[str]) -> None:
        """Notify queues, and sessions under the names of `make_session_name`.

        A queue is named once for each job. If the number of jobs is large, name it once: a worker
        that leaves jobs wakes the next.
        """
        self.get_connections().notifications.notify(Counter(names))

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[PostgresConnection]:
        """Yield a connection beside those of the handle, which need not be open."""
        connection = PostgresConnection(self.settings, asyncio.sleep)
        try:
            await connection.connect()
            yield connection
        finally:
            await connection.close()


class PostgresConnections:
    """The open connections of a backend on one event loop."""

    def __init__(self, settings: PostgresSettings, share_listener: ShareListener | None) -> None:
        self.settings: PostgresSettings = settings
        self.main: PostgresConnection = PostgresConnection(settings, asyncio.sleep)
        """The connection that stays open. It belongs to the pool until the first exchange; from
        then on it runs the exchanges and the other statements of the worker, and listens.
        """
        self._has_worker = False
        self.pool: ConnectionPool = ConnectionPool(settings, asyncio.sleep, kept=self.main)
        """The connections of callers: to enqueue, to read, and for operators."""
        self.handler_pool: ConnectionPool = ConnectionPool(settings, asyncio.sleep)
        """The connections for handlers' own transactions. They are separate, so a handler that
        waits for a connection cannot block other operations.
        """
        self.caller_context: caller_transactions.CallerContext = caller_transactions.CallerContext(
            settings, "", self.handler_pool, self.pool
        )
        self.notifications: PostgresNotifications = PostgresNotifications(
            settings, self.fetch_for_worker, share_listener, self.main, self.connect_worker
        )
        self.pooled: bool = False
        self._statements: dict[str, str] = {}

    def insert_schema(self, statement: str) -> str:
        """Return a statement with the name of this backend's schema."""
        found = self._statements.get(statement)
        if found is None:
            found = self._statements[statement] = insert_schema(statement, self.settings.schema)
        return found

    async def fetch_for_worker(
        self, statement: str, *arguments: Any, extra_time: float = 0.0
    ) -> list[Any]:
        """See `PostgresDatabase.fetch_for_worker`. The statement names the schema."""
        source = self.main if self._has_worker else self.pool
        return await source.fetch(statement, *arguments, extra_time=extra_time)

    async def connect_worker(self) -> None:
        """Connect for an exchange, or to listen. Callers then get connections of their own."""
        if self._has_worker:
            await self.main.connect()
            return
        self._has_worker = True
        self.pool.give_up_kept()
        await self.main.use_session_settings(_PLANNER_SETTINGS)

    async def start(self) -> None:
        """Check the server and the format."""
        async with self.pool.acquire() as connection:
            installed = await migrations.ensure_format(
                connection, self.settings, migrations.load_current_format()
            )
            self.pooled = connection.server.pooled
            self.notifications.can_listen = not self.pooled
            await connection.fetch(self.insert_schema("SELECT {schema}.maintain_partitions_1()"))
        self.caller_context = caller_transactions.CallerContext(
            self.settings, installed.identity, self.handler_pool, self.pool
        )

    async def close(self) -> None:
        """Close all connections."""
        try:
            await self.notifications.close()
        finally:
            await self.main.close()
            await self.pool.close()
            await self.handler_pool.close()
