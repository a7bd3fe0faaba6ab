"""How large the next exchange may be: less after one that failed, more while they are quick."""

from __future__ import annotations

import math

MOST_AT_ONCE = 500
"""Settlements in one exchange: what a backend does in a few milliseconds."""

_AT_ONCE = 0.05
"""Seconds: a failure that comes sooner (nobody listens) says nothing about the size."""
_SHRINK = 4.0
_GROW = 2.0
_GROW_SLOWLY = 1.1
_QUICK = 0.25
"""An answer is quick in so much of the time after which an exchange failed last."""
_SMALLEST = 1 / 4096


class ExchangeSize:
    """A share of what an exchange may hold at most. Belongs to a worker, as its connection does; a
    new session begins with the size that the last one ended with."""

    __slots__ = ("_failed_after", "_max_bytes", "_share")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._share = 1.0
        self._failed_after = math.inf

    @property
    def is_whole(self) -> bool:
        """Whether nothing failed lately."""
        return self._share >= 1.0

    @property
    def max_bytes(self) -> int:
        """Bytes in one direction."""
        return int(self._max_bytes * self._share)

    @property
    def max_settlements(self) -> int:
        """At least one."""
        return max(1, int(MOST_AT_ONCE * self._share))

    def note_failure(self, seconds: float) -> None:
        """An exchange was not answered, or the backend ended it, after so long."""
        if seconds >= _AT_ONCE:
            self._share = max(_SMALLEST, self._share / _SHRINK)
            self._failed_after = seconds

    def note_answer(self, seconds: float) -> None:
        """An exchange was answered after so long."""
        if self._share < 1.0:
            is_quick = seconds < _QUICK * self._failed_after
            self._share = min(1.0, self._share * (_GROW if is_quick else _GROW_SLOWLY))
