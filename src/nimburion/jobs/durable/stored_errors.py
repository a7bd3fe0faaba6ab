"""Exceptions that a handler caught, stored so that a later attempt raises the same."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import msgspec
from msgspec import Raw

from nimburion.jobs.durable.journal import StoredError

_MAX_MESSAGE = 4_096
"""The most characters of the text of an exception that are stored."""


def encode_error(error: Exception) -> StoredError | None:
    """Return an exception in its stored form; None if it could not be raised again.

    That is so if its class is not found by its module and its name, or needs arguments that have
    no JSON form. Attributes without a JSON form are left out.
    """
    kind = type(error)
    stored = StoredError(
        kind.__qualname__,
        kind.__module__,
        format_message(error),
        _encode(list(error.args)) or _encode([format_message(error)]) or Raw(b"[]"),
        Raw(
            msgspec.json.encode(
                {
                    name: encoded
                    for name, value in vars(error).items()
                    if name != "__notes__" and (encoded := _encode(value)) is not None
                }
            )
        ),
    )
    return None if decode_error(stored) is None else stored


def decode_error(stored: StoredError) -> Exception | None:
    """Return the exception, without a call of its constructor; None if that is impossible.

    Its class is taken from a module that is loaded. Nothing is imported, and the module's own
    `__getattr__` is not called.
    """
    kind: Any = sys.modules.get(stored.module)
    for name in stored.type.split("."):
        kind = _read_attributes(kind).get(name)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    try:
        args = msgspec.json.decode(stored.args)
        error: Exception = kind.__new__(kind, *args)
        error.args = tuple(args)
        vars(error).update(msgspec.json.decode(stored.attributes))
    except Exception:  # noqa: BLE001 (a class of the application may raise anything)
        return None
    return error


def _read_attributes(holder: object) -> Mapping[str, Any]:
    """Return what a module or a class defines, without a call of its code."""
    return vars(holder) if isinstance(holder, ModuleType | type) else {}


def format_message(error: BaseException) -> str:
    """Return the text of an exception, shortened."""
    try:
        return str(error)[:_MAX_MESSAGE].encode(errors="replace").decode()
    except Exception:  # noqa: BLE001 (a class of the application may raise anything)
        return ""


def _encode(value: object) -> Raw | None:
    """Return the JSON of a value; None if it has none that gives the same value."""
    try:
        encoded = msgspec.json.encode(value)
        return Raw(encoded) if msgspec.json.decode(encoded) == value else None
    except Exception:  # noqa: BLE001 (a value of the application may raise anything)
        return None
