"""Turns the counters of a process into the rows that it stores as statistics."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.core.metrics.counters import JobCounters
from nimburion.core.metrics.statistics import MERGE_AFTER, STEPS, Counters, Statistics

_MAX_DELAY = MERGE_AFTER / 2
"""Seconds after the end of an interval within which its row may still be stored. Later, backends
may have merged the rows of the interval (`Maintaining.prune`), and a repeat would count twice.
"""

_Key = tuple[int, int, str, str]
"""Step, start, queue and name of a row."""


class StatisticsRecorder:
    """Adds what was counted since the last call to the current interval of each step.

    The rows hold absolute values, so storing a row twice changes nothing. `record` notes the
    counters, `take_changed` returns the rows to store. Not thread-safe.
    """

    def __init__(self, counters: JobCounters) -> None:
        self._counters = counters
        self._seen: dict[tuple[str, str], Counters] = {}
        """What was counted at the last call, by queue and name."""
        self._rows: dict[_Key, Counters] = {}
        self._changed: set[_Key] = set()

    def begin(self) -> None:
        """Start again under another source: forget the rows, but not what was counted in them."""
        self._rows.clear()
        self._changed.clear()

    def record(self, now: float) -> None:
        """Add what was counted since the last call to the intervals that contain `now`."""
        for lane in self._counters.list_lanes():
            key = (lane.queue, lane.name)
            before, after = self._seen.get(key, _NOTHING), lane.copy_counters()
            wait, run = lane.take_times()
            if before == after and not wait.buckets and not run.buckets:
                continue
            self._seen[key] = after
            delta = _subtract(after, before)
            delta.wait, delta.run = wait, run
            for step in STEPS:
                self._add((step, int(now) // step * step, *key), delta)
        self._forget_old(now)

    def take_changed(self) -> list[Statistics]:
        """Return the rows that changed since they were last returned."""
        changed, self._changed = sorted(self._changed), set()
        return [
            Statistics(
                step=step,
                start=start,
                queue=queue,
                name=name,
                counters=self._rows[step, start, queue, name],
            )
            for step, start, queue, name in changed
        ]

    def put_back(self, rows: Sequence[Statistics]) -> None:
        """Note that rows of `take_changed` were not stored, so that the next call returns them."""
        for row in rows:
            key = (row.step, row.start, row.queue, row.name)
            if key in self._rows:
                self._changed.add(key)

    def _add(self, key: _Key, delta: Counters) -> None:
        if key not in self._rows:
            self._rows[key] = Counters()
        self._rows[key].add(delta)
        self._changed.add(key)

    def _forget_old(self, now: float) -> None:
        old = [key for key in self._rows if key[1] + key[0] + _MAX_DELAY < now]
        for key in old:
            del self._rows[key]
            self._changed.discard(key)


def _subtract(after: Counters, before: Counters) -> Counters:
    return Counters(**{field: getattr(after, field) - getattr(before, field) for field in _COUNTS})


_NOTHING = Counters()
_COUNTS = ("enqueued", "started", "completed", "failed", "retried", "cancelled", "rescued")
