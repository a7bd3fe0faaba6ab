"""`MemoryScheduling`: store schedules and fire their ticks."""

from __future__ import annotations

import msgspec

from nimburion.backends.memory import operations
from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord


class MemoryScheduling(Scheduling):
    """The operations of `Scheduling` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

    async def put_schedule(self, schedule: ScheduleRecord) -> None:

        def put(step: AtomicStep) -> None:
            existing = step.state.schedules.get(schedule.name)
            step.state.schedules[schedule.name] = (
                schedule
                if existing is None
                else msgspec.structs.replace(existing, spec=schedule.spec, owner=schedule.owner)
            )

        self._data.run_atomically(put)

    async def list_schedules(self) -> list[ScheduleRecord]:
        return self._data.run_atomically(
            lambda step: [record for _, record in sorted(step.state.schedules.items())]
        )

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:

        def pause(step: AtomicStep) -> bool:
            existing = step.state.schedules.get(name)
            if existing is None:
                return False
            step.state.schedules[name] = msgspec.structs.replace(existing, paused=paused)
            return True

        return self._data.run_atomically(pause)

    async def delete_schedule(self, name: str) -> bool:
        return self._data.run_atomically(
            lambda step: step.state.schedules.pop(name, None) is not None
        )

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        return self._data.run_atomically(
            lambda step: operations.fire(step, name, expected_last, tick, job, overlap)
        )
