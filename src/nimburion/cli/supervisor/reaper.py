"""Collects the exit codes of child processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

_log = logging.getLogger("nimburion.supervisor")


class Reaper:
    """Collects the exit codes of all child processes of this process.

    As process 1 of a container, a supervisor also becomes the parent of processes whose own parent
    has ended. Each stays a zombie until its exit code is collected.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[int, Callable[[int], None]] = {}

    def start(self) -> None:
        """Collect exit codes from now on. Main thread only."""
        self._loop.add_signal_handler(signal.SIGCHLD, self.collect)

    def watch(self, process: int, on_exit: Callable[[int], None]) -> None:
        """Call `on_exit` with the exit code of a child, or with minus the signal that killed it.

        Call it in the same step of the event loop that starts the process.
        """
        self._watched[process] = on_exit

    def collect(self) -> None:
        """Collect the exit codes of all children that have ended."""
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # there is no child
                return
            if process == 0:
                return
            on_exit = self._watched.pop(process, None)
            if on_exit is None:
                _log.debug("process %d, which lost its parent, has ended", process)
            else:
                on_exit(os.waitstatus_to_exitcode(status))
