"""The plan of a run: which faults come when. It follows from the seed.

A fault comes when a share of all jobs has ended. So jobs flow at each fault, however slow the
machine is.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Literal

import msgspec

FaultKind = Literal[
    "kill", "pause", "rolling restart", "cut", "black hole", "lost reply", "restart"
]

RECOVERABLE = ("kill", "pause")
"""The faults that take a worker from its jobs."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a run."""

    jobs: int = 100_000
    kills: int = 200
    pauses: int = 20
    cuts: int = 20
    black_holes: int = 10
    lost_replies: int = 100
    restarts: int = 10
    rolling_restarts: int = 0
    """How often all workers are asked to stop and started again, one member after another."""
    workers: int = 4
    processes: int = 1
    """Worker processes of each `nimburion worker`; with more than one, it is a supervisor."""
    sessions: int = 1
    """Workers in each process. With more than one, a fault of a process hits all of them."""
    names: int = 0
    """With a number, the jobs have so many names, and their handlers do nothing."""
    least_alive: int = 1
    """A worker process is killed or paused only while so many are ready: others rescue its jobs."""
    flows: int = 0
    """With a number, the jobs are those of so many flows."""
    durable: int = 0
    """How many durable runs there are beside the flows."""
    filled: bool = False
    """Whether all jobs are enqueued before the workers start."""
    ttl: float = 2.0
    """The session TTL in seconds."""
    seconds: float = 170.0
    """The least time over which jobs are enqueued."""

    def count_faults(self, *, has_server: bool) -> dict[FaultKind, int]:
        """Return how many faults of each kind the run has. Without a server, none concerns one."""
        own: dict[FaultKind, int] = {
            "kill": self.kills,
            "pause": self.pauses,
            "rolling restart": self.rolling_restarts,
        }
        server: dict[FaultKind, int] = {
            "cut": self.cuts,
            "black hole": self.black_holes,
            "lost reply": self.lost_replies,
            "restart": self.restarts,
        }
        return own | server if has_server else own


class PlannedFault(msgspec.Struct, frozen=True):
    """A fault that is to come."""

    at: float
    """The share of all jobs that have ended by then, from 0 to 1."""
    kind: FaultKind
    seconds: float
    """How long it lasts; 0: it is over at once."""
    draw: float
    """From 0 to 1: selects the target among those that are there."""


def make_plan(counts: Mapping[FaultKind, int], size: Size, random: Random) -> list[PlannedFault]:
    """Return the faults in the order of their times.

    Those of one kind are spread evenly: one at a random moment of each interval.
    """
    plan = []
    for kind, count in counts.items():
        for n in range(count):
            at = (n + random.random()) / count
            seconds = draw_seconds(kind, size.ttl, random)
            plan.append(PlannedFault(at, kind, seconds, random.random()))
    return sorted(plan, key=lambda fault: fault.at)


def draw_seconds(kind: FaultKind, ttl: float, random: Random) -> float:
    """Draw how long a fault lasts.

    A pause is longer than the TTL. Half of the black holes are, the others are shorter.
    """
    if kind == "pause":
        return ttl * random.uniform(1.3, 2.0)
    if kind == "black hole":
        return ttl * random.choice([random.uniform(0.2, 0.6), random.uniform(1.3, 2.0)])
    return 0.0
