"""Read, add, pause, resume, remove and run the schedules of a backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Unpack

import msgspec

from nimburion.actions import Operator
from nimburion.actions.auditing import Change
from nimburion.core.backend import Backend
from nimburion.core.errors import DefinitionError, JobNotFound, ScheduleNotFound
from nimburion.core.job import JobRecord, NewJob, State
from nimburion.core.paging import iterate_jobs
from nimburion.core.queries import JobFilter
from nimburion.core.schedules import (
    ScheduleRecord,
    delete_schedule,
    list_schedules,
    pause_schedule,
    put_schedule,
)
from nimburion.jobs.client.client import Client, enqueue_prepared
from nimburion.scheduler.backend_clock import BackendClock
from nimburion.scheduler.declarations import (
    TickOptions,
    check_schedule_name,
    make_raw_job,
    make_spec,
)
from nimburion.scheduler.spec import (
    NAME_HEADER,
    TICK_HEADER,
    ScheduleSpec,
    format_time,
    make_job_id,
    make_request_name,
    parse_spec,
)
from nimburion.scheduler.triggers import When, explain_trigger

Condition = Literal["active", "paused", "disabled", "inactive", "over", "unreadable"]
"""Condition of a schedule. `disabled`: the code declares `enabled=False`. `inactive`: no running
scheduler declares it. `over`: no tick remains. `unreadable`: written by another version of
nimburion."""


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as read from the backend. Times are epoch seconds."""

    name: str
    condition: Condition
    trigger: str
    explanation: str
    timezone: str
    owner: str
    """The application that declares it; empty if it was added by hand."""
    job: str
    """The name of the job; empty if a function computes the job."""
    queue: str
    next_ticks: list[int]
    last_tick: float | None
    last_job: str | None
    last_state: State | None = None
    """State of the last job; None if there was none or its record was pruned."""
    misfire: str
    overlap: str


class TickOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one tick."""

    tick: int
    """Epoch seconds."""
    job: str
    """The id of its job."""
    state: State | None
    """The state of the job. None: no job is stored, as the tick was skipped or missed, or the job
    was deleted since.
    """


class ScheduleHistory(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule with what came of its last ticks."""

    schedule: ScheduleInfo
    outcomes: list[TickOutcome]
    """Oldest first."""
    overdue_since: int | None
    """The first tick that is due and that no scheduler has decided; None if there is none, or if
    the schedule is not active.
    """


