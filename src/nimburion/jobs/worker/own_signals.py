"""Detects signals that code in this process sends to its own process.

Python does not tell a signal handler who has sent the signal. An audit hook sees `os.kill`,
`os.killpg` and `signal.pthread_kill` before they are called. It does not see signals from other
processes, from `signal.raise_signal` or from code in C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from signal import Signals

_TARGETS: dict[str, Callable[[object], bool]] = {
    # 0 and -1 are the own group and all processes; other negative numbers are groups.
    "os.kill": lambda pid: pid in {os.getpid(), 0, -1, -os.getpgrp()},
    "os.killpg": lambda group: group in {os.getpgrp(), 0},
    "signal.pthread_kill": lambda _: True,
}
"""Whether the target of a signal includes this process, by the name of the event."""


class OwnSignals:
    """Calls `on_send` when code in this process sends one of these signals to this process.

    Python cannot remove an audit hook, so start this only in a process that runs one worker.
    """

    def __init__(self, signals: Collection[Signals], on_send: Callable[[], None]) -> None:
        self._signals = frozenset(signals)
        self._on_send = on_send
        self._is_watching = False

    def start(self) -> None:
        """Start to watch. Call it once."""
        self._is_watching = True
        sys.addaudithook(self._check_event)

    def stop(self) -> None:
        """Ignore all later signals."""
        self._is_watching = False

    def _check_event(self, event: str, arguments: tuple[object, ...]) -> None:
        """Check one audit event. Called by each thread, in the middle of its work."""
        if not (event in _TARGETS and self._is_watching):
            return
        target, number = arguments
        if number in self._signals and _TARGETS[event](target):
            self._on_send()
