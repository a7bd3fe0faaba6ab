"""What a server says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """At one moment; seconds and bytes. What a kind of server does not have stays 0."""

    cpu: float
    commands: int = 0
    requests: int = 0
    memory: int = 0
    """Of its data: in memory for Redis, on disk for PostgreSQL."""
    transactions: int = 0
    wal: int = 0
