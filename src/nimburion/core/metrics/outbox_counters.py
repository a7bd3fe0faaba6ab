"""Counters of an outbox in this process: what its relay did, and what it found."""

from __future__ import annotations


class OutboxCounters:
    """What the relay of this process sent and dropped, and the lag that it measured last."""

    __slots__ = ("dropped", "jobs", "oldest_seconds", "relayed")

    def __init__(self) -> None:
        self.relayed: int = 0
        """How many jobs were sent to the backend."""
        self.dropped: int = 0
        """How many jobs were dropped, because the backend refused their id or unique key."""
        self.jobs: int | None = None
        """How many jobs waited after the latest poll; None before the first one."""
        self.oldest_seconds: float = 0.0
        """How long the oldest of them had waited."""
