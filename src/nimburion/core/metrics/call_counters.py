"""Counters of the calls that this process makes to its backend."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

CALL_BOUNDS: tuple[float, ...] = (
    0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0,
)  # fmt: skip
"""Inclusive upper bounds of the buckets of call times, in seconds; one more bucket has the rest."""

SIZE_BOUNDS: tuple[float, ...] = (0, 1, 3, 10, 30, 100, 300, 1000)
"""Inclusive upper bounds of the buckets of jobs in one exchange; one more bucket has the rest."""


class Observations:
    """Numbers in buckets, and their sum."""

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds: tuple[float, ...] = bounds
        self.buckets: list[int] = [0] * (len(bounds) + 1)
        self.sum: float = 0.0

    def observe(self, values: Sequence[float]) -> None:
        """Count these numbers."""
        bounds, buckets = self.bounds, self.buckets
        for value in values:
            buckets[bisect_left(bounds, value)] += 1
        self.sum += sum(values)


class OperationCalls:
    """The calls of one operation. Any thread may note a call."""

    __slots__ = ("_lock", "_seconds", "answered", "failed", "times")

    def __init__(self) -> None:
        self.answered: int = 0
        self.failed: int = 0
        """Calls that the backend did not answer, or could not execute."""
        self.times: list[float] = []
        """The seconds of answered calls that are not counted yet: append to it."""
        self._seconds = Observations(CALL_BOUNDS)
        self._lock = threading.Lock()

    def note_answer(self, seconds: float | None) -> None:
        """Count an answered call. `seconds` is None if the call waited on purpose."""
        if seconds is None:
            self.answered += 1
            return
        self.times.append(seconds)
        if len(self.times) >= _MAX_PENDING:
            self.count_pending()

    def count_pending(self) -> Observations:
        """Count the times, and return those of all calls. Safe from any thread.

        While another thread counts, it returns what is counted so far.
        """
        if self._lock.acquire(blocking=False):
            try:
                count = len(self.times)
                taken = self.times[:count]
                del self.times[:count]
                self.answered += count
                self._seconds.observe(taken)
            finally:
                self._lock.release()
        return self._seconds


_MAX_PENDING = 1_000
"""Times are counted when there are 1,000, or when they are read."""


class CallCounters:
    """The calls of one process by operation."""

    def __init__(self) -> None:
        self.operations: dict[str, OperationCalls] = {}
        self.exchange_jobs: Observations = Observations(SIZE_BOUNDS)
        """The numbers of jobs in the replies to exchanges."""

    def get_operation(self, operation: str) -> OperationCalls:
        """Return the calls of an operation, new ones if there are none.

        Keep them: they stay the same object.
        """
        found = self.operations.get(operation)
        if found is None:
            found = self.operations.setdefault(operation, OperationCalls())
        return found
