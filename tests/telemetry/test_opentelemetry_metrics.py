"""The families of metrics as OpenTelemetry instruments, under the names of the specification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    MetricsData,
)

from nimburion.core.events import AttemptEnded, AttemptStarted, Events
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.metrics.counters import JobCounters
from nimburion.core.metrics.outbox_counters import OutboxCounters
from nimburion.core.metrics.statistics import RUN_BOUNDS
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import Session, Vitals
from nimburion.jobs import Processor
from nimburion.telemetry import opentelemetry_metrics
from nimburion.telemetry.backend_metrics import BackendMetrics
from nimburion.telemetry.call_metrics import CallMetrics
from nimburion.telemetry.event_metrics import EventMetrics
from nimburion.telemetry.families import NO_LABELS, Family, Sample
from nimburion.telemetry.job_metrics import JobMetrics
from nimburion.telemetry.opentelemetry_metrics import (
    INSTRUMENTS,
    export_metrics,
    name_instrument,
)
from nimburion.telemetry.outbox_metrics import OutboxMetrics
from nimburion.telemetry.registry import MetricsRegistry
from nimburion.telemetry.worker_metrics import WorkerMetrics
from nimburion.testing.contract.harness import make_limits


class Exported:
    """What a reader collected."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)

    def collect(self) -> dict[str, Metric]:
        """Collect now; the metrics by name."""
        data = self._reader.get_metrics_data()
        if not isinstance(data, MetricsData):
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, name: str) -> dict[tuple[str, ...], Any]:
        """Collect now; the values of one metric by the values of its attributes."""
        return {
            tuple(str(value) for value in (point.attributes or {}).values()): getattr(
                point, "value", point
            )
            for point in self.collect()[name].data.data_points
        }


@pytest.fixture
def exported() -> Iterator[Exported]:
    """A meter provider and its reader."""
    exported = Exported()
    yield exported
    exported.provider.shutdown()


@pytest.fixture
def counters() -> JobCounters:
    """Counters of one queue."""
    counters = JobCounters()
    lane = counters.get_lane("mail", "send")
    lane.enqueued, lane.started, lane.completed, lane.failed = 9, 6, 4, 2
    lane.failed_by_reason = {"exhausted": 2}
    lane.run_seconds = 12.5
    lane.run_buckets[0] = 6
    return counters


@pytest.fixture
def metrics(counters: JobCounters) -> MetricsRegistry:
    """A registry with these counters."""
    registry = MetricsRegistry()
    registry.add_source(JobMetrics(lambda: [counters]))
    return registry


def test_counters_have_the_names_of_the_specification(
    metrics: MetricsRegistry, exported: Exported, counters: JobCounters
) -> None:
    export_metrics(metrics, exported.provider)
    assert exported.values("jobs.processed.total") == {
        ("mail", "send", "completed"): 4,
        ("mail", "send", "retried"): 0,
        ("mail", "send", "failed"): 2,
    }
    assert exported.values("jobs.failed.total") == {
        ("mail", "send", "exhausted"): 2,
        ("mail", "send", "permanent"): 0,
    }
    assert exported.values("jobs.duration.seconds.count") == {("send",): 6}
    assert exported.values("jobs.duration.seconds.sum") == {("send",): 12.5}
    counters.get_lane("mail", "send").completed = 5
    assert exported.values("jobs.processed.total")["mail", "send", "completed"] == 5
    metric = exported.collect()["jobs.processed.total"]
    assert metric.unit == "{attempt}"
    assert metric.description == "Attempts that ended, by their outcome."


def test_one_collection_reads_the_metrics_once(
    metrics: MetricsRegistry, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_metrics(metrics, exported.provider)
    calls = []
    collect = metrics.collect

    def count() -> list[Family]:
        calls.append(1)
        return collect()

    monkeypatch.setattr(metrics, "collect", count)
    for _ in range(3):
        exported.collect()
    assert len(calls) == 3


def test_times_are_histograms_with_the_events(metrics: MetricsRegistry, exported: Exported) -> None:
    events = Events()
    export_metrics(metrics, exported.provider, events=events)
    for duration in (0.002, 0.2, 40.0):
        events.emit(AttemptStarted("a", "send", "mail", 1, 0.5))
        events.emit(AttemptEnded("a", "send", "mail", 1, "completed", duration))
    collected = exported.collect()
    assert "jobs.duration.seconds.count" not in collected
    (point,) = collected["jobs.duration.seconds"].data.data_points
    assert isinstance(point, HistogramDataPoint)
    assert dict(point.attributes or {}) == {"name": "send"}
    assert tuple(point.explicit_bounds) == RUN_BOUNDS
    assert point.count == 3
    assert point.sum == pytest.approx(40.202)
    (point,) = collected["jobs.wait.seconds"].data.data_points
    assert dict(point.attributes or {}) == {"queue": "mail"}


def test_the_values_of_a_histogram_are_bounded(
    metrics: MetricsRegistry, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opentelemetry_metrics, "MAX_VALUES", 3)
    events = Events()
    export_metrics(metrics, exported.provider, events=events)
    for number in range(9):
        events.emit(AttemptStarted("a", "send", f"queue-{number}", 1, 0.5))
    waits = exported.values("jobs.wait.seconds")
    assert set(waits) == {("queue-0",), ("queue-1",), ("queue-2",), ("other",)}
    assert waits["other",].count == 6


async def test_what_exists_later_is_exported(exported: Exported) -> None:
    registry = MetricsRegistry()
    export_metrics(registry, exported.provider)
    assert exported.collect() == {}
    async with Processor("memory://") as processor:
        await processor.enqueue_raw("send", {}, queue="mail")
        backend = BackendMetrics(processor.backend)
        registry.add_source(backend)
        await backend.refresh()
    assert exported.values("jobs.queue.size") == {("mail",): 1}
    assert exported.values("backend.up") == {(): 1}


def test_a_source_of_the_application_is_exported(exported: Exported) -> None:
    class Orders:
        def collect(self) -> list[Family]:
            return [
                Family(
                    name="orders", kind="counter", help="Orders.", samples=[Sample(NO_LABELS, 3)]
                )
            ]

    registry = MetricsRegistry()
    registry.add_source(Orders())
    export_metrics(registry, exported.provider)
    assert exported.values("orders.total") == {(): 3}


async def test_every_family_has_its_instrument(counters: JobCounters) -> None:
    """A new family that is missing in `INSTRUMENTS` would appear only by luck."""
    limited = Session(
        id="0" * 32,
        queues=("mail",),
        names=("send",),
        limits=make_limits(
            {"send": 1},
            rates={"send": RateLimit("1/s", interval=1_000_000, burst=1)},
            keyed={"send": {"customer": LimitRule(concurrency=1)}},
        ),
    )
    async with Processor("memory://") as processor:
        await processor.backend.consuming.open_session(limited)
        await processor.backend.maintenance.change_limit(
            LimitChange(name="job:send", concurrency=2)
        )
        options = JobOptions(tenant="acme")
        await processor.backend.producing.enqueue(
            [NewJob("a", "send", "mail", b"{}", options=options)]
        )
        outbox = OutboxCounters()
        outbox.jobs = 1
        backend = BackendMetrics(processor.backend)
        await backend.refresh()
        await backend.refresh_slow_readings()
        families = [
            *JobMetrics(lambda: [counters]).collect(),
            *EventMetrics(Events()).collect(),
            *CallMetrics(list).collect(),
            *WorkerMetrics(lambda: Vitals(lease_margin=1.0, rss=1)).collect(),
            *OutboxMetrics(outbox).collect(),
            *backend.collect(),
        ]
    kinds = {family.name: family.kind for family in families}
    assert kinds == {name: instrument.kind for name, instrument in INSTRUMENTS.items()}
    assert len({name_instrument(name, one.kind) for name, one in INSTRUMENTS.items()}) == len(
        INSTRUMENTS
    )
