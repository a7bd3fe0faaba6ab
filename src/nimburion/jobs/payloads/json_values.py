"""The JSON form of values, where msgspec alone has none or takes too much.

Pydantic models and paths have one. NaN, naive datetimes and huge integers pass the type check and
have none. Pydantic models are recognised by duck typing, so that pydantic is never imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import accumulate
from pathlib import PurePath
from typing import Any

import msgspec

LOWEST, HIGHEST = -(2**63), 2**64 - 1
"""The range of integers that every JSON reader with 64-bit integers can hold."""

_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (list, list),
    (dict, dict),
)
_MODEL_ATTRIBUTES = ("model_dump", "model_validate_json", "__pydantic_serializer__")


class NotJson(ValueError):
    """A value without a JSON form; `path` leads to it from the outermost value."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.path: list[object] = []


def check_json_value(value: object) -> None:
    """Raise `NotJson` for a naive datetime, NaN, an infinity or an integer over 64 bits.

    The check descends into dicts, lists, tuples and sets.
    """
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if kind is dict:
        _check_members(value.items())  # type: ignore[attr-defined]
    elif kind is int:
        if not LOWEST <= value <= HIGHEST:  # type: ignore[operator]
            raise NotJson("a whole number must fit in 64 bits")
    elif kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]
            raise NotJson(f"a number must be finite, not {value}")
    elif kind is list or kind is tuple or kind is set or kind is frozenset:
        _check_members(enumerate(value))  # type: ignore[arg-type]
    elif isinstance(value, float):  # a subclass
        check_json_value(float(value))
    elif isinstance(value, datetime) and value.utcoffset() is None:
        raise NotJson(
            "a datetime must have a time zone: "
            "datetime(…, tzinfo=timezone.utc), datetime.now(timezone.utc), or .astimezone()"
        )


def nests_deeper_than(limit: int, payload: bytes) -> bool:
    """Return whether JSON nests deeper than `limit`, without parsing it.

    The answer is never False for JSON that does. For malformed text it may be either.
    """
    if payload.count(b"{") + payload.count(b"[") <= limit:
        return False
    brackets = _STRINGS.sub(b"", payload).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > limit


def is_pydantic_model(kind: object) -> bool:
    """Return whether `kind` is a pydantic model class."""
    return isinstance(kind, type) and all(hasattr(kind, name) for name in _MODEL_ATTRIBUTES)


def is_custom_type(kind: object) -> bool:
    """Return whether the hooks of this module convert values of the class `kind`."""
    return is_pydantic_model(kind) or (isinstance(kind, type) and issubclass(kind, PurePath))


def enc_hook(value: Any) -> Any:  # noqa: ANN401 (msgspec's hook)
    """Convert a value that msgspec does not support; the `enc_hook` of msgspec.

    A pydantic model becomes plain JSON values, by alias. A path becomes its text. An instance of a
    subclass of a built-in type (Markup, a NumPy float) becomes an instance of that type. Any other
    value raises `TypeError`.
    """
    if is_pydantic_model(type(value)):
        check_json_value(value.model_dump(warnings=False))
        return value.model_dump(mode="json", by_alias=True, warnings=False)
    if isinstance(value, PurePath):
        return str(value)
    for kind, plainly in _BASES:
        if isinstance(value, kind):
            return plainly(value)
    raise TypeError(f"`{type(value).__qualname__}` cannot be encoded as JSON")


def dec_hook(kind: Any, value: Any) -> Any:  # noqa: ANN401 (msgspec's hook)
    """Convert plain JSON values to a pydantic model or a path; the `dec_hook` of msgspec.

    `ValueError` says what does not fit.
    """
    if kind is object:
        return value
    if issubclass(kind, PurePath):
        if not isinstance(value, str):
            raise ValueError(  # noqa: TRY004 (msgspec expects it from its hooks)
                f"Expected a path as `str`, got `{type(value).__name__}`"
            )
        return kind(value)
    try:
        return kind.model_validate_json(msgspec.json.encode(value))
    except ValueError as error:
        raise ValueError(_describe_first_error(error)) from error


def _check_members(members: object) -> None:
    for key, member in members:  # type: ignore[attr-defined]
        try:
            check_json_value(member)
        except NotJson as odd:
            odd.path.insert(0, key)
            raise


def _describe_first_error(error: ValueError) -> str:
    """Return pydantic's first error in one line, without the link to its documentation."""
    listed: Callable[[], Iterable[dict[str, Any]]] = getattr(error, "errors", tuple)
    details = listed()
    for detail in details:
        where = ".".join(str(part) for part in detail.get("loc", ()))
        return f"{where}: {detail.get('msg')}" if where else str(detail.get("msg"))
    return str(error)
