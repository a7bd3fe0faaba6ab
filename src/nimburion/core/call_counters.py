"""Counters of the calls that this process makes to its backend."""

from __future__ import annotations

from bisect import bisect_left

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

    def observe(self, value: float) -> None:
        """Count one number."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.sum += value


class CallCounters:
    """The calls of one process by operation. Each operation is counted on one thread."""

    def __init__(self) -> None:
        self.answered: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        """Calls that the backend did not answer, or could not execute."""
        self.seconds: dict[str, Observations] = {}
        """The times of answered calls by operation, except exchanges that waited for a job."""
        self.exchange_jobs: Observations = Observations(SIZE_BOUNDS)
        """The numbers of jobs in the replies to exchanges."""

    def note_answer(self, operation: str, seconds: float | None) -> None:
        """Count an answered call. `seconds` is None if the call waited on purpose."""
        self.answered[operation] = self.answered.get(operation, 0) + 1
        if seconds is not None:
            times = self.seconds.get(operation)
            if times is None:
                times = self.seconds[operation] = Observations(CALL_BOUNDS)
            times.observe(seconds)

    def note_failure(self, operation: str) -> None:
        """Count a failed call."""
        self.failed[operation] = self.failed.get(operation, 0) + 1
