"""Limits of sizes and depths, and the pattern of valid names."""

from __future__ import annotations

import re

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.shortening import shorten

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
"""The pattern of job names, queue names, ids, unique keys, tenants and correlation ids."""


class SizeLimits(msgspec.Struct, frozen=True):
    """Limits of the data that enters the backend. All are configurable; sizes are in bytes."""

    payload: int = 1024 * 1024
    nesting: int = 64
    batch: int = 10_000
    error: int = 64 * 1024
    result: int = 256 * 1024
    headers: int = 64 * 1024
    exchange: int = 4 * 1024 * 1024
    """The maximum size of the results and errors that a worker sends in one exchange, and of the
    payloads that it requests. At least one of each is always allowed, whatever its size.
    """
    unsettled: int = 32 * 1024 * 1024
    """The maximum size of the results and errors that wait in a worker to be sent. Above this
    size, the worker starts no further job.
    """


def check_name(what: str, value: object) -> str:
    """Return `value` if it is a valid name or id.

    Raises:
        InvalidJob: it is not. The message lists the allowed characters.
    """
    if isinstance(value, str) and NAME_PATTERN.fullmatch(value):
        return value
    shown = repr(value)
    shown = shorten(shown, 80)
    raise InvalidJob(f"{what} must be 1-128 characters of A-Z a-z 0-9 _ . : -, not {shown}")
