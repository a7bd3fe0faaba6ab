"""Assertions about enqueued jobs; their messages list the jobs that exist instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from nimburion.core.job import JobOptions, JobRecord
from nimburion.core.paging import iterate_jobs
from nimburion.core.queries import JobFilter
from nimburion.core.text.shortening import shorten

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.jobs.client.client import Client

_SHOWN = 20
_MAX_PAYLOAD_CHARACTERS = 200
_MISSING = object()
_OF_RECORD = frozenset(JobRecord.__struct_fields__) - {"options"}
_OF_OPTIONS = frozenset(JobOptions.__struct_fields__)


async def assert_enqueued(where: Client | Backend, what: object, /, **fields: object) -> JobRecord:
    """Return the newest job that matches `what` and `fields`.

    Raises `AssertionError` with a list of the enqueued jobs if no job matches. `where` is a
    processor, a client or a backend. `what` is a name, a job class or function, or a job, whose
    arguments must then be equal too. `fields` are fields of a `JobRecord` (`queue`, `priority`,
    `state`, `due` …) or of its options (`tenant`, `unique_key`, `headers` …). Any other name is an
    argument of the job or, for a batch handler, a field of this argument. Finished jobs match too.
    A completed job has lost its arguments, so a condition on an argument never matches it.

        await assert_enqueued(processor, SendEmail(to="a@example.com"), tenant="acme")
        await assert_enqueued(processor, "send_email", to="a@example.com", queue="mails")
    """
    backend = cast("Backend", getattr(where, "backend", where))
    name, arguments = _describe(what)
    record = await _find_newest(backend, name, arguments, fields, is_batch=_is_batch(where, what))
    if record is None:
        raise AssertionError(await _format_message(backend, name, arguments, fields))
    return record


async def assert_not_enqueued(where: Client | Backend, what: object, /, **fields: object) -> None:
    """Raise `AssertionError`, with the newest such job, if a job matches `what` and `fields`.

    The arguments are those of `assert_enqueued`.

        await assert_not_enqueued(processor, SendEmail, tenant="acme")
    """
    backend = cast("Backend", getattr(where, "backend", where))
    name, arguments = _describe(what)
    record = await _find_newest(backend, name, arguments, fields, is_batch=_is_batch(where, what))
    if record is not None:
        raise AssertionError(
            f"{_describe_wanted(name, arguments, fields)} was enqueued:\n  {_format_record(record)}"
        )


async def _find_newest(
    backend: Backend,
    name: str,
    arguments: Mapping[str, object],
    fields: Mapping[str, object],
    *,
    is_batch: bool,
) -> JobRecord | None:
    async for record in iterate_jobs(backend, JobFilter(name=name), payloads=True):
        if _matches(record, arguments, fields, is_batch=is_batch):
            return record
    return None


def _describe(what: object) -> tuple[str, Mapping[str, object]]:
    """Return the name of a job, and its arguments if `what` is a job."""
    from nimburion.core.size_limits import SizeLimits
    from nimburion.jobs.declaration.job import JobFunction, find_declaration, require_declaration

    if isinstance(what, str):
        return what, {}
    declared = find_declaration(what)
    if declared is not None and isinstance(what, type | JobFunction):
        return declared.name, {}
    declared = require_declaration(what)
    return declared.name, _decode_arguments(declared.encode(what, SizeLimits()))


def _is_batch(where: Client | Backend, what: object) -> bool:
    """Return whether the handler of these jobs is known to take a batch."""
    from nimburion.jobs.declaration.job import find_declaration

    registry = getattr(where, "registry", None)
    known = find_declaration(what) or (registry.get(what) if registry is not None else None)
    return known is not None and known.policy.batch is not None


def _decode_arguments(payload: bytes | None) -> Mapping[str, object]:
    """Return the members of a payload; none if it is missing or not a JSON object."""
    try:
        return msgspec.json.decode(payload or b"{}", type=dict[str, object])
    except msgspec.MsgspecError:
        return {}


def _matches(
    record: JobRecord,
    arguments: Mapping[str, object],
    fields: Mapping[str, object],
    *,
    is_batch: bool,
) -> bool:
    given = _decode_arguments(record.payload)
    if arguments and given != arguments:
        return False
    if is_batch:  # the payload has one argument, with the name of the handler's list
        given = {**_read_members(given), **given}
    return all(_read_field(record, given, name) == value for name, value in fields.items())


def _read_members(arguments: Mapping[str, object]) -> Mapping[str, Any]:
    """Return the fields of the only argument of a batch handler; none if it has no fields."""
    (argument,) = arguments.values() if len(arguments) == 1 else (None,)
    return argument if isinstance(argument, dict) else {}


def _read_field(record: JobRecord, arguments: Mapping[str, object], name: str) -> object:
    if name in _OF_RECORD:
        return getattr(record, name)
    if name in _OF_OPTIONS:
        return getattr(record.options, name)
    return arguments.get(name, _MISSING)


async def _format_message(
    backend: Backend, name: str, arguments: Mapping[str, object], fields: Mapping[str, object]
) -> str:
    head = f"no {_describe_wanted(name, arguments, fields)} was enqueued"
    lines: list[str] = []
    count = 0
    async for record in iterate_jobs(backend, payloads=True):
        count += 1
        if count <= _SHOWN:
            lines.append(f"  {_format_record(record)}")
    if not count:
        return f"{head}; nothing was"
    more = [f"  … and {count - _SHOWN} more"] if count > _SHOWN else []
    return "\n".join([f"{head}; newest first, there are:", *lines, *more])


def _describe_wanted(
    name: str, arguments: Mapping[str, object], fields: Mapping[str, object]
) -> str:
    wanted = ", ".join(f"{key}={value!r}" for key, value in {**arguments, **fields}.items())
    return f"job {name!r}{f' with {wanted}' if wanted else ''}"


def _shorten_payload(payload: bytes) -> str:
    """Return a payload as one short line."""
    text = payload.decode(errors="backslashreplace")
    text = "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )
    return shorten(text, _MAX_PAYLOAD_CHARACTERS)


def _format_record(record: JobRecord) -> str:
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
