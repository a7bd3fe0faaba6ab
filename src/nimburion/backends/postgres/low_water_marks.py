"""Low-water marks: due times before which a lane has no jobs, so that a claim can start there.

An index keeps the entries of deleted rows until no snapshot needs them. A claim that starts at the
front of a lane reads all of these entries. Therefore each worker remembers up to which due time its
lanes are empty. Decision 0004 explains why this is safe with concurrent, uncommitted transactions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nimburion.backends.postgres.encoding import MIN_INT8

_FULL_SCAN_INTERVAL = 60.0
"""Seconds between full scans from the front. They find jobs that the marks hide after the server's
clock steps back.
"""


class LowWaterMarks:
    """The low-water marks of one worker's connection. A new connection starts without marks."""

    __slots__ = (
        "_candidates",
        "_connection",
        "_last_full_scan",
        "_marks",
        "_now",
        "_time",
        "_valid_after",
    )

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self._connection: object = None
        self._last_full_scan = time()
        self._reset()

    def _reset(self) -> None:
        self._marks: dict[int | None, int] = {}
        """The mark of each lane; the key None holds the mark of the scheduled jobs."""
        self._candidates: dict[int | None, int] = {}
        """Marks that become valid when all transactions before `_valid_after` have ended. Those
        transactions may have read an earlier clock.
        """
        self._valid_after: int | None = None
        self._now = MIN_INT8

    def make_arguments(self, connection: object) -> tuple[list[int], list[int], int]:
        """Return the lanes in ascending order, their low-water marks in the same order, and that of
        the scheduled jobs.
        """
        if (
            connection is not self._connection
            or self._time() > self._last_full_scan + _FULL_SCAN_INTERVAL
        ):
            self._connection, self._last_full_scan = connection, self._time()
            self._reset()
        lanes = sorted(lane for lane in self._marks if lane is not None)
        return lanes, [self._marks[lane] for lane in lanes], self._marks.get(None, MIN_INT8)

    def learn(self, status: Any) -> None:  # noqa: ANN401 - a row
        """Update the marks from the status row of an exchange."""
        now, next_due = status["now"], status["next_due"]
        if now < self._now:
            self._reset()
        self._now = now
        sure = now - status["clock_delay"]
        lowest_due = sure if next_due is None else min(sure, next_due)
        heads: dict[int | None, int] = {
            lane: lowest_due if due is None else min(lowest_due, due)
            for lane, due in zip(status["head_lanes"] or (), status["head_dues"] or (), strict=True)
        }
        heads[None] = lowest_due
        if self._valid_after is not None and status["oldest_xid"] >= self._valid_after:
            for lane, mark in self._candidates.items():
                if lane in heads:
                    self._marks[lane] = min(mark, heads[lane])
            self._valid_after = None
        if self._valid_after is None:
            self._candidates, self._valid_after = heads, status["next_xid"]
