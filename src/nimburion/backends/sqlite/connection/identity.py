"""Detect that the files of a backend were deleted or replaced while they are open.

SQLite continues to use its open files even if their names are gone. It then commits to a file that
no longer has a name, and other processes do not see the data.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from nimburion.core.errors import BackendReplaced

_INTERVAL = 0.01
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
            self._next_check = now + _INTERVAL
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
