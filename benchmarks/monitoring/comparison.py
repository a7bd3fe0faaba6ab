"""Compares what Prometheus has with what the log says."""

from __future__ import annotations

import json
import math
import time
import urllib.request
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import yaml

import nimburion.telemetry
from benchmarks.monitoring.application import SCHEDULE, Line, read_log
from nimburion.core.metrics.statistics import RUN_BOUNDS, Statistics

FILES = Path(nimburion.telemetry.__file__).parent / "files"
LAG = 5.0
"""Seconds between a line of the log and its count, at most: an outcome counts when it is stored."""
LATE = 22.0
"""Seconds by which an age may differ: Prometheus has it from its last scrape."""
KEYED = "export:customer"

Labels = tuple[tuple[str, str], ...]
NO_LABELS: Labels = ()
Samples = list[tuple[float, float]]
Series = tuple[Labels, str, Samples]
"""The labels, the instance and the samples."""
Expected = Mapping[Labels, float | tuple[float, float]]
"""A value, or the least and the greatest that is right."""


class Fleet:
    """What the producer knows of the jobs that wait."""

    def __init__(self) -> None:
        self.scheduled = 0
        self.failed_flows = 0
        self.left: list[float] = []
        """When jobs were left waiting, in each phase."""

    def note_left(self, at: float) -> None:
        """Note that each queue has got the jobs that wait during a rest."""
        self.left.append(at)


class Kind(msgspec.Struct):
    """The comparisons of one kind."""

    values: int = 0
    wrong: list[str] = msgspec.field(default_factory=list)


