"""`nimburion queues …`."""

from __future__ import annotations

import click
import msgspec

from nimburion.cli.invocation import current, shared_options
from nimburion.cli.output import clean, show, span, table
from nimburion.core.limits import check_name
from nimburion.core.reading import QueueInfo


@click.group()
def queues() -> None:
    """List, pause and resume queues."""


@queues.command("list")
@shared_options
def list_queues() -> None:
    """List queues: jobs due now, waiting for their time, processing; the age of the oldest."""
    found = current().ask(lambda backend: backend.queues())
    show(msgspec.to_builtins(found), lambda: draw_queues(found))


def draw_queues(found: list[QueueInfo]) -> None:
    """One line a queue."""
    table(
        ("queue", "due", "scheduled", "processing", "oldest", "paused"),
        [
            (
                queue.name,
                queue.size,
                queue.scheduled,
                queue.processing,
                span(queue.oldest_age) if queue.size else None,
                "paused" if queue.paused else None,
            )
            for queue in found
        ],
        "no queue holds an unfinished job, none is paused",
    )


@queues.command("pause")
@click.argument("queue", metavar="QUEUE")
@shared_options
def pause(queue: str) -> None:
    """Hand out nothing of a queue until it is resumed; what runs goes on."""
    set_paused(queue, paused=True)


@queues.command("resume")
@click.argument("queue", metavar="QUEUE")
@shared_options
def resume(queue: str) -> None:
    """Hand out jobs of a paused queue again."""
    set_paused(queue, paused=False)


def set_paused(queue: str, *, paused: bool) -> None:
    """Pause or resume, and say so."""
    check_name("queue", queue)
    current().ask(lambda backend: backend.pause(queue, paused=paused))
    done = "paused" if paused else "resumed"
    show({"queue": queue, "paused": paused}, lambda: click.echo(f"{clean(queue)} is {done}"))
