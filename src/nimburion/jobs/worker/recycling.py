"""When a process is replaced by a fresh one: a child process, or a worker process."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class RunningProcess(Protocol):
    """A process with an age and a size."""

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        ...

    def read_memory(self) -> int:
        """Return its resident memory in bytes; 0 if it cannot be read."""
        ...


class RecycleLimits(NamedTuple):
    """When a process is replaced. It finishes what it runs first. None: never."""

    max_jobs: int | None
    max_memory: int | None
    """Bytes of resident memory."""
    max_age: float | None
    """Seconds."""

    def find_reached(self, process: RunningProcess, job_count: int = 0) -> str:
        """Return which limit a process has reached, as text; empty if it has reached none."""
        if self.max_jobs is not None and job_count >= self.max_jobs:
            return f"{job_count:,} jobs"
        if self.max_age is not None and process.age >= self.max_age:
            return f"an age of {process.age:.0f} s"
        if self.max_memory is not None and (memory := process.read_memory()) >= self.max_memory:
            return f"{memory / 1024**2:.0f} MiB of memory"
        return ""
