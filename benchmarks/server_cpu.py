"""The CPU time of a server, exact enough for a few jobs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


class ServerCpu:
    """The CPU time of a server and its children, in nanoseconds, by process."""

    def __init__(self, server: int | None) -> None:
        self._server = server
        self._before = self._read()

    def take(self) -> float:
        """Return the milliseconds since the last call. Processes that have ended do not count."""
        before, self._before = self._before, self._read()
        return sum(spent - before.get(pid, 0) for pid, spent in self._before.items()) / 1e6

    def _read(self) -> dict[str, int]:
        found: dict[str, int] = {}
        waiting = [] if self._server is None else [str(self._server)]
        while waiting:
            pid = waiting.pop()
            for task in Path(f"/proc/{pid}/task").glob("*"):
                with suppress(OSError):
                    found[task.name] = int((task / "schedstat").read_text().split()[0])
                    waiting += (task / "children").read_text().split()
        return found