class Schedules:
    """All schedules of the backend, declared in code or added by hand: `processor.schedules`.

    Changes are recorded in the audit log under the name of `operator`, by default that of the
    client.
    """

    def __init__(
        self, client: Client, timezone: str = "UTC", operator: Operator | None = None
    ) -> None:
        self._client = client
        self._operator = operator
        self._timezone = timezone
        self._clock = BackendClock(client.clock, client.backend)

    def __repr__(self) -> str:
        operator = self._operator or self._client.operator
        return f"<Schedules on {self._client.backend.describe()} by {operator.name}>"

    async def list(
        self, ticks: int = 5, *, after: str | None = None, limit: int | None = None
    ) -> AsyncIterator[ScheduleInfo]:
        """Iterate over schedules by name, each with its next `ticks` ticks. Use it with
        `async for`.

        `after` leaves out the schedules up to this name; `limit` is the maximum number.
        """
        records = await list_schedules(self._client.backend)
        for record in _choose_records(records, after)[:limit]:
            yield await self._describe(record, ticks)

    async def get(self, name: str, ticks: int = 5) -> ScheduleInfo:
        """Return one schedule with its next `ticks` ticks. Raises `ScheduleNotFound`."""
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
        **options: Unpack[TickOptions],
    ) -> ScheduleInfo:
        """Add a schedule by hand, or replace one that was added by hand.

        Every scheduler of the backend fires it. `options` are `timezone`, `misfire`,
        `misfire_grace`, `catch_up_window`, `overlap`, `jitter`, `start`, `end` and `enabled`.

        ```python
        await processor.schedules.add("nightly", "0 2 * * *", "send_email", '{"to": "ops"}')
        ```

        Raises `DefinitionError` for invalid values, for a schedule without a future tick, and for a
        name that code declares.
        """
        async with self._record("add", name, when=when, job=job_name, queue=queue):
            job = make_raw_job(self._client, job_name, queue, payload, priority)
            spec = make_spec(when, self._timezone, job, **options)
            kept = await self._find_record(check_schedule_name(name))
            if kept is not None and kept.owner:
                raise DefinitionError(
                    f"schedule {name!r} is declared by the code of {kept.owner!r}"
                )
            put = ScheduleRecord(name=name, spec=await self._start_now(spec))
            if not list_next_ticks(spec, self._read_now(), 1):
                raise DefinitionError(f"schedule {name!r} would never tick: {spec.trigger} is past")
            await put_schedule(self._client.backend, put)
        return await self.get(name)

    async def pause(self, name: str, *, reason: str = "") -> None:
        """Fire no tick until `resume`. Raises `ScheduleNotFound`."""
        async with self._record("pause", name, reason=reason):
            if not await pause_schedule(self._client.backend, name, paused=True):
                raise ScheduleNotFound(name)

    async def resume(self, name: str) -> None:
        """Fire ticks from now on; ticks missed during the pause do not fire. Raises
        `ScheduleNotFound`."""
        async with self._record("resume", name):
            record = await self._get_record(name)
            if record.paused:
                put = msgspec.structs.replace(
                    record, spec=await self._start_now(parse_spec(record.spec))
                )
                await put_schedule(self._client.backend, put)
                await pause_schedule(self._client.backend, name, paused=False)

    async def remove(self, name: str) -> None:
        """Delete a schedule. Raises `ScheduleNotFound`, and `DefinitionError` while running code
        declares it: a scheduler would write it again."""
        async with self._record("remove", name):
            record = await self._get_record(name)
            if record.owner and _choose_condition(record, self._read_now()) not in {
                "inactive",
                "unreadable",
            }:
                raise DefinitionError(
                    f"schedule {name!r} is declared by the code of {record.owner!r}, which "
                    "is running: pause the schedule, or remove it from the code"
                )
            await delete_schedule(self._client.backend, name)

    async def run_now(self, name: str, *, job_id: str | None = None) -> str:
        """Enqueue the job of a schedule now, in addition to its ticks; return the id of the job.

        The enqueue middleware of the client runs, as for a tick.

        With your own `job_id`, a repeat stores no second job. If a function computes the job, a
        scheduler that declares the schedule calls it for the current time, and enqueues the job
        within 5 seconds; a function that raises is logged there.

        Raises `ScheduleNotFound`, `DuplicateJob` if another job holds the unique key, and
        `DefinitionError` if the job is computed and no running scheduler declares the schedule.
        """
        async with self._record("run", name):
            record = await self._get_record(name)
            spec = parse_spec(record.spec)
            if spec.payload is None:
                return await self._request_run(record, spec, job_id)
            job = self._make_extra_job(name, spec, job_id)
            return await enqueue_prepared(self._client, job)

    async def history(self, name: str, limit: int = 20) -> Sequence[JobRecord]:
        """Return up to `limit` stored jobs of a schedule, newest first. Raises
        `ScheduleNotFound`."""
        record = await self._get_record(name)
        return await list_schedule_jobs(
            self._client.backend, record, parse_spec(record.spec), limit
        )

    # Internals

    def _record(
        self, verb: str, name: str, **details: object
    ) -> AbstractAsyncContextManager[Change]:
        operator = self._operator or self._client.operator
        return operator.record(self._client.backend, f"schedule.{verb}", name, **details)

    async def _request_run(
        self, record: ScheduleRecord, spec: ScheduleSpec, job_id: str | None
    ) -> str:
        """Request a computed job from the schedulers that declare its schedule; return its id."""
        await self._clock.synchronize()
        now = self._read_now()
        if _choose_condition(record, now) == "inactive":
            raise DefinitionError(
                f"a function computes the job of {record.name!r}, and no scheduler runs that has "
                f"it: start a worker of the application {record.owner!r}"
            )
        tick = int(now)
        request = make_request_name(record.name, now, job_id)
        wanted = ScheduleSpec(
            trigger=f"@at {format_time(tick)}",
            job="",
            timezone=spec.timezone,
            since=tick - 1.0,
            run_of=record.name,
            run_id=job_id or request,
        )
        await put_schedule(
            self._client.backend,
            ScheduleRecord(name=request, spec=wanted.encode(), owner=record.owner),
        )
        return wanted.run_id

    def _read_now(self) -> float:
        return self._clock.now()

    async def _find_record(self, name: str) -> ScheduleRecord | None:
        records = await list_schedules(self._client.backend)
        return next((record for record in records if record.name == name), None)

    async def _get_record(self, name: str) -> ScheduleRecord:
        record = await self._find_record(name)
        if record is None:
            raise ScheduleNotFound(name)
        return record

    async def _start_now(self, spec: ScheduleSpec) -> bytes:
        """Encode a schedule that excludes all ticks up to now by the clock of the backend."""
        await self._clock.synchronize()
        return msgspec.structs.replace(spec, since=self._read_now()).encode()

    async def _describe(self, record: ScheduleRecord, ticks: int) -> ScheduleInfo:
        now = self._read_now()
        state = None
        if record.last_job is not None:
            try:
                state = (await self._client.backend.reads.get_job(record.last_job)).state
            except JobNotFound:
                state = None
        return _make_info(record, now, ticks, state)

    def _make_extra_job(self, name: str, spec: ScheduleSpec, job_id: str | None) -> NewJob:
        now = self._read_now()
        headers = {**spec.options.headers, NAME_HEADER: name, TICK_HEADER: format_time(now)}
        job = NewJob(
            job_id or make_request_name(name, now),
            spec.job,
            spec.queue,
            (spec.payload or "{}").encode(),
            spec.priority,
            options=msgspec.structs.replace(spec.options, headers=headers),
        )
        return job if job.options.limit_keys else self._client.registry.add_limit_keys(job)


