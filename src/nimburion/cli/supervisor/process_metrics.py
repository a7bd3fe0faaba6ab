"""The metrics of the worker processes of one supervisor, added up."""

from __future__ import annotations

from collections.abc import Iterable

from nimburion.telemetry.aggregation import combine_families, select_counts
from nimburion.telemetry.families import NO_LABELS, Family, Sample


class ProcessMetrics:
    """Adds up the metrics of running workers and the counts of those that have ended.

    So no counter decreases when a worker is replaced. Of a worker that is killed, the counts of its
    last report remain.
    """

    def __init__(self) -> None:
        self._ended: list[Family] = []
        self._end_count = 0

    def note_end(self, families: Iterable[Family]) -> None:
        """Keep the counts of a worker that has ended."""
        self._end_count += 1
        self._ended = combine_families([self._ended, select_counts(families)])

    def combine(self, running: Iterable[Iterable[Family]], count: int) -> list[Family]:
        """Return the metrics of all workers, and those of the supervisor: `count` workers run."""
        own = (
            Family(
                name="worker_processes",
                kind="gauge",
                help="Worker processes of the supervisor that run.",
                samples=[Sample(NO_LABELS, count)],
            ),
            Family(
                name="worker_processes_ended",
                kind="counter",
                help="Worker processes of the supervisor that have ended.",
                samples=[Sample(NO_LABELS, self._end_count)],
            ),
        )
        return combine_families([own, self._ended, *running])
