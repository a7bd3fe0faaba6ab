"""The condition of an assertion about enqueued jobs, checked against the declaration of the job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.job import JobOptions, JobRecord
from nimburion.core.paging import iterate_jobs
from nimburion.core.queries import JobFilter
from nimburion.core.size_limits import SizeLimits
from nimburion.core.text.suggestions import find_nearest

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.jobs.client.client import Client
    from nimburion.jobs.declaration.job import Declaration
    from nimburion.jobs.declaration.registry import Registry

_MISSING = object()
_OF_RECORD = frozenset(JobRecord.__struct_fields__) - {"options"}
_OF_OPTIONS = frozenset(JobOptions.__struct_fields__)


class Condition:
    """What a job must be to match: its name, its arguments, and single fields.

    `InvalidJob` is raised for a field that the job does not have, and for a value that the field
    cannot have: no job could ever match.
    """

    def __init__(self, where: Client | Backend, what: object, fields: Mapping[str, object]) -> None:
        self._registry: Registry | None = getattr(where, "registry", None)
        self._is_name = isinstance(what, str)
        name, arguments, declared = _describe(what, self._registry)
        self.name: str = name
        self.arguments: Mapping[str, object] = arguments
        self.fields: Mapping[str, object] = fields
        self._is_job = not _is_declaration(what)
        self._is_batch = declared is not None and declared.policy.batch is not None
        self._accepted: dict[str, tuple[object, ...]] = {
            field: (value, *self._encode_value(declared, field, value))
            for field, value in fields.items()
        }
        """For each field: its value as given and, if that differs, as the backend stores it."""

    def explain_unregistered_name(self) -> str | None:
        """Return what is wrong with a name, if the processor registers jobs but none of this name;
        else None."""
        registry = self._registry
        if not self._is_name or registry is None or not registry.names:
            return None
        if registry.get(self.name) is not None:
            return None
        near = find_nearest(self.name, registry.names)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(registry.names)}."
        return (
            f"job {self.name!r} is not registered here; {hint} "
            "For a job of another program, pass `processor.backend`"
        )

    def find_first(self, records: Iterable[JobRecord]) -> JobRecord | None:
        """Return the first of these jobs that matches."""
        return next((one for one in records if one.name == self.name and self._matches(one)), None)

    async def find_newest(self, backend: Backend) -> JobRecord | None:
        """Return the newest job that matches."""
        async for record in iterate_jobs(backend, JobFilter(name=self.name), payloads=True):
            if self._matches(record):
                return record
        return None

    def __str__(self) -> str:
        wanted = ", ".join(
            f"{key}={value!r}" for key, value in {**self.arguments, **self.fields}.items()
        )
        return f"job {self.name!r}{f' with {wanted}' if wanted else ''}"

    def _encode_value(
        self, declared: Declaration | None, field: str, value: object
    ) -> tuple[object, ...]:
        """Return the value as the backend stores it; nothing if that is not known."""
        struct = msgspec.structs.fields(declared.codec.struct) if declared is not None else ()
        types = {each.name: each.type for each in struct}
        if field in types and not self._is_job:
            return _encode(self.name, field, value, types[field])
        if field in _OF_RECORD:
            return _convert(self.name, field, value, JobRecord)
        if field in _OF_OPTIONS:
            return _convert(self.name, field, value, JobOptions)
        if declared is None:
            return ()
        if field in types:
            return _encode(self.name, field, value, types[field])
        members = _list_members(*types.values()) if self._is_batch else []
        if members is not None and field not in members:
            raise InvalidJob(_explain_unknown(self.name, field, [*types, *members]))
        return ()

    def _matches(self, record: JobRecord) -> bool:
        given = _decode_arguments(record.payload)
        if self.arguments and given != self.arguments:
            return False
        members = _read_members(given) if self._is_batch else {}
        return all(
            self._read_field(record, given, members, field) in accepted
            for field, accepted in self._accepted.items()
        )

    def _read_field(
        self,
        record: JobRecord,
        arguments: Mapping[str, object],
        members: Mapping[str, object],
        name: str,
    ) -> object:
        """Return the argument of this name, else the field of the record, of its options, or of the
        argument of a batch handler. The arguments of a job were compared already: they come last.
        """
        if name in arguments and not self._is_job:
            return arguments[name]
        if name in _OF_RECORD:
            return getattr(record, name)
        if name in _OF_OPTIONS:
            return getattr(record.options, name)
        return {**members, **arguments}.get(name, _MISSING)


def _is_declaration(what: object) -> bool:
    """Return whether this is a name, a job class or a function, and not a job with arguments."""
    from nimburion.jobs.declaration.job import JobFunction

    return isinstance(what, str | type | JobFunction)


def _describe(
    what: object, registry: Registry | None
) -> tuple[str, Mapping[str, object], Declaration | None]:
    """Return the name of a job, its arguments if `what` is a job, and its declaration if known."""
    from nimburion.jobs.declaration.job import find_declaration, require_declaration

    if isinstance(what, str):
        handler = None if registry is None else registry.get(what)
        return what, {}, None if handler is None else find_declaration(handler.target)
    declared = find_declaration(what)
    if declared is not None and _is_declaration(what):
        return declared.name, {}, declared
    declared = require_declaration(what)
    return declared.name, _decode_arguments(declared.encode(what, SizeLimits())), declared


def _encode(name: str, field: str, value: object, kind: object) -> tuple[object, ...]:
    """Return the value of an argument as its payload has it.

    A value in the form of the payload is accepted too, such as the text of a UUID, and so is an
    object that only compares, such as `mock.ANY`.
    """
    from nimburion.jobs.payloads.codec import Codec, UnreadablePayload
    from nimburion.jobs.payloads.fields import JobField

    codec = Codec(name, [JobField(field, kind)])
    try:
        return (msgspec.json.decode(codec.encode({field: value}, SizeLimits()))[field],)
    except InvalidJob as refusal:
        try:
            codec.decode(msgspec.json.encode({field: value}), SizeLimits())
        except UnreadablePayload:
            raise refusal from None
        except TypeError:  # it is no value of JSON
            if type(value).__eq__ is object.__eq__:
                raise refusal from None
            return ()
        return ()


def _convert(
    name: str, field: str, value: object, struct: type[JobRecord | JobOptions]
) -> tuple[object, ...]:
    """Return the value of a field of a record or of its options, in the type of the field."""
    kind = next(each.type for each in msgspec.structs.fields(struct) if each.name == field)
    try:
        return (msgspec.convert(value, kind),)
    except msgspec.ValidationError as error:
        try:
            msgspec.to_builtins(value)
        except TypeError:  # it only compares, such as `mock.ANY`
            return ()
        from nimburion.core.text.suggestions import lower_first

        what = "the record" if struct is JobRecord else "the options"
        text = lower_first(str(error).partition(" - at ")[0])
        raise InvalidJob(f"job {name!r}, field {field!r} of {what}: {text}") from error


def _explain_unknown(name: str, field: str, known: list[str]) -> str:
    near = find_nearest(field, [*known, *sorted(_OF_RECORD | _OF_OPTIONS)])
    hint = f"did you mean {near!r}?" if near else f"it has: {', '.join(known) or 'none'}"
    return f"job {name!r} has no field {field!r}; {hint}"


def _list_members(kind: object) -> list[str] | None:
    """Return the names of the fields of a type, as JSON has them; None if they are not known."""
    from msgspec import inspect

    fields = getattr(inspect.type_info(kind), "fields", None)
    return None if fields is None else [each.encode_name for each in fields]


def _decode_arguments(payload: bytes | None) -> Mapping[str, object]:
    """Return the members of a payload; none if it is missing or not a JSON object."""
    try:
        return msgspec.json.decode(payload or b"{}", type=dict[str, object])
    except msgspec.MsgspecError:
        return {}


def _read_members(arguments: Mapping[str, object]) -> Mapping[str, Any]:
    """Return the fields of the only argument of a batch handler; none if it has no fields."""
    (argument,) = arguments.values() if len(arguments) == 1 else (None,)
    return cast("Mapping[str, Any]", argument) if isinstance(argument, dict) else {}
