"""`MemoryScheduling`: fire the ticks of schedules."""

from __future__ import annotations

import msgspec

from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.records import get_record, put_record
from nimburion.backends.memory.transitions import AtomicStep, check_job_times
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.records import NewRecord
from nimburion.core.schedules import Fired, Overlap, decode_schedule, encode_schedule


class MemoryScheduling(Scheduling):
    """The operations of `Scheduling` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        check_job_times([job])
        with AtomicStep(self._data) as step:
            record = get_record(step, "schedule", name)
            if record is None:
                return Fired("missing")
            schedule = decode_schedule(record)
            if schedule.paused:
                return Fired("paused")
            if schedule.last_tick != expected_last:
                return Fired("moved")
            stored: str | None = None
            if schedule.last_job is None or allows_next_job(step, schedule.last_job, overlap):
                (result,) = step.enqueue([job])
                stored = result.id if result.outcome in {"created", "exists", "replaced"} else None
            schedule = msgspec.structs.replace(
                schedule, last_tick=tick, last_job=stored or schedule.last_job
            )
            new = NewRecord(kind="schedule", id=name, body=encode_schedule(schedule))
            put_record(step, new)
        return Fired("skipped") if stored is None else Fired("fired", stored)


def allows_next_job(step: AtomicStep, last_job: str, overlap: Overlap) -> bool:
    """Return whether the overlap policy allows a new job while the previous job may be unfinished.

    `cancel_previous` cancels the previous job.
    """
    entry = step.state.jobs.get(last_job)
    if entry is None or entry.final_state is not None or overlap == "allow":
        return True
    if overlap == "cancel_previous":
        step.cancel(last_job)
        return True
    started = entry.leased is not None or entry.failures > 0
    return overlap == "queue_one" and started
