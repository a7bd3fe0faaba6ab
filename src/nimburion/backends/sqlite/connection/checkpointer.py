"""Copies the write-ahead log into the file beside the writer, which would else stop for it.

A checkpoint waits for the disk twice; the writer's own took a third of a long drain (measured). The
log only begins anew when a checkpoint has caught up, so under a steady load it grows until the
writer's own bound (`opening.CHECKPOINT_PAGES`); most of it is copied by then, and the rest is
short.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress

_ROWS_PER_CHECKPOINT = 32_000
"""Rows written between two checkpoints: some 4 MiB of log."""


class Checkpointer:
    """A thread with a connection of its own. What fails here is the writer's to report."""

    def __init__(self, open_connection: Callable[[], sqlite3.Connection]) -> None:
        self._open_connection = open_connection
        self._due = threading.Event()
        self._stopping = False
        self._last_changes = 0
        self._thread = threading.Thread(
            target=self._main, name="nimburion-sqlite-checkpoint", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a checkpoint that runs is finished first."""
        self._stopping = True
        self._due.set()
        self._thread.join()

    def note_changes(self, changes: int) -> None:
        """So many rows the writer's connection has written since it was opened."""
        if changes - self._last_changes >= _ROWS_PER_CHECKPOINT:
            self._last_changes = changes
            self._due.set()

    def _main(self) -> None:
        with suppress(sqlite3.Error), closing(self._open_connection()) as connection:
            while True:
                self._due.wait()
                self._due.clear()
                if self._stopping:
                    return
                with suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
