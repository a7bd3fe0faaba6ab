"""`MemoryScheduling`: fire the ticks of schedules."""

from __future__ import annotations

from nimburion.backends.memory import operations
from nimburion.backends.memory.data import MemoryData
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, Overlap


class MemoryScheduling(Scheduling):
    """The operations of `Scheduling` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        return self._data.run_atomically(
            lambda step: operations.fire(step, name, expected_last, tick, job, overlap)
        )
