"""The results of the latest enqueue calls of a client, for the health of its processor."""

from __future__ import annotations

from nimburion.core.timing.clock import Clock


class EnqueueState:
    """When the backend last answered an enqueue, and the error of the latest call.

    All handles of one client share it. Each write is one assignment, so any thread may use it.
    """

    __slots__ = ("_clock", "answered_at", "error")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.answered_at: float | None = None
        """The monotonic time of the latest answer; None before the first one."""
        self.error: str | None = None
        """Why the latest call had no answer; None if it had one."""

    def note_failure(self, error: BaseException) -> None:
        """Note that the backend did not answer a call."""
        self.error = " ".join(str(error).split()) or type(error).__name__

    def clear(self) -> None:
        """Forget the calls of a client that was closed."""
        self.answered_at = self.error = None

    @property
    def seconds_since_answer(self) -> float | None:
        """Seconds since the latest answer; None before the first one."""
        if self.answered_at is None:
            return None
        return max(0.0, self._clock.monotonic() - self.answered_at)
