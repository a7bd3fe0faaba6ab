"""Metrics of this process's jobs, read from its counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nimburion.core.metrics.counters import JobCounters, LaneCounters
from nimburion.core.metrics.statistics import RUN_BOUNDS, WAIT_BOUNDS
from nimburion.telemetry.families import (
    NO_LABELS,
    Exemplar,
    Family,
    HistogramSample,
    Labels,
    Sample,
)

_OUTCOMES: tuple[tuple[str, Callable[[LaneCounters], int]], ...] = (
    ("completed", lambda lane: lane.completed),
    ("retried", lambda lane: lane.retried),
    ("failed", lambda lane: lane.failed),
    ("released", lambda lane: lane.released),
    ("cancelled", lambda lane: lane.cancelled),
    ("lost", lambda lane: lane.lost),
)
_ZERO_OUTCOMES = frozenset({"completed", "retried", "failed"})
"""A lane that has started a job has these series from then on. Prometheus does not count what a
series has when it appears, so the first failures would be missing.
"""
_ZERO_REASONS = {"exhausted": 0, "permanent": 0}


class JobMetrics:
    """The metrics of the jobs that this process enqueued and ran.

    Args:
        list_counters: returns the counters of every client and worker of the process.
    """

    def __init__(self, list_counters: Callable[[], Sequence[JobCounters]]) -> None:
        self._list_counters = list_counters
        self._labels: dict[tuple[str, ...], Labels] = {}

    def collect(self) -> Iterable[Family]:
        """Return the families of jobs."""
        sources = self._list_counters()
        lanes = _merge_lanes(sources)
        return (
            self._count("jobs_enqueued", "Jobs stored.", lanes, lambda lane: lane.enqueued),
            self._count_outcomes(lanes),
            self._count_reasons(lanes),
            self._count(
                "jobs_retried",
                "Attempts that failed and will run again.",
                lanes,
                lambda lane: lane.retried,
            ),
            self._count_rescued(lanes),
            Family(
                name="metric_labels_folded",
                kind="counter",
                help="Pairs of queue and name that were counted as `other`, because there were "
                "too many.",
                samples=[Sample(NO_LABELS, sum(source.overflowed for source in sources))],
            ),
            self._observe_waits(lanes),
            self._observe_durations(lanes),
        )

    def _count(
        self, name: str, text: str, lanes: list[LaneCounters], read: Callable[[LaneCounters], int]
    ) -> Family:
        samples = [
            Sample(self._label(queue=lane.queue, name=lane.name), value)
            for lane in lanes
            if (value := read(lane))
        ]
        return Family(name=name, kind="counter", help=text, samples=samples)

    def _count_outcomes(self, lanes: list[LaneCounters]) -> Family:
        samples = [
            Sample(self._label(queue=lane.queue, name=lane.name, outcome=outcome), value)
            for lane in lanes
            for outcome, read in _OUTCOMES
            if (value := read(lane)) or (lane.started and outcome in _ZERO_OUTCOMES)
        ]
        return Family(
            name="jobs_processed",
            kind="counter",
            help="Attempts that ended, by their outcome.",
            samples=samples,
        )

    def _count_reasons(self, lanes: list[LaneCounters]) -> Family:
        samples = [
            Sample(self._label(queue=lane.queue, name=lane.name, reason=reason), count)
            for lane in lanes
            for reason, count in sorted(
                {**(_ZERO_REASONS if lane.started else {}), **lane.failed_by_reason}.items()
            )
        ]
        return Family(
            name="jobs_failed",
            kind="counter",
            help="Jobs that became dead letters, by the reason.",
            samples=samples,
        )

    def _count_rescued(self, lanes: list[LaneCounters]) -> Family:
        by_queue: dict[str, int] = {}
        for lane in lanes:
            by_queue[lane.queue] = by_queue.get(lane.queue, 0) + lane.rescued
        samples = [
            Sample(self._label(queue=queue), count) for queue, count in by_queue.items() if count
        ]
        return Family(
            name="jobs_rescued",
            kind="counter",
            help="Jobs that this process took back from lost workers.",
            samples=samples,
        )

    def _observe_waits(self, lanes: list[LaneCounters]) -> Family:
        by_queue: dict[str, tuple[list[int], float]] = {}
        for lane in lanes:
            if lane.started:
                _add_buckets(by_queue, lane.queue, lane.wait_buckets, lane.wait_seconds)
        return Family(
            name="jobs_wait_seconds",
            kind="histogram",
            help="Seconds from the due time of a job to the start of its handler.",
            bounds=WAIT_BOUNDS,
            histograms=[
                HistogramSample(self._label(queue=queue), buckets, seconds)
                for queue, (buckets, seconds) in by_queue.items()
            ],
        )

    def _observe_durations(self, lanes: list[LaneCounters]) -> Family:
        by_name: dict[str, tuple[list[int], float]] = {}
        exemplars: dict[str, dict[int, Exemplar]] = {}
        for lane in lanes:
            for index, (labels, value, at) in lane.run_exemplars.items():
                exemplars.setdefault(lane.name, {})[index] = Exemplar(Labels(labels), value, at)
            if lane.started:
                _add_buckets(by_name, lane.name, lane.run_buckets, lane.run_seconds)
        return Family(
            name="jobs_duration_seconds",
            kind="histogram",
            help="Seconds that attempts ran.",
            bounds=RUN_BOUNDS,
            histograms=[
                HistogramSample(self._label(name=name), buckets, seconds, exemplars.get(name, {}))
                for name, (buckets, seconds) in by_name.items()
            ],
        )

    def _label(self, **values: str) -> Labels:
        key = (*values, *values.values())
        labels = self._labels.get(key)
        if labels is None:
            labels = self._labels[key] = Labels(values)
        return labels


def _add_buckets(
    sums: dict[str, tuple[list[int], float]], key: str, buckets: list[int], seconds: float
) -> None:
    if key not in sums:
        sums[key] = (list(buckets), seconds)
        return
    known, total = sums[key]
    sums[key] = ([a + b for a, b in zip(known, buckets, strict=True)], total + seconds)


def _merge_lanes(sources: Sequence[JobCounters]) -> list[LaneCounters]:
    """Return one entry for each queue and name, ordered; the counters of all sources added up."""
    merged: dict[tuple[str, str], LaneCounters] = {}
    sums: set[tuple[str, str]] = set()
    for source in sources:
        for lane in source.list_lanes():
            key = (lane.queue, lane.name)
            known = merged.setdefault(key, lane)
            if known is lane:
                continue
            if key not in sums:
                sums.add(key)
                merged[key] = LaneCounters(lane.queue, lane.name)
                merged[key].add(known)
            merged[key].add(lane)
    return [merged[key] for key in sorted(merged)]
