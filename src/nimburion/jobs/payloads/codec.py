"""Encode arguments as payloads and decode payloads: one UTF-8 JSON object per job, validated both
ways.

Encoding validates Python values: bytes are not accepted as str, nor "1" as int. Decoding validates
the JSON. A payload is accepted or rejected as a whole, and unknown fields are errors too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from nimburion.core.errors import InvalidJob, NimburionError
from nimburion.core.size_limits import SizeLimits
from nimburion.core.text.suggestions import lower_first
from nimburion.jobs.payloads.fields import JobField, inspect_fields, make_struct
from nimburion.jobs.payloads.json_values import (
    NotJson,
    check_json_value,
    dec_hook,
    enc_hook,
    nests_deeper_than,
)

_NATIVE_TYPES = (bytes, bytearray, memoryview, datetime, date, time, timedelta, UUID, Decimal)
_CONVERSION_ERRORS = (ValueError, TypeError, RecursionError, OverflowError, NotImplementedError)
_AT = re.compile(r"(?P<what>.*) - at (?P<key>`key` in )?`\$\.?(?P<path>.*)`", re.DOTALL)

_encode = msgspec.json.Encoder(enc_hook=enc_hook).encode
_to_builtins = msgspec.to_builtins
_convert = msgspec.convert


class UnreadablePayload(NimburionError):
    """A stored payload does not fit the handler's types; the job becomes a dead letter."""


class UnstorableResult(NimburionError):
    """The return value of a handler cannot be stored as the job's result."""


class Codec:
    """Encodes and decodes the payloads of jobs of one name. Built once per declaration.

    `DefinitionError` names a field whose type has no JSON form.
    """

    __slots__ = (
        "_decoder",
        "_is_plain",
        "_may_nest_deeply",
        "_needs_json_check",
        "_with_times",
        "decode_plain",
        "fields",
        "name",
        "struct",
    )

    def __init__(
        self, name: str, fields: Sequence[JobField], base: type[msgspec.Struct] = msgspec.Struct
    ) -> None:
        self.name: str = name
        self.fields: tuple[str, ...] = tuple(field.name for field in fields)
        traits = inspect_fields(name, fields)
        self._is_plain, self._may_nest_deeply = traits.plain, traits.deep
        self._needs_json_check, self._with_times = traits.needs_json_check, traits.times
        self.struct: Any = make_struct(name, fields, base)
        """The class of the objects that `decode` returns."""
        self._decoder = msgspec.json.Decoder(self.struct, dec_hook=dec_hook)
        checks_values = self._may_nest_deeply or self._with_times
        self.decode_plain: Callable[[bytes], Any] | None = (
            None if checks_values else self._decoder.decode
        )
        """Decodes a payload as `decode` does, without a call of a Python function, and raises
        `ValueError`; None if values of these types need further checks."""

    def encode(self, arguments: dict[str, Any], sizes: SizeLimits) -> bytes:
        """Return the payload of these arguments.

        `InvalidJob` names the field, the expected type and the value that does not fit. It is also
        raised for a payload over the limits of size and nesting.
        """
        try:
            if self._is_plain:
                _convert(arguments, self.struct)
                plain = arguments
            else:
                plain = _to_builtins(arguments, builtin_types=_NATIVE_TYPES, enc_hook=enc_hook)
                _convert(plain, self.struct, builtin_types=_NATIVE_TYPES, dec_hook=dec_hook)
            if self._needs_json_check:
                check_json_value(plain)
            payload = _encode(plain)
        except _CONVERSION_ERRORS as error:
            raise InvalidJob(self._explain_refusal(arguments, error)) from error
        if self._may_nest_deeply or len(payload) > sizes.payload:
            check_payload(self.name, payload, sizes)
        return payload

    def decode(self, payload: bytes, sizes: SizeLimits) -> Any:  # noqa: ANN401
        """Return the `struct` of a payload; `UnreadablePayload` says what does not fit."""
        if self._may_nest_deeply and nests_deeper_than(sizes.nesting, payload):
            raise UnreadablePayload(_explain_nesting(self.name, sizes))
        try:
            arguments = self._decoder.decode(payload)
            if self._with_times:
                check_json_value(
                    _to_builtins(arguments, builtin_types=_NATIVE_TYPES, enc_hook=enc_hook)
                )
        except _CONVERSION_ERRORS as error:
            # Without a type that nests, such a payload is refused in any case.
            if nests_deeper_than(sizes.nesting, payload):
                raise UnreadablePayload(_explain_nesting(self.name, sizes)) from error
            text = f"the payload does not fit job {self.name!r}{_locate(error)}"
            raise UnreadablePayload(text) from error
        return arguments

    def _explain_refusal(self, arguments: dict[str, Any], error: Exception) -> str:
        """Return the text that says where and why encoding failed.

        If the error does not name the field, each field is tried by itself.
        """
        if _AT.fullmatch(str(error)):
            return f"job {self.name!r}{_locate(error)}{_give_hint(error)}"
        field = self._find_faulty_field(arguments, type(error))
        path = error.path if isinstance(error, NotJson) else []
        place = _join_path([field, *path] if field else path)
        where = f", field {place!r}" if place else ""
        return f"job {self.name!r}{where}: {_describe(error)}{_give_hint(error)}"

    def _find_faulty_field(self, arguments: dict[str, Any], kind: type[Exception]) -> str | None:
        """Return the first field that raises an error of this kind when encoded by itself, or else
        the first that raises another error."""
        other: str | None = None
        for field, value in arguments.items():
            try:
                _encode(_to_builtins(value, builtin_types=_NATIVE_TYPES, enc_hook=enc_hook))
            except kind:
                return field
            except _CONVERSION_ERRORS:
                other = other or field
        return other


