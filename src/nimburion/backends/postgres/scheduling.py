"""Storage for the scheduler: what its functions are asked and answer."""

from __future__ import annotations

from typing import Any

from nimburion.backends.packing import pack_id, unpack_id
from nimburion.backends.postgres.records import refusing, text_of
from nimburion.core.reading import Fired, ScheduleRecord


@refusing
def schedule_of(schedule: ScheduleRecord) -> list[Any]:
    """What `put_schedule_1` takes."""
    return [
        text_of(schedule.name),
        schedule.spec,
        text_of(schedule.owner),
        schedule.paused,
        schedule.last_tick,
        None if schedule.last_job is None else pack_id(schedule.last_job),
    ]


def schedules_of(rows: list[Any]) -> list[ScheduleRecord]:
    """All schedules, by name."""
    records = [
        ScheduleRecord(
            name=name,
            spec=spec,
            owner=owner,
            paused=paused,
            last_tick=last_tick,
            last_job=None if last_job is None else unpack_id(last_job),
        )
        for name, spec, owner, paused, last_tick, last_job in rows
    ]
    return sorted(records, key=lambda record: record.name)


def fired_of(row: Any) -> Fired:  # noqa: ANN401 - a row
    """What `fire_1` answered."""
    outcome, job_id = row
    return Fired(outcome, None if job_id is None else unpack_id(job_id))
