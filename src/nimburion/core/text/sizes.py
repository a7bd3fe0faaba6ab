"""Sizes as users write them: a number of bytes, or a text such as `512MB`."""

from __future__ import annotations

import re
from types import MappingProxyType

_SIZE = re.compile(r"(\d{1,12})\s?(B|KiB|MiB|GiB|KB|MB|GB)")
_UNITS = MappingProxyType(
    {
        "B": 1,
        "KiB": 1024,
        "MiB": 1024**2,
        "GiB": 1024**3,
        "KB": 1000,
        "MB": 1000**2,
        "GB": 1000**3,
    }
)


def read_byte_count(value: object) -> int | None:
    """Return the bytes of a value that may be no size; None if it is not one.

    The caller raises the error that names the option.

    >>> read_byte_count(1024), read_byte_count("2KiB"), read_byte_count("1 MB")
    (1024, 2048, 1000000)
    >>> read_byte_count("much"), read_byte_count(True)
    (None, None)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        return int(match[1]) * _UNITS[match[2]]
    return None
