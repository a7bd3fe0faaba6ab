"""Metrics in a registry of prometheus-client, beside the application's own.

Needs the extra `prometheus`.

```python
from prometheus_client import REGISTRY
from nimburion.telemetry.prometheus import register

register(processor.metrics, REGISTRY)
```
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nimburion.telemetry.families import Family, HistogramSample, format_value
from nimburion.telemetry.registry import MetricsRegistry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class PrometheusCollector:
    """A collector of prometheus-client that returns the families of a `MetricsRegistry`."""

    def __init__(self, metrics: MetricsRegistry) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are not known before the first collection."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the current families as metrics of prometheus-client."""
        for family in self._metrics.collect():
            yield _convert(family, f"{self._metrics.namespace}_{family.name}")


def register(metrics: MetricsRegistry, registry: CollectorRegistry) -> PrometheusCollector:
    """Register the metrics in a registry, and return the collector, to unregister it again."""
    collector = PrometheusCollector(metrics)
    registry.register(collector)
    return collector


def _convert(family: Family, name: str) -> Metric:
    from prometheus_client.metrics_core import Metric

    metric = Metric(name, family.help, family.kind)
    suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
    for sample in family.samples:
        metric.add_sample(name + suffix, dict(sample.labels.values), sample.value)
    for histogram in family.histograms:
        _add_histogram(metric, family, histogram, name)
    return metric


def _add_histogram(metric: Metric, family: Family, sample: HistogramSample, name: str) -> None:
    labels = dict(sample.labels.values)
    total = 0
    bounds = [*map(format_value, family.bounds), "+Inf"]
    for bound, count in zip(bounds, sample.buckets, strict=True):
        total += count
        metric.add_sample(f"{name}_bucket", {**labels, "le": bound}, total)
    metric.add_sample(f"{name}_count", labels, total)
    metric.add_sample(f"{name}_sum", labels, sample.sum)
