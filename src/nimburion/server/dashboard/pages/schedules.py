"""The page of schedules."""

from __future__ import annotations

import msgspec

from nimburion.core.audit import list_audit
from nimburion.core.job import State
from nimburion.scheduler.schedules import ScheduleHistory, TickOutcome, list_histories
from nimburion.server.api import schedules as schedule_operations
from nimburion.server.api.jobs import JobReference
from nimburion.server.api.names import Name
from nimburion.server.dashboard.charts import Mark
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.readings import PageReadings

PAGE_SIZE = 25
COMING_TICKS = 5
OUTCOMES = 30
MAX_RECORDS = 500
"""The audit records that are read for the reasons of pauses, the newest ones."""
_ENDS_OF_PAUSES = frozenset({"schedule.resume", "schedule.remove"})
"""After these actions, a pause without a record of its own has no known reason."""
GRACE = 30.0
"""Seconds after which a due tick that no scheduler has decided is worth a warning."""


class ScheduleTableQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which schedules to show."""

    after: Name | None = None
    """The name of the last schedule of the previous page."""


class SchedulePause(msgspec.Struct, frozen=True, kw_only=True):
    """Who paused a schedule, and why, as the audit log says."""

    by: str
    reason: str
    since: float


class ScheduleRow(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule."""

    history: ScheduleHistory
    pause: SchedulePause | None
    """None if it is not paused, or if the latest `MAX_RECORDS` audit records do not hold it."""
    overdue: float | None
    """Seconds since a tick that is due and not decided; None if there is none."""
    failed: int
    """How many of its last ticks ended in a dead letter."""
    without_job: int
    """How many of its last ticks have no stored job."""

    @property
    def marks(self) -> list[Mark]:
        """The strip of its last ticks."""
        return [_make_mark(outcome) for outcome in self.history.outcomes]


class ScheduleTable(msgspec.Struct, frozen=True, kw_only=True):
    """A page of schedules, by name."""

    schedules: list[ScheduleRow]
    next: str | None


def _make_mark(outcome: TickOutcome) -> Mark:
    if outcome.state is None:
        return Mark("nothing", "no job is stored")
    return Mark(outcome.state.value, outcome.state.value)


async def read_schedules(request: PageRequest[ScheduleTableQuery]) -> ScheduleTable:
    """Read schedules, their coming ticks, and what came of the last ones."""
    readings, after = request.readings, request.query.after
    client = request.services.client
    found = await readings.read(
        f"schedules {after}",
        lambda: list_histories(client, COMING_TICKS, OUTCOMES, after=after, limit=PAGE_SIZE + 1),
        5.0,
    )
    is_paused = any(history.schedule.condition == "paused" for history in found)
    pauses = await _read_pauses(readings) if is_paused else {}
    rows = [_make_row(history, readings.now, pauses) for history in found[:PAGE_SIZE]]
    has_more = len(found) > PAGE_SIZE
    return ScheduleTable(schedules=rows, next=rows[-1].history.schedule.name if has_more else None)


async def _read_pauses(readings: PageReadings) -> dict[str, SchedulePause]:
    """Return the latest pause of each schedule, as far back as the records are read."""

    async def read() -> dict[str, SchedulePause]:
        page = await list_audit(readings.backend, limit=MAX_RECORDS)
        pauses: dict[str, SchedulePause] = {}
        for record in reversed(page.records):
            if record.outcome == "done" and record.action == "schedule.pause":
                reason = record.details.get("reason", "")
                pauses[record.target] = SchedulePause(by=record.by, reason=reason, since=record.at)
            elif record.outcome == "done" and record.action in _ENDS_OF_PAUSES:
                pauses.pop(record.target, None)
        return pauses

    return await readings.read("pauses of schedules", read, 10.0)


def _make_row(
    history: ScheduleHistory, now: float, pauses: dict[str, SchedulePause]
) -> ScheduleRow:
    is_paused = history.schedule.condition == "paused"
    late = 0.0 if history.overdue_since is None else now - history.overdue_since
    return ScheduleRow(
        history=history,
        pause=pauses.get(history.schedule.name) if is_paused else None,
        overdue=late if late > GRACE else None,
        failed=sum(outcome.state is State.FAILED for outcome in history.outcomes),
        without_job=sum(outcome.state is None for outcome in history.outcomes),
    )


SCHEDULES = DashboardPage(
    path="/schedules",
    title="Schedules",
    section="Schedules",
    read=read_schedules,
    template="schedules.html",
    tables=("schedules",),
    query=ScheduleTableQuery,
    interval=5.0,
)


def describe_run(job: JobReference) -> str:
    """Return which job was enqueued."""
    return f"Job {job.id} is enqueued."


ACTIONS = tuple(
    DashboardAction(
        path=f"/schedules/{{name}}/{verb}",
        operation=find_operation(schedule_operations.OPERATIONS, f"{verb}_schedule"),
        done=done,
        back="/schedules",
        describe=describe,
    )
    for verb, done, describe in (
        ("pause", "Schedule {name} is paused.", None),
        ("resume", "Schedule {name} is resumed.", None),
        ("run", "The job of schedule {name} is enqueued.", describe_run),
    )
)
