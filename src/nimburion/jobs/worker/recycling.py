"""When a process is replaced by a fresh one: a child process, or a worker process."""

from __future__ import annotations

from typing import Protocol

from nimburion.core.settings import Recycle


class RunningProcess(Protocol):
    """A process with an age and a size."""

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        ...

    def read_memory(self) -> int:
        """Return its resident memory in bytes; 0 if it cannot be read."""
        ...


def find_reached_limit(recycle: Recycle, process: RunningProcess, job_count: int = 0) -> str:
    """Return which limit a process has reached, as text; empty if it has reached none."""
    if recycle.jobs is not None and job_count >= recycle.jobs:
        return f"{job_count:,} jobs"
    if recycle.age is not None and process.age >= recycle.age:
        return f"an age of {process.age:.0f} s"
    if recycle.memory is not None and (memory := process.read_memory()) >= recycle.memory:
        return f"{memory / 1024**2:.0f} MiB of memory"
    return ""
