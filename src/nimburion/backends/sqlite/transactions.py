"""The transactions in which handlers complete their jobs: on a connection of the store's own, or on
one of the caller's."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from nimburion.backends.caller_connections.drivers import Plain, not_begun, shown
from nimburion.backends.caller_connections.registry import Door, door_of
from nimburion.backends.sql_files import Statements
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.connection.identity import OpenFiles
from nimburion.backends.sqlite.connection.opening import connect_for_handler
from nimburion.backends.sqlite.connection.space import Space
from nimburion.backends.sqlite.connection.threads import Reader
from nimburion.backends.sqlite.enqueue import enqueue
from nimburion.backends.sqlite.errors import translated
from nimburion.backends.sqlite.exchange import head_of
from nimburion.backends.sqlite.notifications import Chime, Watch
from nimburion.backends.sqlite.settle import settle_one
from nimburion.core.clock import Clock
from nimburion.core.errors import (
    BackendUnavailable,
    LeaseLost,
    NotJoinable,
    SessionLost,
    TransactionExpired,
)
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.settlement import Completed, Settled
from nimburion.core.transactions import Lent, Transaction

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
        """See `nimburion.core.transactions.Transaction`."""
        try:
            await self._joining.begin_on(self._door)
        except BaseException:
            await self._door.rollback()
            raise
        return self._door.lent.connection

    async def complete(self, session_id: str, completed: Completed) -> None:
        """See `nimburion.core.transactions.Transaction`."""
        self._rung = await self._joining.complete_in(self._door, session_id, completed)

    async def commit(self) -> None:
        """See `nimburion.core.transactions.Transaction`."""
        await self._door.commit()
        self._joining.chime.ring(self._rung)
        await self._joining.watch.look()

    async def rollback(self) -> None:
        """See `nimburion.core.transactions.Transaction`."""
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
        """See `nimburion.core.transactions.Transaction`."""
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
        """See `nimburion.core.transactions.Transaction`."""
        self._end()
        self._check()
        door = Plain(_Aside(self._connection))
        self._rung = await self._joining.complete_in(door, session_id, completed)

    async def commit(self) -> None:
        """See `nimburion.core.transactions.Transaction`."""
        assert self._connection is not None
        with self._joining.translated():
            await finished(self._connection.commit)
        self._let_go()
        self._joining.chime.ring(self._rung)
        await self._joining.watch.look()

    async def rollback(self) -> None:
        """See `nimburion.core.transactions.Transaction`. `TransactionExpired` where that is why."""
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


_STALE_SNAPSHOT = 517
"""SQLITE_BUSY_SNAPSHOT: it has read, others have written since, so it can never write."""


class Guest:
    """A caller's connection, as much of it as the statements need."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._connection.in_transaction

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement; its rows are tuples."""
        cursor = sqlite3.Cursor(self._connection)
        cursor.row_factory = None
        return cursor.execute(sql, values)


class Joining:
    """What an open store does on connections of others. For the loop's thread."""

    def __init__(
        self,
        path: Path,
        sql: Statements,
        clock: Clock,
        boot_id: str,
        *,
        reader: Reader,
        chime: Chime,
        files: OpenFiles,
        space: Space,
    ) -> None:
        self.path: Path = path
        self._files = files
        self._space = space
        self._sql = sql
        self._clock = clock
        self._boot_id = boot_id
        self.chime: Chime = chime
        self.watch: Watch = Watch(partial(kept, reader), chime.ring)
        self.turn: asyncio.Lock = asyncio.Lock()
        """Of the handlers of this process: one that waited for the lock on the loop's thread would
        keep the one that holds it from going on."""

    async def close(self) -> None:
        """Ring for what is committed, and let go."""
        await self.watch.close()
        self.chime.close()

    def connect(self) -> sqlite3.Connection:
        """A connection for a handler's rows, to the file that the store has open."""
        connection = connect_for_handler(self.path)
        try:
            self._files.check(at_once=True)
        except BaseException:
            connection.close()
            raise
        return connection

    async def enqueue_in(self, lent: Lent, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """See `nimburion.core.backend.Joining`."""
        if not jobs:
            return []
        results, rung = await self.use(door_of(lent), lambda db: self._enqueue(db, jobs))
        created = next((one.id for one in results if one.outcome == "created"), None)
        if created is not None:
            self.watch.add(created, rung)
        return results

    def _enqueue(self, db: Database, jobs: Sequence[NewJob]) -> list[Enqueued]:
        self._space.check(db.connection, sum(len(job.payload) for job in jobs))
        return enqueue(db, jobs)

    async def complete_in(self, door: Door, session_id: str, completed: Completed) -> set[str]:
        """Complete a job as the last thing before a commit; the queues to ring after it."""
        _, rung = await self.use(door, lambda db: complete(db, session_id, completed))
        return rung

    async def begin_on(self, door: Door) -> None:
        """Have a transaction open for a handler, also where its driver would not begin one."""
        await door.begin()
        await self._on_inner(door, self._begin_on)

    async def use(self, door: Door, work: Callable[[Database], T]) -> tuple[T, set[str]]:
        """What `work` returns, done inside the caller's transaction, and the queues it rings."""
        return await self._on_inner(door, lambda connection: self._work_on(connection, work))

    async def _on_inner(self, door: Door, work: Callable[[sqlite3.Connection], T]) -> T:
        inner = await door.inner()
        if isinstance(inner, sqlite3.Connection):
            return await door.lent.run(lambda: work(inner))
        if type(inner).__module__.startswith("aiosqlite"):
            # It has no public way to run a function on the thread that owns the connection.
            return await _on_its_thread(inner, work)
        raise NotJoinable(f"{shown(inner)} is no connection to this store: SQLite {self.path}")

    def _begin_on(self, connection: sqlite3.Connection) -> None:
        with self.translated(), _plain_text(connection):
            self._check_file(self._database(connection))
            if _commits_each(connection):
                connection.execute("BEGIN IMMEDIATE")

    def _work_on(
        self, connection: sqlite3.Connection, work: Callable[[Database], T]
    ) -> tuple[T, set[str]]:
        database = self._database(connection)
        with self.translated(), _plain_text(connection):
            self._check_file(database)
            begin(connection)
            database.run("join_lock")
            database.tick()
            return work(database), database.rung

    def _check_file(self, database: Database) -> None:
        """The caller's connection may have been opened before or after the file was replaced."""
        self._files.check(at_once=True)
        check_file(database, self.path)

    def _database(self, connection: sqlite3.Connection) -> Database:
        guest = cast("sqlite3.Connection", Guest(connection))
        return Database(guest, self._sql, self._clock, self._boot_id)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise the store's own error for each of the driver's."""
        try:
            with translated(self.path):
                yield
        except BackendUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, sqlite3.ProgrammingError) and "binding" not in str(cause):
                raise NotJoinable(f"this connection cannot be used here: {cause}") from cause
            if getattr(cause, "sqlite_errorcode", 0) != _STALE_SNAPSHOT:
                raise
            raise BackendUnavailable(
                f"this transaction read {self.path} before somebody else wrote to it, so it "
                "cannot write any more: roll it back and run it again; one that begins with BEGIN "
                "IMMEDIATE, or writes before it reads, never meets this",
                outcome="not applied",
            ) from cause


async def kept(reader: Reader, ids: list[str]) -> list[str]:
    """Which of these jobs everybody can see."""
    asked = msgspec.json.encode(ids).decode()
    return await reader.call(lambda db: [row[0] for row in db.run("job_known", asked)])


def complete(db: Database, session_id: str, completed: Completed) -> None:
    """Complete a job that this session holds under this token; else `LeaseLost`."""
    try:
        head = head_of(db, session_id)
    except SessionLost as error:
        raise LeaseLost(completed.lease.job_id) from error
    if settle_one(db, head.n, completed) is not Settled.DONE:
        raise LeaseLost(completed.lease.job_id)


def check_file(db: Database, path: Path) -> None:
    """Raise `NotJoinable` unless the connection's main database is the store's file."""
    opened = db.value("join_file")
    if opened and path.samefile(opened):
        return
    raise NotJoinable(
        f"the connection is to {opened or 'a database in memory'}, but this store is "
        f"{path.absolute()}: one commit cannot cover both. Open the store on the file that holds "
        "your tables"
    )


def begin(connection: sqlite3.Connection) -> None:
    """Have a transaction open; the driver begins one by itself only where it is to write."""
    if _commits_each(connection):
        raise not_begun("this sqlite3 connection", 'execute("BEGIN IMMEDIATE") first')
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")


def _commits_each(connection: sqlite3.Connection) -> bool:
    """Whether each statement would be committed by itself."""
    by_hand = connection.isolation_level is None or getattr(connection, "autocommit", -1) is True
    return by_hand and not connection.in_transaction


@contextmanager
def _plain_text(connection: sqlite3.Connection) -> Iterator[None]:
    """Read text as `str`, whatever the caller reads it as."""
    factory = connection.text_factory
    connection.text_factory = str
    try:
        yield
    finally:
        connection.text_factory = factory


async def _on_its_thread(inner: Any, work: Callable[[sqlite3.Connection], T]) -> T:  # noqa: ANN401
    result: T = await inner._execute(lambda: work(inner._conn))  # noqa: SLF001
    return result
