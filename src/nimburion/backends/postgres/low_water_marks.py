"""Where a claim may begin to read: due times before which nothing stands in a lane any more.

An index keeps the entries of deleted rows until no snapshot needs them; a claim that begins at the
front of a lane walks over all of them. So each worker remembers how far its lanes are empty. What
makes that sure, also beside transactions that have not committed yet, is in decision 0004.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nimburion.backends.postgres.encoding import EVER

_SWEEP = 60.0
"""Seconds after which all is read from the front once: a net, should a server's clock step back."""


class Floors:
    """What one worker's connection knows of its lanes. A new connection begins anew."""

    __slots__ = ("_after", "_candidates", "_known", "_link", "_now", "_swept", "_time")

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self._link: object = None
        self._swept = time()
        self._forget()

    def _forget(self) -> None:
        self._known: dict[int | None, int] = {}
        """By lane; None: among what is scheduled."""
        self._candidates: dict[int | None, int] = {}
        """Floors that hold once all transactions before `_after` are over: those that may have read
        an earlier clock."""
        self._after: int | None = None
        self._now = EVER

    def asked(self, link: object) -> tuple[list[int], list[int], int]:
        """Lanes and, side by side, their floors; and the floor of what is scheduled."""
        if link is not self._link or self._time() > self._swept + _SWEEP:
            self._link, self._swept = link, self._time()
            self._forget()
        lanes = [lane for lane in self._known if lane is not None]
        return lanes, [self._known[lane] for lane in lanes], self._known.get(None, EVER)

    def note(self, said: Any) -> None:  # noqa: ANN401 - a row
        """Learn from the answer of an exchange."""
        now, next_due = said["seq"], said["due"]
        if now < self._now:
            self._forget()
        self._now = now
        sure = now - said["fence"]
        bound = sure if next_due is None else min(sure, next_due)
        heads: dict[int | None, int] = {
            lane: bound if due is None else min(bound, due)
            for lane, due in zip(said["heads_of"] or (), said["heads"] or (), strict=True)
        }
        heads[None] = bound
        if self._after is not None and said["since"] >= self._after:
            for lane, floor in self._candidates.items():
                if lane in heads:
                    self._known[lane] = min(floor, heads[lane])
            self._after = None
        if self._after is None:
            self._candidates, self._after = heads, said["created"]