class Prometheus:
    """Asks a Prometheus of this host."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query?"

    def query(self, expression: str, at: float) -> list[Series]:
        """Return the labels, the instance and the samples of each series."""
        url = self._url + urlencode({"query": expression, "time": f"{at:.3f}"})
        with urllib.request.urlopen(url, timeout=30) as answer:
            data = json.load(answer)["data"]
        found = []
        for one in data["result"]:
            metric = one["metric"]
            samples = one.get("values") or [one["value"]]
            labels = {name: text for name, text in metric.items() if name not in _IGNORED}
            numbers = [(float(moment), float(value)) for moment, value in samples]
            found.append((_sort(labels), metric.get("instance", ""), numbers))
        return found

    def evaluate(self, expression: str, at: float) -> dict[Labels, list[float]]:
        """Return the values of an expression by their labels, with one for each instance."""
        values: dict[Labels, list[float]] = {}
        for labels, _, samples in self.query(expression, at):
            values.setdefault(labels, []).append(samples[-1][1])
        return values


_IGNORED = frozenset({"__name__", "instance", "job"})


def _sort(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _label(**labels: str) -> Labels:
    return _sort(labels)


class Counted(msgspec.Struct, frozen=True):
    """A counter: which lines it counts, and its labels."""

    metric: str
    labels: Callable[[Line], dict[str, str] | None]


_ENDS = frozenset({"completed", "retried", "failed", "released", "cancelled"})

COUNTERS = (
    Counted(
        "jobs_enqueued_total",
        lambda one: {"queue": one.queue, "name": one.name} if one.what == "enqueued" else None,
    ),
    Counted(
        "jobs_processed_total",
        lambda one: (
            {"queue": one.queue, "name": one.name, "outcome": one.what}
            if one.what in _ENDS
            else None
        ),
    ),
    Counted(
        "jobs_failed_total",
        lambda one: (
            {"queue": one.queue, "name": one.name, "reason": one.reason}
            if one.what == "failed"
            else None
        ),
    ),
    Counted(
        "jobs_retried_total",
        lambda one: {"queue": one.queue, "name": one.name} if one.what == "retried" else None,
    ),
    Counted(
        "jobs_wait_seconds_count",
        lambda one: {"queue": one.queue} if one.what == "started" else None,
    ),
    Counted(
        "jobs_duration_seconds_count",
        lambda one: {"name": one.name} if one.what in _ENDS else None,
    ),
)


class EventCounts:
    """How many events of each series each instance has logged until a time."""

    def __init__(self, instances: Mapping[str, Path], scheduling: str) -> None:
        self.lines: list[tuple[str, Line]] = []
        """Each line, and the instance that wrote it."""
        self._times: dict[tuple[str, str, Labels], list[float]] = {}
        for instance, path in instances.items():
            for line in read_log(path):
                self.lines.append((instance, line))
                # The handler logs the enqueue of its tick, which another process may have made.
                is_tick = (line.what, line.name) == ("enqueued", SCHEDULE)
                self._add(scheduling if is_tick else instance, line)
        for times in self._times.values():
            times.sort()

    def _add(self, instance: str, line: Line) -> None:
        for counter in COUNTERS:
            labels = counter.labels(line)
            if labels is not None:
                key = (counter.metric, instance, _sort(labels))
                self._times.setdefault(key, []).extend([line.at] * line.count)

    def count(self, metric: str, instance: str, labels: Labels, until: float) -> int:
        """Return how many events happened until a time."""
        return bisect_right(self._times.get((metric, instance, labels), []), until)

    def bound(self, metric: str, instance: str, labels: Labels, at: float) -> tuple[float, float]:
        """Return the least and the greatest count that a page of this time may show."""
        low = self.count(metric, instance, labels, at - LAG)
        return low, self.count(metric, instance, labels, at + LAG)

    def list_series(self, metric: str, instance: str) -> Iterable[Labels]:
        """Return the labels of all series of a metric."""
        return [labels for one, where, labels in self._times if (one, where) == (metric, instance)]


class Comparison:
    """Compares, and keeps what was wrong."""

    def __init__(
        self, prometheus: Prometheus, instances: Mapping[str, Path], window: float
    ) -> None:
        self._prometheus = prometheus
        self._instances = instances
        self._window = window
        self.kinds: dict[str, Kind] = {}
        self.jobs = 0
        """The number of jobs enqueued."""

    def describe(self) -> str:
        """Return how many values were compared so far, and how many were wrong."""
        parts = (
            f"{kind}: {one.values}, {len(one.wrong)} wrong" for kind, one in self.kinds.items()
        )
        return "; ".join(parts)

    def _check(
        self, kind: str, what: str, found: Mapping[Labels, Sequence[float]], expected: Expected
    ) -> None:
        """Compare values by their labels. A series that is missing is 0."""
        entry = self.kinds.setdefault(kind, Kind())
        for labels in {*found, *expected}:
            wanted = expected.get(labels, 0.0)
            low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
            for value in found.get(labels, [0.0]):
                entry.values += 1
                margin = 1e-6 * max(1.0, abs(high))
                if math.isnan(value) and (low, high) == (0.0, 0.0):  # 0 / 0
                    continue
                if not low - margin <= value <= high + margin:
                    entry.wrong.append(f"{what} {dict(labels)}: {value:g}, expected {wanted}")

    def _read_counts(self) -> EventCounts:
        return EventCounts(self._instances, next(iter(self._instances)))

    def compare_rest(self, at: float, fleet: Fleet) -> None:
        """Compare all counts and expressions at the end of a rest."""
        counts = self._read_counts()
        for counter in COUNTERS:
            found = self._prometheus.query(f"nimburion_{counter.metric}", at)
            by_instance: dict[str, dict[Labels, list[float]]] = {}
            for labels, instance, samples in found:
                by_instance.setdefault(instance, {})[labels] = [samples[-1][1]]
            for instance in self._instances:
                expected = {
                    labels: float(counts.count(counter.metric, instance, labels, at))
                    for labels in counts.list_series(counter.metric, instance)
                }
                what = f"{counter.metric} of {instance}"
                self._check("counters at rest", what, by_instance.get(instance, {}), expected)
        self._compare_expressions(Expectations(self._prometheus, counts, at, self._window, fleet))

    def _compare_expressions(self, expectations: Expectations) -> None:
        panels = json.loads((FILES / "grafana.json").read_text(encoding="utf-8"))["panels"]
        expected = expectations.list_panels()
        for panel in panels:
            for number, target in enumerate(panel.get("targets", ())):
                expression = target["expr"].replace("$queue", ".*")
                expression = expression.replace("$__rate_interval", f"{self._window:g}s")
                found = self._prometheus.evaluate(expression, expectations.at)
                what = f"{panel['title']} {number}"
                self._check("expressions of Grafana", what, found, expected[what])
        (group,) = yaml.safe_load((FILES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
        alerts = expectations.list_alerts()
        for rule in group["rules"]:
            found = self._prometheus.evaluate(rule["expr"], expectations.at)
            self._check("alert rules", rule["alert"], found, alerts.get(rule["alert"], {}))

    def compare_scrapes(self) -> None:
        """Compare each count that was scraped, also under load."""
        counts, now = self._read_counts(), time.time()
        self.jobs = sum(one.count for _, one in counts.lines if one.what == "enqueued")
        for _, instance, samples in self._prometheus.query("up[1h]", now):
            answers = [value for _, value in samples]
            self._check("scrapes that answered", instance, {NO_LABELS: answers}, {NO_LABELS: 1.0})
        for counter in COUNTERS:
            for labels, instance, samples in self._prometheus.query(
                f"nimburion_{counter.metric}[1h]", now
            ):
                for moment, value in samples:
                    bounds = counts.bound(counter.metric, instance, labels, moment)
                    what = f"{counter.metric} of {instance} at {moment:.0f}"
                    self._check("counters in scrapes", what, {labels: [value]}, {labels: bounds})

    def compare_statistics(self, statistics: Iterable[Statistics]) -> None:
        """Compare the statistics in the backend, after all processes have ended."""
        counts = self._read_counts()
        expected = Counter[Labels]()
        for _, line in counts.lines:
            if line.what != "released":
                expected[_label(queue=line.queue, name=line.name, what=line.what)] += line.count
        found = Counter[Labels]()
        for row in statistics:
            for what in ("enqueued", "started", "completed", "failed", "retried", "cancelled"):
                count = getattr(row.counters, what)
                found[_label(queue=row.queue, name=row.name, what=what)] += count
            found[_label(queue=row.queue, name=row.name, what="rescued")] += row.counters.rescued
        values = {labels: [float(count)] for labels, count in found.items()}
        wanted = {labels: float(count) for labels, count in expected.items()}
        self._check("statistics at the end", "statistics", values, wanted)


class Expectations:
    """What expressions must give at the end of a rest."""

    def __init__(
        self,
        prometheus: Prometheus,
        counts: EventCounts,
        at: float,
        window: float,
        fleet: Fleet,
    ) -> None:
        self.at = at
        self._prometheus = prometheus
        self._counts = counts
        self._window = window
        self._fleet = fleet

    def _increase(
        self, metric: str, by: tuple[str, ...], window: float | None = None, **where: str
    ) -> dict[Labels, float]:
        """Return the increase of a counter as Prometheus extrapolates it, from the counts of the
        log at the times of the scrapes. Only a count under load is that of the scrape itself, as
        far as the log allows it.
        """
        seconds = self._window if window is None else window
        sums = dict[Labels, float]()
        for labels, instance, scraped in self._prometheus.query(
            f"nimburion_{metric}[{seconds:g}s]", self.at
        ):
            known = dict(labels)
            if any(known[name] not in texts.split("|") for name, texts in where.items()):
                continue
            samples = []
            for moment, value in scraped:
                low, high = self._counts.bound(metric, instance, labels, moment)
                samples.append((moment, min(max(value, low), high)))
            change = extrapolate(samples, self.at - seconds, self.at)
            if change is not None:
                key = _sort({name: known[name] for name in by})
                sums[key] = sums.get(key, 0.0) + change
        return sums

    def _rate(
        self, metric: str, by: tuple[str, ...], window: float | None = None, **where: str
    ) -> dict[Labels, float]:
        seconds = self._window if window is None else window
        changes = self._increase(metric, by, seconds, **where)
        return {labels: change / seconds for labels, change in changes.items()}

    def _list_waiting(self) -> dict[str, tuple[int, float]]:
        """Return how many due jobs wait in each queue, and since when the first one does."""
        first, last, phases = self._fleet.left[0], self._fleet.left[-1], len(self._fleet.left)
        return {
            "held": (phases, first),
            "nowhere": (phases, first),
            "mail": (phases, first),
            "reports": (2, last),
            "exports": (2, last),
        }

    def _list_ages(self) -> dict[str, tuple[float, float]]:
        waiting = self._list_waiting().items()
        return {queue: (self.at - at - LATE, self.at - at + 1.0) for queue, (_, at) in waiting}

    def _list_failing(self) -> dict[Labels, float]:
        """Return the share of attempts that failed in ten minutes, by name."""
        attempts = self._rate("jobs_processed_total", ("name",), 600)
        failing = self._rate("jobs_processed_total", ("name",), 600, outcome="failed|retried")
        return {name: failing[name] / attempts[name] for name in failing if attempts[name]}

    def _list_drains(self) -> dict[Labels, float]:
        done = self._rate(
            "jobs_processed_total", ("queue",), 300, outcome="completed|failed|cancelled"
        )
        come = self._rate("jobs_enqueued_total", ("queue",), 300)
        sizes = {_label(queue=queue): one for queue, (one, _) in self._list_waiting().items()}
        return {
            queue: sizes.get(queue, 0) / (rate - come.get(queue, 0.0))
            for queue, rate in done.items()
            if rate - come.get(queue, 0.0) > 0.02 * rate
        }

    def _list_run_times(self) -> dict[Labels, tuple[float, float]]:
        """Return between which bounds the 95th percentile of the run times lies, by name."""
        runs: dict[str, list[float]] = {}
        series = f"nimburion_jobs_duration_seconds_count[{self._window:g}s]"
        begins = {
            (instance, dict(labels)["name"]): samples[0][0]
            for labels, instance, samples in self._prometheus.query(series, self.at)
        }
        for instance, line in self._counts.lines:
            begin = begins.get((instance, line.name), math.inf)
            if line.what in _ENDS and begin < line.at <= self.at:
                runs.setdefault(line.name, []).append(line.seconds)
        bounds = (0.0, *RUN_BOUNDS)
        found = {}
        for name, seconds in runs.items():
            seconds.sort()
            least = seconds[max(0, int(0.95 * len(seconds)) - 2)]
            greatest = seconds[-1]
            # Our clock starts a little later than that of the worker.
            low = bounds[max(0, bisect_left(bounds, 0.9 * least) - 1)]
            high = bounds[min(len(bounds) - 1, bisect_left(bounds, 1.5 * greatest + 0.1))]
            found[_label(name=name)] = (low, high)
        return found

    def list_panels(self) -> dict[str, Expected]:
        """Return what each expression of Grafana must give, by its panel and its number."""
        waiting, ages = self._list_waiting(), self._list_ages()
        sizes = {_label(queue=queue): float(one) for queue, (one, _) in waiting.items()}
        served = ("mail", "exports", "reports", "flows", "runs", "ticks", "held")
        unserved = {queue: float(waiting[queue][0]) for queue in ("nowhere", "mail")}
        completed = sum(self._rate("jobs_processed_total", (), outcome="completed").values())
        dead = sum(self._increase("jobs_failed_total", (), 3_600).values())
        waits = self._rate("jobs_wait_seconds_count", ("queue",))
        return {
            "Backend 0": {NO_LABELS: 1.0},
            "Oldest waiting job 0": {NO_LABELS: max(ages.values())},
            "Due jobs 0": {NO_LABELS: sum(sizes.values())},
            "Live workers 0": {NO_LABELS: 2.0},
            "Completed per second 0": {NO_LABELS: completed},
            "Dead letters in the last hour 0": {NO_LABELS: dead},
            "Oldest waiting job by queue 0": {_label(queue=q): age for q, age in ages.items()},
            "Due jobs by queue 0": sizes,
            "Wait time, 95th percentile 0": {
                queue: (0.0, 2 * self._window) for queue, rate in waits.items() if rate
            },
            "Time to drain 0": self._list_drains(),
            "Jobs that no worker takes 0": {_label(queue=q): n for q, n in unserved.items()},
            "Workers by queue 0": {_label(queue=queue): 2.0 for queue in served},
            "Scheduled jobs 0": {_label(queue="mail"): float(self._fleet.scheduled)},
            "Attempts by outcome 0": self._rate("jobs_processed_total", ("outcome",)),
            "Failing share by name 0": self._list_failing(),
            "Run time by name, 95th percentile 0": self._list_run_times(),
            "Enqueued per second by queue 0": self._rate("jobs_enqueued_total", ("queue",)),
            "Dead letters by name and reason 0": self._increase(
                "jobs_failed_total", ("name", "reason")
            ),
            "Concurrency limits: share in use 0": {_label(name="report"): 1.0},
            "Limits by key: jobs that wait for their key 0": {_label(name=KEYED): 2.0},
            "Limits by key: the fullest key 0": {_label(name=KEYED): 3.0},
            "Busy slots 0": {NO_LABELS: 2.0},
            "Busy slots 1": {NO_LABELS: 20.0},
            "Event loop lag 0": {NO_LABELS: (0.0, 5.0)},
            "Lease margin 0": {NO_LABELS: (7.5, 30.0)},
            "Memory 0": {NO_LABELS: (2e7, 5e8)},
            "Rescued jobs and stale outcomes 0": {},
            "Rescued jobs and stale outcomes 1": {},
            "Schedules: lateness of the last tick 0": {_label(schedule=SCHEDULE): (0.0, 5.0)},
        }

    def list_alerts(self) -> dict[str, Expected]:
        """Return what the rules must give. The other ones give nothing."""
        ages, left = self._list_ages(), float(len(self._fleet.left))
        grown = self._increase("jobs_failed_total", ("name", "reason"), 600)
        attempts = self._rate("jobs_processed_total", ("name",), 600)
        ratios = {
            name: ratio
            for name, ratio in self._list_failing().items()
            if ratio > 0.2 and attempts[name] > 0.05
        }
        old = {
            _label(queue=queue): (0.0 if age[0] <= 300 else age[0], age[1])
            for queue, age in ages.items()
            if age[1] > 300 and queue != "held"
        }
        return {
            "NimburionQueueTooOld": old,
            "NimburionQueueHasNoWorker": {_label(queue="nowhere"): left},
            "NimburionJobsUnserved": {_label(queue="mail"): left},
            "NimburionQueuePausedLong": {_label(queue="held"): 1.0},
            "NimburionDeadLettersGrow": {
                labels: change for labels, change in grown.items() if change > 10
            },
            "NimburionFlowFailed": {_label(name="import"): float(self._fleet.failed_flows)},
            "NimburionFailureRatio": ratios,
            "NimburionLimitFullLong": {_label(name="report"): 1.0},
            "NimburionKeysFullLong": {_label(name=KEYED): 2.0},
        }


def extrapolate(samples: Samples, start: float, end: float) -> float | None:
    """Return the increase of a counter between two times as Prometheus computes it; None if it has
    fewer than two samples.
    """
    if len(samples) < 2:
        return None
    (first_at, first), (last_at, last) = samples[0], samples[-1]
    change, sampled = last - first, last_at - first_at
    usual = sampled / (len(samples) - 1)
    before, after = first_at - start, end - last_at
    before = usual / 2 if before >= 1.1 * usual else before
    after = usual / 2 if after >= 1.1 * usual else after
    if change > 0:
        before = min(before, sampled * first / change)
    return change * (sampled + before + after) / sampled
