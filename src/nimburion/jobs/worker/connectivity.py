"""Tracks whether the backend is reachable, from the results of this worker's own calls.

A worker has two channels to its backend. Exchanges use one; heartbeats use the other, on a separate
thread and connection. One channel may fail alone.
"""

from __future__ import annotations

import threading
from itertools import count
from typing import Literal

from nimburion.core.metrics.counters import CallCounters, OperationCalls
from nimburion.core.outage_log import OutageLog
from nimburion.core.timing.clock import Clock

Channel = Literal["exchange", "heartbeat"]


class _ChannelState:
    """The results of the calls on one channel."""

    __slots__ = ("answer", "calls", "failing")

    def __init__(self, calls: OperationCalls) -> None:
        self.calls: OperationCalls = calls
        self.answer: int = 0
        """The number of the latest answer."""
        self.failing: int | None = None
        """The number of the first failure after that answer; None if the latest call succeeded."""


class BackendConnectivity:
    """A record of answers and failures, safe from any thread.

    Begins an outage when calls fail, and ends it when both channels work again. `backend` names
    the backend in messages (see `Backend.describe`).
    """

    def __init__(
        self,
        clock: Clock,
        backend: str,
        calls: CallCounters | None = None,
        outage: OutageLog | None = None,
    ) -> None:
        self._outage = outage or OutageLog(clock)
        self.calls: CallCounters = calls or CallCounters()
        self._clock = clock
        self._backend = backend
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._channels: dict[Channel, _ChannelState] = {
            "exchange": _ChannelState(self.calls.get_operation("exchange")),
            "heartbeat": _ChannelState(self.calls.get_operation("heartbeat")),
        }
        self.is_failing: bool = False
        """Whether the latest call on any channel failed."""
        self._answered: float | None = None
        self.error: str | None = None
        """The latest failure, as one line; None while no call fails."""

    def note_answer(self, channel: Channel, seconds: float | None = None) -> None:
        """Note that a call was answered. A refusal of its content is an answer too.

        `seconds` is the time that the call took; None if it waited on purpose, or was refused.
        """
        seen = self._channels[channel]
        seen.calls.note_answer(seconds)
        with self._lock:
            seen.answer, seen.failing = next(self._numbers), None
            self._answered = self._clock.monotonic()
            if not self.is_failing:
                if self._outage.since is not None:
                    self._outage.note_answer()
                return
            self.is_failing = any(other.failing for other in self._channels.values())
            if self.is_failing:
                return
            self.error = None
        self._outage.end(release=True)

    def note_failure(self, channel: Channel, error: BaseException) -> None:
        """Note that a call failed: the backend did not answer, or could not execute it."""
        seen = self._channels[channel]
        seen.calls.failed += 1
        with self._lock:
            self.is_failing = True
            seen.failing = seen.failing or next(self._numbers)
            self.error = problem = self.describe_error(error)
        self._outage.begin(problem, hold=True)

    def describe_error(self, error: BaseException) -> str:
        """Return an error as one line. If a time limit passed, the line names the backend."""
        if isinstance(error, TimeoutError) and not str(error):
            return f"{self._backend}: no answer in time"
        return " ".join(str(error).split()) or type(error).__name__

    @property
    def is_unreachable(self) -> bool:
        """Whether no channel had an answer since calls began to fail."""
        first = min(
            (seen.failing for seen in self._channels.values() if seen.failing), default=None
        )
        return first is not None and all(
            seen.failing or seen.answer < first for seen in self._channels.values()
        )

    @property
    def seconds_since_answer(self) -> float | None:
        """Seconds since the last answered call; None if no call was ever answered."""
        if self._answered is None:
            return None
        return max(0.0, self._clock.monotonic() - self._answered)
