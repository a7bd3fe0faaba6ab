"""Limits of sizes and depths, and the pattern of valid names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Coroutine

import msgspec

from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.text.shortening import shorten

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
"""The pattern of job names, queue names and ids."""

MAX_TEXT = 512
"""The maximum number of characters of a unique key, a tenant or a correlation id."""
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_UNSTORABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


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
    if isinstance(value, Coroutine):
        value.close()  # otherwise Python also warns that it was never awaited
        raise InvalidJob(f"{what} is a coroutine: an `await` is missing in the call that made it")
    shown = repr(value)
    shown = shorten(shown, 80)
    raise InvalidJob(f"{what} must be 1-128 characters of A-Z a-z 0-9 _ . : -, not {shown}")


def check_declared_name(what: str, value: object) -> str:
    """Check a declared name as `check_name` does, but raise `DefinitionError`."""
    try:
        return check_name(what, value)
    except InvalidJob as error:
        raise DefinitionError(str(error)) from None


def check_text(what: str, value: object) -> str:
    """Return `value` if it is a valid unique key, tenant or correlation id: 1 to 512 characters,
    none of which is a control character.

    Raises:
        InvalidJob: it is not. The message says why.
    """
    if not isinstance(value, str):
        raise InvalidJob(f"{what} must be a text, not {shorten(repr(value), 80)}")
    if not 1 <= len(value) <= MAX_TEXT:
        raise InvalidJob(f"{what} must have 1-{MAX_TEXT} characters, not {len(value)}")
    if found := _CONTROL_CHARACTER.search(value):
        raise InvalidJob(
            f"{what} must not contain control characters; character {found.start() + 1} is "
            f"U+{ord(found[0]):04X}"
        )
    if found := _LONE_SURROGATE.search(value):
        raise InvalidJob(
            f"{what} must be valid Unicode; character {found.start() + 1} is "
            f"U+{ord(found[0]):04X}, half of a surrogate pair"
        )
    return value


def shorten_key(key: str) -> str:
    """Return a key that every backend can store: that of a unique job or of a limit.

    A key that is too long, has a control character or is no valid Unicode becomes a SHA-256 sum.
    """
    if len(key) > MAX_TEXT or _UNSTORABLE.search(key):
        return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return key
