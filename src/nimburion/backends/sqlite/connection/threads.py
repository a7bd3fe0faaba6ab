"""The two threads of a backend: one writes, one reads, each with a connection of its own.

The writer runs everything that waits in one transaction (group commit), each call under a
savepoint, so that a failed one leaves the others alone. Answers go to the event loop in one piece:
waking it costs more than most statements.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random
from typing import TYPE_CHECKING, Generic, TypeVar

from nimburion.backends.sqlite.errors import is_busy, map_error, map_errors
from nimburion.core.errors import BackendFull, NotOpen

if TYPE_CHECKING:
    from nimburion.backends.sqlite.connection.checkpointer import Checkpointer
    from nimburion.backends.sqlite.connection.database import Database
    from nimburion.backends.sqlite.connection.identity import OpenFiles
    from nimburion.backends.sqlite.connection.space import Space

T = TypeVar("T")

BUSY_TIMEOUT = 5.0
"""Seconds that a call waits for the lock of another process, and for the calls before it."""
_MAX_GROUP = 256
"""The most calls of one transaction."""


class DatabaseCall(Generic[T]):
    """Something to do on a database's thread, and the future that waits for what it returns."""

    __slots__ = ("durable", "error", "future", "until", "value", "work")

    def __init__(
        self, work: Callable[[Database], T], future: asyncio.Future[T], *, durable: bool
    ) -> None:
        self.work: Callable[[Database], T] = work
        self.future: asyncio.Future[T] = future
        self.durable: bool = durable
        """Whether somebody asked for this, so that it must survive a power cut."""
        self.until: float = time.monotonic() + BUSY_TIMEOUT
        """No longer does it wait for a lock."""
        self.value: T | None = None
        self.error: BaseException | None = None

    def resolve(self) -> None:
        """Give the answer to whoever still waits for it; on the loop's thread."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)  # type: ignore[arg-type]


class DatabaseThread:
    """A thread that owns a database: opens it, answers calls in their order, closes it."""

    def __init__(
        self, name: str, path: Path, open_database: Callable[[], Database], files: OpenFiles
    ) -> None:
        self._path = path
        self._files = files
        self._open_database = open_database
        self._calls: SimpleQueue[DatabaseCall[object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._closing = False

    async def start(self) -> None:
        """Return when the database is open; raises what hindered it."""
        self._thread.start()
        await self._opened

    async def stop(self) -> None:
        """Answer what was asked before, close the database, and end."""
        self.request_stop()
        await asyncio.shield(self._ended)

    @property
    def is_orphaned(self) -> bool:
        """Whether the loop that it answers to is gone: nobody closed the backend before."""
        return self._loop.is_closed()

    def request_stop(self) -> None:
        """Let it end by itself; for when its loop is gone and cannot be told."""
        if not self._closing:
            self._closing = True
            self._calls.put(None)

    async def call(self, work: Callable[[Database], T], *, durable: bool = False) -> T:
        """What `work` returns, run on this thread. Cancelling the wait does not undo the work."""
        if self._closing:
            raise NotOpen(f"{self._path} is closed; open it again")
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put(DatabaseCall(work, future, durable=durable))  # type: ignore[arg-type]
        return await future

    def _main(self) -> None:
        try:
            with map_errors(self._path):
                database = self._open_database()
        except BaseException as error:  # noqa: BLE001 (whatever it is, it belongs to who opens)
            self._call_on_loop(_fail, self._opened, error)
            self._call_on_loop(_resolve, self._ended)
            return
        self._call_on_loop(_resolve, self._opened)
        try:
            self._serve(database)
        finally:
            self._closing = True
            database.connection.close()
            self._reject_remaining()
            self._call_on_loop(_resolve, self._ended)

    def _serve(self, database: Database) -> None:
        """Answer until told to end."""
        raise NotImplementedError

    def _reject_remaining(self) -> None:
        """Should the thread ever end by an error, leave nobody waiting."""
        with suppress(Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    call.error = NotOpen(f"{self._path} is closed; open it again")
                    self._deliver_results((call,))

    def _deliver_results(self, calls: Iterable[DatabaseCall[object]]) -> None:
        self._call_on_loop(_resolve_all, calls)

    def _call_on_loop(self, what: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *values)
        except RuntimeError:  # the loop was closed: nobody waits any more
            return


class ReaderThread(DatabaseThread):
    """Answers one call after the other, each in a snapshot of its own."""

    def _serve(self, database: Database) -> None:
        while (call := self._calls.get()) is not None:
            database.set_time()
            try:
                self._files.check()
                with map_errors(self._path):
                    call.value = _run_in_snapshot(database, call.work)
            except Exception as error:  # noqa: BLE001 (it belongs to the caller)
                call.error = error
            self._deliver_results((call,))


class WriterThread(DatabaseThread):
    """Runs all calls that wait in one transaction."""

    def __init__(
        self,
        name: str,
        path: Path,
        open_database: Callable[[], Database],
        files: OpenFiles,
        *,
        notify: Callable[[frozenset[str]], None],
        checkpointer: Checkpointer,
        space: Space,
        random: Random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(name, path, open_database, files)
        self._notify = notify
        self._checkpointer = checkpointer
        self._space = space
        self._random = random
        self._sleep = sleep
        self._synchronous = ""

    def _serve(self, database: Database) -> None:
        self._checkpointer.start()
        try:
            more = True
            while more:
                group, more = self._collect_group()
                if group:
                    self._commit(database, group)
                    if group:
                        self._deliver_results(group)
                    self._checkpointer.note_changes(database.connection.total_changes)
        finally:
            self._checkpointer.stop()

    def _collect_group(self) -> tuple[list[DatabaseCall[object]], bool]:
        """Everything that waits, at least one; and whether there will be more."""
        call = self._calls.get()
        group: list[DatabaseCall[object]] = []
        try:
            while call is not None:
                group.append(call)
                if len(group) == _MAX_GROUP:
                    return group, True
                call = self._calls.get_nowait()
        except Empty:
            return group, True
        return group, False

    def _commit(
        self, database: Database, group: list[DatabaseCall[object]], *, again: bool = False
    ) -> None:
        """Run the group in one transaction; where that fails as a whole, one by one. What finds no
        room is run `again`, if there is more room by then."""
        try:
            self._files.check()
            with map_errors(self._path):
                self._space.before(database.connection)
                if not self._begin(database, group):
                    return
                self._space.begin(database.connection)
                for call in group:
                    self._run(database, call, alone=len(group) == 1)
                database.connection.execute("COMMIT")
            self._files.check_file()  # after it, so that nothing is acknowledged that is lost
        except Exception as error:  # noqa: BLE001 (it belongs to the callers)
            self._roll_back(database)
            more_room = isinstance(error, BackendFull) and self._space.recover(database.connection)
            if len(group) > 1 or (more_room and not again):
                for call in group:
                    call.error = None
                    self._commit(database, [call], again=len(group) == 1)
            else:
                group[0].error = error
        if database.queues_to_notify:
            rung, database.queues_to_notify = frozenset(database.queues_to_notify), set()
            self._notify(rung)

    def _begin(self, database: Database, group: list[DatabaseCall[object]]) -> bool:
        """Take the write lock. IMMEDIATE: a lock taken later would not wait for its turn. False:
        nobody of the group could wait so long."""
        wanted = "FULL" if any(call.durable for call in group) else "NORMAL"
        if self._synchronous != wanted:
            # A script, as the driver would not run a cached PRAGMA again.
            database.connection.executescript(f"PRAGMA synchronous={wanted}")
            self._synchronous = wanted
        while group:
            try:
                database.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                self._refuse_late(group, error)
                if group:
                    self._sleep(self._random.uniform(0.000_2, 0.003))
            else:
                return True
        return False

    def _refuse_late(
        self, group: list[DatabaseCall[object]], busy: sqlite3.OperationalError
    ) -> None:
        """Answer those of the group whose time is over, each after its own: the lock is kept."""
        now = time.monotonic()
        late = [call for call in group if call.until <= now]
        if late:
            group[:] = [call for call in group if call.until > now]
            for call in late:
                call.error = map_error(busy, self._path)
                call.error.__cause__ = busy
            self._deliver_results(late)

    def _run(self, database: Database, call: DatabaseCall[object], *, alone: bool) -> None:
        """One call; its own error stays with it, as long as the transaction lives."""
        database.set_time()
        self._space.limit(database.connection, is_worker=not call.durable)
        if alone:
            call.value = call.work(database)
            return
        rung = set(database.queues_to_notify)
        try:
            with map_errors(self._path), database.savepoint():
                call.value = call.work(database)
        except Exception as error:
            if isinstance(error, BackendFull) or not database.connection.in_transaction:
                raise
            database.queues_to_notify = rung
            call.error = error

    def _roll_back(self, database: Database) -> None:
        database.queues_to_notify.clear()
        database.clear_lane_cache()
        if database.connection.in_transaction:
            with suppress(sqlite3.Error):  # it ends the transaction, whatever it says
                database.connection.execute("ROLLBACK")


def _run_in_snapshot(database: Database, work: Callable[[Database], T]) -> T:
    database.connection.execute("BEGIN")
    try:
        return work(database)
    finally:
        with suppress(sqlite3.Error):  # of a damaged file it fails; what was read stands
            database.connection.execute("COMMIT")


def _resolve_all(calls: Iterable[DatabaseCall[object]]) -> None:
    for call in calls:
        call.resolve()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
