"""All schedules of a backend: read them, add some by hand, pause, resume, remove, run now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Literal

import msgspec

from nimburion.core.backend import Inspecting
from nimburion.core.errors import DefinitionError, JobNotFound, ScheduleNotFound
from nimburion.core.job import JobRecord, NewJob, State
from nimburion.core.paging import iterate_jobs
from nimburion.core.queries import JobFilter
from nimburion.core.schedules import ScheduleRecord
from nimburion.jobs.client.client import Client
from nimburion.scheduler.backend_clock import BackendClock
from nimburion.scheduler.declarations import check_schedule_name, make_raw_job, make_spec
from nimburion.scheduler.spec import (
    NAME_HEADER,
    TICK_HEADER,
    ScheduleSpec,
    format_time,
    make_job_id,
    parse_spec,
)
from nimburion.scheduler.triggers import When, explain_trigger

Condition = Literal["active", "paused", "disabled", "inactive", "over", "unreadable"]
"""`disabled`: its code says `enabled=False`. `inactive`: nobody who runs declares it. `over`: no
tick is left. `unreadable`: of another version of nimburion."""


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule, as read. Times are epoch seconds."""

    name: str
    condition: Condition
    trigger: str
    explanation: str
    timezone: str
    owner: str
    """The application that declares it; empty: added by hand."""
    job: str
    """Empty where the job is computed."""
    queue: str
    next_ticks: list[int]
    last_tick: float | None
    last_job: str | None
    last_state: State | None = None
    """How the last job stands; None: there was none, or it is forgotten."""
    misfire: str
    overlap: str


class Schedules:
    """The schedules of a client's store, whoever declared them."""

    def __init__(self, client: Client, timezone: str = "UTC") -> None:
        self._client = client
        self._timezone = timezone
        self._time = BackendClock(client.clock, client.backend)

    async def list(self, ticks: int = 5) -> list[ScheduleInfo]:
        """All of them, by name, with so many coming ticks."""
        records = await self._client.backend.list_schedules()
        return [await self._describe(record, ticks) for record in records]

    async def get(self, name: str, ticks: int = 5) -> ScheduleInfo:
        """One of them. `ScheduleNotFound`."""
        return await self._describe(await self._get_record(name), ticks)

    async def add(
        self,
        name: str,
        when: When,
        job_name: str,
        payload: str = "{}",
        *,
        queue: str = "default",
        priority: int = 5,
        **options: Any,
    ) -> ScheduleInfo:
        """Add a schedule by hand, or change one that was added by hand. Every scheduler of the
        store fires it. `options` are `timezone`, `misfire`, `overlap`, `jitter`, `start`, `end` and
        so on. `DefinitionError` for what cannot be, and for a name that code declares."""
        job = make_raw_job(self._client, job_name, queue, payload, priority)
        spec = make_spec(when, self._timezone, job, **options)
        kept = await self._find_record(check_schedule_name(name))
        if kept is not None and kept.owner:
            raise DefinitionError(f"schedule {name!r} is declared by the code of {kept.owner!r}")
        put = ScheduleRecord(name=name, spec=await self._start_now(spec))
        if not list_next_ticks(spec, self._read_now(), 1):
            raise DefinitionError(f"schedule {name!r} would never tick: {spec.trigger} is past")
        await self._client.backend.put_schedule(put)
        return await self.get(name)

    async def pause(self, name: str) -> None:
        """Fire no tick until it is resumed. `ScheduleNotFound`."""
        if not await self._client.backend.pause_schedule(name, paused=True):
            raise ScheduleNotFound(name)

    async def resume(self, name: str) -> None:
        """Fire its ticks from now on; those of the pause are not made up. `ScheduleNotFound`."""
        record = await self._get_record(name)
        if record.paused:
            put = msgspec.structs.replace(
                record, spec=await self._start_now(parse_spec(record.spec))
            )
            await self._client.backend.put_schedule(put)
            await self._client.backend.pause_schedule(name, paused=False)

    async def remove(self, name: str) -> None:
        """Forget it. `DefinitionError` while code that runs declares it: it would come back.
        `ScheduleNotFound`."""
        record = await self._get_record(name)
        if record.owner and _choose_condition(record, self._read_now()) not in {
            "inactive",
            "unreadable",
        }:
            raise DefinitionError(
                f"schedule {name!r} is declared by the code of {record.owner!r}, which runs: "
                "pause it, or take it out of the code"
            )
        await self._client.backend.delete_schedule(name)

    async def run_now(self, name: str) -> str:
        """Enqueue its job here and now, beside its ticks; the job's id. `ScheduleNotFound`;
        `DefinitionError` where the job is computed."""
        spec = parse_spec((await self._get_record(name)).spec)
        if spec.payload is None:
            raise DefinitionError(f"the job of {name!r} is computed by its code, not known here")
        job = self._make_extra_job(name, spec)
        await self._client.backend.enqueue([job])
        return job.id

    async def history(self, name: str, limit: int = 20) -> Sequence[JobRecord]:
        """Its latest jobs that are kept, newest first. `ScheduleNotFound`."""
        record = await self._get_record(name)
        return await list_schedule_jobs(
            self._client.backend, record, parse_spec(record.spec), limit
        )

    # Inside

    def _read_now(self) -> float:
        return self._time.now()

    async def _find_record(self, name: str) -> ScheduleRecord | None:
        records = await self._client.backend.list_schedules()
        return next((record for record in records if record.name == name), None)

    async def _get_record(self, name: str) -> ScheduleRecord:
        record = await self._find_record(name)
        if record is None:
            raise ScheduleNotFound(name)
        return record

    async def _start_now(self, spec: ScheduleSpec) -> bytes:
        """The schedule as it is stored; ticks up to now, by the backend's clock, are none of it."""
        await self._time.synchronize()
        return msgspec.structs.replace(spec, since=self._read_now()).encode()

    async def _describe(self, record: ScheduleRecord, ticks: int) -> ScheduleInfo:
        now = self._read_now()
        state = None
        if record.last_job is not None:
            try:
                state = (await self._client.backend.get(record.last_job)).state
            except JobNotFound:
                state = None
        return _make_info(record, now, ticks, state)

    def _make_extra_job(self, name: str, spec: ScheduleSpec) -> NewJob:
        now = self._read_now()
        headers = {**spec.options.headers, NAME_HEADER: name, TICK_HEADER: format_time(now)}
        return NewJob(
            f"{name}:now:{int(now * 1000)}",
            spec.job,
            spec.queue,
            (spec.payload or "{}").encode(),
            spec.priority,
            options=msgspec.structs.replace(spec.options, headers=headers),
        )


