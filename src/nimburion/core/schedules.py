"""Schedules: how they are stored as records, and what a tick does. `fire` decides the ticks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from nimburion.core.job import Enqueued
from nimburion.core.records import NewRecord, Record, RecordPut, encode_body

if TYPE_CHECKING:
    from nimburion.core.backend import Backend

Overlap = Literal["allow", "skip", "queue_one", "cancel_previous"]


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stored schedule. `spec` is the scheduler's own JSON, which is kept unchanged."""

    name: str
    spec: bytes
    owner: str = ""
    paused: bool = False
    last_tick: float | None = None
    """The nominal time of the latest decided tick, in epoch seconds."""
    last_job: str | None = None
    """The job of the latest tick that enqueued a job."""
    version: int = 0
    """The version of its record; 0: it is not stored."""


class _ScheduleBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of the record of a schedule. SQL and Lua read and write it, so it has no numbers."""

    spec: str
    owner: str
    paused: bool
    last_tick: str | None
    last_job: str | None


_decode = msgspec.json.Decoder(_ScheduleBody).decode


def encode_schedule(schedule: ScheduleRecord) -> bytes:
    """Return the body of the record of a schedule."""
    return encode_body(
        _ScheduleBody(
            spec=schedule.spec.decode(),
            owner=schedule.owner,
            paused=schedule.paused,
            last_tick=None if schedule.last_tick is None else encode_tick(schedule.last_tick),
            last_job=schedule.last_job,
        )
    )


def decode_schedule(record: Record) -> ScheduleRecord:
    """Return the schedule of a record."""
    body = _decode(record.body)
    return ScheduleRecord(
        name=record.id,
        spec=body.spec.encode(),
        owner=body.owner,
        paused=body.paused,
        last_tick=None if body.last_tick is None else float(body.last_tick),
        last_job=body.last_job,
        version=record.version,
    )


def encode_tick(tick: float) -> str:
    """Return a tick as text. Equal ticks have the same text, so backends compare the texts.

    >>> encode_tick(-0.0)
    '0.0'
    """
    return repr(tick + 0.0)


class Fired(msgspec.Struct, frozen=True):
    """The result of a tick."""

    outcome: Literal["fired", "skipped", "moved", "paused", "missing"]
    """The outcome of the tick. Only `fired` stores a job.

    - `fired`: the job is stored.
    - `skipped`: the overlap rule decided the tick without a job.
    - `moved`: the last tick was not `expected_last`, because another process decided this tick.
    - `paused`, `missing`: the schedule is paused or does not exist; nothing was written.
    """
    job_id: str | None = None


def check_tick(record: Record | None, expected_last: float | None) -> ScheduleRecord | Fired:
    """Return the schedule, or why its tick is not decided now."""
    if record is None:
        return Fired("missing")
    schedule = decode_schedule(record)
    if schedule.paused:
        return Fired("paused")
    return schedule if schedule.last_tick == expected_last else Fired("moved")


def end_tick(
    schedule: ScheduleRecord, tick: float, result: Enqueued | None
) -> tuple[NewRecord, Fired]:
    """Return the record to store, and the answer. `result` is that of the job; None: the overlap
    policy allowed none.
    """
    is_stored = result is not None and result.outcome in {"created", "exists", "replaced"}
    job_id = result.id if result is not None and is_stored else None
    schedule = msgspec.structs.replace(
        schedule, last_tick=tick, last_job=job_id or schedule.last_job
    )
    record = NewRecord(kind="schedule", id=schedule.name, body=encode_schedule(schedule))
    return record, Fired("skipped") if job_id is None else Fired("fired", job_id)


_PAGE_SIZE = 1_000


async def put_schedule(backend: Backend, schedule: ScheduleRecord) -> None:
    """Add or replace a schedule.

    If the kept schedule has another version, it gets the new spec and owner, and keeps its
    `last_tick`, `last_job` and `paused`.
    """
    spec, owner = schedule.spec, schedule.owner
    while (put := await _put(backend, schedule)).outcome != "stored":
        schedule = (
            ScheduleRecord(name=schedule.name, spec=spec, owner=owner)
            if put.record is None
            else msgspec.structs.replace(decode_schedule(put.record), spec=spec, owner=owner)
        )


async def pause_schedule(backend: Backend, name: str, *, paused: bool) -> bool:
    """Pause or resume a schedule. Return False if there is no schedule of this name."""
    record = await backend.reads.get_record("schedule", name)
    while record is not None:
        changed = msgspec.structs.replace(decode_schedule(record), paused=paused)
        put = await _put(backend, changed)
        if put.outcome == "stored":
            return True
        record = put.record
    return False


async def _put(backend: Backend, schedule: ScheduleRecord) -> RecordPut:
    record = NewRecord(kind="schedule", id=schedule.name, body=encode_schedule(schedule))
    return await backend.maintenance.put_record(record, version=schedule.version)


async def delete_schedule(backend: Backend, name: str) -> bool:
    """Delete a schedule. Return False if there is no schedule of this name."""
    return await backend.maintenance.delete_record("schedule", name)


async def list_schedules(backend: Backend) -> list[ScheduleRecord]:
    """Return all schedules, ordered by name."""
    schedules: list[ScheduleRecord] = []
    after: str | None = None
    while True:
        page = await backend.reads.list_records("schedule", limit=_PAGE_SIZE, after=after)
        schedules += map(decode_schedule, page.records)
        after = page.next
        if after is None:
            return sorted(schedules, key=lambda schedule: schedule.name)
