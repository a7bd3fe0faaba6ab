"""The values of steps as JSON, and digests of arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import ref
from zlib import crc32

import msgspec

from nimburion.core.errors import DefinitionError, InvalidStep
from nimburion.core.text.suggestions import lower_first
from nimburion.jobs.declaration.signature import is_async, read_return_type
from nimburion.jobs.payloads.codec import UnreadablePayload
from nimburion.jobs.payloads.fields import check_type
from nimburion.jobs.payloads.json_values import check_json_value, dec_hook, enc_hook

MAX_VALUE_BYTES = 256 * 1024
"""The maximum size of the value of a step, as JSON."""

_ERRORS = (ValueError, TypeError, RecursionError, OverflowError, NotImplementedError)
_encode = msgspec.json.Encoder(enc_hook=enc_hook).encode


class StepFunction(NamedTuple):
    """What is read once of a function that is a step."""

    is_async: bool
    decode: Callable[[bytes | msgspec.Raw], Any]


def read_step_function(function: Callable[..., Any]) -> StepFunction:
    """Return what a run needs of a function. `InvalidStep` is raised if it cannot be a step."""
    plain = getattr(function, "__func__", function)
    try:
        known = _known.get(ref(plain))
        if known is None:
            known = _known[ref(plain, _forget)] = _read(function)
    except TypeError:  # it cannot be a key
        return _read(function)
    return known


def _read(function: Callable[..., Any]) -> StepFunction:
    name = get_function_name(function) or "without a name"
    what = f"step {name!r}"
    try:
        kind = read_return_type(name, function)
        check_type(f"{what}, return type", kind)
        waits = is_async(function)
    except DefinitionError as error:
        raise InvalidStep(str(error)) from error
    return StepFunction(waits, msgspec.json.Decoder(kind, dec_hook=dec_hook).decode)


_known: dict[ref[Callable[..., Any]], StepFunction] = {}
"""What was read of functions that still exist: a `WeakKeyDictionary` without its Python code."""


def _forget(function: ref[Callable[..., Any]]) -> None:
    _known.pop(function, None)


def get_function_name(function: Callable[..., Any]) -> str:
    """Return the name of a function; empty if it has none of its own."""
    name = getattr(function, "__name__", "")
    return name if isinstance(name, str) and name != "<lambda>" else ""


def encode_value(key: str, function: StepFunction, value: object) -> tuple[msgspec.Raw, Any]:
    """Return the JSON of the value of a step, and the value that a later attempt reads from it.

    `InvalidStep` is raised if it cannot be stored, and `UnreadablePayload` as by `decode_value`.
    """
    try:
        check_json_value(value)
        encoded = _encode(value)
    except _ERRORS as error:
        raise InvalidStep(
            f"step {key!r}: its value cannot be stored: {lower_first(str(error))}; return a value "
            "that JSON can represent"
        ) from error
    if len(encoded) > MAX_VALUE_BYTES:
        raise InvalidStep(
            f"step {key!r}: its value is {len(encoded)} bytes, over the limit of "
            f"{MAX_VALUE_BYTES}; store it elsewhere and return its location"
        )
    try:
        return msgspec.Raw(encoded), function.decode(encoded)
    except _ERRORS:
        return msgspec.Raw(encoded), decode_value(key, function, encoded)  # raises


def decode_value(key: str, function: StepFunction, value: bytes | msgspec.Raw) -> Any:  # noqa: ANN401
    """Return the value of a step, in the annotated type of its function. `UnreadablePayload` is
    raised if it does not fit.
    """
    try:
        return function.decode(value)
    except _ERRORS as error:
        raise UnreadablePayload(
            f"step {key!r}: its stored value does not fit the type that its function returns: "
            f"{lower_first(str(error))}"
        ) from error


def compute_arguments_digest(args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """Return a digest of arguments; empty if they have no JSON form. Only a warning depends on it.

    >>> compute_arguments_digest((1,), {}) == compute_arguments_digest((2,), {})
    False
    """
    try:
        encoded = _encode([args, dict(sorted(kwargs.items())) if kwargs else kwargs])
    except Exception:  # noqa: BLE001 (a value of the application may raise anything)
        return ""
    return f"{crc32(encoded):08x}"
