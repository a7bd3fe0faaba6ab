"""Who is measured, and how many jobs each is given so that a scene takes a few seconds."""

from __future__ import annotations

from dataclasses import dataclass

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

    def drained(self, best: bool, processes: int) -> int:
        """Jobs for a drain."""
        return self.drain[best] * DRAIN_SECONDS * processes


OURS = Subject("nimburion", "nimburion", "enqueue_many of 1,000", (70_000, 80_000), 200_000)
BARE = Subject("bare", "bare LPUSH", "gather of 100", (0, 0), 50_000)
PEERS = {
    peer.name: peer
    for peer in (
        Subject("taskiq", "Taskiq (stream)", "gather of 100", (5_500, 6_000)),
        Subject("dramatiq", "Dramatiq", "one by one", (2_500, 6_000), best_producer=False),
        Subject("saq", "SAQ", "gather of 100", (3_000, 3_800)),
        Subject("streaq", "streaq", "enqueue_many of 1,000", (1_700, 1_800), 40_000),
        Subject("arq", "arq", "gather of 100", (206, 3_000)),
        Subject(
            "celery", "Celery (at most once)", "shared producer", (1_200, 1_500), 10_000, False
        ),
        Subject("rq", "RQ", "enqueue_many of 1,000", (70, 350), 40_000),
        Subject("huey", "Huey (at most once)", "one by one", (4_500, 6_000), best_producer=False),
        Subject("bullmq", "BullMQ (Node)", "addBulk of 1,000", (7_500, 20_000), 50_000, False),
    )
}
