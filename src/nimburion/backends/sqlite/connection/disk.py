"""The files of a backend on the disk: their identity, checkpoints, and the space for these.

SQLite continues to use its open files even if their names are gone. It then commits to a file that
no longer has a name, and other processes do not see the data. So `OpenFiles` detects that.

A checkpoint copies the write-ahead log into the file and waits for the disk twice. Checkpoints of
the writer took a third of the time of a long drain (measured). SQLite restarts the log only when a
checkpoint has copied all of it. So under a steady load the log grows up to the writer's limit
(`opening.CHECKPOINT_PAGES`). Most of it is copied by then, so the writer's checkpoint is short.

A commit that waits for the disk takes longer while the log grows, because the file system then also
stores the new size of the log. So the writer runs a short checkpoint after some of these commits:
nothing else writes meanwhile, so the log restarts and its pages are written again.

SQLite appends commits to the log. A checkpoint copies the log into the file, which grows. If file
and log together fill the disk, no checkpoint fits. Then the log never shrinks and no write
succeeds, not even a write that would free space. Two rules prevent that:

- While little space is free, the log is emptied as soon as it is long for the remaining space.
- A transaction may let the file grow only by an amount that fits twice, in the log and in the
  file. It must also leave space for the transactions of workers, so that jobs can be settled and
  deleted on a full disk.

Other programs can still fill the disk. Writes then succeed again once there is free space.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from nimburion.core.errors import BackendFull, BackendReplaced

_ROWS_PER_CHECKPOINT = 32_000
"""Rows written between two checkpoints: about 4 MiB of log."""
_SYNCED_COMMITS_PER_CHECKPOINT = 256
"""Commits that waited for the disk between two checkpoints of the writer: for single enqueues about
3 MiB of log.
"""
PLENTY_OF_SPACE = 256 << 20
"""Bytes: four times the longest log. With more free space, a check every 50 ms is enough."""
MAX_REWRITE = 8 << 20
"""The most bytes of existing pages that one transaction of a worker may rewrite."""
_SPACE_INTERVAL = 0.05
"""Seconds between two measurements of plenty of space."""
_SHORT_LOG = 128 << 10
_AROUND = 16 << 10
"""Bytes that a few jobs take in addition to their payloads."""
_SHARE = 4
"""The log may take 1/4 of the sum of its own size and the free space."""

Measure = Callable[[Path], int]
"""Returns the bytes that are free for this user on the disk of a folder."""
_IDENTITY_INTERVAL = 0.01
"""Seconds between two checks of all files. One check takes 3 % of the time of an enqueue."""
_SUFFIXES = ("", "-wal", "-shm")

Identity = tuple[int, int]
"""Device and inode. No other file gets them while the file is open."""


class OpenFiles:
    """The identities of the file, its log and its index from when a handle opened them.

    All threads of the handle may use it without a lock: at worst, two of them check at once.
    """

    __slots__ = ("_failed", "_identities", "_monotonic", "_next_check", "_paths")

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._paths = [f"{path}{suffix}" for suffix in _SUFFIXES]
        self._identities: list[Identity | None] = [None, None, None]
        self._monotonic = monotonic
        self._next_check = 0.0
        self._failed = False

    def note_file(self) -> None:
        """Record the identity of the file. Call it just before the file is opened."""
        self._identities = [get_identity(self._paths[0]), None, None]

    def expect_same_file(self, origin: OpenFiles) -> None:
        """Expect the file that `origin` has open. Call it before the file is opened once more.

        Raises `BackendReplaced` if a file of `origin` was deleted or replaced.
        """
        origin.check(at_once=True)
        self._identities = [origin._identities[0], None, None]

    def note_log(self) -> None:
        """Record the identities of the log and its index. Call it just after they were opened.

        Raises `BackendReplaced` if the file is not the one of `note_file` or `expect_same_file`.
        """
        self.check_file()
        self._identities[1:] = [get_identity(path) for path in self._paths[1:]]

    def check(self, *, at_once: bool = False) -> None:
        """Raise `BackendReplaced` unless the names still belong to the open files.

        Checks only if `at_once` is true, the last check is 10 ms old, or the last check failed.
        """
        now = self._monotonic()
        if at_once or self._failed or now >= self._next_check:
            self._next_check = now + _IDENTITY_INTERVAL
            for number in range(len(self._paths)):
                self.check_file(number)
            self._failed = False

    def check_file(self, number: int = 0) -> None:
        """Like `check(at_once=True)`, but check only one file. The database file has number 0, its
        log 1 and the index of the log 2.
        """
        known = self._identities[number]
        if known is None:
            return
        path = self._paths[number]
        try:
            found = os.stat(path)  # noqa: PTH116 (three times as fast)
        except (FileNotFoundError, NotADirectoryError):
            self._reject(path, "deleted")
        except OSError:
            return  # for example, no permission on the folder: tells nothing about the file
        else:
            if (found.st_dev, found.st_ino) != known:
                self._reject(path, "replaced by another file")

    def _reject(self, path: str, what: str) -> None:
        self._failed = True
        raise BackendReplaced(
            f"{path} was {what} while this process had it open, so nothing more is stored there. "
            f"End every process that uses {self._paths[0]}, put the right file in its place (a "
            "backup without any -wal and -shm file beside it), and start them again"
        )


def get_identity(path: str) -> Identity | None:
    """Return the identity of a file; None if it does not exist or cannot be read."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Checkpointer:
    """A thread with its own connection that runs checkpoints. It ignores SQLite errors.

    A lasting fault also fails in the writer, which reports it. The connection is opened for the
    first checkpoint, and only while the names still belong to the open files: a connection opened
    after the log was deleted would create a new one.
    """

    def __init__(self, open_connection: Callable[[], sqlite3.Connection], files: OpenFiles) -> None:
        self._open_connection = open_connection
        self._files = files
        self._due = threading.Event()
        self._stopping = False
        self._last_changes = 0
        self._synced_commits = 0
        self._thread = threading.Thread(
            target=self._main, name="nimburion-sqlite-checkpoint", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it; a running checkpoint finishes first."""
        self._stopping = True
        self._due.set()
        self._thread.join()

    def note_commit(self, connection: sqlite3.Connection, *, is_synced: bool) -> None:
        """Count a commit of the writer's connection; start a checkpoint when one is due.

        `is_synced`: the commit waited for the disk.
        """
        changes = connection.total_changes
        if changes - self._last_changes >= _ROWS_PER_CHECKPOINT:
            self._last_changes = changes
            self._due.set()
        if is_synced:
            self._synced_commits += 1
            if self._synced_commits >= _SYNCED_COMMITS_PER_CHECKPOINT:
                self._synced_commits = 0
                run_checkpoint(connection)

    def _main(self) -> None:
        if not self._wait_until_due():
            return
        with suppress(sqlite3.Error, BackendReplaced):
            self._files.check(at_once=True)
            with closing(self._open_connection()) as connection:
                run_checkpoint(connection)
                while self._wait_until_due():
                    run_checkpoint(connection)

    def _wait_until_due(self) -> bool:
        """Wait until a checkpoint is due; return False if the thread is to stop instead."""
        self._due.wait()
        self._due.clear()
        return not self._stopping


def run_checkpoint(connection: sqlite3.Connection) -> None:
    """Copy what can be copied without waiting for readers or writers."""
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def get_free_bytes(folder: Path) -> int:
    """Return the free bytes that the file system reports for this user; if it reports none, enough
    for everything, so that a write reports a full disk.
    """
    try:
        found = os.statvfs(folder)
    except OSError:
        return PLENTY_OF_SPACE
    return found.f_bavail * found.f_frsize


class DiskSpace:
    """Limits the log and the growth of the file by the free space. For the writer's thread."""

    def __init__(
        self,
        path: Path,
        measure: Measure = get_free_bytes,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._folder = path.parent
        self._log = path.with_name(f"{path.name}-wal")
        self._measure = measure
        self._monotonic = monotonic
        self._is_scarce = True
        self._next_check = 0.0
        self._limits = (0, 0)
        """The most pages of the file: for calls of callers, and for calls of workers."""
        self._current_limit = 0

    def prepare(self, connection: sqlite3.Connection) -> bool:
        """Empty the log if it is long for the free space. Call it before each transaction.

        Returns whether the transaction must call `compute_limits`.
        """
        now = self._monotonic()
        if now < self._next_check and not self._is_scarce:
            return False
        self._next_check = now + _SPACE_INTERVAL
        free = self._measure(self._folder)
        self._is_scarce = free < PLENTY_OF_SPACE
        if self._is_scarce:
            log = measure_size(self._log)
            if log > max(_SHORT_LOG, (free + log) // _SHARE):
                empty_log(connection)
        return True

    def compute_limits(self, connection: sqlite3.Connection) -> None:
        """Compute how large the file may become. Call it at the start of a transaction.

        It is computed once for all calls of the transaction, because their writes do not show in
        the free space yet.
        """
        page, pages, free = self._measure_after_checkpoint(connection)
        rewritable = min(MAX_REWRITE, page * pages)
        caller = pages + max(0, free - 2 * rewritable) // (2 * page)
        worker = pages + max(0, free - rewritable) // (2 * page)
        self._limits = (caller, worker if self._is_scarce else caller)

    def set_limit(self, connection: sqlite3.Connection, *, is_worker: bool) -> None:
        """Set the file's size limit for the next call. Calls of workers have a higher limit.

        The difference is reserved: only workers can use it.
        """
        limit = self._limits[is_worker]
        if limit != self._current_limit:
            self._current_limit = limit
            connection.execute(f"PRAGMA max_page_count={limit}").fetchall()

    def recover(self, connection: sqlite3.Connection) -> bool:
        """Empty the log, including the remains of a transaction that did not fit.

        Returns whether the log is shorter now. The next transaction measures the space again.
        """
        length = measure_size(self._log)
        empty_log(connection)
        self._next_check = 0.0
        return measure_size(self._log) < length

    def check(self, connection: sqlite3.Connection, length: int) -> None:
        """Raise `BackendFull` if payloads of `length` bytes may not be enqueued.

        For a caller's connection, whose own size limit is not changed.
        """
        if self._measure(self._folder) >= PLENTY_OF_SPACE:
            return
        page, pages, free = self._measure_after_checkpoint(connection)
        if free < 2 * (min(MAX_REWRITE, page * pages) + length + _AROUND):
            raise BackendFull(
                f"{self._path} must not grow: the space left on the disk is needed to settle the "
                "stored jobs; nothing was written. Free disk space; workers then continue"
            )

    def _measure_after_checkpoint(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        """Return the page size, and the pages of the file and free bytes after a checkpoint."""
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        pending = max(0, page * pages - measure_size(self._path))
        return page, pages, self._measure(self._folder) - pending


def empty_log(connection: sqlite3.Connection) -> None:
    """Copy the log into the file and truncate it, as far as readers and free space allow.

    Errors are ignored.
    """
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def measure_size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it does not exist or cannot be read."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 (three times as fast)
    except OSError:
        return 0
