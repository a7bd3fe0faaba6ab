"""The vitals of a worker, which its heartbeats report."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

from nimburion.core.session import Vitals
from nimburion.core.version import __version__


class VitalsReader:
    """Reads the vitals of one worker. Safe from any thread.

    Args:
        slots: the number of jobs that the worker may run at the same time.
        count_busy: returns how many it runs now.
        code_version: the version of the application.
    """

    def __init__(self, slots: int, count_busy: Callable[[], int], code_version: str) -> None:
        self._slots = slots
        self._count_busy = count_busy
        self._code_version = code_version
        self._worst_lag = 0.0
        self._lease_margin: float | None = None

    def note_loop_lag(self, seconds: float) -> None:
        """Note how late the event loop ran a callback."""
        self._worst_lag = max(self._worst_lag, seconds)

    def note_lease_margin(self, seconds: float) -> None:
        """Note how long the leases were still valid when a heartbeat renewed them."""
        self._lease_margin = seconds

    def read(self) -> Vitals:
        """Return the vitals now."""
        return Vitals(
            slots=self._slots,
            busy=self._count_busy(),
            loop_lag=round(self._worst_lag, 4),
            rss=read_rss(),
            lease_margin=None if self._lease_margin is None else round(self._lease_margin, 3),
            version=__version__,
            python=platform.python_version(),
            code_version=self._code_version,
        )

    def forget_lag(self, reported: Vitals) -> None:
        """Restart the measurement of the loop lag, unless the lag grew since it was reported."""
        if round(self._worst_lag, 4) <= reported.loop_lag:
            self._worst_lag = 0.0


def read_rss() -> int:
    """Return the resident memory of this process in bytes; 0 where /proc does not tell it."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
