"""`nimburion enqueue NAME`: enqueue a job by the name of its handler, with or without its code."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast, get_args

import click
import msgspec

from nimburion.cli.exit_codes import BadInput
from nimburion.cli.filters import format_count
from nimburion.cli.invocation import (
    Invocation,
    add_shared_options,
    current_invocation,
    require_shared,
)
from nimburion.cli.output import print_result
from nimburion.cli.parameters import parse_duration, parse_moment, parse_priority
from nimburion.core.diagnosis.unserved import find_unserved, is_live, make_empty_queue
from nimburion.core.errors import BackendError, JobNotFound
from nimburion.core.job import OnDuplicate
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.jobs import Processor
    from nimburion.jobs.client.client import Client, EnqueueResult
    from nimburion.jobs.declaration.job import AnyJob
    from nimburion.jobs.options.enqueue_options import EnqueueOptions


@click.command()
@click.argument("name")
@click.option(
    "--app",
    "target",
    metavar="MODULE:NAME",
    help="Check the job against this application, and apply what its handler declares.",
)
@click.option(
    "--traceback", is_flag=True, help="With --app: show where MODULE fails when it is imported."
)
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
    "for_",
    type=parse_duration,
    metavar="DURATION",
    help="Hold the key for this time instead.",
)
@click.option(
    "--unique-while",
    "while_",
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
    target: str | None,
    traceback: bool,
    arguments: str,
    queue: str | None,
    priority: int | None,
    at: datetime | None,
    after: float | None,
    expires: float | None,
    tags: tuple[str, ...],
    job_id: str | None,
    unique_key: str | None,
    **unique: Any,
) -> None:
    """Store a job by the name of its handler and print its id.

    With --app, the handler's types are checked, and its queue, priority, limits and unique key
    apply. A line on standard error says whether a live worker can run the job. Without --app, the
    arguments must only be a JSON object; a worker checks their types.
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
        "unique_key": unique_key,
    }
    if any(value is not None for value in unique.values()):
        from nimburion.jobs.options.uniqueness import Unique

        given["unique"] = Unique(**unique)
    options = cast(
        "EnqueueOptions", {key: value for key, value in given.items() if value is not None}
    )
    invocation = current_invocation()
    if target is None:
        stored = invocation.run(
            lambda backend: enqueue_by_name(backend, name, payload, options), may_create=True
        )
        workers = {}
    else:
        processor = load_application(target, invocation, show_traceback=traceback)
        job = decode_arguments(processor, name, payload)
        stored, service = asyncio.run(enqueue_checked(processor, name, job, options))
        workers = {"workers": service}
    print_result(
        {"id": stored.id, "name": name, "outcome": stored.outcome, **workers},
        lambda: click.echo(escape_controls(stored.id)),
    )
    for line in () if invocation.as_json else workers.values():
        click.echo(escape_controls(line), err=True)


def parse_payload(text: str | bytes) -> bytes:
    """Return the text as bytes. Raises `BadInput` if it is not a JSON object in UTF-8."""
    try:
        payload = text if isinstance(text, bytes) else text.encode()
        payload.decode()
        found = msgspec.json.decode(payload)
    except (UnicodeError, msgspec.DecodeError, RecursionError) as error:
        raise BadInput(f"--args is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadInput('--args must be a JSON object, like \'{"to": "a@example.com"}\'')
    return payload


def load_application(target: str, invocation: Invocation, *, show_traceback: bool) -> Processor:
    """Return the processor that `target` names.

    Raises `BadInput` if it opens another backend than `--backend`, or one inside one process.
    """
    # Only with an application.
    from nimburion.cli.target import check_backend, export_configuration, find_processor

    export_configuration(invocation)
    processor = find_processor(target, show_traceback=show_traceback)
    check_backend(processor, invocation)
    require_shared(processor.backend, processor.backend.describe())
    return processor


def decode_arguments(processor: Processor, name: str, payload: bytes) -> bytes | AnyJob:
    """Return the job that the arguments describe; the bytes themselves for a raw handler.

    Raises `BadInput` for an unknown name, and for arguments that do not fit the handler's types.
    """
    from nimburion.core.text.suggestions import describe_unknown
    from nimburion.jobs.payloads.codec import UnreadablePayload

    handler = processor.registry.get(name)
    if handler is None:
        raise BadInput(str(describe_unknown("job", [name], processor.registry.names)))
    try:
        decoded: bytes | AnyJob = handler.decode(payload)
    except UnreadablePayload as error:
        raise BadInput(str(error)) from None
    return decoded


async def enqueue_by_name(
    backend: Backend, name: str, payload: bytes, options: EnqueueOptions
) -> EnqueueResult[Any]:
    """Enqueue through a client, which validates names, size and options, and record it."""
    from nimburion.jobs.client.client import Client

    async with Client(backend, settings=current_invocation().load().jobs) as client:
        return await _enqueue(client, name, payload, options)


async def enqueue_checked(
    processor: Processor, name: str, job: bytes | AnyJob, options: EnqueueOptions
) -> tuple[EnqueueResult[Any], str]:
    """Enqueue a job as the application does, and record it. Also say which workers can run it."""
    async with processor:
        stored = await _enqueue(processor, name, job, options)
        try:
            return stored, await _describe_workers(processor.backend, stored.id)
        except (BackendError, JobNotFound):  # it waits in the outbox, or has ended and was pruned
            return stored, "it is not known whether a worker can run it"


async def _enqueue(
    client: Client, name: str, job: bytes | AnyJob, options: EnqueueOptions
) -> EnqueueResult[Any]:
    from nimburion.actions.operator import make_process_operator
    from nimburion.jobs.client.client import enqueue_and_tell, enqueue_raw_or_get

    operator = make_process_operator("cli")
    async with operator.record(
        client.backend, "jobs.enqueue", name=name, queue=options.get("queue")
    ) as change:
        if isinstance(job, bytes):
            stored = await enqueue_raw_or_get(client, name, job, **options)
        else:
            stored = await enqueue_and_tell(client, job, **options)
        change.target, change.count = stored.id, 1
    return stored


async def _describe_workers(backend: Backend, job_id: str) -> str:
    """Say how many live workers can run a job, or why none can."""
    record = await backend.reads.get_job(job_id)
    sessions = await backend.reads.list_sessions()
    waiting = msgspec.structs.replace(make_empty_queue(record.queue), names={record.name: 1})
    unserved = find_unserved([waiting], sessions)
    if unserved:
        return unserved[0].describe()
    able = [one for one in sessions if is_live(one) and record.queue in one.queues]
    count = format_count(sum(record.name in one.names for one in able), "worker")
    return f"queue {record.queue!r}: {count} can run it"
