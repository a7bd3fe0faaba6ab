"""Assertions about enqueued jobs; their messages list the jobs that exist instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from nimburion.core.errors import InvalidJob
from nimburion.core.job import JobOptions, JobRecord
from nimburion.core.paging import iterate_jobs
from nimburion.core.text.shortening import shorten
from nimburion.testing.conditions import Condition

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.jobs.client.client import Client
    from nimburion.jobs.outbox.outbox import Outbox

_SHOWN = 20
_MAX_PAYLOAD_CHARACTERS = 200


async def assert_enqueued(where: Client | Backend, what: object, /, **fields: object) -> JobRecord:
    """Return the newest job that matches `what` and `fields`.

    Raises `AssertionError` with a list of the enqueued jobs if no job matches. `where` is a
    processor, a client or a backend. `what` is a name, a job class or function, or a job, whose
    arguments must then be equal too. Each of `fields` is an argument of the job, else a field of
    its `JobRecord` (`queue`, `priority`, `state`, `due` …), of its options (`tenant`, `unique_key`,
    `headers` …) or, for a batch handler, of its argument. If an argument hides a field of the
    record, give a job: its arguments are compared already. Jobs in the outbox and finished jobs
    match too. A completed job has lost its arguments: a condition on an argument never matches it.
    `InvalidJob` is raised for a name that is none of these, and for a value that does not fit the
    type of its field. The arguments of a name can be checked only if the processor registers it.

        await assert_enqueued(processor, SendEmail(to="a@example.com"), tenant="acme")
        await assert_enqueued(processor, "send_email", to="a@example.com", queue="mails")
    """
    backend = cast("Backend", getattr(where, "backend", where))
    condition = Condition(where, what, fields)
    waiting = await _read_outbox(where)
    record = condition.find_first(waiting) or await condition.find_newest(backend)
    if record is None:
        raise AssertionError(await _format_message(backend, waiting, condition))
    return record


async def assert_not_enqueued(where: Client | Backend, what: object, /, **fields: object) -> None:
    """Raise `AssertionError`, with the newest such job, if a job matches `what` and `fields`.

    The arguments and `InvalidJob` are those of `assert_enqueued`. `InvalidJob` is also raised for
    a name that the processor does not register. For a job of another program, pass the backend as
    `where`.

        await assert_not_enqueued(processor, SendEmail, tenant="acme")
    """
    backend = cast("Backend", getattr(where, "backend", where))
    condition = Condition(where, what, fields)
    waiting = await _read_outbox(where)
    record = condition.find_first(waiting) or await condition.find_newest(backend)
    if record is not None:
        raise AssertionError(f"{condition} was enqueued:\n  {format_record(record)}")
    problem = condition.explain_unregistered_name()
    if problem is not None:
        raise InvalidJob(problem)


async def _read_outbox(where: Client | Backend) -> list[JobRecord]:
    """Return the jobs that wait in the outbox of a processor, newest first."""
    outbox: Outbox | None = getattr(where, "outbox", None)
    if outbox is None:
        return []
    from nimburion.jobs.outbox.outbox import get_rows

    client = cast("Client", where)
    rows = get_rows(outbox)
    async with rows.open_database() as database:
        jobs = await rows.list_waiting(database)
    records = (job.make_record(client.clock.now()) for job in jobs)
    return [record for record in records if record is not None]


async def _format_message(
    backend: Backend, waiting: Sequence[JobRecord], condition: Condition
) -> str:
    head = f"no {condition} was enqueued"
    problem = condition.explain_unregistered_name()
    notes = [] if problem is None else [problem]
    lines = [f"  {format_record(record)}" for record in waiting[:_SHOWN]]
    count = len(waiting)
    async for record in iterate_jobs(backend, payloads=True):
        count += 1
        if count <= _SHOWN:
            lines.append(f"  {format_record(record)}")
    if not count:
        return "\n".join([f"{head}; nothing was", *notes])
    more = [f"  … and {count - _SHOWN} more"] if count > _SHOWN else []
    return "\n".join([f"{head}; newest first, there are:", *lines, *more, *notes])


def _shorten_payload(payload: bytes) -> str:
    """Return a payload as one short line."""
    text = payload.decode(errors="backslashreplace")
    text = "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )
    return shorten(text, _MAX_PAYLOAD_CHARACTERS)


def format_record(record: JobRecord) -> str:
    """Format a job as one line: its name, its arguments, and the options that were set."""
    payload = "(arguments not kept)" if record.payload is None else _shorten_payload(record.payload)
    given = {
        name: value
        for name in JobOptions.__struct_fields__
        if (value := getattr(record.options, name)) != getattr(JobOptions(), name)
    }
    options = "".join(f" {name}={value!r}" for name, value in given.items())
    about = f"queue={record.queue!r} priority={record.priority}{options}"
    return f"{record.name} {payload} {about} ({record.state})"
