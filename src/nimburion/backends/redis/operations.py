"""What operators do: what the scripts are asked, and what they answer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from nimburion.backends.redis.encoding import asked_text, refusing
from nimburion.backends.redis.enqueue import slice_of
from nimburion.backends.redis.queries import cursor_of
from nimburion.backends.server.encoding import micros, pack_id, unpack_id
from nimburion.core.errors import JobNotFound
from nimburion.core.job import NewJob
from nimburion.core.operations import Cancellation, Replayed, Retention
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord

_TOMBSTONE = 86_400.0
"""Seconds for which the id of a session that is over is remembered."""


def cancellation_of(answer: bytes, job_id: str) -> Cancellation:
    """What `cancel.lua` answered.

    Raises:
        JobNotFound: there is no such job.
    """
    if answer == b"missing":
        raise JobNotFound(job_id)
    return Cancellation(answer.decode())


def replayed_of(answers: Sequence[list[Any]]) -> Replayed:
    """What calls of `replay.lua` answered together; the last says whether more are meant."""
    ids = [unpack_id(packed) for answer in answers for packed in answer[2]]
    held = [unpack_id(packed) for answer in answers for packed in answer[3]]
    last = next((answer[4] for answer in reversed(answers) if answer[4]), b"")
    more = bool(answers) and answers[-1][5] and last
    return Replayed(ids, held, cursor_of(last) if more else None)


def pruning_of(keep: Retention) -> list[bytes]:
    """What `prune.lua` takes behind its bound."""
    spans = (keep.completed, keep.failed, keep.results)
    most = b"" if keep.completed_max is None else b"%d" % keep.completed_max
    return [*(_span(one) for one in spans), most, _span(_TOMBSTONE)]


def _span(seconds: float | None) -> bytes:
    return b"" if seconds is None else b"%d" % micros(seconds)


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
