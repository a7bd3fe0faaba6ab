"""Metrics of the calls that this process makes to its backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nimburion.core.metrics.counters import (
    CALL_BOUNDS,
    SIZE_BOUNDS,
    CallCounters,
    Observations,
    OperationCalls,
)
from nimburion.telemetry.families import NO_LABELS, Family, HistogramSample, Labels, Sample


class CallMetrics:
    """The metrics of calls.

    Args:
        list_counters: returns the counters of every client and worker of the process.
    """

    def __init__(self, list_counters: Callable[[], Sequence[CallCounters]]) -> None:
        self._list_counters = list_counters

    def collect(self) -> Iterable[Family]:
        """Return the families of calls."""
        sources = self._list_counters()
        calls: dict[str, list[OperationCalls]] = {}
        for source in sources:
            for operation, found in list(source.operations.items()):
                calls.setdefault(operation, []).append(found)
        seconds = {
            name: [each.count_pending() for each in found] for name, found in sorted(calls.items())
        }
        yield Family(
            name="backend_calls",
            kind="counter",
            help="Calls to the backend, by operation and outcome.",
            samples=[
                Sample(Labels({"op": operation, "outcome": outcome}), count)
                for operation in seconds
                for outcome, count in (
                    ("answered", sum(each.answered for each in calls[operation])),
                    ("failed", sum(each.failed for each in calls[operation])),
                )
            ],
        )
        yield Family(
            name="backend_call_seconds",
            kind="histogram",
            help="Seconds that answered calls took. Exchanges that waited for a job are left out.",
            bounds=CALL_BOUNDS,
            histograms=[
                _merge(Labels({"op": operation}), parts, CALL_BOUNDS)
                for operation, parts in seconds.items()
            ],
        )
        yield Family(
            name="exchange_jobs",
            kind="histogram",
            help="Jobs in the replies to exchanges.",
            bounds=SIZE_BOUNDS,
            histograms=[
                _merge(NO_LABELS, [source.exchange_jobs for source in sources], SIZE_BOUNDS)
            ],
        )


def _merge(
    labels: Labels, parts: Sequence[Observations], bounds: tuple[float, ...]
) -> HistogramSample:
    buckets = [sum(part.buckets[n] for part in parts) for n in range(len(bounds) + 1)]
    return HistogramSample(labels, buckets, sum(part.sum for part in parts))
