"""Computes the size limit of exchanges: smaller after failures, larger after quick answers."""

from __future__ import annotations

import math

MAX_SETTLEMENTS = 500
"""The most settlements in one exchange. A backend processes this many in a few milliseconds."""

_SIZE_INDEPENDENT_SECONDS = 0.05
"""Seconds. A failure before this time (a refused connection) does not depend on the size."""
_SHRINK_FACTOR = 4.0
"""The size is divided by this after a failure that may depend on it."""
_QUICK_GROWTH_FACTOR = 2.0
"""The size is multiplied by this after a quick answer."""
_SLOW_GROWTH_FACTOR = 1.1
"""The size is multiplied by this after any other answer."""
_QUICK_FRACTION = 0.25
"""An answer is quick if it takes less than this fraction of the time of the last failure."""
_MIN_SHARE = 1 / 4096
"""The least share of the maximum size: 4 KiB of 16 MiB."""


class ExchangeSize:
    """The size limit of exchanges, as a share of the maximum.

    It belongs to a worker, as its connection does. A new session starts with the last size of the
    session before.
    """

    __slots__ = ("_failed_after", "_largest", "_share", "is_whole", "max_bytes", "max_settlements")

    def __init__(self, max_bytes: int) -> None:
        self._largest = max_bytes
        self._share = 1.0
        self._failed_after = math.inf
        self.is_whole: bool = True
        """Whether the size is at its maximum: no recent failure reduces it."""
        self.max_bytes: int = max_bytes
        """The most bytes of an exchange in one direction."""
        self.max_settlements: int = MAX_SETTLEMENTS
        """The most settlements of an exchange; at least 1."""

    def note_failure(self, seconds: float) -> None:
        """Reduce the size after an exchange that failed after `seconds`."""
        if seconds >= _SIZE_INDEPENDENT_SECONDS:
            self._set_share(max(_MIN_SHARE, self._share / _SHRINK_FACTOR))
            self._failed_after = seconds

    def note_answer(self, seconds: float) -> None:
        """Increase the size after an exchange that was answered after `seconds`."""
        if not self.is_whole:
            is_quick = seconds < _QUICK_FRACTION * self._failed_after
            factor = _QUICK_GROWTH_FACTOR if is_quick else _SLOW_GROWTH_FACTOR
            self._set_share(min(1.0, self._share * factor))

    def _set_share(self, share: float) -> None:
        self._share = share
        self.is_whole = share >= 1.0
        self.max_bytes = int(self._largest * share)
        self.max_settlements = max(1, int(MAX_SETTLEMENTS * share))
