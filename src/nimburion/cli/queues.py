"""`nimburion queues …`: list, pause and resume queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import escape_controls, format_duration, print_result, print_table
from nimburion.core.limits import check_name
from nimburion.core.queries import QueueInfo
from nimburion.core.unserved import Unserved, find_unserved

if TYPE_CHECKING:
    from nimburion.core.backend import Backend


@click.group()
def queues() -> None:
    """List, pause and resume queues."""


@queues.command("list")
@add_shared_options
def list_queues() -> None:
    """List queues: jobs due now, waiting for their time, processing; the age of the oldest.

    Then list jobs that no live worker takes: none serves their queue, or none has their handler.
    """
    found, unserved = current_invocation().run(read_queues)
    data = [as_data(queue, unserved) for queue in found]
    print_result(data, lambda: draw_queues(found, unserved))


async def read_queues(backend: Backend) -> tuple[list[QueueInfo], list[Unserved]]:
    """Return all queues, and the waiting jobs that no live worker serves."""
    found = await backend.queues()
    return found, find_unserved(found, await backend.sessions())


def as_data(queue: QueueInfo, unserved: list[Unserved]) -> dict[str, object]:
    """Return a queue as JSON data."""
    data: dict[str, object] = msgspec.to_builtins(queue)
    data["unserved"] = {jobs.name: jobs.reason for jobs in unserved if jobs.queue == queue.name}
    return data


def draw_queues(found: list[QueueInfo], unserved: list[Unserved]) -> None:
    """Print one line per queue, then one line per group of jobs that no live worker serves."""
    print_table(
        ("queue", "due", "scheduled", "processing", "oldest", "paused"),
        [
            (
                queue.name,
                queue.size,
                queue.scheduled,
                queue.processing,
                format_duration(queue.oldest_age) if queue.size else None,
                "paused" if queue.paused else None,
            )
            for queue in found
        ],
        "no queue holds an unfinished job, none is paused",
    )
    for jobs in unserved:
        click.echo(escape_controls(jobs.describe()))


@queues.command("pause")
@click.argument("queue", metavar="QUEUE")
@add_shared_options
def pause(queue: str) -> None:
    """Start no more jobs of a queue until it is resumed. Running jobs continue."""
    set_paused(queue, paused=True)


@queues.command("resume")
@click.argument("queue", metavar="QUEUE")
@add_shared_options
def resume(queue: str) -> None:
    """Start the jobs of a paused queue again."""
    set_paused(queue, paused=False)


def set_paused(queue: str, *, paused: bool) -> None:
    """Pause or resume a queue and print the new state."""
    check_name("queue", queue)
    current_invocation().run(lambda backend: backend.pause(queue, paused=paused))
    done = "paused" if paused else "resumed"
    print_result(
        {"queue": queue, "paused": paused},
        lambda: click.echo(f"{escape_controls(queue)} is {done}"),
    )
