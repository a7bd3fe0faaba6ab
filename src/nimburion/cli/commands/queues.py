"""`nimburion queues …`: list, pause and resume queues."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.exit_codes import BadInput
from nimburion.cli.filters import format_count
from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.listing_groups import listing_group
from nimburion.cli.operators import make_actions
from nimburion.cli.output import (
    format_counted,
    format_duration,
    format_time,
    print_result,
    print_table,
)
from nimburion.cli.parameters import parse_duration
from nimburion.cli.readings import BackendReading, print_legend, print_readings, read_backends
from nimburion.core.diagnosis.unserved import QueueSummary, describe_unserved
from nimburion.core.job import PROCESSING_ONLY
from nimburion.core.queries import JobFilter, QueueInfo
from nimburion.core.size_limits import check_name
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend

HEADERS = ("queue", "due", "scheduled", "processing", "oldest", "paused")
_POLL_SECONDS = 0.5
_MAX_RUNNING = 1_000
NO_QUEUE = "no queue holds an unfinished job, none is paused"


@listing_group
def queues() -> None:
    """List, pause and resume queues."""


@queues.command("list")
@click.option("--exact", is_flag=True, help="Count all jobs. It takes long where millions wait.")
@add_shared_options
def list_queues(*, exact: bool) -> None:
    """List queues: jobs due now, waiting for their time, processing; the age of the oldest.

    About 10,000 waiting jobs are counted; 2500+ says that there may be more than 2,500.

    Then list jobs that no live worker takes: none serves their queue, or none has their handler.
    --backend can be repeated: a queue then has a line for each backend that has it.
    """
    read = partial(read_queues, exact=exact)
    if current_invocation().has_several_backends:
        readings = read_backends(read)
        print_readings(readings, msgspec.to_builtins, lambda: print_queues_of_each(readings))
        return
    found = current_invocation().run(read)
    print_result(msgspec.to_builtins(found), lambda: print_queues(found))


async def read_queues(backend: Backend, *, exact: bool) -> list[QueueSummary]:
    """Return all queues, with the waiting jobs that no live worker serves."""
    return [queue async for queue in make_actions(backend).queues.list(exact=exact)]


def print_queues(found: list[QueueSummary]) -> None:
    """Print one line per queue, then one line per group of jobs that no live worker serves."""
    print_table(HEADERS, [format_queue(queue) for queue in found], NO_QUEUE)
    for line in describe_unserved(found):
        click.echo(escape_controls(line))


def print_queues_of_each(readings: list[BackendReading[list[QueueSummary]]]) -> None:
    """Print one line per queue and backend, then the jobs that no live worker serves."""
    answered = [(reading.number, reading.value) for reading in readings if reading.value]
    lines = [(number, *format_queue(queue)) for number, found in answered for queue in found]
    print_legend(readings)
    click.echo()
    print_table(("backend", *HEADERS), sorted(lines, key=lambda line: (line[1], line[0])), NO_QUEUE)
    for number, found in answered:
        for line in describe_unserved(found):
            click.echo(escape_controls(f"{number}: {line}"))


def format_queue(
    queue: QueueInfo,
) -> tuple[str, int | str, int | str, int, str | None, str | None]:
    """Return the columns of `HEADERS`."""
    return (
        queue.name,
        format_counted(queue.size, is_complete=queue.size_complete),
        format_counted(queue.scheduled, is_complete=queue.scheduled_complete),
        queue.processing,
        format_duration(queue.oldest_age) if queue.size else None,
        describe_pause(queue),
    )


def describe_pause(queue: QueueInfo) -> str | None:
    """Return who paused a queue, until when and why; None if it is not paused."""
    if queue.pause is None:
        return "paused" if queue.paused else None
    by = f"by {queue.pause.by}" if queue.pause.by else "paused"
    end = f" until {format_time(queue.pause.until)}" if queue.pause.until is not None else ""
    reason = f": {queue.pause.reason}" if queue.pause.reason else ""
    return f"{by}{end}{reason}"


@queues.command("pause")
@click.argument("queue", metavar="QUEUE")
@click.option("--reason", metavar="TEXT", default="", help="Why; shown wherever the queue is.")
@click.option("--for", "duration", metavar="DURATION", help="Resume by itself after this time.")
@click.option("--wait", is_flag=True, help="Then wait until no job of the queue runs.")
@add_shared_options
def pause(queue: str, reason: str, duration: str | None, *, wait: bool) -> None:
    """Start no more jobs of a queue until it is resumed. Running jobs continue."""
    check_name("queue", queue)
    seconds = None if duration is None else parse_duration(duration)
    if seconds == 0:
        raise BadInput("--for 0 pauses nothing; give a longer time, or leave --for out")

    async def pause_and_wait(backend: Backend) -> float | None:
        until = await make_actions(backend).queues.pause(queue, reason=reason, seconds=seconds)
        if wait:
            await wait_until_idle(backend, queue)
        return until

    until = current_invocation().run(pause_and_wait)
    end = "" if until is None else f" until {format_time(until)}"
    idle = "; none of its jobs runs" if wait else ""
    print_result(
        {"queue": queue, "paused": True, "until": until},
        lambda: click.echo(f"{escape_controls(queue)} is paused{end}{idle}"),
    )


async def _count_running(backend: Backend, queue: str) -> int:
    """Return how many jobs of a queue workers hold, up to `_MAX_RUNNING`; 0 only if none."""
    which = JobFilter(states=PROCESSING_ONLY, queue=queue)
    after: str | None = None
    while True:
        page = await backend.reads.list_jobs(which, limit=_MAX_RUNNING, after=after)
        if page.jobs or page.next is None:
            return len(page.jobs)
        after = page.next  # the budget went to running jobs of other queues


async def wait_until_idle(
    backend: Backend, queue: str, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Return when no worker holds a job of the queue. Say on standard error how many do."""
    printed = 0
    while running := await _count_running(backend, queue):
        if running != printed:
            more = "or more " if running == _MAX_RUNNING else ""
            click.echo(f"waiting for {format_count(running)} {more}to end", err=True)
            printed = running
        await sleep(_POLL_SECONDS)


@queues.command("resume")
@click.argument("queue", metavar="QUEUE")
@add_shared_options
def resume(queue: str) -> None:
    """Start the jobs of a paused queue again."""
    check_name("queue", queue)
    current_invocation().run(lambda backend: make_actions(backend).queues.resume(queue))
    print_result(
        {"queue": queue, "paused": False},
        lambda: click.echo(f"{escape_controls(queue)} is resumed"),
    )
