"""Readings of time, processors and server, and what lies between two of them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.figures import Figures
from benchmarks.peers.server_statistics import StatisticsSource
from benchmarks.peers.workers import TICK, Workers


@dataclass(frozen=True)
class Reading:
    """Everything at one moment; times in seconds."""

    at: float
    machine: float
    here: float
    workers: float
    server: Figures


class Meter:
    """Takes readings of this process, the workers and the server."""

    def __init__(self, wire: StatisticsSource, workers: Workers | None = None) -> None:
        self._wire = wire
        self._workers = workers

    def read(self) -> Reading:
        """Now. The wire's own questions are not counted."""
        server = self._wire.figures()
        own = os.times()
        return Reading(
            at=time.perf_counter(),
            machine=machine(),
            here=own.user + own.system + own.children_user + own.children_system,
            workers=self._workers.cpu() if self._workers else 0.0,
            server=server,
        )


def machine() -> float:
    """Seconds that all processors together were busy since the start of the machine."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / TICK


def foreign(a: Reading, b: Reading) -> float:
    """Cores that something else kept busy between two readings."""
    ours = (b.here - a.here) + (b.workers - a.workers) + (b.server.cpu - a.server.cpu)
    return max(0.0, (b.machine - a.machine - ours) / (b.at - a.at))


def per_job(a: Reading, b: Reading, jobs: int) -> dict[str, float]:
    """What the server and the machine say of so many jobs between two readings."""
    return {
        "server_us": (b.server.cpu - a.server.cpu) / jobs * 1e6,
        "commands": (b.server.commands - a.server.commands) / jobs,
        "requests": (b.server.requests - a.server.requests) / jobs,
        "transactions": (b.server.transactions - a.server.transactions) / jobs,
        "wal": (b.server.wal - a.server.wal) / jobs,
        "foreign": foreign(a, b),
    }
