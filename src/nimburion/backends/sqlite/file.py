"""`SQLiteFile`: the open file of a backend, with the threads that write and read it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import NoReturn, Protocol, TypeVar

from nimburion.backends.sql_files import Statements, read_statements
from nimburion.backends.sqlite.connection import opening
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.connection.disk import Checkpointer, DiskSpace, Measure, OpenFiles
from nimburion.backends.sqlite.connection.path import check_path, read_boot_id
from nimburion.backends.sqlite.connection.threads import (
    ReaderThread,
    WriterThread,
    make_forked_error,
)
from nimburion.backends.sqlite.notifications import (
    SocketListener,
    SocketNotifier,
    find_socket_folder,
)
from nimburion.backends.sqlite.transactions import CallerTransactions
from nimburion.core.errors import NotOpen
from nimburion.core.ids import Entropy
from nimburion.core.timing.clock import Clock

T = TypeVar("T")


class Submit(Protocol):
    """Runs work on a thread of the file; see `DatabaseThread.submit`."""

    def __call__(self, work: Callable[[Database], T], *, durable: bool = True) -> asyncio.Future[T]:
        """Run `work`, and return the future of its result."""
        ...


class SQLiteFile:
    """Opens the file, and runs work on its threads: one writes, one reads, one reads slowly.

    Args:
        path: the file.
        clock: wall time for due times, boot time for sessions.
        random: jitter for retries of the write lock.
        entropy: random bytes for the socket name of this handle.
        mounts: the table of mounted file systems; a network file system is rejected.
        measure: returns the free bytes on the disk of a folder.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        random: Random,
        entropy: Entropy,
        mounts: Path,
        measure: Measure,
    ) -> None:
        self.path: Path = path
        self.name: str = f"SQLite {path}"
        """The name of the file for people."""
        self.clock: Clock = clock
        self.random: Random = random
        self.entropy: Entropy = entropy
        self.mounts: Path = mounts
        self.measure: Measure = measure
        self.open_files: OpenFiles | None = None
        """The open files of this handle; None while it is closed."""
        self.migrations_done: list[str] = []
        """The migrations that opening ran."""
        self.origin: SQLiteFile | None = None
        """The file as another handle opened it. While it is open there, this handle opens no other
        file that took its place.
        """
        self.pid: int = 0
        """The process that opened the file last."""
        self.write: Submit = self._refuse
        """Runs work on the writer's thread, in one transaction. Raises `NotOpen`."""
        self.read: Submit = self._refuse
        """Runs work on the reader's thread, in one snapshot. Raises `NotOpen`."""
        self._writer: WriterThread | None = None
        self._reader: ReaderThread | None = None
        self._slow_reader: ReaderThread | None = None
        self._make_slow_reader: Callable[[], ReaderThread] | None = None
        self._slow_reader_lock = asyncio.Lock()
        self.listener: SocketListener | None = None
        """Listens for the notifications of other processes."""
        self.notifier: SocketNotifier | None = None
        """Wakes idle workers, on the event loop's thread."""
        self._caller_transactions: CallerTransactions | None = None
        self._open_lock = asyncio.Lock()

    async def open(self) -> None:
        """Create or open the file and migrate it to the format of this version. Idempotent."""
        async with self._open_lock:
            self._abandon_closed_loop()
            if self._writer is not None and self.pid == os.getpid():
                return
            check_path(self.path, mounts=self.mounts)
            await self._start()

    async def _start(self) -> None:
        folder = find_socket_folder(self.path)
        listener = SocketListener(folder, self.entropy(8).hex())
        loop = asyncio.get_running_loop()
        sender = SocketNotifier(
            listener, lambda queues: loop.call_soon_threadsafe(listener.wake, queues)
        )
        sql, boot = read_statements(opening.PACKAGE, opening.STATEMENTS), read_boot_id()
        files = OpenFiles(self.path)
        writer = WriterThread(
            "nimburion-sqlite-writer",
            self.path,
            lambda: self._open_writer(sql, boot, files),
            files,
            notify=sender.notify,
            close_notifier=sender.close,
            checkpointer=Checkpointer(lambda: opening.connect(self.path), files),
            space=DiskSpace(self.path, self.measure),
            random=self.random,
        )
        await writer.start()

        def make_reader(name: str) -> ReaderThread:
            return ReaderThread(
                name,
                self.path,
                lambda: Database(opening.open_reader(self.path), sql, self.clock, boot),
                files,
            )

        reader = make_reader("nimburion-sqlite-reader")
        try:
            await reader.start()
            files.check(at_once=True)
        except BaseException:
            await writer.stop()
            raise
        self.listener = listener
        self.notifier = notifier = SocketNotifier(listener, listener.wake)
        listener.pass_on = lambda queue, passed: notifier.notify({queue: 1}, passed=passed)
        self._caller_transactions = CallerTransactions(
            self.path,
            sql,
            self.clock,
            boot,
            reader=reader,
            notifier=notifier,
            files=files,
            space=DiskSpace(self.path, self.measure),
        )
        self.open_files = files
        self._writer, self._reader = writer, reader
        self.write, self.read = writer.submit, reader.submit
        self._make_slow_reader = partial(make_reader, "nimburion-sqlite-slow-reader")
        self.pid = os.getpid()

    def _open_writer(self, sql: Statements, boot: str, files: OpenFiles) -> Database:
        origin = None if self.origin is None else self.origin.open_files
        connection, self.migrations_done = opening.open_writer(self.path, files, origin)
        return Database(connection, sql, self.clock, boot)

    def _abandon_closed_loop(self) -> None:
        """Stop the threads if their event loop was closed without `close` having been called."""
        writer, reader = self._writer, self._reader
        if writer is None or reader is None or self.pid != os.getpid() or not writer.is_orphaned:
            return
        slow_reader, self._slow_reader = self._slow_reader, None
        self._writer = self._reader = None
        self.write = self.read = self._refuse
        writer.request_stop()
        reader.request_stop()
        if slow_reader is not None:
            slow_reader.request_stop()
        if self.listener is not None:
            self.listener.discard()
            self.listener = None
        if self.notifier is not None:
            self.notifier.close()

    async def close(self) -> None:
        """Finish the calls already made, then close the file. Idempotent."""
        async with self._open_lock:
            self._abandon_closed_loop()
            writer, reader, self._writer, self._reader = self._writer, self._reader, None, None
            self.write = self.read = self._refuse
            async with self._slow_reader_lock:
                slow_reader, self._slow_reader = self._slow_reader, None
            if writer is None or reader is None or self.pid != os.getpid():
                return
            if self._caller_transactions is not None:
                await self._caller_transactions.close()
            if self.listener is not None:
                self.listener.close()
                self.listener = None
            await reader.stop()
            if slow_reader is not None:
                await slow_reader.stop()
            await writer.stop()
            self.open_files = None

    async def read_slowly(self, work: Callable[[Database], T]) -> T:
        """Run a read that takes long where much is stored. It has a thread and a connection of its
        own, which the first one opens, so that other reads do not wait for it.
        """
        async with self._slow_reader_lock:
            if self._reader is None or self._make_slow_reader is None or self.pid != os.getpid():
                raise self.make_not_open_error()
            if self._slow_reader is None:
                if self.open_files is not None:
                    self.open_files.check(at_once=True)
                reader = self._make_slow_reader()
                await reader.start()
                self._slow_reader = reader
            slow_reader = self._slow_reader
        return await slow_reader.submit(work)

    def get_caller_transactions(self) -> CallerTransactions:
        """Return the transactions of callers on this file."""
        if self._caller_transactions is None or self._writer is None or self.pid != os.getpid():
            raise self.make_not_open_error()
        return self._caller_transactions

    def get_writer(self) -> WriterThread:
        """Return the thread that writes.

        Raises:
            NotOpen: the file is not open, or was opened before a fork.
        """
        if self._writer is None or self.pid != os.getpid():
            raise self.make_not_open_error()
        return self._writer

    def listen(self) -> None:
        """Listen for the notifications of other processes from now on."""
        if self.listener is not None:
            self.listener.listen()

    def _refuse(self, work: Callable[[Database], T], *, durable: bool = True) -> NoReturn:  # noqa: ARG002
        raise self.make_not_open_error()

    def make_not_open_error(self) -> NotOpen:
        """Return the error for a call while the file is not open in this process."""
        if self._writer is not None:
            return make_forked_error(self.path)
        return NotOpen(f"{self.name} is not open; call open() first")
