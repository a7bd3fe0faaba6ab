"""Keeps room on the disk for a checkpoint.

SQLite appends what is committed to the log; a checkpoint copies it into the file, which grows by
it. Where file and log fill the disk together, no checkpoint fits: the log never gets shorter, and
nothing can be written any more, not even what would make room. Two bounds prevent that. While
little is free, the log is emptied as soon as it is long for the room that is left. And a
transaction may make the file larger only by what fits twice, in the log and in the file, beside
what the transactions of workers write, so that jobs can be settled and deleted on a full disk.

What the others on the disk take is not foreseen: then it goes on when there is room again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nimburion.core.errors import BackendFull

PLENTY = 256 << 20
"""Bytes: four times the longest log. While so much is free, a look each 50 ms is enough."""
KEPT = 8 << 20
"""Bytes of existing pages that one transaction of a worker may write anew, at most."""
_INTERVAL = 0.05
_SHORT_LOG = 128 << 10
_AROUND = 16 << 10
"""Bytes that some jobs take beside their payloads."""
_SHARE = 4
"""The log may have this part of the room that it and the free space are together."""

Measure = Callable[[Path], int]
"""The bytes that are free for this user, on the disk of a folder."""


def free_bytes(folder: Path) -> int:
    """What the file system says is free."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class Space:
    """Bounds the log and the growth of the file by what is free. For the writer's thread."""

    def __init__(
        self,
        path: Path,
        measure: Measure = free_bytes,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._measure = measure
        self._monotonic = monotonic
        self._scarce = True
        self._next = 0.0
        self._looks = True
        self._allowed = (0, 0)
        """Pages of the file, for what callers ask for and for workers."""
        self._current = 0

    def before(self, connection: sqlite3.Connection) -> None:
        """A transaction is about to begin: shorten the log where it is long for the room."""
        now = self._monotonic()
        self._looks = self._scarce or now >= self._next
        if not self._looks:
            return
        self._next = now + _INTERVAL
        free = self._free()
        self._scarce = free < PLENTY
        if self._scarce:
            log = size_of(self._log)
            if log > max(_SHORT_LOG, (free + log) // _SHARE):
                empty_log(connection)

    def begin(self, connection: sqlite3.Connection) -> None:
        """A transaction has begun: see how large it may make the file. Once for all its calls, as
        what the first of them writes is not seen on the disk yet."""
        if not self._looks:
            return
        page, pages, spare = self._spare(connection)
        kept = min(KEPT, page * pages)
        asked, worker = (pages + max(0, spare - part) // (2 * page) for part in (2 * kept, kept))
        self._allowed = (asked, worker if self._scarce else asked)

    def limit(self, connection: sqlite3.Connection, *, is_worker: bool) -> None:
        """Let the call that begins make the file no larger than that. For a worker's, some room is
        left over from all others."""
        wanted = self._allowed[is_worker]
        if wanted != self._current:
            self._current = wanted
            connection.execute(f"PRAGMA max_page_count={wanted}").fetchall()

    def recover(self, connection: sqlite3.Connection) -> bool:
        """A transaction did not fit: empty the log, and what it has left there, and look again at
        once. Whether there is more room now."""
        length = size_of(self._log)
        empty_log(connection)
        self._next = 0.0
        return size_of(self._log) < length

    def check(self, connection: sqlite3.Connection, length: int) -> None:
        """Raise `BackendFull` where payloads of this length may not be enqueued. For a caller's
        connection, which keeps its own settings."""
        if self._free() >= PLENTY:
            return
        page, pages, spare = self._spare(connection)
        if spare < 2 * (min(KEPT, page * pages) + length + _AROUND):
            raise BackendFull(
                f"{self._path} must not grow: the room left on the disk is needed to settle the "
                "jobs that are stored; nothing was written. Make room, and it goes on by itself"
            )

    def _spare(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        """The size of a page, the pages of the file after a checkpoint, and the bytes that are free
        then."""
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        pending = max(0, page * pages - size_of(self._path))
        return page, pages, self._free() - pending

    def _free(self) -> int:
        try:
            return self._measure(self._path.parent)
        except OSError:
            return PLENTY  # it cannot be told: then a full disk is noticed when it is full


def empty_log(connection: sqlite3.Connection) -> None:
    """Copy the log into the file and give its room back, as far as readers and room allow."""
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def size_of(path: Path) -> int:
    """The length of a file; 0 where there is none."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 (three times as fast)
    except OSError:
        return 0
