"""Options that several commands have, and the values of options."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from types import MappingProxyType
from typing import TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])
PRIORITIES = MappingProxyType({"lowest": 1, "low": 3, "normal": 5, "high": 7, "highest": 9})


def add_reason_option(command: F) -> F:
    """Add the option `--reason` to a command."""
    option = click.option(
        "--reason", metavar="TEXT", default="", help="Why; kept in the audit record."
    )
    return option(command)


def parse_duration(value: str) -> float:
    """Parse a duration in seconds, or text such as `1h30m`. Raises `click.BadParameter`."""
    from nimburion.config.scalars import parse_scalar
    from nimburion.config.value_types import InvalidValue, parse_duration

    try:
        seconds = parse_duration(parse_scalar(value))
    except InvalidValue:
        seconds = -1.0
    if seconds < 0:
        raise click.BadParameter(f"{value!r} is not a duration; write 30s, 5m, 1h30m or seconds")
    return seconds


def parse_moment(value: str) -> datetime:
    """Parse a date and time with a time zone. Raises `click.BadParameter`."""
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        problem = f"{value!r} is not a time; write it like 2030-01-31T09:00+01:00"
        raise click.BadParameter(problem) from None
    if found.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no time zone; add Z or +01:00")
    return found


def parse_time_before(value: str | None, now: float) -> float | None:
    """Parse a time: a duration back from `now`, or a date and time with a time zone.

    Returns epoch seconds. Raises `click.BadParameter`.
    """
    if value is None:
        return None
    if "-" in value or ":" in value:
        return parse_moment(value).timestamp()
    return now - parse_duration(value)


def parse_priority(value: str) -> int:
    """Parse a priority: 0 to 9, or its name. Raises `click.BadParameter`."""
    word = value.lower()
    if word not in PRIORITIES and word not in tuple("0123456789"):
        raise click.BadParameter(f"{value!r} is neither 0 to 9 nor one of {', '.join(PRIORITIES)}")
    return PRIORITIES[word] if word in PRIORITIES else int(word)
