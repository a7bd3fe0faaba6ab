"""Storage for the scheduler: schedules as bytes, and what the scripts are asked and answer.

A schedule is packed as: paused 1 (`1` or `0`) | ticked 1 (likewise) | last tick 8, a double |
last job 1 + n | owner 2 + n | spec. What stands before the owner is what happened so far.
"""

from __future__ import annotations

import struct
from typing import Any

from nimburion.backends.packing import pack_id, unpack_id
from nimburion.backends.redis.enqueueing import slice_of
from nimburion.backends.redis.records import asked_text, refusing
from nimburion.core.job import NewJob
from nimburion.core.reading import Fired, Overlap, ScheduleRecord

_PAST = struct.Struct(">ccdB")
_TICK = struct.Struct(">d")
_FLAGS = (b"0", b"1")


@refusing
def schedule_of(schedule: ScheduleRecord) -> list[bytes]:
    """What `put_schedule.lua` takes."""
    job = b"" if schedule.last_job is None else pack_id(schedule.last_job)
    ticked, owner = schedule.last_tick is not None, schedule.owner.encode()
    past = _PAST.pack(_FLAGS[schedule.paused], _FLAGS[ticked], schedule.last_tick or 0.0, len(job))
    said = len(owner).to_bytes(2, "big") + owner + schedule.spec
    return [schedule.name.encode(), past + job, said]


def schedules_of(answer: list[bytes]) -> list[ScheduleRecord]:
    """What `schedules.lua` answered, by name."""
    records = [
        _record(name.decode(), packed)
        for name, packed in zip(answer[::2], answer[1::2], strict=True)
    ]
    return sorted(records, key=lambda record: record.name)


def _record(name: str, packed: bytes) -> ScheduleRecord:
    paused, ticked, tick, length = _PAST.unpack_from(packed)
    behind_job = _PAST.size + length
    behind_owner = behind_job + 2 + int.from_bytes(packed[behind_job : behind_job + 2], "big")
    return ScheduleRecord(
        name=name,
        spec=packed[behind_owner:],
        owner=packed[behind_job + 2 : behind_owner].decode(),
        paused=paused == b"1",
        last_tick=tick if ticked == b"1" else None,
        last_job=unpack_id(packed[_PAST.size : behind_job]) if length else None,
    )


def firing_of(
    name: str, move: tuple[float | None, float], job: NewJob, overlap: Overlap
) -> list[bytes]:
    """What `fire.lua` takes; `move` is from which last tick to which.

    Raises:
        Unstorable: a time or a text of the job that cannot be.
    """
    expected, tick = move
    one = slice_of([job])
    return [
        asked_text(name),
        b"" if expected is None else _tick(expected),
        _tick(tick),
        overlap.encode(),
        one.metas,
        *one.lanes,
        *one.bodies,
        *one.apart,
    ]


def _tick(tick: float) -> bytes:
    """A tick, compared as these bytes; there is one zero."""
    return _TICK.pack(tick + 0.0)


def fired_of(answer: list[Any]) -> Fired:
    """What `fire.lua` answered."""
    outcome, job_id = answer
    return Fired(outcome.decode(), unpack_id(job_id) if job_id else None)
