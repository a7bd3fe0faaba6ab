"""Run checkpoints on a separate thread, so that the writer rarely stops to run one.

A checkpoint copies the write-ahead log into the file and waits for the disk twice. Checkpoints of
the writer took a third of the time of a long drain (measured). SQLite restarts the log only when a
checkpoint has copied all of it. So under a steady load the log grows up to the writer's limit
(`opening.CHECKPOINT_PAGES`). Most of it is copied by then, so the writer's checkpoint is short.

A commit that waits for the disk takes longer while the log grows, because the file system then also
stores the new size of the log. So the writer runs a short checkpoint after some of these commits:
nothing else writes meanwhile, so the log restarts and its pages are written again.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress

from nimburion.backends.sqlite.connection.identity import OpenFiles
from nimburion.core.errors import BackendReplaced

_ROWS_PER_CHECKPOINT = 32_000
"""Rows written between two checkpoints: about 4 MiB of log."""
_SYNCED_COMMITS_PER_CHECKPOINT = 256
"""Commits that waited for the disk between two checkpoints of the writer: for single enqueues about
3 MiB of log.
"""


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
