"""Reject values that pass the type check but have no JSON form: NaN, naive datetimes, huge
integers."""

from __future__ import annotations

import math
import re
from datetime import datetime
from itertools import accumulate

LOWEST, HIGHEST = -(2**63), 2**64 - 1
"""The range of integers that every JSON reader with 64-bit integers can hold."""

_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


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


def _check_members(members: object) -> None:
    for key, member in members:  # type: ignore[attr-defined]
        try:
            check_json_value(member)
        except NotJson as odd:
            odd.path.insert(0, key)
            raise
