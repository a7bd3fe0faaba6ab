"""Metrics counted from events: stale settlements, lost sessions, ticks of schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nimburion.core.events import (
    BackendUnreachable,
    Event,
    Events,
    SessionEnded,
    StaleSettlement,
    TickDecided,
)
from nimburion.core.metrics.counters import OTHER
from nimburion.telemetry.families import NO_LABELS, Family, Labels, Sample

_MAX_SCHEDULES = 1_000


class EventMetrics:
    """Counts events of a processor. Attempts are not among them: they have counters."""

    def __init__(self, events: Events) -> None:
        self._stale = 0
        self._lost_sessions = 0
        self._unreachable = 0
        self._ticks: Counter[tuple[str, str]] = Counter()
        self._lateness: dict[str, float] = {}
        events.subscribe(
            self._count, kinds=(StaleSettlement, SessionEnded, BackendUnreachable, TickDecided)
        )

    def collect(self) -> Iterable[Family]:
        """Return the families of events."""
        return (
            _count(
                "jobs_settlements_stale",
                "Outcomes that came too late, because the worker had lost the job.",
                self._stale,
            ),
            _count(
                "sessions_lost",
                "Sessions of this process that another worker rescued or that expired.",
                self._lost_sessions,
            ),
            _count(
                "backend_unreachable",
                "Exchanges that the backend did not answer.",
                self._unreachable,
            ),
            Family(
                name="schedule_ticks",
                kind="counter",
                help="Ticks of schedules that this process decided.",
                samples=[
                    Sample(Labels({"schedule": schedule, "outcome": outcome}), count)
                    for (schedule, outcome), count in sorted(self._ticks.items())
                ],
            ),
            Family(
                name="schedule_late_seconds",
                kind="gauge",
                help="Seconds from the nominal time of the last tick to its decision.",
                samples=[
                    Sample(Labels({"schedule": schedule}), late)
                    for schedule, late in sorted(self._lateness.items())
                ],
                aggregation="max",
            ),
        )

    def _count(self, event: Event) -> None:
        match event:
            case StaleSettlement():
                self._stale += 1
            case SessionEnded(how="lost"):
                self._lost_sessions += 1
            case BackendUnreachable():
                self._unreachable += 1
            case TickDecided(schedule=schedule, outcome=outcome, late=late):
                if schedule not in self._lateness and len(self._lateness) >= _MAX_SCHEDULES:
                    schedule = OTHER
                self._ticks[schedule, outcome] += 1
                self._lateness[schedule] = late


def _count(name: str, text: str, value: int) -> Family:
    return Family(name=name, kind="counter", help=text, samples=[Sample(NO_LABELS, value)])
