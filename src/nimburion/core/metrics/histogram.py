"""Histograms of durations whose quantiles are within 5 % of the exact values.

The buckets are logarithmic: 24 for each power of ten. Only those that hold durations are stored.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import ceil, sqrt

import msgspec

BUCKETS_PER_DECADE = 24
"""Bucket n holds the durations up to 10 ** (n / 24) seconds that no lower bucket holds."""
_LOWEST = -6 * BUCKETS_PER_DECADE
_HIGHEST = 9 * BUCKETS_PER_DECADE
"""The lowest bucket holds all durations up to 1 µs, the highest those above 30 years too."""
_BOUNDS = tuple(10.0 ** (n / BUCKETS_PER_DECADE) for n in range(_LOWEST, _HIGHEST))


class Histogram(msgspec.Struct, omit_defaults=True, gc=False):
    """Durations in buckets, their sum and the longest one. Adding histograms loses nothing."""

    sum: float = 0.0
    max: float = 0.0
    buckets: dict[int, int] = msgspec.field(default_factory=dict)
    """The number of durations in each bucket that has some."""

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.buckets.values())

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.observe_sorted((seconds,))

    def observe_sorted(self, times: Sequence[float]) -> None:
        """Count durations in ascending order, negative ones as 0.

        The cost depends on the number of buckets, not on the number of durations, except for
        their sum.
        """
        start = 0
        while start < len(times):
            bucket = bisect_left(_BOUNDS, times[start])
            end = len(times)
            if bucket < len(_BOUNDS):
                end = bisect_right(times, _BOUNDS[bucket], start)
            index = bucket + _LOWEST
            self.buckets[index] = self.buckets.get(index, 0) + end - start
            start = end
        if times:
            self.sum += sum(times[bisect_right(times, 0.0) :])
            self.max = max(self.max, times[-1])

    def add(self, other: Histogram) -> None:
        """Add the durations of another histogram."""
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count
        self.sum += other.sum
        self.max = max(self.max, other.max)

    def estimate_quantile(self, quantile: float) -> float | None:
        """Return an estimate of a quantile in seconds, None without durations.

        The estimate is at most 5 % from the duration of that rank, and never above the longest one.

        >>> histogram = Histogram()
        >>> histogram.observe_sorted([0.002, 0.002, 0.002, 5.0])
        >>> round(histogram.estimate_quantile(0.5), 3), histogram.estimate_quantile(0.95)
        (0.002, 5.0)
        """
        count = self.count
        if not count:
            return None
        rank = ceil(quantile * count - 1e-9)
        if rank >= count:
            return self.max
        below = 0
        for index in sorted(self.buckets):
            below += self.buckets[index]
            if below >= rank:
                return min(_find_middle(index), self.max)
        return self.max


def _find_middle(index: int) -> float:
    """Return the duration in a bucket that has the same ratio to both of its bounds."""
    place = index - _LOWEST
    if place <= 0:
        return 0.0
    return sqrt(_BOUNDS[place - 1] * _BOUNDS[min(place, len(_BOUNDS) - 1)])
