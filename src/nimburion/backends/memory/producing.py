"""`MemoryProducing`: enqueue and cancel jobs."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.backends.memory import operations
from nimburion.backends.memory.data import MemoryData
from nimburion.core.backend import Producing
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.operations import Cancellation


class MemoryProducing(Producing):
    """The operations of `Producing` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        return self._data.run_atomically(lambda step: step.enqueue(jobs))

    async def cancel(self, job_id: str) -> Cancellation:
        return self._data.run_atomically(lambda step: operations.cancel(step, job_id))
