"""Who is measured, and how many jobs each is given so that a scene takes a few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DRAIN_SECONDS = 4


@dataclass(frozen=True)
class Subject:
    """A job system: a module of `benchmarks.peers`. Rates are rough and only size the scenes."""

    name: str
    title: str
    bulk: str
    """How it enqueues many."""
    drain: tuple[int, int]
    """Jobs a second at the default and at the best setting."""
    bulk_jobs: int = 20_000
    best_producer: bool = True
    """Whether the best setting changes anything for who enqueues."""
    one_jobs: int = 10_000
    package: str = ""
    """Its distribution, where that is not its name."""
    cannot: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """Scenes that it cannot follow at its default, and why."""

    def drained(self, best: bool, processes: int) -> int:
        """Jobs for a drain."""
        return self.drain[best] * DRAIN_SECONDS * processes

    def takes_part(self, scene: str, best: bool) -> bool:
        """Whether it can follow this scene at this setting."""
        return best or scene not in self.cannot
