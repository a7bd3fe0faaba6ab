"""The two threads of a backend: a writer and a reader, each with its own connection.

The writer runs all waiting calls in one transaction (group commit). Each call has a savepoint, so
a failed call does not affect the others. All results of a group go to the event loop at once,
because waking it costs more than most statements. A thread may also wait for a call without the
event loop (`WriterThread.run`).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import msgspec

from nimburion.backends.sqlite.errors import convert_error, is_busy, map_errors
from nimburion.backends.waiters import JobCounts
from nimburion.core.errors import BackendFull, BackendReplaced, BackendUnavailable, NotOpen

if TYPE_CHECKING:
    from nimburion.backends.sqlite.connection.database import Database
    from nimburion.backends.sqlite.connection.disk import Checkpointer, DiskSpace, OpenFiles

T = TypeVar("T")

BUSY_TIMEOUT = 5.0
"""Seconds for which a call waits for the calls before it and for another process's lock."""
_MAX_GROUP = 256
"""The most calls in one transaction."""


class DatabaseCall(msgspec.Struct, Generic[T], eq=False):
    """A function to run on a database thread, and how its caller gets the result."""

    work: Callable[[Database], T]
    future: asyncio.Future[T] | None
    """The future of a caller on the event loop; None if a thread waits."""
    durable: bool
    """Whether the call must survive a power cut, because a caller requested it."""
    until: float
    """Monotonic time, in seconds, until which the call waits for a lock."""
    value: T | None = None
    error: BaseException | None = None
    ended: threading.Lock | None = None
    """Released at the end, for the thread that waits. A future of `concurrent.futures` would take
    a fifth of the time of an enqueue."""


def make_forked_error(path: Path) -> NotOpen:
    """Return the error for a file that the parent process opened."""
    return NotOpen(f"SQLite {path} was opened before a fork; call open() again in this process")


