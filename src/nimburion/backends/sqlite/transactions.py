"""The transactions in which handlers complete their jobs: on a connection of the store's own, or on
one of the caller's."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from nimburion.backends.doors import Door, door_of
from nimburion.backends.drivers import Plain
from nimburion.backends.sqlite.joining import Joining
from nimburion.core.clock import Clock
from nimburion.core.errors import TransactionExpired
from nimburion.core.joining import Lent, Transaction
from nimburion.core.settlement import Completed

T = TypeVar("T")

LONGEST = 5.0
"""Seconds that a handler may hold the write lock: for so long nobody else can write."""


def transaction_of(joining: Joining, lent: Lent | None, clock: Clock) -> Transaction:
    """On the caller's connection, or on one of the store's own."""
    if lent is not None:
        return LentTransaction(joining, door_of(lent))
    return OwnTransaction(joining, joining.connect, clock)


class LentTransaction:
    """On the caller's connection, which the caller answers for."""

    def __init__(self, joining: Joining, door: Door) -> None:
        self._joining = joining
        self._door = door
        self._rung: set[str] = set()

    async def begin(self) -> object:
        """See `nimburion.core.joining.Transaction`."""
        try:
            await self._joining.begin_on(self._door)
        except BaseException:
            await self._door.rollback()
            raise
        return self._door.lent.connection

    async def complete(self, session_id: str, completed: Completed) -> None:
        """See `nimburion.core.joining.Transaction`."""
        self._rung = await self._joining.complete_in(self._door, session_id, completed)

    async def commit(self) -> None:
        """See `nimburion.core.joining.Transaction`."""
        await self._door.commit()
        self._joining.chime.ring(self._rung)
        await self._joining.watch.look()

    async def rollback(self) -> None:
        """See `nimburion.core.joining.Transaction`."""
        await self._door.rollback()


class OwnTransaction:
    """On a connection that is opened for it. The write lock is taken at the first write and held
    for five seconds at most; only this class commits, so that nothing of the handler's is kept
    without the completion."""

    def __init__(
        self, joining: Joining, connect: Callable[[], sqlite3.Connection], clock: Clock
    ) -> None:
        self._joining = joining
        self._connect = connect
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._connection: sqlite3.Connection | None = None
        self._alarm: asyncio.Task[None] | None = None
        self._ending = False
        self._expired = False
        self._rung: set[str] = set()

    async def begin(self) -> sqlite3.Connection:
        """See `nimburion.core.joining.Transaction`."""
        await self._joining.turn.acquire()
        try:
            self._connection = opened = await finished(self._connect)
        except BaseException:
            self._joining.turn.release()
            raise
        opened.set_authorizer(self._allows)
        opened.set_trace_callback(self._note)
        return opened

    async def complete(self, session_id: str, completed: Completed) -> None:
        """See `nimburion.core.joining.Transaction`."""
        self._end()
        self._check()
        door = Plain(_Aside(self._connection))
        self._rung = await self._joining.complete_in(door, session_id, completed)

    async def commit(self) -> None:
        """See `nimburion.core.joining.Transaction`."""
        assert self._connection is not None
        with self._joining.translated():
            await finished(self._connection.commit)
        self._let_go()
        self._joining.chime.ring(self._rung)
        await self._joining.watch.look()

    async def rollback(self) -> None:
        """See `nimburion.core.joining.Transaction`. `TransactionExpired` where that is why."""
        self._end()
        self._let_go()
        self._check()

    def _end(self) -> None:
        """The handler is done with it: from now on nothing expires, and a commit is allowed."""
        self._ending = True
        if self._alarm is not None:
            self._alarm.cancel()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()  # undoes what is not committed
            self._joining.turn.release()

    def _check(self) -> None:
        if self._expired:
            raise TransactionExpired(
                f"the transaction held the write lock of {self._joining.path} for more than "
                f"{LONGEST:g} s, so that nobody else could write, and was rolled back; do what "
                "takes long before the first write"
            )

    def _note(self, statement: str) -> None:
        """Called by SQLite with each statement that begins, on the thread that runs it."""
        if not self._ending and statement.lstrip()[:5].upper() == "BEGIN":
            self._loop.call_soon_threadsafe(self._watch_the_time)

    def _watch_the_time(self) -> None:
        if self._alarm is None and not self._ending:
            self._alarm = asyncio.create_task(self._expire(), name="nimburion-transaction")

    async def _expire(self) -> None:
        await self._clock.sleep(LONGEST)
        connection = self._connection
        if self._ending or connection is None:
            return
        self._expired = True
        # Set anew, so that statements the driver has prepared are refused too.
        connection.set_authorizer(self._allows)
        connection.interrupt()
        with suppress(sqlite3.Error):  # none was open after all
            connection.execute("ROLLBACK")

    def _allows(self, action: int, what: str | None, *_: str | None) -> int:
        """Called by SQLite with each thing that a statement would do."""
        if action == sqlite3.SQLITE_TRANSACTION and what in {"COMMIT", "ROLLBACK"}:
            allowed = self._ending or what == "ROLLBACK"
        else:
            allowed = not self._expired
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


class _Aside(Lent):
    """A connection that any thread may use: not on the loop's, which it would hold up."""

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns."""
        return await finished(work)


async def finished(work: Callable[[], T]) -> T:
    """What `work` returns, run on a thread; cancelled, it is waited for all the same."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise
