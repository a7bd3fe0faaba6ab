"""Metrics of the calls that this process makes to its backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nimburion.core.call_counters import CALL_BOUNDS, SIZE_BOUNDS, CallCounters, Observations
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
        yield Family(
            name="backend_calls",
            kind="counter",
            help="Calls to the backend, by operation and outcome.",
            samples=[
                Sample(Labels({"op": operation, "outcome": outcome}), count)
                for outcome, counts in (
                    ("answered", _add_up([source.answered for source in sources])),
                    ("failed", _add_up([source.failed for source in sources])),
                )
                for operation, count in counts.items()
            ],
        )
        operations = sorted({operation for source in sources for operation in source.seconds})
        yield Family(
            name="backend_call_seconds",
            kind="histogram",
            help="Seconds that answered calls took. Exchanges that waited for a job are left out.",
            bounds=CALL_BOUNDS,
            histograms=[
                _merge({"op": operation}, [s.seconds.get(operation) for s in sources], CALL_BOUNDS)
                for operation in operations
            ],
        )
        yield Family(
            name="exchange_jobs",
            kind="histogram",
            help="Jobs in the replies to exchanges.",
            bounds=SIZE_BOUNDS,
            histograms=[_merge({}, [source.exchange_jobs for source in sources], SIZE_BOUNDS)],
        )


def _add_up(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    operations = sorted({operation for each in counts for operation in list(each)})
    return {name: sum(each.get(name, 0) for each in counts) for name in operations}


def _merge(
    labels: dict[str, str], parts: Sequence[Observations | None], bounds: tuple[float, ...]
) -> HistogramSample:
    found = [part for part in parts if part is not None]
    buckets = [sum(part.buckets[n] for part in found) for n in range(len(bounds) + 1)]
    return HistogramSample(
        Labels(labels) if labels else NO_LABELS, buckets, sum(part.sum for part in found)
    )