class DatabaseThread:
    """A thread that owns a database: it opens it, runs calls in order, and closes it."""

    def __init__(
        self, name: str, path: Path, open_database: Callable[[], Database], files: OpenFiles
    ) -> None:
        self._path = path
        self._files = files
        self._open_database = open_database
        self._calls: SimpleQueue[DatabaseCall[object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._closing = False
        self._lock = threading.Lock()
        """Held to accept a call or the request to stop: no call is accepted after that request."""

    async def start(self) -> None:
        """Start the thread and return when the database is open. Raises the error of opening it."""
        self._thread.start()
        await self._opened

    async def stop(self) -> None:
        """Finish the calls made before, close the database, and wait for the thread to end."""
        self.request_stop()
        await asyncio.shield(self._ended)

    @property
    def is_orphaned(self) -> bool:
        """Whether the event loop was closed before the backend was."""
        return self._loop.is_closed()

    def request_stop(self) -> None:
        """Ask the thread to end, without waiting for it. Also works when the loop is closed."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._calls.put(None)

    def submit(self, work: Callable[[Database], T], *, durable: bool = True) -> asyncio.Future[T]:
        """Run `work` on this thread; return the future of its result. Cancelling the future does
        not undo the work. A durable write is on the disk when the future is done.

        Raises `NotOpen` if the thread is stopping, or belongs to the process before a fork.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._accept(DatabaseCall(work, future, durable, time.monotonic() + BUSY_TIMEOUT))
        return future

    def _accept(self, call: DatabaseCall[T]) -> None:
        if self._pid != os.getpid():
            raise make_forked_error(self._path)
        with self._lock:
            if self._closing:
                raise NotOpen(f"{self._path} is closed; open it again")
            self._calls.put(call)  # type: ignore[arg-type]

    def _main(self) -> None:
        try:
            with map_errors(self._path):
                database = self._open_database()
        except BaseException as error:  # noqa: BLE001 (passed to the opener, whatever it is)
            cause = self._find_cause(error) if isinstance(error, Exception) else error
            self._call_on_loop(_fail, self._opened, cause)
            self._call_on_loop(_resolve, self._ended)
            return
        self._call_on_loop(_resolve, self._opened)
        try:
            self._serve(database)
        finally:
            with self._lock:
                self._closing = True
            database.connection.close()
            self._reject_remaining()
            self._call_on_loop(_resolve, self._ended)

    def _serve(self, database: Database) -> None:
        """Run calls until a stop is requested."""
        raise NotImplementedError

    def _find_cause(self, error: Exception) -> Exception:
        """Return `BackendReplaced` if the driver failed because the file is gone, else the error.

        The regular check of the files may have been a few milliseconds too early.
        """
        if isinstance(error.__cause__, sqlite3.Error):
            try:
                self._files.check(at_once=True)
            except BackendReplaced as replaced:
                replaced.__cause__ = error.__cause__
                return replaced
        return error

    def _reject_remaining(self) -> None:
        """Fail all waiting calls with `NotOpen`, in case the thread ended with an error."""
        with suppress(Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    call.error = NotOpen(f"{self._path} is closed; open it again")
                    self._deliver_results((call,))

    def _deliver_results(self, calls: Iterable[DatabaseCall[object]]) -> None:
        """Give the results to the callers: threads that wait, and the event loop."""
        has_futures = False
        for call in calls:
            if call.ended is None:
                has_futures = True
            else:
                call.ended.release()
        if has_futures:
            self._call_on_loop(_resolve_futures, calls)

    def _call_on_loop(self, what: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *values)
        except RuntimeError:  # the loop is closed, so no caller waits any more
            return


class ReaderThread(DatabaseThread):
    """Runs one call after the other, each in its own snapshot."""

    def _serve(self, database: Database) -> None:
        while (call := self._calls.get()) is not None:
            database.set_time()
            try:
                self._files.check()
                call.value = _run_in_snapshot(database, call.work)
            except Exception as error:  # noqa: BLE001 (passed to the caller)
                call.error = self._find_cause(convert_error(error, self._path))
            self._deliver_results((call,))


class WriterThread(DatabaseThread):
    """Runs all waiting calls in one transaction."""

    def __init__(
        self,
        name: str,
        path: Path,
        open_database: Callable[[], Database],
        files: OpenFiles,
        *,
        notify: Callable[[JobCounts], object],
        close_notifier: Callable[[], None],
        checkpointer: Checkpointer,
        space: DiskSpace,
        random: Random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(name, path, open_database, files)
        self._notify = notify
        self._close_notifier = close_notifier
        self._checkpointer = checkpointer
        self._space = space
        self._random = random
        self._sleep = sleep
        self._synchronous = ""

    def run(self, work: Callable[[Database], T], timeout: float) -> T:
        """Run `work` in a synced transaction on this thread, and block the calling thread until it
        has ended. As with `submit`, the calls that wait share one transaction.

        Raises `BackendUnavailable` after `timeout` seconds, and `NotOpen` if the thread is
        stopping. Do not call it on the thread of the event loop, because it blocks that thread.
        """
        ended = threading.Lock()
        ended.acquire()
        call = DatabaseCall(
            work, None, durable=True, until=time.monotonic() + BUSY_TIMEOUT, ended=ended
        )
        self._accept(call)
        if not ended.acquire(timeout=timeout):
            raise BackendUnavailable(f"no answer within {timeout:g} s")
        if call.error is not None:
            raise call.error
        return cast("T", call.value)

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
                    self._checkpointer.note_commit(
                        database.connection, is_synced=self._synchronous == "FULL"
                    )
        finally:
            self._checkpointer.stop()
            self._close_notifier()

    def _collect_group(self) -> tuple[list[DatabaseCall[object]], bool]:
        """Wait for at least one call; return the waiting calls and False if a stop was requested.

        Returns at most `_MAX_GROUP` calls.
        """
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
        """Run the group in one transaction; if that fails as a whole, run its calls one by one.

        A call that finds no room on the disk runs `again` if a checkpoint has made room.
        """
        try:
            self._files.check()
            must_measure = self._space.prepare(database.connection)
            if not self._begin(database, group):
                return
            if must_measure:
                self._space.compute_limits(database.connection)
            for call in group:
                database.set_time()
                self._space.set_limit(database.connection, is_worker=not call.durable)
                if len(group) == 1:
                    call.value = call.work(database)
                    if database.flow_changes is not None:
                        database.resolve_flows()
                else:
                    self._run_with_others(database, call)
            database.connection.execute("COMMIT")
            self._files.check_file()  # after COMMIT, so that no lost write is acknowledged
        except Exception as raised:  # noqa: BLE001 (passed to the callers)
            error = convert_error(raised, self._path)
            self._roll_back(database)
            has_recovered = isinstance(error, BackendFull) and self._space.recover(
                database.connection
            )
            if len(group) > 1 or (has_recovered and not again):
                for call in group:
                    call.error = None
                    self._commit(database, [call], again=len(group) == 1)
            else:
                group[0].error = self._find_cause(error)
        if database.names_to_notify:
            notified, database.names_to_notify = database.names_to_notify, JobCounts(int)
            self._notify(notified)

    def _begin(self, database: Database, group: list[DatabaseCall[object]]) -> bool:
        """Take the write lock with BEGIN IMMEDIATE: SQLite does not wait to upgrade a read lock.

        Calls whose time is over are removed from the group. Returns False if no call remains.
        """
        level = "NORMAL"
        for call in group:
            if call.durable:
                level = "FULL"
                break
        if self._synchronous != level:
            # executescript, because the driver would not run a cached PRAGMA again.
            database.connection.executescript(f"PRAGMA synchronous={level}")
            self._synchronous = level
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
        """Fail the calls whose own waiting time is over, because another process has the lock."""
        now = time.monotonic()
        late = [call for call in group if call.until <= now]
        if late:
            group[:] = [call for call in group if call.until > now]
            for call in late:
                call.error = convert_error(busy, self._path)
            self._deliver_results(late)

    def _run_with_others(self, database: Database, call: DatabaseCall[object]) -> None:
        """Run one call of several under a savepoint. Its error stays with it unless the transaction
        ended. `BackendFull` is raised to the group too.
        """
        notified = database.names_to_notify.copy()
        try:
            with database.savepoint():
                call.value = call.work(database)
                database.resolve_flows()
        except Exception as raised:
            error = convert_error(raised, self._path)
            if isinstance(error, BackendFull) or not database.connection.in_transaction:
                raise
            database.names_to_notify = notified
            call.error = self._find_cause(error)

    def _roll_back(self, database: Database) -> None:
        database.names_to_notify.clear()
        database.clear_lane_cache()
        if database.connection.in_transaction:
            with suppress(sqlite3.Error):  # the transaction ends even if ROLLBACK reports an error
                database.connection.execute("ROLLBACK")


def _run_in_snapshot(database: Database, work: Callable[[Database], T]) -> T:
    database.connection.execute("BEGIN")
    try:
        return work(database)
    finally:
        with suppress(sqlite3.Error):  # COMMIT fails on a damaged file; what was read is valid
            database.connection.execute("COMMIT")


def _resolve_futures(calls: Iterable[DatabaseCall[object]]) -> None:
    """Resolve the futures that are not done. Call it on the event loop's thread."""
    for call in calls:
        future = call.future
        if future is None or future.done():
            continue
        if call.error is not None:
            future.set_exception(call.error)
        else:
            future.set_result(call.value)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