class ResultCodec:
    """Encodes and decodes the results of handlers of one name, as JSON."""

    __slots__ = ("_decoder", "_name")

    def __init__(self, name: str, kind: object = Any) -> None:
        self._name = name
        self._decoder = msgspec.json.Decoder(kind, dec_hook=dec_hook)

    def encode(self, value: object, limit: int) -> bytes | None:
        """Return the JSON of a result, at most `limit` bytes; None for None.

        `UnstorableResult` is raised when the value has no JSON form or is too large.
        """
        if value is None:
            return None
        try:
            encoded = msgspec.json.encode(value, enc_hook=enc_hook)
        except Exception as error:  # a model's own code may raise anything
            raise UnstorableResult(
                f"the result of {self._name!r} cannot be stored: {_describe(error)}; "
                "return a value that JSON can represent, or declare result=False"
            ) from error
        if len(encoded) > limit:
            raise UnstorableResult(
                f"the result of {self._name!r} is {len(encoded)} bytes, over the limit of {limit}; "
                "store it elsewhere and return its location"
            )
        return encoded

    def decode(self, result: bytes) -> Any:  # noqa: ANN401
        """Return the result; plain JSON values if it does not fit the declared type (any more)."""
        try:
            return self._decoder.decode(result)
        except _CONVERSION_ERRORS:
            return msgspec.json.decode(result)


def encode_object(name: str, payload: Mapping[str, object], sizes: SizeLimits) -> bytes:
    """Return the payload of plain values, for a name whose types are not known in this process.

    `InvalidJob` is raised for a value that JSON cannot represent, and for a payload over the
    limits.
    """
    try:
        plain = _to_builtins(dict(payload), builtin_types=_NATIVE_TYPES, enc_hook=enc_hook)
        check_json_value(plain)
        encoded = _encode(plain)
    except _CONVERSION_ERRORS as error:
        raise InvalidJob(f"job {name!r}{_locate(error)}") from error
    check_payload(name, encoded, sizes)
    return encoded


def check_payload(name: str, payload: bytes, sizes: SizeLimits) -> None:
    """Raise `InvalidJob` when the payload is too large or nests too deeply."""
    check_size(name, payload, sizes)
    if nests_deeper_than(sizes.nesting, payload):
        raise InvalidJob(_explain_nesting(name, sizes))


def check_size(name: str, payload: bytes, sizes: SizeLimits) -> None:
    """Raise `InvalidJob` when the payload is too large."""
    if len(payload) > sizes.payload:
        raise InvalidJob(
            f"job {name!r}: the payload is {len(payload)} bytes, over the limit of "
            f"{sizes.payload}; store the data elsewhere and pass its location"
        )


def _explain_nesting(name: str, sizes: SizeLimits) -> str:
    return f"job {name!r}: the payload nests deeper than the limit of {sizes.nesting}"


def _locate(error: Exception) -> str:
    """Return `, field 'x': what` if the error names a field, else `: what`."""
    if isinstance(error, NotJson) and error.path:
        return f", field {_join_path(error.path)!r}: {error.message}"
    found = _AT.fullmatch(str(error))
    if found is None or not found["path"]:
        return f": {_describe(error)}"
    key = "a key of " if found["key"] else ""
    return f", {key}field {found['path']!r}: {lower_first(found['what'])}"


def _give_hint(error: Exception) -> str:
    """Return a hint if an id may be None because its row is not written yet, or if the value is a
    part of an argument and not known yet, or if it is a member of a flow in place of its result."""
    if "`MemberResult`" in str(error):
        return " (the result of a member of a flow can only be a whole argument of another member)"
    if "`Member`" in str(error):
        return " (to pass the result of a member of a flow, write `member.result`)"
    if "`Members`" in str(error):
        return " (to pass the results of a group of a flow, write `group.results`)"
    is_missing_id = str(error).startswith(
        ("Expected `int`, got `null`", "Expected `uuid`, got `null`")
    )
    return (
        " (the id of a new row is None until it is saved, as by `session.flush()`)"
        if is_missing_id
        else ""
    )


def _join_path(path: Sequence[object]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def _describe(error: BaseException) -> str:
    match error:
        case RecursionError():
            return "it contains itself or is nested too deeply"
        case UnicodeEncodeError():
            return "text with a lone surrogate is not UTF-8; replace the surrogate"
        case UnicodeDecodeError():
            return "it is not UTF-8"
    found = _AT.fullmatch(str(error))
    return lower_first(found["what"] if found else str(error))
