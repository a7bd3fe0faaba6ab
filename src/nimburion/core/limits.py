"""How large and how deep things may be, and what names may look like (SPEC §4)."""

from __future__ import annotations

import re

import msgspec

from nimburion.core.errors import InvalidJob

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
"""What names of jobs and queues, ids, unique keys, tenants and correlation ids may look like."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds on what enters the backend; all settable, in bytes where they are sizes."""

    payload: int = 1024 * 1024
    nesting: int = 64
    batch: int = 10_000
    error: int = 64 * 1024
    result: int = 256 * 1024
    headers: int = 64 * 1024
    exchange: int = 4 * 1024 * 1024
    """Results and errors that a worker sends, and payloads that it asks for, in one exchange; at
    least one of each, whatever its size."""
    unsettled: int = 32 * 1024 * 1024
    """Results and errors that wait in a worker to be sent: above this, it starts no further job."""


def check_name(what: str, value: object) -> str:
    """`value` if it may be a name or an id; else `InvalidJob` that says what is allowed."""
    if isinstance(value, str) and NAME_PATTERN.fullmatch(value):
        return value
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise InvalidJob(f"{what} must be 1-128 characters of A-Z a-z 0-9 _ . : -, not {shown}")
