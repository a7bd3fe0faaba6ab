"""Arguments to payload and back: one UTF-8 JSON object of the fields, checked on both sides.

On the way in values are checked as Python values (bytes are no str, "1" is no int), on the way out
as JSON. What does not fit is never half accepted: unknown fields are errors too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from nimburion.core.errors import InvalidJob, NimburionError
from nimburion.core.limits import Limits
from nimburion.jobs.declaration.fields import Field, struct_of, traits_of
from nimburion.jobs.declaration.json_values import OddValue, deeper_than, refuse_odd
from nimburion.jobs.declaration.pydantic_models import from_plain, to_plain

_KEPT = (bytes, bytearray, memoryview, datetime, date, time, timedelta, UUID, Decimal)
_MISFIT = (ValueError, TypeError, RecursionError, OverflowError, NotImplementedError)
_AT = re.compile(r"(?P<what>.*) - at (?P<key>`key` in )?`\$\.?(?P<path>.*)`", re.DOTALL)

_encode = msgspec.json.Encoder(enc_hook=to_plain).encode
_to_builtins = msgspec.to_builtins
_convert = msgspec.convert


class UnreadablePayload(NimburionError):
    """A stored payload that the handler's types cannot read: the job becomes a dead letter."""


class UnstorableResult(NimburionError):
    """What a handler returned cannot be kept as its result."""


class Codec:
    """The payloads of jobs of one name. Built once; `DefinitionError` names a field that cannot
    travel."""

    __slots__ = (
        "_decoder",
        "_is_plain",
        "_may_be_deep",
        "_may_be_odd",
        "_with_times",
        "fields",
        "name",
        "struct",
    )

    def __init__(
        self, name: str, fields: Sequence[Field], base: type[msgspec.Struct] = msgspec.Struct
    ) -> None:
        self.name: str = name
        self.fields: tuple[str, ...] = tuple(field.name for field in fields)
        traits = traits_of(name, fields)
        self._is_plain, self._may_be_deep = traits.plain, traits.deep
        self._may_be_odd, self._with_times = traits.odd, traits.times
        self.struct: Any = struct_of(name, fields, base)
        """The class of what `decode` answers."""
        self._decoder = msgspec.json.Decoder(self.struct, dec_hook=from_plain)

    def encode(self, arguments: dict[str, Any], limits: Limits) -> bytes:
        """The payload of these arguments; `InvalidJob` when they do not fit, naming field,
        expected type and what came."""
        try:
            if self._is_plain:
                _convert(arguments, self.struct)
                plain = arguments
            else:
                plain = _to_builtins(arguments, builtin_types=_KEPT, enc_hook=to_plain)
                _convert(plain, self.struct, builtin_types=_KEPT, dec_hook=from_plain)
            if self._may_be_odd:
                refuse_odd(plain)
            payload = _encode(plain)
        except _MISFIT as error:
            raise InvalidJob(self._refusal(arguments, error)) from error
        if self._may_be_deep or len(payload) > limits.payload:
            check_payload(self.name, payload, limits)
        return payload

    def decode(self, payload: bytes, limits: Limits) -> Any:  # noqa: ANN401
        """The `struct` of a payload; `UnreadablePayload` says what does not fit."""
        if deeper_than(limits.nesting, payload):
            raise UnreadablePayload(_too_deep(self.name, limits))
        try:
            arguments = self._decoder.decode(payload)
            if self._with_times:
                refuse_odd(_to_builtins(arguments, builtin_types=_KEPT, enc_hook=to_plain))
        except _MISFIT as error:
            text = f"the payload does not fit job {self.name!r}{_where(error)}"
            raise UnreadablePayload(text) from error
        return arguments

    def _refusal(self, arguments: dict[str, Any], error: Exception) -> str:
        """Where and why; tried field by field where the error does not say where."""
        if _AT.fullmatch(str(error)):
            return f"job {self.name!r}{_where(error)}"
        field = self._field_at_fault(arguments, type(error))
        path = error.path if isinstance(error, OddValue) else []
        place = _dotted([field, *path] if field else path)
        return f"job {self.name!r}" + (f", field {place!r}: " if place else ": ") + _plainly(error)

    def _field_at_fault(self, arguments: dict[str, Any], kind: type[Exception]) -> str | None:
        """The first field that by itself raises such an error on its way to JSON."""
        for field, value in arguments.items():
            try:
                _encode(_to_builtins(value, builtin_types=_KEPT, enc_hook=to_plain))
            except kind:
                return field
        return None