def _make_info(record: ScheduleRecord, now: float, ticks: int, state: State | None) -> ScheduleInfo:
    spec, condition = _parse_spec_or_stub(record), _choose_condition(record, now)
    readable = condition != "unreadable"
    table = spec.timetable() if readable else None
    return ScheduleInfo(
        name=record.name,
        condition=condition,
        trigger=spec.trigger,
        explanation=explain_trigger(table.trigger) if table else "of another version of nimburion",
        timezone=spec.timezone,
        owner=record.owner,
        job=spec.job,
        queue=spec.queue,
        next_ticks=list_next_ticks(spec, max(now, spec.since), ticks) if readable else [],
        last_tick=record.last_tick,
        last_job=record.last_job,
        last_state=state,
        misfire=spec.misfire,
        overlap=spec.overlap,
    )


def list_next_ticks(spec: ScheduleSpec, after: float, count: int) -> list[int]:
    """The next ticks of a schedule."""
    ticks: Iterable[int] = spec.timetable().iterate_between(after, float("inf"))
    return [tick for tick, _ in zip(ticks, range(count), strict=False)]


def _choose_condition(record: ScheduleRecord, now: float) -> Condition:
    try:
        spec = parse_spec(record.spec)
        left = list_next_ticks(spec, max(now, spec.since), 1)
    except DefinitionError:
        return "unreadable"
    if spec.declared_until is not None and spec.declared_until < now:
        return "inactive"
    if record.paused:
        return "paused"
    if not spec.enabled:
        return "disabled"
    return "active" if left else "over"


def _parse_spec_or_stub(record: ScheduleRecord) -> ScheduleSpec:
    try:
        return parse_spec(record.spec)
    except DefinitionError:
        return ScheduleSpec(trigger="?", job="?")


_PAGE = 500
_MAX_SCANNED = 20_000


async def list_schedule_jobs(
    backend: Inspecting, record: ScheduleRecord, spec: ScheduleSpec, limit: int
) -> list[JobRecord]:
    """Its latest jobs, newest first.

    Those of its ticks are found by their ids, however many others there are. Those that `run_now`
    made, and those of ticks before its last change, are looked for among the latest 20,000 jobs of
    that name.
    """
    found: dict[str, JobRecord] = {}
    looked_at = 0
    async for job in iterate_jobs(backend, JobFilter(name=spec.job or None), step=_PAGE):
        looked_at += 1
        if job.options.headers.get(NAME_HEADER) == record.name:
            found[job.id] = job
        if len(found) >= limit or looked_at >= _MAX_SCANNED:
            break
    async for job in _iterate_tick_jobs(backend, record, spec, limit):
        found[job.id] = job
    return sorted(found.values(), key=lambda job: job.created_at, reverse=True)[:limit]


async def _iterate_tick_jobs(
    backend: Inspecting, record: ScheduleRecord, spec: ScheduleSpec, limit: int
) -> AsyncIterator[JobRecord]:
    """The jobs of its last so many ticks."""
    try:
        table = spec.timetable()
    except DefinitionError:  # another version wrote it
        return
    ticks = table.list_last(limit, record.last_tick or 0.0)
    ids = [make_job_id(record.name, tick) for tick in ticks]
    for first in range(0, len(ids), _PAGE):
        which = JobFilter(ids=tuple(ids[first : first + _PAGE]))
        async for job in iterate_jobs(backend, which, step=_PAGE):
            yield job
