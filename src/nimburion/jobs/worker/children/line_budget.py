"""A limit for the log lines of one child process."""

from __future__ import annotations

from collections.abc import Callable

LINES_PER_SECOND = 1_000.0
BURST = 2_000.0
"""Lines that may come at once after a quiet time."""


class LineBudget:
    """Allows `LINES_PER_SECOND` lines, and a burst of `BURST`. Counts those that it refuses."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._left = BURST
        self._updated = monotonic()
        self.dropped: int = 0
        """The lines refused since `take_dropped`."""

    def has_room(self) -> bool:
        """Return whether a line would be allowed now."""
        now = self._monotonic()
        self._left = min(BURST, self._left + (now - self._updated) * LINES_PER_SECOND)
        self._updated = now
        return self._left >= 1.0

    def allow(self) -> bool:
        """Count one more line. Return whether it may be logged."""
        if self.has_room():
            self._left -= 1.0
            return True
        self.dropped += 1
        return False

    def take_dropped(self) -> int:
        """Return the number of refused lines, and count from zero again."""
        dropped, self.dropped = self.dropped, 0
        return dropped
