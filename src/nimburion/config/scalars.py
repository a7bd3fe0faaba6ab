"""Parse plain words and numbers: the scalars of YAML 1.2."""

from __future__ import annotations

import math
import re
from types import MappingProxyType

from nimburion.config.tree import Scalar

MAX_NUMBER_LENGTH = 40

_WORDS = MappingProxyType(
    {
        **dict.fromkeys(("", "~", "null", "Null", "NULL")),
        **dict.fromkeys(("true", "True", "TRUE"), True),
        **dict.fromkeys(("false", "False", "FALSE"), False),
    }
)
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def parse_scalar(text: str) -> Scalar:
    """Return the value of a plain YAML 1.2 scalar.

    `012` is 12; `on`, `1:30` and `0b1` are texts.
    """
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > MAX_NUMBER_LENGTH:
        return text
    if _INT.fullmatch(text):
        return _parse_int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return _parse_special_float(text) if _INFINITE.fullmatch(text) else text


def _parse_int(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _parse_special_float(text: str) -> float:
    if text[-3:].lower() == "nan":
        return math.nan
    return -math.inf if text[0] == "-" else math.inf