class ResultCodec:
    """What handlers of one name return, as JSON."""

    __slots__ = ("_decoder", "_name")

    def __init__(self, name: str, kind: object = Any) -> None:
        self._name = name
        self._decoder = msgspec.json.Decoder(kind, dec_hook=from_plain)

    def encode(self, value: object, limit: int) -> bytes | None:
        """JSON of at most `limit` bytes, None for None; else `UnstorableResult`."""
        if value is None:
            return None
        try:
            encoded = msgspec.json.encode(value, enc_hook=to_plain)
        except Exception as error:  # what a guest's own code raises may be anything
            raise UnstorableResult(
                f"the result of {self._name!r} cannot be kept: {_plainly(error)}; "
                "return what JSON can carry, or declare result=False"
            ) from error
        if len(encoded) > limit:
            raise UnstorableResult(
                f"the result of {self._name!r} is {len(encoded)} bytes, over the limit of {limit}; "
                "store it elsewhere and return where"
            )
        return encoded

    def decode(self, result: bytes) -> Any:  # noqa: ANN401
        """The value; plain JSON where it does not fit the type (any more)."""
        try:
            return self._decoder.decode(result)
        except _MISFIT:
            return msgspec.json.decode(result)


def encode_object(name: str, payload: Mapping[str, object], limits: Limits) -> bytes:
    """The payload of plain values, for a name whose types are not known here."""
    try:
        plain = _to_builtins(dict(payload), builtin_types=_KEPT, enc_hook=to_plain)
        refuse_odd(plain)
        encoded = _encode(plain)
    except _MISFIT as error:
        raise InvalidJob(f"job {name!r}{_where(error)}") from error
    check_payload(name, encoded, limits)
    return encoded


def check_payload(name: str, payload: bytes, limits: Limits) -> None:
    """`InvalidJob` when it is too large, or nests too deep."""
    check_size(name, payload, limits)
    if deeper_than(limits.nesting, payload):
        raise InvalidJob(_too_deep(name, limits))


def check_size(name: str, payload: bytes, limits: Limits) -> None:
    """`InvalidJob` when it is too large."""
    if len(payload) > limits.payload:
        raise InvalidJob(
            f"job {name!r}: the payload is {len(payload)} bytes, over the limit of "
            f"{limits.payload}; store the data elsewhere and pass where it is"
        )


def _too_deep(name: str, limits: Limits) -> str:
    return f"job {name!r}: the payload nests deeper than the limit of {limits.nesting}"


def _where(error: Exception) -> str:
    """`, field 'x': what` if the error tells, else `: what`."""
    if isinstance(error, OddValue) and error.path:
        return f", field {_dotted(error.path)!r}: {error.message}"
    found = _AT.fullmatch(str(error))
    if found is None or not found["path"]:
        return f": {_plainly(error)}"
    key = "a key of " if found["key"] else ""
    return f", {key}field {found['path']!r}: {_lowered(found['what'])}"


def _dotted(path: Sequence[object]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def _plainly(error: BaseException) -> str:
    match error:
        case RecursionError():
            return "it contains itself, or nests too deep"
        case UnicodeEncodeError():
            return "text with a lone surrogate is no UTF-8; clean it before"
        case UnicodeDecodeError():
            return "it is no UTF-8"
    found = _AT.fullmatch(str(error))
    return _lowered(found["what"] if found else str(error))


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
