"""Readings of time, processors and server, and what lies between two of them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.wire import Wire
from benchmarks.peers.workers import TICK, Workers


@dataclass(frozen=True)
class Reading:
    """Everything at one moment; times in seconds, memory in bytes."""

    at: float
    machine: float
    here: float
    workers: float
    server: float
    commands: int
    requests: int
    memory: int


class Meter:
    """Takes readings of this process, the workers and the server."""

    def __init__(self, wire: Wire, workers: Workers | None = None) -> None:
        self._wire = wire
        self._workers = workers

    def read(self) -> Reading:
        """Now. The wire's own questions are not counted."""
        asked = self._wire.asked
        info = self._wire.info()
        own = os.times()
        return Reading(
            at=time.perf_counter(),
            machine=machine(),
            here=own.user + own.system + own.children_user + own.children_system,
            workers=self._workers.cpu() if self._workers else 0.0,
            server=float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
            commands=int(info["total_commands_processed"]) - asked,
            requests=int(info["total_reads_processed"]) - asked,
            memory=int(info["used_memory"]),
        )


def machine() -> float:
    """Seconds that all processors together were busy since the start of the machine."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / TICK


def foreign(a: Reading, b: Reading) -> float:
    """Cores that something else kept busy between two readings."""
    ours = (b.here - a.here) + (b.workers - a.workers) + (b.server - a.server)
    return max(0.0, (b.machine - a.machine - ours) / (b.at - a.at))


def per_job(a: Reading, b: Reading, jobs: int) -> dict[str, float]:
    """What the server and the machine say of so many jobs between two readings."""
    return {
        "server_us": (b.server - a.server) / jobs * 1e6,
        "commands": (b.commands - a.commands) / jobs,
        "requests": (b.requests - a.requests) / jobs,
        "foreign": foreign(a, b),
    }
