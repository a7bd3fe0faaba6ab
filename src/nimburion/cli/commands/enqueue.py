"""`nimburion enqueue NAME`: enqueue a job without the code of its handler."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from nimburion.cli.exit_codes import BadInput
from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.output import print_result
from nimburion.cli.parameters import parse_duration, parse_moment, parse_priority
from nimburion.core.job import OnDuplicate
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.jobs.client.client import EnqueueResult
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
    "--expires",
    type=parse_duration,
    metavar="DURATION",
    help="Cancel the job if it has not started this long after it is due.",
)
@click.option(
    "--tag",
    "tags",
    metavar="TAG",
    multiple=True,
    help="A name by which people find the job; may be repeated.",
)
@click.option(
    "--id",
    "job_id",
    metavar="ID",
    help="The id of the job; with it, you can repeat the command safely.",
)
@click.option("--unique-key", metavar="KEY", help="At most one unfinished job holds this text.")
@click.option(
    "--unique-for",
    type=parse_duration,
    metavar="DURATION",
    help="Hold the key for this time instead.",
)
@click.option(
    "--unique-while",
    type=click.Choice(["waiting", "unfinished"]),
    help="Hold the key until the job starts, or until it is finished.",
)
@click.option(
    "--on-duplicate",
    type=click.Choice(get_args(OnDuplicate)),
    help="If a job holds the key: fail, print its id, or give it the new arguments.",
)
@click.option(
    "--debounce",
    type=parse_duration,
    metavar="DURATION",
    help="Replace the waiting job that holds the key; run this long after the last enqueue.",
)
@click.option(
    "--max-wait",
    type=parse_duration,
    metavar="DURATION",
    help="With --debounce: run at the latest this long after the first enqueue.",
)
@click.option(
    "--throttle",
    type=parse_duration,
    metavar="DURATION",
    help="Run the first job of this time; print its id for others.",
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
    expires: float | None,
    tags: tuple[str, ...],
    job_id: str | None,
    **key_options: object,
) -> None:
    """Store a job by the name of its handler and print its id.

    A worker that knows the name checks the arguments; here they must only be a JSON object.
    """
    if at is not None and after is not None:
        raise BadInput("give --at or --in, not both")
    payload = parse_payload(sys.stdin.buffer.read() if arguments == "-" else arguments)
    given: dict[str, object] = {
        "queue": queue,
        "priority": priority,
        "at": at,
        "after": after,
        "expires": expires,
        "tags": tags or None,
        "id": job_id,
    }
    from nimburion.jobs.declaration.uniqueness import fold_unique

    given |= key_options
    options = cast(
        "EnqueueOptions",
        fold_unique({key: value for key, value in given.items() if value is not None}),
    )
    stored = current_invocation().run(
        lambda backend: enqueue_job(backend, name, payload, options), may_create=True
    )
    print_result(
        {"id": stored.id, "name": name, "outcome": stored.outcome},
        lambda: click.echo(escape_controls(stored.id)),
    )


def parse_payload(text: str | bytes) -> bytes:
    """Return the text as bytes. Raises `BadInput` if it is not a JSON object in UTF-8."""
    import msgspec

    try:
        payload = text if isinstance(text, bytes) else text.encode()
        payload.decode()
        found = msgspec.json.decode(payload)
    except (UnicodeError, msgspec.DecodeError, RecursionError) as error:
        raise BadInput(f"--args is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadInput('--args must be a JSON object, like \'{"to": "a@example.com"}\'')
    return payload


async def enqueue_job(
    backend: Backend, name: str, payload: bytes, options: EnqueueOptions
) -> EnqueueResult[Any]:
    """Enqueue through a client, which validates names, size and options, and record it."""
    from nimburion.actions.operator import make_process_operator
    from nimburion.jobs.client.client import Client, enqueue_raw_or_get

    operator = make_process_operator("cli")
    async with (
        Client(backend, settings=current_invocation().load().jobs) as client,
        operator.record(backend, "jobs.enqueue", name=name, queue=options.get("queue")) as change,
    ):
        stored = await enqueue_raw_or_get(client, name, payload, **options)
        change.target, change.count = stored.id, 1
    return stored
