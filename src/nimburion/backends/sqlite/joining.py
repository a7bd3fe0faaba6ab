"""Enqueueing and completing inside a transaction on a caller's connection.

The statements are those of the writer thread; only the connection is another. It may have settings
of its own: rows are read as plain tuples and text as `str` whatever they are.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from nimburion.backends.doors import Door, door_of
from nimburion.backends.drivers import not_begun, shown
from nimburion.backends.files import Statements
from nimburion.backends.sqlite.database import Database
from nimburion.backends.sqlite.doorbell import Chime
from nimburion.backends.sqlite.enqueueing import enqueue
from nimburion.backends.sqlite.exchanging import head_of
from nimburion.backends.sqlite.faults import translated
from nimburion.backends.sqlite.identity import OpenFiles
from nimburion.backends.sqlite.opening import connect_for_handler
from nimburion.backends.sqlite.settling import settle_one
from nimburion.backends.sqlite.space import Space
from nimburion.backends.sqlite.threads import Reader
from nimburion.backends.sqlite.watching import Watch
from nimburion.core.clock import Clock
from nimburion.core.errors import BackendUnavailable, LeaseLost, NotJoinable, SessionLost
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.joining import Lent
from nimburion.core.settlement import Completed, Settled

T = TypeVar("T")

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
