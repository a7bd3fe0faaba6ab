"""Transactions in which handlers complete their jobs, and hooks store the outcome of an attempt.

They run on a connection that the backend opens, or on the caller's connection.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from nimburion.backends.caller_connections.drivers import (
    DbApiAdapter,
    commits_each_statement,
    describe_connection,
    make_no_transaction_error,
)
from nimburion.backends.caller_connections.registry import ConnectionAdapter, find_adapter
from nimburion.backends.sql_files import Statements
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.connection.disk import DiskSpace, OpenFiles
from nimburion.backends.sqlite.connection.opening import connect_for_handler
from nimburion.backends.sqlite.connection.threads import ReaderThread
from nimburion.backends.sqlite.errors import map_errors
from nimburion.backends.sqlite.notifications import CommitPoller, SocketNotifier
from nimburion.backends.sqlite.sessions import find_session
from nimburion.backends.sqlite.settle import settle_one
from nimburion.backends.waiters import JobCounts
from nimburion.core.errors import (
    BackendUnavailable,
    LeaseLost,
    TransactionExpired,
    UnusableConnection,
)
from nimburion.core.job import NewJob
from nimburion.core.settlement import Settled
from nimburion.core.timing.clock import Clock
from nimburion.core.transactions import (
    CallerConnection,
    Transaction,
    TransactionSettlement,
)

T = TypeVar("T")

MAX_SECONDS = 5.0
"""Seconds for which a handler may hold the write lock. No other writer can proceed meanwhile."""


def make_transaction(
    caller_transactions: CallerTransactions, caller: CallerConnection | None, clock: Clock
) -> Transaction:
    """Return a transaction on the caller's connection, or on a new connection if it is None."""
    if caller is not None:
        return SQLiteCallerTransaction(caller_transactions, find_adapter(caller))
    return SQLiteOwnTransaction(caller_transactions, caller_transactions.connect, clock)


class SQLiteCallerTransaction(Transaction):
    """A transaction on the caller's connection. The caller is responsible for its settings."""

    def __init__(self, caller_transactions: CallerTransactions, adapter: ConnectionAdapter) -> None:
        self._caller_transactions = caller_transactions
        self._adapter = adapter
        self._names_to_notify = JobCounts(int)

    async def begin(self) -> object:
        try:
            await self._caller_transactions.begin(self._adapter)
        except BaseException:
            await self._adapter.rollback()
            raise
        return self._adapter.caller.connection

    async def settle(self, session_id: str, settlement: TransactionSettlement) -> None:
        self._names_to_notify = await self._caller_transactions.settle_job(
            self._adapter, session_id, settlement
        )

    async def commit(self) -> None:
        await self._adapter.commit()
        self._caller_transactions.notifier.notify(self._names_to_notify)
        await self._caller_transactions.commit_poller.poll()

    async def rollback(self) -> None:
        await self._adapter.rollback()


class SQLiteOwnTransaction(Transaction):
    """A transaction on a connection that is opened for it.

    It takes the write lock at the first write and holds it for at most 5 seconds. Only this class
    can commit, so no write of the handler is kept without the completion.
    """

    def __init__(
        self,
        caller_transactions: CallerTransactions,
        connect: Callable[[], sqlite3.Connection],
        clock: Clock,
    ) -> None:
        self._caller_transactions = caller_transactions
        self._connect = connect
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._connection: sqlite3.Connection | None = None
        self._expiry_task: asyncio.Task[None] | None = None
        self._ending = False
        self._expired = False
        self._names_to_notify = JobCounts(int)

    async def begin(self) -> sqlite3.Connection:
        await self._caller_transactions.handler_lock.acquire()
        try:
            self._connection = opened = await run_to_completion(self._connect)
        except BaseException:
            self._caller_transactions.handler_lock.release()
            raise
        opened.set_authorizer(self._authorize)
        opened.set_trace_callback(self._on_statement)
        return opened

    async def settle(self, session_id: str, settlement: TransactionSettlement) -> None:
        self._stop_expiry()
        self._check_not_expired()
        adapter = DbApiAdapter(_OffLoopConnection(self._connection))
        self._names_to_notify = await self._caller_transactions.settle_job(
            adapter, session_id, settlement
        )

    async def commit(self) -> None:
        assert self._connection is not None
        with self._caller_transactions.map_errors():
            await run_to_completion(self._connection.commit)
        self._close_connection()
        self._caller_transactions.notifier.notify(self._names_to_notify)
        await self._caller_transactions.commit_poller.poll()

    async def rollback(self) -> None:
        # Raises `TransactionExpired` if the transaction held the write lock for too long.
        self._stop_expiry()
        self._close_connection()
        self._check_not_expired()

    def _stop_expiry(self) -> None:
        """Stop the expiry timer and allow a commit, because the handler has finished."""
        self._ending = True
        if self._expiry_task is not None:
            self._expiry_task.cancel()

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()  # rolls back what is not committed
            self._caller_transactions.handler_lock.release()

    def _check_not_expired(self) -> None:
        if self._expired:
            raise TransactionExpired(
                f"the transaction held the write lock of {self._caller_transactions.path} for more "
                f"than {MAX_SECONDS:g} s, so that no other writer could proceed, and was rolled "
                "back; do what takes long before the first write"
            )

    def _on_statement(self, statement: str) -> None:
        """Start the expiry timer at BEGIN. SQLite calls this on the thread that runs it."""
        if not self._ending and statement.lstrip()[:5].upper() == "BEGIN":
            self._loop.call_soon_threadsafe(self._start_expiry)

    def _start_expiry(self) -> None:
        if self._expiry_task is None and not self._ending:
            self._expiry_task = asyncio.create_task(self._expire(), name="nimburion-transaction")

    async def _expire(self) -> None:
        await self._clock.sleep(MAX_SECONDS)
        connection = self._connection
        if self._ending or connection is None:
            return
        self._expired = True
        # Set the authorizer again, so that SQLite also checks statements prepared before.
        connection.set_authorizer(self._authorize)
        connection.interrupt()
        with suppress(sqlite3.Error):  # no transaction was open
            connection.execute("ROLLBACK")

    def _authorize(self, action: int, what: str | None, *_: str | None) -> int:
        """Allow or deny one action of a statement. SQLite calls this for each action.

        COMMIT is allowed only after the handler has finished. After the expiry, only ROLLBACK is
        allowed.
        """
        if action == sqlite3.SQLITE_TRANSACTION and what in {"COMMIT", "ROLLBACK"}:
            allowed = self._ending or what == "ROLLBACK"
        else:
            allowed = not self._expired
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


