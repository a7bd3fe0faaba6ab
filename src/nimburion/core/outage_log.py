"""The log of an outage: one line at its start and one at its end, whichever service notices it."""

from __future__ import annotations

import logging
import threading

from nimburion.core.timing.clock import Clock

_log = logging.getLogger("nimburion.worker")

_SHORTEST = 1.0
"""Seconds after the start of an outage for which a call that did not fail before cannot end it: the
backend may have sent its answer before the outage.
"""


class OutageLog:
    """Logs when the backend becomes unreachable for this process, and when it answers again.

    The worker and all services of a processor share one. If calls of the worker fail, the worker
    holds the outage. Then only answers to the worker end it, not those to another service.
    Safe from any thread.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.since: float | None = None
        """When the outage began whose end is not logged yet; None: there is none."""
        self._is_held = False

    def begin(self, problem: str, *, hold: bool = False) -> None:
        """Log the start of an outage, unless one is in progress; `hold` it for a worker."""
        with self._lock:
            self._is_held = self._is_held or hold
            if self.since is not None:
                return
            self.since = self._clock.monotonic()
        _log.warning(
            "backend unreachable (%s); retrying. Running jobs continue until their leases expire",
            problem,
        )

    def end(self, *, release: bool = False) -> None:
        """Log the end of the outage if one is in progress; `release` it first if a worker held it.

        A call that failed before was answered.
        """
        with self._lock:
            self._is_held = self._is_held and not release
            since = self.since
            if since is None or self._is_held:
                return
            self.since = None
        _log.warning("backend reachable again after %.1f s", self._clock.monotonic() - since)

    def note_answer(self) -> None:
        """End the outage if another call, which did not fail before, shows that it is over."""
        since = self.since
        if since is not None and self._clock.monotonic() - since >= _SHORTEST:
            self.end()
