"""Where a claim may begin to read: due times before which nothing stands in a lane any more.

An index keeps the entries of deleted rows until no snapshot needs them; a claim that begins at the
front of a lane walks over all of them. So each worker remembers how far its lanes are empty. What
makes that sure, also beside transactions that have not committed yet, is in decision 0004.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nimburion.backends.postgres.encoding import MIN_INT8

_FULL_SCAN_INTERVAL = 60.0
"""Seconds after which all is read from the front once: a net, should a server's clock step back."""


class LowWaterMarks:
    """What one worker's connection knows of its lanes. A new connection begins anew."""

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
        """By lane; None: among what is scheduled."""
        self._candidates: dict[int | None, int] = {}
        """Floors that hold once all transactions before `_after` are over: those that may have read
        an earlier clock."""
        self._valid_after: int | None = None
        self._now = MIN_INT8

    def make_arguments(self, connection: object) -> tuple[list[int], list[int], int]:
        """Lanes and, side by side, their floors; and the floor of what is scheduled."""
        if (
            connection is not self._connection
            or self._time() > self._last_full_scan + _FULL_SCAN_INTERVAL
        ):
            self._connection, self._last_full_scan = connection, self._time()
            self._reset()
        lanes = [lane for lane in self._marks if lane is not None]
        return lanes, [self._marks[lane] for lane in lanes], self._marks.get(None, MIN_INT8)

    def learn(self, status: Any) -> None:  # noqa: ANN401 - a row
        """Learn from the answer of an exchange."""
        now, next_due = status["seq"], status["due"]
        if now < self._now:
            self._reset()
        self._now = now
        sure = now - status["fence"]
        bound = sure if next_due is None else min(sure, next_due)
        heads: dict[int | None, int] = {
            lane: bound if due is None else min(bound, due)
            for lane, due in zip(status["heads_of"] or (), status["heads"] or (), strict=True)
        }
        heads[None] = bound
        if self._valid_after is not None and status["since"] >= self._valid_after:
            for lane, floor in self._candidates.items():
                if lane in heads:
                    self._marks[lane] = min(floor, heads[lane])
            self._valid_after = None
        if self._valid_after is None:
            self._candidates, self._valid_after = heads, status["created"]