class _OffLoopConnection(CallerConnection):
    """A connection that any thread may use. Its work runs off the event loop's thread."""

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` on a thread and return its result; see `run_to_completion`."""
        return await run_to_completion(work)


async def run_to_completion(work: Callable[[], T]) -> T:
    """Run `work` on a thread and return its result. On cancellation, wait for it to end first."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


_STALE_SNAPSHOT = 517
"""SQLITE_BUSY_SNAPSHOT: the transaction can never write, as others wrote after its first read."""


class PlainRowConnection:
    """A wrapper of a caller's connection whose rows are tuples, whatever its row factory is.

    It has only the methods that the statements need.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._connection.in_transaction

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement and return its cursor, which yields tuples."""
        cursor = sqlite3.Cursor(self._connection)
        cursor.row_factory = None
        return cursor.execute(sql, values)


class CallerTransactions:
    """The operations of an open backend on callers' connections. Use it on the loop's thread."""

    def __init__(
        self,
        path: Path,
        statements: Statements,
        clock: Clock,
        boot_id: str,
        *,
        reader: ReaderThread,
        notifier: SocketNotifier,
        files: OpenFiles,
        space: DiskSpace,
    ) -> None:
        self.path: Path = path
        self._files = files
        self._space = space
        self._statements = statements
        self._clock = clock
        self._boot_id = boot_id
        self.notifier: SocketNotifier = notifier
        self.commit_poller: CommitPoller = CommitPoller(
            partial(find_committed, reader), notifier.notify
        )
        self.handler_lock: asyncio.Lock = asyncio.Lock()
        """Serialises the transactions of the handlers of this process.

        A handler that waited for SQLite's lock on the event loop's thread would block the handler
        that holds it."""

    async def close(self) -> None:
        """Notify the queues of committed jobs a last time, then close the notifier."""
        await self.commit_poller.close()
        self.notifier.close()

    def connect(self) -> sqlite3.Connection:
        """Open a connection for a handler, to the file that the backend has open.

        Raises `BackendReplaced` if the file was deleted or replaced.
        """
        connection = connect_for_handler(self.path)
        try:
            self._files.check(at_once=True)
        except BaseException:
            connection.close()
            raise
        return connection

    def check_space(self, db: Database, jobs: Sequence[NewJob]) -> None:
        """Raise `BackendFull` if the disk has no space for these jobs."""
        self._space.check(db.connection, sum(len(job.payload) for job in jobs))

    async def settle_job(
        self, adapter: ConnectionAdapter, session_id: str, settlement: TransactionSettlement
    ) -> JobCounts:
        """Settle a job just before the commit; return the names to notify after the commit."""
        _, queues = await self.run(adapter, lambda db: settle_job(db, session_id, settlement))
        return queues

    async def check_connection(self, adapter: ConnectionAdapter) -> None:
        """Raise `UnusableConnection` unless the connection is to the backend's file."""
        await self._run_on_driver_connection(adapter, self._check_connection)

    async def begin(self, adapter: ConnectionAdapter) -> None:
        """Begin a transaction for a handler, also if its driver would not begin one."""
        await adapter.begin()
        await self._run_on_driver_connection(adapter, self._begin)

    async def run(
        self, adapter: ConnectionAdapter, work: Callable[[Database], T]
    ) -> tuple[T, JobCounts]:
        """Run `work` in the caller's transaction; return its result and the names to notify."""
        return await self._run_on_driver_connection(
            adapter, lambda connection: self._run(connection, work)
        )

    async def _run_on_driver_connection(
        self, adapter: ConnectionAdapter, work: Callable[[sqlite3.Connection], T]
    ) -> T:
        connection = await adapter.get_driver_connection()
        if isinstance(connection, sqlite3.Connection):
            return await adapter.caller.run(lambda: work(connection))
        if type(connection).__module__.startswith("aiosqlite"):
            # aiosqlite has no public way to run a function on the thread that owns the connection.
            return await _run_on_aiosqlite_thread(connection, work)
        raise UnusableConnection(
            f"{describe_connection(connection)} is no connection to this backend: SQLite "
            f"{self.path}"
        )

    def _check_connection(self, connection: sqlite3.Connection) -> None:
        with self.map_errors(), _read_text_as_str(connection):
            self._check_file(self._make_database(connection))

    def _begin(self, connection: sqlite3.Connection) -> None:
        with self.map_errors(), _read_text_as_str(connection):
            self._check_file(self._make_database(connection))
            if commits_each_statement(connection):
                connection.execute("BEGIN IMMEDIATE")

    def _run(
        self, connection: sqlite3.Connection, work: Callable[[Database], T]
    ) -> tuple[T, JobCounts]:
        database = self._make_database(connection)
        with self.map_errors(), _read_text_as_str(connection):
            self._check_file(database)
            ensure_transaction(connection)
            database.run("take_write_lock")
            database.set_time()
            result = work(database)
            database.resolve_flows()
            return result, database.names_to_notify

    def _check_file(self, database: Database) -> None:
        """Check both the backend's open files and the caller's file.

        The caller may have opened its connection before or after the file was replaced.
        """
        self._files.check(at_once=True)
        check_file(database, self.path)

    def _make_database(self, connection: sqlite3.Connection) -> Database:
        plain_rows = cast("sqlite3.Connection", PlainRowConnection(connection))
        return Database(plain_rows, self._statements, self._clock, self._boot_id)

    @contextmanager
    def map_errors(self) -> Iterator[None]:
        """Raise the contract's error in place of a driver's error.

        Raises `UnusableConnection` for misuse of the connection, like use after close.
        """
        try:
            with map_errors(self.path):
                yield
        except BackendUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, sqlite3.ProgrammingError) and "binding" not in str(cause):
                raise UnusableConnection(f"this connection cannot be used here: {cause}") from cause
            if getattr(cause, "sqlite_errorcode", 0) != _STALE_SNAPSHOT:
                raise
            raise BackendUnavailable(
                f"this transaction read {self.path} before another connection wrote to it, so it "
                "cannot write any more: roll it back and run it again; one that begins with BEGIN "
                "IMMEDIATE, or writes before it reads, never fails in this way",
                outcome="not applied",
            ) from cause


async def find_committed(reader: ReaderThread, ids: list[str]) -> list[str]:
    """Return the ids of those jobs that are committed."""
    listed_ids = msgspec.json.encode(ids).decode()
    return await reader.submit(lambda db: [row[0] for row in db.run("find_known_ids", listed_ids)])


def settle_job(db: Database, session_id: str, settlement: TransactionSettlement) -> None:
    """Settle a job; raise `LeaseLost` unless this session holds it with this token."""
    session = find_session(db, session_id)
    if session is None or not session.is_alive:
        raise LeaseLost(settlement.lease.job_id)
    if settle_one(db, session.session, settlement) is not Settled.DONE:
        raise LeaseLost(settlement.lease.job_id)


def check_file(db: Database, path: Path) -> None:
    """Raise `UnusableConnection` unless the connection's main database is the backend's file."""
    (_, _, opened), *_ = db.run("list_open_files").fetchall()
    if opened and path.samefile(opened):
        return
    raise UnusableConnection(
        f"the connection is to {opened or 'a database in memory'}, but this backend is "
        f"{path.absolute()}: one commit cannot cover both. Open the backend on the file that holds "
        "your tables, or give the processor an outbox"
    )


def ensure_transaction(connection: sqlite3.Connection) -> None:
    """Begin a transaction unless one is open: the driver itself begins one only to write.

    Raises an error if the connection would commit each statement by itself.
    """
    if commits_each_statement(connection):
        raise make_no_transaction_error(
            "this sqlite3 connection", 'execute("BEGIN IMMEDIATE") first'
        )
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")


@contextmanager
def _read_text_as_str(connection: sqlite3.Connection) -> Iterator[None]:
    """Set the connection's text factory to `str` for the `with` block, then restore it."""
    factory = connection.text_factory
    connection.text_factory = str
    try:
        yield
    finally:
        connection.text_factory = factory


async def _run_on_aiosqlite_thread(connection: Any, work: Callable[[sqlite3.Connection], T]) -> T:  # noqa: ANN401
    result: T = await connection._execute(lambda: work(connection._conn))  # noqa: SLF001
    return result
