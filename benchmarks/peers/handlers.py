"""What the jobs do, beside nothing."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.peers.setting import setting

BURNED = 0.001
"""Seconds."""


def burn(*_: str) -> None:
    """Use the processor for a millisecond, by the thread's own clock."""
    until = time.thread_time() + BURNED
    while time.thread_time() < until:
        pass


def note(sent: float) -> None:
    """Write down how many milliseconds ago that was. Every process reads the same clock."""
    late = (time.monotonic() - sent) * 1e3
    with Path(setting().notes).open("a", encoding="ascii") as file:
        file.write(f"{late:.4f}\n")
