"""The resident memory of processes, and the limit of a child process for the job that it runs."""

from __future__ import annotations

import os
import threading

EXIT_OVER_MEMORY_LIMIT = 76
"""The exit code of a child that used more memory than its job may."""
CHECK_INTERVAL = 0.1
"""Seconds between two checks. A job that allocates 1 GB/s can exceed its limit by 100 MB."""

_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


def read_memory(process: int | str = "self") -> int | None:
    """Return the resident memory of a process in bytes; None if it cannot be read (not Linux)."""
    try:
        with open(f"/proc/{process}/statm", "rb", buffering=0) as opened:  # noqa: PTH123 (hot)
            return int(opened.read().split()[1]) * _PAGE_SIZE
    except (OSError, IndexError, ValueError):
        return None


class MemoryWatch:
    """Ends this process when it uses more memory than the limit of the running job.

    The parent checks too, because C code can keep this thread from running.
    """

    def __init__(self) -> None:
        self._limit: int | None = None
        self._lock = threading.Lock()
        self._has_limit = threading.Event()
        self._thread: threading.Thread | None = None

    def start_job(self, limit: int) -> None:
        """Watch for this limit, in bytes, until `end_job`."""
        self._limit = limit
        self._has_limit.set()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._watch, name="nimburion-memory", daemon=True
            )
            self._thread.start()

    def end_job(self) -> None:
        """Stop watching. When it returns, the process does not end because of this job."""
        with self._lock:
            self._limit = None
            self._has_limit.clear()

    def _watch(self) -> None:
        never = threading.Event()
        while self._has_limit.wait():
            with self._lock:
                used = read_memory()
                if self._limit is not None and used is not None and used > self._limit:
                    os._exit(EXIT_OVER_MEMORY_LIMIT)
            never.wait(CHECK_INTERVAL)
