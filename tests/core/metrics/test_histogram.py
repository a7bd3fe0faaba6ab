"""Quantiles of durations: close to the exact ones, and never above the longest duration."""

from __future__ import annotations

from math import ceil
from random import Random

import msgspec
import pytest

from nimburion.core.metrics.counters import JobCounters
from nimburion.core.metrics.histogram import Histogram
from nimburion.core.metrics.statistics import Counters, Statistics, add_statistics
from nimburion.core.metrics.statistics_recorder import StatisticsRecorder

QUANTILES = (0.001, 0.01, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
NOW = 1_750_000_020.0


def make_times(count: int, seed: int = 1) -> list[float]:
    """Return waits from microseconds to days, as a queue has that fills and empties."""
    random = Random(seed)
    return [random.lognormvariate(0.0, 4.0) for _ in range(count)]


def make_histogram(times: list[float]) -> Histogram:
    histogram = Histogram()
    histogram.observe_sorted(sorted(times))
    return histogram


@pytest.mark.parametrize("seed", range(3))
def test_each_quantile_is_within_5_percent_of_the_exact_one(seed: int) -> None:
    times = sorted(make_times(100_000, seed))
    histogram = make_histogram(times)
    exact = [times[ceil(quantile * len(times)) - 1] for quantile in QUANTILES]
    estimates = [histogram.estimate_quantile(quantile) for quantile in QUANTILES]
    assert estimates == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("seconds", [1.2, 0.001, 59.9, 912.0, 3600.0, 86_400.0 * 40, 0.0, 1e12])
def test_no_quantile_is_above_the_longest_duration(seconds: float) -> None:
    histogram = make_histogram([seconds])
    assert [histogram.estimate_quantile(quantile) for quantile in QUANTILES] == [seconds] * 10
    histogram.observe_sorted([seconds] * 9)
    for quantile in QUANTILES:
        estimate = histogram.estimate_quantile(quantile)
        assert estimate is not None
        assert estimate <= seconds
        assert estimate == pytest.approx(seconds, rel=0.05) or seconds > 1e9


def test_an_empty_histogram_has_no_quantile() -> None:
    assert Histogram().estimate_quantile(0.5) is None


def test_adding_histograms_loses_nothing() -> None:
    times = make_times(10_000)
    added = Histogram()
    for part in (times[:3_000], times[3_000:3_001], [], times[3_001:]):
        added.add(make_histogram(part))
    whole = make_histogram(times)
    assert (added.buckets, added.max) == (whole.buckets, max(times))
    assert added.sum == pytest.approx(sum(times))


def test_one_at_a_time_is_counted_like_all_at_once() -> None:
    one, times = Histogram(), [0.0, *make_times(1_000), 10.0, 1.0, 0.1, 0.001]
    for seconds in times:
        one.observe(seconds)
    assert one.buckets == make_histogram(times).buckets


def test_a_wait_before_the_due_time_counts_as_none() -> None:
    histogram = make_histogram([-0.5, 0.25])
    assert (histogram.count, histogram.sum, histogram.max) == (2, 0.25, 0.25)
    assert histogram.estimate_quantile(0.5) == 0.0


def test_only_buckets_with_durations_are_stored() -> None:
    histogram = make_histogram([2.0] * 50_000 + [1.9] * 50_000)
    assert len(msgspec.json.encode(histogram)) < 100
    assert len(msgspec.json.encode(make_histogram(make_times(100_000)))) < 5_000
    stored = msgspec.json.encode(histogram)
    assert msgspec.json.decode(stored, type=Histogram) == histogram


def test_each_interval_has_the_maximum_of_its_own() -> None:
    counters = JobCounters()
    recorder, lane = StatisticsRecorder(counters), counters.get_lane("q", "n")
    lane.waits.append(900.0)
    recorder.record(NOW)
    recorder.take_changed()
    lane.waits += [1.0, 2.0]
    recorder.record(NOW + 60)
    minute, *_, hour = recorder.take_changed()
    assert (minute.counters.wait.max, hour.counters.wait.max) == (2.0, 900.0)
    assert (minute.counters.wait.count, hour.counters.wait.count) == (2, 3)


def test_the_statistics_of_100_000_waits_keep_the_accuracy() -> None:
    """Three workers count in portions, and a reader adds up their rows."""
    times, rows = make_times(99_999), list[Statistics]()
    for worker in range(3):
        counters = JobCounters()
        recorder, lane = StatisticsRecorder(counters), counters.get_lane("q", "n")
        own = times[worker::3]
        for start in range(0, len(own), 5_000):
            lane.waits += own[start : start + 5_000]
            recorder.record(NOW + start / 1_000)
        rows += [row for row in recorder.take_changed() if row.step == 3600]
    (row,) = add_statistics(rows)
    whole = Counters(started=99_999, wait=make_histogram(times))
    assert row.counters.wait.buckets == whole.wait.buckets
    assert (row.counters.started, row.counters.wait.max) == (99_999, max(times))
