"""Histograms of durations, and how counters become rows of statistics."""

from __future__ import annotations

import threading
from bisect import bisect_left

import pytest

from nimburion.core.metrics.counters import MAX_LANES, OTHER, JobCounters, LaneCounters
from nimburion.core.metrics.histogram import Histogram
from nimburion.core.metrics.statistics import (
    STEPS,
    WAIT_BOUNDS,
    Counters,
    Statistics,
)
from nimburion.core.metrics.statistics_recorder import StatisticsRecorder

NOW = 1_750_000_020.0
"""Twenty seconds into a minute, and into an hour's 600-second step."""


def test_folded_times_are_counted_like_observed_ones() -> None:
    times = [0.0, 0.0005, 0.001, 0.0011, 0.5, 3600.0, 3600.1, 90_000.0]
    lane, observed, buckets = LaneCounters("q", "n"), Histogram(), [0] * (len(WAIT_BOUNDS) + 1)
    for seconds in times:
        lane.waits.append(seconds)
        observed.observe(seconds)
        buckets[bisect_left(WAIT_BOUNDS, seconds)] += 1
    lane.count_pending()
    wait, _ = lane.take_times()
    assert (lane.wait_buckets, wait.buckets, wait.max) == (buckets, observed.buckets, 90_000.0)
    assert lane.wait_seconds == pytest.approx(observed.sum) == pytest.approx(wait.sum)
    assert (lane.started, lane.waits) == (len(times), [])


def test_a_wait_before_the_due_time_counts_as_none() -> None:
    """The clocks of worker and backend differ a little."""
    lane = LaneCounters("q", "n")
    lane.waits.append(-0.2)
    lane.count_pending()
    assert (lane.wait_seconds, lane.wait_buckets[0]) == (0.0, 1)


def test_attempts_that_did_not_complete_are_not_counted_as_completed() -> None:
    lane = LaneCounters("q", "n")
    lane.completed_runs += [0.1, 0.1]
    lane.other_runs += [0.1]
    lane.count_pending()
    assert (lane.completed, sum(lane.run_buckets)) == (2, 3)


def test_no_time_is_lost_while_another_thread_folds() -> None:
    lane, count = LaneCounters("q", "n"), 50_000
    done = threading.Event()

    def fold() -> None:
        while not done.is_set():
            lane.count_pending()

    thread = threading.Thread(target=fold)
    thread.start()
    for _ in range(count):
        lane.waits.append(0.1)
        lane.completed_runs.append(0.1)
    done.set()
    thread.join()
    lane.count_pending()
    assert (lane.started, lane.completed, sum(lane.run_buckets)) == (count, count, count)


def test_a_lock_that_a_forked_child_inherited_blocks_nothing() -> None:
    lane = LaneCounters("q", "n")
    lane.waits.append(0.1)
    with lane._lock:
        lane.count_pending()
        assert lane.started == 0
    lane.count_pending()
    assert lane.started == 1


def test_lanes_above_the_maximum_are_folded_into_one() -> None:
    counters = JobCounters()
    for n in range(MAX_LANES + 3):
        counters.get_lane("q", f"n{n}").enqueued += 1
    lanes = counters.list_lanes()
    assert len(lanes) == MAX_LANES + 1
    assert [lane.enqueued for lane in lanes if lane.queue == OTHER] == [3]
    assert counters.overflowed == 3


def record(recorder: StatisticsRecorder, now: float) -> list[Statistics]:
    recorder.record(now)
    return recorder.take_changed()


def test_counts_go_to_the_interval_of_each_step() -> None:
    counters = JobCounters()
    recorder = StatisticsRecorder(counters)
    counters.get_lane("q", "n").enqueued += 2
    rows = record(recorder, NOW)
    assert [row.step for row in rows] == sorted(STEPS)
    assert {row.start for row in rows} == {int(NOW) // step * step for step in STEPS}
    assert all(
        row.counters == Counters(enqueued=2, wait=row.counters.wait, run=row.counters.run)
        for row in rows
    )


def test_rows_hold_absolute_values_of_their_interval() -> None:
    counters = JobCounters()
    recorder = StatisticsRecorder(counters)
    lane = counters.get_lane("q", "n")
    lane.enqueued += 1
    record(recorder, NOW)
    lane.enqueued += 1
    same_minute = record(recorder, NOW + 10)
    lane.enqueued += 5
    next_minute = record(recorder, NOW + 60)
    assert [row.counters.enqueued for row in same_minute if row.step == 60] == [2]
    assert [row.counters.enqueued for row in next_minute if row.step == 60] == [5]
    assert [row.counters.enqueued for row in next_minute if row.step == 3600] == [7]


def test_what_did_not_change_is_not_written_again() -> None:
    counters = JobCounters()
    recorder = StatisticsRecorder(counters)
    counters.get_lane("q", "n").enqueued += 1
    assert len(record(recorder, NOW)) == len(STEPS)
    assert record(recorder, NOW + 10) == []


def test_rows_that_were_not_stored_are_returned_again() -> None:
    counters = JobCounters()
    recorder = StatisticsRecorder(counters)
    counters.get_lane("q", "n").enqueued += 1
    rows = record(recorder, NOW)
    recorder.put_back(rows)
    assert record(recorder, NOW + 10) == rows


def test_intervals_long_past_are_not_written_any_more() -> None:
    """The backend may have merged their rows meanwhile."""
    counters = JobCounters()
    recorder = StatisticsRecorder(counters)
    counters.get_lane("q", "n").enqueued += 1
    recorder.put_back(record(recorder, NOW))
    assert [row.step for row in record(recorder, NOW + 60 + 301)] == [600, 3600]
