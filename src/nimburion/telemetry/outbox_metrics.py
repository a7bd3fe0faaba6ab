"""Metrics of an outbox, from the counters of its relay in this process."""

from __future__ import annotations

from collections.abc import Iterable

from nimburion.core.metrics.outbox_counters import OutboxCounters
from nimburion.telemetry.families import NO_LABELS, Family, Sample


class OutboxMetrics:
    """The metrics of the outbox of a processor."""

    def __init__(self, counters: OutboxCounters) -> None:
        self._counters = counters

    def collect(self) -> Iterable[Family]:
        """Return the families of the outbox; the lag only if the relay runs here."""
        counters = self._counters
        if counters.jobs is None:
            return
        yield Family(
            name="outbox_jobs",
            kind="gauge",
            help="Jobs that waited in the outbox at the latest poll; at most 10,000.",
            samples=[Sample(NO_LABELS, counters.jobs)],
            aggregation="max",
        )
        yield Family(
            name="outbox_oldest_seconds",
            kind="gauge",
            help="Seconds that the oldest job in the outbox had waited at the latest poll.",
            samples=[Sample(NO_LABELS, counters.oldest_seconds)],
            aggregation="max",
        )
        yield Family(
            name="outbox_relayed",
            kind="counter",
            help="Jobs that this process sent from the outbox to the backend.",
            samples=[Sample(NO_LABELS, counters.relayed)],
        )
        yield Family(
            name="outbox_dropped",
            kind="counter",
            help="Jobs of the outbox that were dropped: the backend refused their id or key.",
            samples=[Sample(NO_LABELS, counters.dropped)],
        )
