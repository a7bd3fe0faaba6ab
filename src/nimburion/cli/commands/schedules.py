"""`nimburion schedules …`: list, add, pause, resume, remove and explain schedules."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar, cast
from zoneinfo import ZoneInfo

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.listing_groups import listing_group
from nimburion.cli.output import format_time, print_fields, print_result, print_table
from nimburion.cli.parameters import parse_duration, parse_priority
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.scheduler import ScheduleInfo, Schedules
    from nimburion.scheduler.declarations import TickOptions

T = TypeVar("T")


class Quoting(click.Command):
    """A command with a cron expression, which a shell splits if it is not quoted."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            hint = 'too many arguments; put WHEN in quotes, like "30 9 * * MON-FRI"'
            raise click.UsageError(hint, ctx) from None


@listing_group
def schedules() -> None:
    """List, add, pause and remove schedules; explain cron expressions."""


@schedules.command("list")
@click.option("--ticks", type=click.IntRange(0, 100), default=5, help="Coming ticks to show.")
@add_shared_options
def list_schedules(ticks: int) -> None:
    """List schedules with their next ticks.

    Also shows whether each schedule is active, and the state of its last job.
    """
    found = run_on_schedules(lambda schedules: _list_schedules(schedules, ticks))
    print_result(msgspec.to_builtins(found), lambda: print_schedules(found))


async def _list_schedules(found: Schedules, ticks: int) -> list[ScheduleInfo]:
    return [schedule async for schedule in found.list(ticks)]


@schedules.command("show")
@click.argument("name", metavar="NAME")
@add_shared_options
def show_schedule(name: str) -> None:
    """Show everything about a schedule."""
    found = run_on_schedules(lambda schedules: schedules.get(name, 5))
    print_result(msgspec.to_builtins(found), lambda: print_schedule(found))


@schedules.command("add", cls=Quoting)
@click.argument("name", metavar="NAME")
@click.argument("when_", metavar="WHEN")
@click.argument("job", metavar="JOB")
@click.option("--args", "arguments", metavar="JSON", default="{}", help="The job's arguments.")
@click.option(
    "--queue", metavar="QUEUE", default="default", help="The queue; by default `default`."
)
@click.option("--priority", type=parse_priority, metavar="P", help="0 to 9, or lowest to highest.")
@click.option(
    "--tz", metavar="ZONE", help="The time zone, like Europe/Rome; by default the configured one."
)
@click.option("--misfire", metavar="POLICY", help="skip, fire_once (default) or catch_up.")
@click.option("--overlap", metavar="RULE", help="allow, skip, queue_one or cancel_previous.")
@click.option(
    "--jitter", type=parse_duration, metavar="DURATION", help="Spread the jobs over this time."
)
@add_shared_options
def add(
    *,
    name: str,
    when_: str,
    job: str,
    arguments: str,
    queue: str,
    priority: int | None,
    tz: str | None,
    misfire: str | None,
    overlap: str | None,
    jitter: float | None,
) -> None:
    """Add a schedule, or change one that was added before. WHEN is a cron expression, a macro like
    @daily, @every 5m, or @at 2030-01-31T09:00Z; JOB is the name of a handler.

    Every scheduler of the backend fires it.
    """
    given = {"timezone": tz, "misfire": misfire, "overlap": overlap, "jitter": jitter}
    # `add` checks the values.
    options = cast("TickOptions", {key: one for key, one in given.items() if one is not None})
    level = 5 if priority is None else priority
    found = run_on_schedules(
        lambda schedules: schedules.add(
            name, when_, job, arguments, queue=queue, priority=level, **options
        ),
        may_create=True,
    )
    print_result(msgspec.to_builtins(found), lambda: print_schedule(found))


def add_change_command(verb: str, done: str, text: str) -> None:
    """Add a command that changes one schedule and prints the result."""

    @schedules.command(verb, help=text)
    @click.argument("name", metavar="NAME")
    @add_shared_options
    def change(name: str) -> None:
        run_on_schedules(lambda schedules: getattr(schedules, verb)(name))
        data = {"schedule": name, "done": done}
        print_result(data, lambda: click.echo(f"{escape_controls(name)} is {done}"))


add_change_command("pause", "paused", "Fire no tick of a schedule until it is resumed.")
add_change_command(
    "resume",
    "resumed",
    "Fire its ticks again; those of the pause are skipped.",
)
add_change_command(
    "remove", "removed", "Delete a schedule; refused while a running scheduler declares it."
)


