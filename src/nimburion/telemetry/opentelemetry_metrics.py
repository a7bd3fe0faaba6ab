"""Metrics in OpenTelemetry: each family of a `MetricsRegistry` as an observable instrument.

Needs the extra `opentelemetry`. The application brings the SDK and the exporter.

```python
from nimburion.telemetry.opentelemetry_metrics import export_metrics

export_metrics(metrics, events=processor.events)
```

`jobs_queue_size` becomes the gauge `jobs.queue.size`, and the counter `jobs_processed` becomes
`jobs.processed.total`. OpenTelemetry has no observable histogram, so the buckets of a family cannot
be exported. With `events`, the wait and run times are recorded in histograms of their own,
`jobs.wait.seconds` and `jobs.duration.seconds`. Without, there are two counters for each family:
`jobs.duration.seconds.count` and `jobs.duration.seconds.sum`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
from opentelemetry.metrics import CallbackOptions, Histogram, Observation, get_meter

from nimburion.core.events import AttemptEnded, AttemptStarted, Event, Events
from nimburion.core.metrics.counters import OTHER
from nimburion.core.metrics.statistics import RUN_BOUNDS, WAIT_BOUNDS
from nimburion.core.version import __version__
from nimburion.telemetry.families import Family, MetricKind
from nimburion.telemetry.registry import MetricsRegistry

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider

MAX_VALUES = 1_000
"""The maximum number of queues or names in a histogram; the others are recorded as `other`."""


class Instrument(msgspec.Struct, frozen=True):
    """How a family is exported."""

    kind: MetricKind
    unit: str


_JOBS, _SECONDS, _ONE = "{job}", "s", "1"

INSTRUMENTS: Mapping[str, Instrument] = {
    "jobs_enqueued": Instrument("counter", _JOBS),
    "jobs_processed": Instrument("counter", "{attempt}"),
    "jobs_failed": Instrument("counter", _JOBS),
    "jobs_retried": Instrument("counter", "{attempt}"),
    "jobs_rescued": Instrument("counter", _JOBS),
    "jobs_wait_seconds": Instrument("histogram", _SECONDS),
    "jobs_duration_seconds": Instrument("histogram", _SECONDS),
    "jobs_settlements_stale": Instrument("counter", "{settlement}"),
    "sessions_lost": Instrument("counter", "{session}"),
    "backend_calls": Instrument("counter", "{call}"),
    "backend_call_seconds": Instrument("histogram", _SECONDS),
    "exchange_jobs": Instrument("histogram", _JOBS),
    "backend_unreachable": Instrument("counter", "{exchange}"),
    "schedule_ticks": Instrument("counter", "{tick}"),
    "schedule_late_seconds": Instrument("gauge", _SECONDS),
    "metric_labels_folded": Instrument("counter", "{pair}"),
    "backend_durable": Instrument("gauge", _ONE),
    "jobs_dead": Instrument("gauge", _JOBS),
    "jobs_suspended": Instrument("gauge", _JOBS),
    "flows_running": Instrument("gauge", "{flow}"),
    "flows_failing": Instrument("gauge", "{flow}"),
    "flows_failed": Instrument("gauge", "{flow}"),
    "oldest_flow_seconds": Instrument("gauge", _SECONDS),
    "backend_up": Instrument("gauge", _ONE),
    "jobs_queue_size": Instrument("gauge", _JOBS),
    "jobs_scheduled": Instrument("gauge", _JOBS),
    "jobs_processing": Instrument("gauge", _JOBS),
    "jobs_unserved": Instrument("gauge", _JOBS),
    "jobs_waiting": Instrument("gauge", _JOBS),
    "jobs_oldest_ready_seconds": Instrument("gauge", _SECONDS),
    "queue_paused": Instrument("gauge", _ONE),
    "queue_servers": Instrument("gauge", "{session}"),
    "sessions": Instrument("gauge", "{session}"),
    "limit_in_use": Instrument("gauge", _JOBS),
    "rate_room": Instrument("gauge", _JOBS),
    "tenants": Instrument("gauge", "{tenant}"),
    "tenant_jobs_waiting_max": Instrument("gauge", _JOBS),
    "limit_changes": Instrument("gauge", "{change}"),
    "limit_keys": Instrument("gauge", "{key}"),
    "limit_keys_in_use": Instrument("gauge", _JOBS),
    "limit_keys_parked": Instrument("gauge", _JOBS),
    "limit_key_fullest": Instrument("gauge", _JOBS),
    "limit_max": Instrument("gauge", _JOBS),
    "worker_slots": Instrument("gauge", _JOBS),
    "worker_busy": Instrument("gauge", _JOBS),
    "worker_loop_lag_seconds": Instrument("gauge", _SECONDS),
    "outbox_jobs": Instrument("gauge", _JOBS),
    "outbox_oldest_seconds": Instrument("gauge", _SECONDS),
    "outbox_relayed": Instrument("counter", _JOBS),
    "outbox_dropped": Instrument("counter", _JOBS),
    "worker_lease_margin_seconds": Instrument("gauge", _SECONDS),
    "worker_rss_bytes": Instrument("gauge", "By"),
    "build": Instrument("info", _ONE),
}
"""The families of nimburion. Instruments are created before the first collection, when some
families, such as those of a worker that has not started, do not exist yet."""

_RECORDED = frozenset({"jobs_wait_seconds", "jobs_duration_seconds"})
"""The families that are histograms if the events are known."""


class OpenTelemetryMetrics:
    """The instruments of one `MetricsRegistry`; `export_metrics` creates them."""

    def __init__(self, metrics: MetricsRegistry, meter: Meter, *, recorded: frozenset[str]) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._families: dict[str, Family] = {}
        self._read: set[str] = set()
        known = {family.name: family for family in metrics.collect()}
        instruments = {name: Instrument(family.kind, "") for name, family in known.items()} | dict(
            INSTRUMENTS
        )
        for name, instrument in instruments.items():
            if name not in recorded:
                text = known[name].help if name in known else ""
                self._create(meter, name, instrument, text)

    def _create(self, meter: Meter, name: str, instrument: Instrument, text: str) -> None:
        full = name_instrument(name, instrument.kind)
        unit = instrument.unit
        match instrument.kind:
            case "counter":
                meter.create_observable_counter(
                    full, [self._make_callback(name, _observe_samples)], unit, text
                )
            case "gauge" | "info":
                meter.create_observable_gauge(
                    full, [self._make_callback(name, _observe_samples)], unit, text
                )
            case "histogram":
                meter.create_observable_counter(
                    f"{full}.count", [self._make_callback(name, _observe_counts)], "", text
                )
                meter.create_observable_counter(
                    f"{full}.sum", [self._make_callback(name, _observe_sums, ".sum")], unit, text
                )

    def _make_callback(
        self, name: str, read: Callable[[Family], Iterable[Observation]], suffix: str = ""
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            family = self._find_family(name, name + suffix)
            return () if family is None else list(read(family))

        return observe

    def _find_family(self, name: str, reader: str) -> Family | None:
        """Return a family for the callback `reader`.

        A collection calls every callback once. A callback that is called again belongs to the next
        collection, which reads the metrics again.
        """
        with self._lock:
            if not self._read or reader in self._read:
                self._families = {family.name: family for family in self._metrics.collect()}
                self._read = set()
            self._read.add(reader)
            return self._families.get(name)


class AttemptHistograms:
    """Records how long jobs waited and ran, from the events of a processor."""

    def __init__(self, meter: Meter) -> None:
        self._wait: Histogram = meter.create_histogram(
            "jobs.wait.seconds",
            _SECONDS,
            "Seconds from the due time of a job to the start of its handler.",
            explicit_bucket_boundaries_advisory=WAIT_BOUNDS,
        )
        self._duration: Histogram = meter.create_histogram(
            "jobs.duration.seconds",
            _SECONDS,
            "Seconds that attempts ran.",
            explicit_bucket_boundaries_advisory=RUN_BOUNDS,
        )
        self._queues: dict[str, dict[str, str]] = {}
        self._names: dict[str, dict[str, str]] = {}

    def record(self, event: Event) -> None:
        """Record an attempt that starts or ends."""
        match event:
            case AttemptStarted(queue=queue, waited=waited):
                self._wait.record(waited, _find_attributes(self._queues, "queue", queue))
            case AttemptEnded(name=name, duration=duration):
                self._duration.record(duration, _find_attributes(self._names, "name", name))


def export_metrics(
    metrics: MetricsRegistry,
    meter_provider: MeterProvider | None = None,
    *,
    events: Events | None = None,
) -> OpenTelemetryMetrics:
    """Create the instruments of a registry. Call it once for each registry and meter provider.

    Args:
        metrics: the registry; what you add to it later is exported if it is in `INSTRUMENTS`.
        meter_provider: where the instruments are created; None: the global provider.
        events: the events of the processor, for histograms of the wait and run times.
    """
    meter = get_meter("nimburion", __version__, meter_provider)
    if events is None:
        return OpenTelemetryMetrics(metrics, meter, recorded=frozenset())
    events.subscribe(AttemptHistograms(meter).record, kinds=(AttemptStarted, AttemptEnded))
    return OpenTelemetryMetrics(metrics, meter, recorded=_RECORDED)


def name_instrument(family: str, kind: MetricKind) -> str:
    """Return the name of a family's instrument.

    >>> name_instrument("jobs_processed", "counter"), name_instrument("jobs_queue_size", "gauge")
    ('jobs.processed.total', 'jobs.queue.size')
    """
    suffix = {"counter": ".total", "info": ".info"}.get(kind, "")
    return family.replace("_", ".") + suffix


def _observe_samples(family: Family) -> Iterable[Observation]:
    for sample in family.samples:
        yield Observation(sample.value, dict(sample.labels.values))


def _observe_counts(family: Family) -> Iterable[Observation]:
    for sample in family.histograms:
        yield Observation(sum(sample.buckets), dict(sample.labels.values))


def _observe_sums(family: Family) -> Iterable[Observation]:
    for sample in family.histograms:
        yield Observation(sample.sum, dict(sample.labels.values))


def _find_attributes(known: dict[str, dict[str, str]], label: str, value: str) -> Mapping[str, str]:
    attributes = known.get(value)
    if attributes is None:
        if len(known) >= MAX_VALUES:
            value = OTHER
        attributes = known.setdefault(value, {label: value})
    return attributes
