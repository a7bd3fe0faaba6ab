"""`nimburion enqueue NAME`: enqueue a job without the code of its handler."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, cast

import click

from nimburion.cli.exit_codes import BadInput
from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.operators import record_command
from nimburion.cli.output import print_result
from nimburion.cli.parameters import parse_duration, parse_moment, parse_priority
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.jobs.declaration.options import EnqueueOptions


@click.command()
@click.argument("name")
@click.option(
    "--args",
    "arguments",
    metavar="JSON",
    default="{}",
    help='The arguments, a JSON object: \'{"to": "a@example.com"}\'; - reads standard input.',
)
@click.option("--queue", metavar="QUEUE", help="The queue; by default `default`.")
@click.option("--priority", type=parse_priority, metavar="P", help="0 to 9, or lowest to highest.")
@click.option(
    "--at", type=parse_moment, metavar="TIME", help="The due time, like 2030-01-31T09:00Z."
)
@click.option(
    "--in",
    "after",
    type=parse_duration,
    metavar="DURATION",
    help="The delay, like 30s or 1h30m.",
)
@click.option(
    "--id",
    "job_id",
    metavar="ID",
    help="The id of the job; with it, you can repeat the command safely.",
)
@add_shared_options
def enqueue(
    *,
    name: str,
    arguments: str,
    queue: str | None,
    priority: int | None,
    at: datetime | None,
    after: float | None,
    job_id: str | None,
) -> None:
    """Store a job by the name of its handler and print its id.

    A worker that knows the name checks the arguments; here they must only be a JSON object.
    """
    if at is not None and after is not None:
        raise BadInput("give --at or --in, not both")
    payload = parse_payload(sys.stdin.read() if arguments == "-" else arguments)
    given = {"queue": queue, "priority": priority, "at": at, "after": after, "id": job_id}
    options = cast(
        "EnqueueOptions", {key: value for key, value in given.items() if value is not None}
    )
    stored = current_invocation().run(
        lambda backend: enqueue_job(backend, name, payload, options), may_create=True
    )
    print_result({"id": stored, "name": name}, lambda: click.echo(escape_controls(stored)))


def parse_payload(text: str) -> bytes:
    """Return the text as bytes. Raises `BadInput` if it is not a JSON object."""
    import msgspec

    try:
        payload = text.encode()
        found = msgspec.json.decode(payload)
    except (UnicodeEncodeError, msgspec.DecodeError, RecursionError) as error:
        raise BadInput(f"--args is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadInput('--args must be a JSON object, like \'{"to": "a@example.com"}\'')
    return payload


async def enqueue_job(backend: Backend, name: str, payload: bytes, options: EnqueueOptions) -> str:
    """Enqueue through a client, which validates names, size and options, and record it; return the
    id of the job."""
    from nimburion.jobs.client.client import Client

    details = {"name": name, "queue": options.get("queue")}
    async with (
        Client(backend, settings=current_invocation().load().jobs) as client,
        record_command(backend, "jobs.enqueue", details=details) as change,
    ):
        change.target = await client.enqueue_raw(name, payload, **options)
        change.count = 1
    return change.target