@schedules.command("run")
@click.argument("name", metavar="NAME")
@add_shared_options
def run(name: str) -> None:
    """Enqueue its job now, in addition to its ticks, and print the id.

    If code computes the job, a running scheduler with this code enqueues it within 5 seconds.
    """

    async def run_now(schedules: Schedules) -> tuple[str, bool]:
        is_computed = not (await schedules.get(name, 0)).job
        return await schedules.run_now(name), is_computed

    job_id, is_computed = run_on_schedules(run_now)
    print_result({"schedule": name, "id": job_id}, lambda: click.echo(escape_controls(job_id)))
    if is_computed:
        click.echo("a scheduler computes the job and enqueues it within 5 s", err=True)


@schedules.command("history")
@click.argument("name", metavar="NAME")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, help="The maximum number of jobs to show."
)
@add_shared_options
def history(name: str, limit: int) -> None:
    """List the latest jobs of a schedule that are kept, newest first."""
    from nimburion.cli.records import print_records, record_to_data

    found = list(run_on_schedules(lambda schedules: schedules.history(name, limit)))
    data = [record_to_data(record) for record in found]
    print_result(data, lambda: print_records(found, "no job of this schedule is kept"))


@schedules.command("next", cls=Quoting)
@click.argument("when_", metavar="WHEN")
@click.option(
    "--tz", metavar="ZONE", help="The time zone, like Europe/Rome; by default the configured one."
)
@click.option("--count", type=click.IntRange(1, 1000), default=5, help="The number of ticks.")
@add_shared_options
def next_ticks(when_: str, tz: str | None, count: int) -> None:
    """Explain a cron expression and list its next ticks.

    Does not use a backend.
    """
    from nimburion.core.timing.timezones import find_zone
    from nimburion.scheduler.triggers import Timetable, explain_trigger, parse_trigger

    zone = find_zone(tz or current_invocation().load().scheduler.timezone)
    trigger = parse_trigger(when_, zone)
    coming = Timetable(trigger).iterate_between(time.time(), float("inf"))
    ticks = [tick for tick, _ in zip(coming, range(count), strict=False)]
    explanation = explain_trigger(trigger)
    data = {"when": trigger.text, "timezone": zone.key, "explanation": explanation, "ticks": ticks}
    print_result(data, lambda: print_ticks(explanation, ticks, zone))


def print_ticks(explanation: str, ticks: list[int], zone: ZoneInfo) -> None:
    """Print one line per tick in local time of the zone."""
    click.echo(explanation)
    for tick in ticks:
        click.echo(f"{datetime.fromtimestamp(tick, zone):%a %Y-%m-%d %H:%M:%S %z}")
    if not ticks:
        click.echo("no tick is left")


def print_schedules(found: list[ScheduleInfo]) -> None:
    """Print one line per schedule, with its next ticks below."""
    print_table(
        ("name", "when", "zone", "job", "owner", "condition", "last tick", "last job", "next"),
        [
            (
                schedule.name,
                schedule.trigger,
                schedule.timezone,
                schedule.job or "(computed)",
                schedule.owner or "(by hand)",
                schedule.condition,
                format_time(schedule.last_tick),
                schedule.last_state,
                format_in_zone(schedule.next_ticks[0], schedule.timezone)
                if schedule.next_ticks
                else None,
            )
            for schedule in found
        ],
        "there is no schedule",
    )


def print_schedule(schedule: ScheduleInfo) -> None:
    """Print one line per field of a schedule."""
    print_fields(
        {
            "name": schedule.name,
            "when": schedule.trigger,
            "which is": schedule.explanation,
            "job": schedule.job or "(computed)",
            "queue": schedule.queue,
            "owner": schedule.owner or "(by hand)",
            "condition": schedule.condition,
            "misfire": schedule.misfire,
            "overlap": schedule.overlap,
            "last tick": format_time(schedule.last_tick),
            "last job": schedule.last_job,
            "its state": schedule.last_state,
            "next": ", ".join(
                format_in_zone(tick, schedule.timezone) for tick in schedule.next_ticks
            )
            or None,
        }
    )


def format_in_zone(tick: int, timezone: str) -> str:
    """Format a tick in the time zone of its schedule."""
    return f"{datetime.fromtimestamp(tick, ZoneInfo(timezone)):%Y-%m-%d %H:%M:%S %z}"


def run_on_schedules(
    question: Callable[[Schedules], Awaitable[T]], *, may_create: bool = False
) -> T:
    """Run `question` on the schedules of the backend and return its result."""

    async def call_with_backend(backend: Backend) -> T:
        from nimburion.actions.operator import make_process_operator
        from nimburion.jobs.client.client import Client
        from nimburion.scheduler import Schedules

        config = current_invocation().load()
        operator = make_process_operator("cli")
        async with Client(backend, settings=config.jobs) as client:
            return await question(Schedules(client, config.scheduler.timezone, operator))

    return current_invocation().run(call_with_backend, may_create=may_create)
