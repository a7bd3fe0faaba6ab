"""Statistics of jobs by time, queue and name: counters, and histograms of wait and run times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.metrics.histogram import Histogram

STEPS: Mapping[int, float] = {60: 3 * 3600.0, 600: 3 * 86_400.0, 3600: 30 * 86_400.0}
"""The lengths of the intervals in seconds, and for how many seconds each is kept."""

MAX_INTERVALS = 1_500
"""The maximum number of intervals that one read returns for each queue and name."""

MERGE_AFTER = 600.0
"""Seconds after the end of an interval from which `prune` may merge the rows of its sources. No
source stores a row of the interval after half of this time.
"""

WRITE_INTERVAL = 10.0
"""Seconds between two writes of the counters of a process."""
MISSING_SECONDS = 11
"""The seconds before now whose counts may not be stored yet: the interval varies by a tenth."""

MERGED_SOURCE = ""
"""The source of merged rows."""

WAIT_BOUNDS: tuple[float, ...] = (
    0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0,
)  # fmt: skip
"""Inclusive upper bounds of the buckets of wait times in the metrics, in seconds; one more bucket
has the rest. Statistics have finer buckets (`Histogram`).
"""

RUN_BOUNDS: tuple[float, ...] = (
    0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 21_600.0,
)  # fmt: skip
"""Inclusive upper bounds of the buckets of run times in the metrics, as `WAIT_BOUNDS`."""


class Counters(msgspec.Struct, omit_defaults=True, gc=False):
    """What happened to the jobs of one name in one queue during one interval."""

    enqueued: int = 0
    started: int = 0
    """Attempts whose handler was called."""
    completed: int = 0
    failed: int = 0
    """Jobs that became dead letters."""
    retried: int = 0
    """Attempts that failed and will run again."""
    cancelled: int = 0
    rescued: int = 0
    """Jobs taken back from sessions that expired."""
    wait: Histogram = msgspec.field(default_factory=Histogram)
    """Seconds from the due time of a job to its start."""
    run: Histogram = msgspec.field(default_factory=Histogram)
    """Seconds that attempts ran."""

    def add(self, other: Counters) -> None:
        """Add the counts of another interval or source."""
        self.enqueued += other.enqueued
        self.started += other.started
        self.completed += other.completed
        self.failed += other.failed
        self.retried += other.retried
        self.cancelled += other.cancelled
        self.rescued += other.rescued
        self.wait.add(other.wait)
        self.run.add(other.run)


class Statistics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The counters of one interval, queue and name."""

    step: int
    """The length of the interval in seconds, a key of `STEPS`."""
    start: int
    """The start of the interval in epoch seconds, a multiple of `step`."""
    queue: str
    name: str
    counters: Counters


def add_statistics(rows: Iterable[Statistics]) -> list[Statistics]:
    """Add up the rows of different sources, and return them by start, queue and name.

    A row without another to add is returned itself: most rows have one source, and there are many.
    """
    single: dict[tuple[int, int, str, str], Statistics] = {}
    sums: dict[tuple[int, int, str, str], Counters] = {}
    for row in rows:
        key = (row.step, row.start, row.queue, row.name)
        if key not in single:
            single[key] = row
            continue
        if key not in sums:
            sums[key] = Counters()
            sums[key].add(single[key].counters)
            single[key] = msgspec.structs.replace(row, counters=sums[key])
        sums[key].add(row.counters)
    return [single[key] for key in sorted(single)]


def choose_step(since: float, until: float, now: float) -> int:
    """Return the shortest step that is kept since `since`, in at most `MAX_INTERVALS` intervals.

    The longest step, if none is.
    """
    for step, kept in STEPS.items():
        if now - since <= kept and (until - since) / step <= MAX_INTERVALS:
            return step
    return max(STEPS)


def check_interval(since: float, until: float, step: int) -> None:
    """Check the arguments of a read of statistics.

    Raises:
        InvalidJob: `step` is no key of `STEPS`, or the range has more than `MAX_INTERVALS`
            intervals.
    """
    if step not in STEPS:
        raise InvalidJob(f"step must be one of {', '.join(map(str, STEPS))} seconds, not {step!r}")
    if not (until - since) / step <= MAX_INTERVALS:
        raise InvalidJob(
            f"{since!r} to {until!r} has more than {MAX_INTERVALS} intervals of {step} s: ask for "
            "a shorter range or a longer step"
        )
