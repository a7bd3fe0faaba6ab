"""Schedules: list, explain, add, pause, resume, run and delete."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nimburion.core.ids import make_repeatable_id
from nimburion.core.schedules import Overlap
from nimburion.core.timing.timezones import find_zone
from nimburion.scheduler.schedules import ScheduleInfo
from nimburion.scheduler.triggers import Timetable, explain_trigger, parse_trigger
from nimburion.server.api.jobs import JobPage, JobReference, summarize_job
from nimburion.server.api.names import END, JsonObject, Name, PageQuery, Text
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation

Trigger = Annotated[
    str, Meta(min_length=1, max_length=200, extra_json_schema={"format": "trigger"})
]
"""A cron expression, a macro like `@daily`, `@every 5m`, or `@at` and a time."""
Zone = Annotated[str, Meta(min_length=1, max_length=100, extra_json_schema={"format": "time-zone"})]
ScheduleName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,100}" + END)]


class SchedulePage(msgspec.Struct, frozen=True):
    """A page of schedules, by name."""

    schedules: list[ScheduleInfo]
    next: str | None


class ScheduleListQuery(PageQuery, frozen=True, forbid_unknown_fields=True):
    """The schedules to list."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    """Lower than elsewhere: computing the ticks of many schedules would block the event loop."""
    ticks: Annotated[int, Meta(ge=0, le=20)] = 5
    """The number of coming ticks to return of each."""


class TicksQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An expression to explain."""

    when: Trigger
    timezone: Zone | None = None
    count: Annotated[int, Meta(ge=1, le=100)] = 5


class TicksReport(msgspec.Struct, frozen=True):
    """What an expression means."""

    explanation: str
    timezone: str
    ticks: list[int]
    """The next ticks, in epoch seconds."""


class HistoryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many jobs to list."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class NewScheduleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schedule to add, or to put in place of one that was added by hand."""

    name: ScheduleName
    when: Trigger
    job: Name
    payload: JsonObject = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    """A JSON object."""
    queue: Name = "default"
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    timezone: Zone | None = None
    misfire: Literal["skip", "fire_once", "catch_up"] | None = None
    overlap: Overlap | None = None
    jitter: Annotated[float, Meta(ge=0)] | None = None
    """Seconds over which the jobs are spread."""


class PauseScheduleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pause of a schedule."""

    reason: Text | None = None
    """Why. The audit log keeps it."""


class ScheduleChange(msgspec.Struct, frozen=True):
    """What was done to a schedule."""

    schedule: str
    done: Literal["paused", "resumed", "deleted"]


async def list_schedules(request: ApiRequest[ScheduleListQuery, NoBody]) -> SchedulePage:
    """List schedules, with their coming ticks and the state of their last job."""
    after, limit = request.query.after, request.query.limit
    schedules = request.services.schedules
    listed = schedules.list(request.query.ticks, after=after, limit=limit + 1)
    page = [schedule async for schedule in listed]
    following = page[limit - 1].name if len(page) > limit else None
    return SchedulePage(page[:limit], following)


async def get_schedule(request: ApiRequest[NoQuery, NoBody]) -> ScheduleInfo:
    """Show one schedule."""
    return await request.services.schedules.get(request.path["name"])


async def add_schedule(request: ApiRequest[NoQuery, NewScheduleBody]) -> ScheduleInfo:
    """Add a schedule. A repeat changes nothing but the time from which its ticks count."""
    body = request.body
    options = {
        name: value
        for name in ("timezone", "misfire", "overlap", "jitter")
        if (value := getattr(body, name)) is not None
    }
    return await request.schedules.add(
        body.name,
        body.when,
        body.job,
        bytes(body.payload).decode(),
        queue=body.queue,
        priority=body.priority,
        **options,
    )


async def pause_schedule(request: ApiRequest[NoQuery, PauseScheduleBody]) -> ScheduleChange:
    """Fire no tick of a schedule until it is resumed."""
    name = request.path["name"]
    await request.schedules.pause(name, reason=request.body.reason or "")
    return ScheduleChange(name, "paused")


async def resume_schedule(request: ApiRequest[NoQuery, NoBody]) -> ScheduleChange:
    """Fire the ticks of a schedule from now on. Those of the pause are not made up."""
    name = request.path["name"]
    await request.schedules.resume(name)
    return ScheduleChange(name, "resumed")


async def run_schedule(request: ApiRequest[NoQuery, NoBody]) -> JobReference:
    """Enqueue the job of a schedule now. With an `Idempotency-Key`, a repeat stores no second job.

    If code computes the job, a running scheduler with this code enqueues it within 5 seconds.
    """
    name, key = request.path["name"], request.idempotency_key
    job_id = None if key is None else make_repeatable_id(f"{request.caller.name} {name}", key)
    return JobReference(await request.schedules.run_now(name, job_id=job_id))


async def delete_schedule(request: ApiRequest[NoQuery, NoBody]) -> ScheduleChange:
    """Delete a schedule. Refused while code that runs declares it."""
    name = request.path["name"]
    await request.schedules.remove(name)
    return ScheduleChange(name, "deleted")


async def list_schedule_history(request: ApiRequest[HistoryQuery, NoBody]) -> JobPage:
    """List the latest stored jobs of a schedule, newest first."""
    name = request.path["name"]
    found = await request.services.schedules.history(name, request.query.limit)
    return JobPage([summarize_job(record) for record in found], None, len(found))


async def explain_ticks(request: ApiRequest[TicksQuery, NoBody]) -> TicksReport:
    """Explain a cron expression, and list its next ticks."""
    query, services = request.query, request.services
    zone = find_zone(query.timezone or services.config.scheduler.timezone)
    trigger = parse_trigger(query.when, zone)
    coming = Timetable(trigger).iterate_between(services.client.clock.now(), float("inf"))
    ticks = [tick for tick, _ in zip(coming, range(query.count), strict=False)]
    return TicksReport(explain_trigger(trigger), zone.key, ticks)


OPERATIONS = (
    Operation(
        method="GET",
        path="/schedules",
        handle=list_schedules,
        query=ScheduleListQuery,
        answer=SchedulePage,
    ),
    Operation(
        method="POST",
        path="/schedules",
        handle=add_schedule,
        action="schedule.add",
        body=NewScheduleBody,
        answer=ScheduleInfo,
        status=201,
    ),
    Operation(
        method="GET",
        path="/schedules/{name}",
        handle=get_schedule,
        answer=ScheduleInfo,
    ),
    Operation(
        method="DELETE",
        path="/schedules/{name}",
        handle=delete_schedule,
        action="schedule.remove",
        answer=ScheduleChange,
    ),
    Operation(
        method="GET",
        path="/schedules/{name}/history",
        handle=list_schedule_history,
        query=HistoryQuery,
        answer=JobPage,
    ),
    Operation(
        method="POST",
        path="/schedules/{name}/pause",
        handle=pause_schedule,
        action="schedule.pause",
        body=PauseScheduleBody,
        answer=ScheduleChange,
    ),
    Operation(
        method="POST",
        path="/schedules/{name}/resume",
        handle=resume_schedule,
        action="schedule.resume",
        answer=ScheduleChange,
    ),
    Operation(
        method="POST",
        path="/schedules/{name}/run",
        handle=run_schedule,
        action="schedule.run",
        answer=JobReference,
        status=201,
        idempotency_key=True,
    ),
    Operation(
        method="GET",
        path="/ticks",
        handle=explain_ticks,
        query=TicksQuery,
        answer=TicksReport,
    ),
)
