"""Notices that the files of a backend were deleted or replaced while they are open.

SQLite goes on with the files that it has open, whatever becomes of their names: what it commits
then lies in a file that nobody finds any more, and other processes do not see it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from nimburion.core.errors import BackendReplaced

_INTERVAL = 0.01
"""Seconds between two looks at all files; one look takes as long as 3 % of an enqueue."""
_SUFFIXES = ("", "-wal", "-shm")

Identity = tuple[int, int]
"""Device and inode: the same for as long as the file is open somewhere."""


class OpenFiles:
    """The file, its log and its index, as they were when a handle opened them.

    For all threads of the handle: at worst, two of them look at once.
    """

    __slots__ = ("_failed", "_known", "_monotonic", "_next", "_paths")

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._paths = [f"{path}{suffix}" for suffix in _SUFFIXES]
        self._known: list[Identity | None] = [None, None, None]
        self._monotonic = monotonic
        self._next = 0.0
        self._failed = False

    def note_file(self) -> None:
        """The file is about to be opened."""
        self._known = [identify(self._paths[0]), None, None]

    def note_log(self) -> None:
        """The file and its log were opened just now. `BackendReplaced` when it is not the file
        that was noted before."""
        self._compare(0)
        self._known[1:] = [identify(path) for path in self._paths[1:]]

    def check(self, *, at_once: bool = False) -> None:
        """Raise `BackendReplaced` unless the names still belong to the open files.

        Looks `at_once`, or when the last look is 10 ms old or found something wrong.
        """
        now = self._monotonic()
        if at_once or self._failed or now >= self._next:
            self._next = now + _INTERVAL
            for number in range(len(self._paths)):
                self._compare(number)
            self._failed = False

    def check_file(self) -> None:
        """As `check`, at once, and of the file alone."""
        self._compare(0)

    def _compare(self, number: int) -> None:
        known = self._known[number]
        if known is None:
            return
        path = self._paths[number]
        try:
            found = os.stat(path)  # noqa: PTH116 (three times as fast)
        except (FileNotFoundError, NotADirectoryError):
            self._refuse(path, "deleted")
        except OSError:
            return  # the folder may not be entered any more, for one: that says nothing of the file
        else:
            if (found.st_dev, found.st_ino) != known:
                self._refuse(path, "replaced by another file")

    def _refuse(self, path: str, what: str) -> None:
        self._failed = True
        raise BackendReplaced(
            f"{path} was {what} while this process had it open, so nothing more is stored there. "
            f"End every process that uses {self._paths[0]}, put the right file in its place (a "
            "backup without any -wal and -shm file beside it), and start them again"
        )


def identify(path: str) -> Identity | None:
    """What tells this file from others; None where there is none to be seen."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino
