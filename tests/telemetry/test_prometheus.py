"""Our metrics in a registry of prometheus-client read as on our own page."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Metric, generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from nimburion.core.metrics.counters import JobCounters
from nimburion.core.metrics.statistics import RUN_BOUNDS, WAIT_BOUNDS
from nimburion.telemetry.families import Family, HistogramSample, Labels, Sample
from nimburion.telemetry.job_metrics import JobMetrics
from nimburion.telemetry.prometheus import register
from nimburion.telemetry.registry import MetricsRegistry

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class EveryKind:
    """A source with a family of each kind, and labels that need escapes."""

    def collect(self) -> list[Family]:
        """Return the families."""
        odd = Labels({"queue": 'a "quoted" \\ name\nin two lines'})
        return [
            Family(name="kind_counter", kind="counter", help="C\n\\.", samples=[Sample(odd, 3)]),
            Family(name="kind_gauge", kind="gauge", help="G.", samples=[Sample(odd, 0.25)]),
            Family(
                name="kind_build",
                kind="info",
                help="I.",
                samples=[Sample(Labels({"version": "1"}), 1)],
            ),
            Family(
                name="kind_seconds",
                kind="histogram",
                help="H.",
                bounds=(0.001, 1.0, 21_600.0),
                histograms=[HistogramSample(odd, [1, 0, 2, 4], 1234.5)],
            ),
            Family(name="kind_empty", kind="gauge", help="Nothing yet."),
        ]


@pytest.fixture
def metrics() -> MetricsRegistry:
    """A registry with counters of jobs and a family of each kind."""
    counters = JobCounters()
    for queue, name in (("mail", "send"), ("mail", "other"), ("images", "resize")):
        lane = counters.get_lane(queue, name)
        lane.enqueued = lane.started = 5
        lane.completed, lane.retried, lane.failed = 3, 1, 1
        lane.failed_by_reason = {"exhausted": 1}
        lane.wait_seconds, lane.run_seconds = 0.5, 7.25
        lane.wait_buckets = [1] * (len(WAIT_BOUNDS) + 1)
        lane.run_buckets = [2] * (len(RUN_BOUNDS) + 1)
    registry = MetricsRegistry()
    registry.add_source(JobMetrics(lambda: [counters]))
    registry.add_source(EveryKind())
    return registry


def read_series(families: list[Metric]) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def read_types(families: list[Metric]) -> dict[str, tuple[str, str]]:
    return {family.name: (family.type, family.documentation) for family in families}


def test_the_library_and_our_renderer_tell_the_same(metrics: MetricsRegistry) -> None:
    registry = CollectorRegistry()
    register(metrics, registry)
    theirs = list(parse_prometheus(generate_latest(registry).decode()))
    ours = list(parse_prometheus(metrics.render()[0]))
    assert read_series(ours) == read_series(theirs)
    assert read_types(ours) == read_types(theirs)
    assert len(read_series(ours)) > 50


def test_our_openmetrics_page_is_valid_and_tells_the_same(metrics: MetricsRegistry) -> None:
    page, content_type = metrics.render("application/openmetrics-text")
    assert content_type.startswith("application/openmetrics-text")
    registry = CollectorRegistry()
    register(metrics, registry)
    ours = list(parse_openmetrics(page))  # type: ignore[no-untyped-call]
    theirs = list(registry.collect())
    assert read_series(ours) == read_series(theirs)
    assert read_types(ours) == read_types(theirs)


def test_the_collector_lives_beside_the_metrics_of_the_application(
    metrics: MetricsRegistry,
) -> None:
    registry = CollectorRegistry()
    Counter("orders", "Orders.", registry=registry).inc()
    collector = register(metrics, registry)
    page = generate_latest(registry).decode()
    assert "orders_total 1.0" in page
    assert 'nimburion_jobs_enqueued_total{name="send",queue="mail"} 5.0' in page
    registry.unregister(collector)
    assert "nimburion" not in generate_latest(registry).decode()