async def list_histories(
    client: Client, ticks: int, outcomes: int, *, after: str | None, limit: int
) -> list[ScheduleHistory]:
    """Return up to `limit` schedules by name, each with its next `ticks` ticks and what came of its
    last `outcomes` ticks, in a few reads for all.

    `after` leaves out the schedules up to this name.
    """
    backend, now = client.backend, client.clock.now()
    chosen = _choose_records(await list_schedules(backend), after)[:limit]
    last_ticks = [_list_last_ticks(record, outcomes) for record in chosen]
    ids = {record.last_job for record in chosen if record.last_job is not None}
    for record, found in zip(chosen, last_ticks, strict=True):
        ids.update(make_job_id(record.name, tick) for tick in found)
    states = await _read_states(backend, sorted(ids))
    return [
        ScheduleHistory(
            schedule=(info := _make_info(record, now, ticks, states.get(record.last_job or ""))),
            outcomes=[
                TickOutcome(tick=tick, job=job_id, state=states.get(job_id))
                for tick in found
                for job_id in (make_job_id(record.name, tick),)
                # No scheduler has decided ticks from before it was added or resumed.
                if job_id in states or tick > _parse_spec_or_stub(record).since
            ],
            overdue_since=_find_overdue(record, now) if info.condition == "active" else None,
        )
        for record, found in zip(chosen, last_ticks, strict=True)
    ]


def _choose_records(records: Iterable[ScheduleRecord], after: str | None) -> list[ScheduleRecord]:
    """Return the schedules by name, without the requests of `run_now`."""
    return sorted(
        (
            record
            for record in records
            if (after is None or record.name > after) and not _parse_spec_or_stub(record).run_of
        ),
        key=lambda record: record.name,
    )


_LONGEST_PAST = 400 * 86_400.0
"""Seconds before the last tick within which ticks are listed. Those of decades take too long."""


def _list_last_ticks(record: ScheduleRecord, count: int) -> list[int]:
    """Return the last decided ticks of a schedule, oldest first."""
    if record.last_tick is None or not count:
        return []
    try:
        table = parse_spec(record.spec).make_timetable()
    except DefinitionError:  # written by another version
        return []
    return table.list_last(count, record.last_tick, record.last_tick - _LONGEST_PAST)


def _find_overdue(record: ScheduleRecord, now: float) -> int | None:
    """Return the first tick that is due and not decided."""
    spec = parse_spec(record.spec)
    tick = spec.make_timetable().next_after(max(record.last_tick or 0.0, spec.since))
    return tick if tick is not None and tick <= now else None


async def _read_states(backend: Backend, ids: Sequence[str]) -> dict[str, State]:
    """Return the states of the jobs that are stored."""
    states: dict[str, State] = {}
    for first in range(0, len(ids), _PAGE_SIZE):
        which = JobFilter(ids=tuple(ids[first : first + _PAGE_SIZE]))
        page = await backend.reads.list_jobs(which, limit=_PAGE_SIZE)
        states.update((record.id, record.state) for record in page.jobs)
    return states


def _make_info(record: ScheduleRecord, now: float, ticks: int, state: State | None) -> ScheduleInfo:
    spec, condition = _parse_spec_or_stub(record), _choose_condition(record, now)
    readable = condition != "unreadable"
    table = spec.make_timetable() if readable else None
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
    """Return the next `count` ticks of a schedule after `after`."""
    ticks: Iterable[int] = spec.make_timetable().iterate_between(after, float("inf"))
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


_PAGE_SIZE = 500
"""The number of jobs read in one call."""
_MAX_SCANNED = 20_000
"""The most jobs that a search reads, so that a frequent name does not make it slow."""


async def list_schedule_jobs(
    backend: Backend, record: ScheduleRecord, spec: ScheduleSpec, limit: int
) -> list[JobRecord]:
    """Return up to `limit` latest jobs of a schedule, newest first.

    Jobs of ticks are found by their ids, independent of the number of other jobs. Jobs of
    `run_now`, and of ticks before the last change of the schedule, are searched among the latest
    20,000 jobs with that name.
    """
    found: dict[str, JobRecord] = {}
    looked_at = 0
    async for job in iterate_jobs(backend, JobFilter(name=spec.job or None), step=_PAGE_SIZE):
        looked_at += 1
        if job.options.headers.get(NAME_HEADER) == record.name:
            found[job.id] = job
        if len(found) >= limit or looked_at >= _MAX_SCANNED:
            break
    async for job in _iterate_tick_jobs(backend, record, spec, limit):
        found[job.id] = job
    return sorted(found.values(), key=lambda job: job.created_at, reverse=True)[:limit]


async def _iterate_tick_jobs(
    backend: Backend, record: ScheduleRecord, spec: ScheduleSpec, limit: int
) -> AsyncIterator[JobRecord]:
    """Yield the stored jobs of the last `limit` ticks."""
    try:
        table = spec.make_timetable()
    except DefinitionError:  # written by another version
        return
    ticks = table.list_last(limit, record.last_tick or 0.0)
    ids = [make_job_id(record.name, tick) for tick in ticks]
    for first in range(0, len(ids), _PAGE_SIZE):
        which = JobFilter(ids=tuple(ids[first : first + _PAGE_SIZE]))
        async for job in iterate_jobs(backend, which, step=_PAGE_SIZE):
            yield job
