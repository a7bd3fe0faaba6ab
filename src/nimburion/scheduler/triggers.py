"""Triggers: when a schedule ticks, by a cron expression, at an interval, or once.

A trigger is stored as text that has the same meaning in every process.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from nimburion.core.errors import DefinitionError
from nimburion.scheduler.cron import CronExpression
from nimburion.scheduler.timezones import find_next_instant

SHORTEST = 1
LONGEST = 366 * 86_400
_EVERY = re.compile(
    r"@every\s+(?=\d)(?:(\d{1,3})d)?(?:(\d{1,6})h)?(?:(\d{1,8})m)?(?:(\d{1,9})s)?", re.IGNORECASE
)
_AT = re.compile(r"@at\s+(\S+)", re.IGNORECASE)
_UNITS = (86_400, 3_600, 60, 1)

When = str | timedelta | datetime
"""A trigger as you write it: a cron expression or `@every 5m`, an interval, or a time."""


class Trigger(Protocol):
    """A source of ticks at whole epoch seconds."""

    @property
    def text(self) -> str:
        """The stored text; `parse_trigger` reads it."""
        ...

    def next_after(self, instant: int) -> int | None:
        """Return the first tick after `instant`; None if there is none."""
        ...


class CronTrigger:
    """A trigger that ticks when a cron expression matches in a time zone."""

    def __init__(self, expression: CronExpression, zone: ZoneInfo) -> None:
        self.expression: CronExpression = expression
        self.zone: ZoneInfo = zone
        self.text: str = expression.text.strip()

    def next_after(self, instant: int) -> int | None:
        """See `Trigger.next_after`."""
        return find_next_instant(self.expression, self.zone, instant)


class IntervalTrigger:
    """A trigger that ticks every n seconds, counted from 1970 in UTC or from a start time, so
    that every scheduler computes the same ticks."""

    def __init__(self, seconds: int, anchor: int = 0) -> None:
        if not SHORTEST <= seconds <= LONGEST:
            raise DefinitionError(f"an interval must be 1 second to 366 days, not {seconds} s")
        self.seconds: int = seconds
        self.anchor: int = anchor
        self.text: str = f"@every {_format_interval(seconds)}"

    def next_after(self, instant: int) -> int | None:
        """See `Trigger.next_after`."""
        return ((instant - self.anchor) // self.seconds + 1) * self.seconds + self.anchor


class OnceTrigger:
    """A trigger that ticks once."""

    def __init__(self, at: datetime) -> None:
        self.at: int = to_epoch("the time of a one-off schedule", at)
        self.text: str = f"@at {at.isoformat()}"

    def next_after(self, instant: int) -> int | None:
        """See `Trigger.next_after`."""
        return self.at if self.at > instant else None


def parse_trigger(when: When, zone: ZoneInfo, anchor: int = 0) -> Trigger:
    """Parse a trigger. Raises `DefinitionError` with the cause."""
    if isinstance(when, datetime):
        return OnceTrigger(when)
    if isinstance(when, timedelta):
        return IntervalTrigger(_to_whole_seconds(when), anchor)
    if not isinstance(when, str):
        raise DefinitionError(
            "a schedule takes a cron expression like '0 2 * * *', an interval like '@every 1h' or "
            f"timedelta(hours=1), or a datetime, not {when!r}"
        )
    text = when.strip()
    if text.lower().startswith("@every"):
        return IntervalTrigger(_parse_interval(text), anchor)
    if match := _AT.fullmatch(text):
        return OnceTrigger(_parse_moment(match[1]))
    return CronTrigger(CronExpression(when), zone)


class Timetable:
    """The ticks of a trigger from `start`, inclusive, to `end`, exclusive."""

    def __init__(self, trigger: Trigger, start: int | None = None, end: int | None = None) -> None:
        self.trigger: Trigger = trigger
        self.start: int | None = start
        self.end: int | None = end

    def next_after(self, instant: float) -> int | None:
        """Return the first tick after `instant` within `start` and `end`; None if there is none."""
        whole = math.floor(instant)
        if self.start is not None:
            whole = max(whole, self.start - 1)
        tick = self.trigger.next_after(whole)
        return None if tick is None or (self.end is not None and tick >= self.end) else tick

    def iterate_between(self, after: float, until: float) -> Iterator[int]:
        """Yield the ticks in (after, until] in ascending order."""
        tick = self.next_after(after)
        while tick is not None and tick <= until:
            yield tick
            tick = self.next_after(tick)

    def find_latest(self, after: float, until: float) -> int | None:
        """Return the last tick in (after, until] without reading all of them; None if there is
        none."""
        found = self.list_last(1, until, after)
        return found[0] if found else None

    def list_last(self, count: int, until: float, after: float = 0.0) -> list[int]:
        """Return the last `count` ticks in (after, until] in ascending order, without reading
        all of them."""
        span = 120.0
        while True:
            begin = max(after, until - span)
            found = deque(self.iterate_between(begin, until), maxlen=count)
            if len(found) == count or begin <= after:
                return list(found)
            span *= 2


def to_epoch(what: str, moment: object) -> int:
    """Return the epoch second of a datetime with a time zone, rounded up. Raises
    `DefinitionError` for any other value."""
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise DefinitionError(f"{what} must be a datetime with a time zone, not {moment!r}")
    return math.ceil(moment.timestamp())


def _parse_moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise DefinitionError(
            f"{text!a} is not a time; write it like @at 2030-01-31T09:00+01:00"
        ) from None


def _parse_interval(text: str) -> int:
    match = _EVERY.fullmatch(text)
    if match is None:
        raise DefinitionError(
            f"{text[:80]!a} is not an interval; write it in whole seconds, like @every 10s, "
            "@every 5m or @every 1h30m"
        )
    return sum(int(count or 0) * unit for count, unit in zip(match.groups(), _UNITS, strict=True))


def _to_whole_seconds(interval: timedelta) -> int:
    seconds = interval.total_seconds()
    if seconds != int(seconds):
        raise DefinitionError(f"an interval must be whole seconds, not {seconds} s")
    return int(seconds)


def _format_interval(seconds: int) -> str:
    """Format seconds as text: `5400` becomes `1h30m`."""
    parts = []
    for unit, letter in zip(_UNITS, "dhms", strict=True):
        count, seconds = divmod(seconds, unit)
        if count:
            parts.append(f"{count}{letter}")
    return "".join(parts)


_UNIT_NAMES = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def explain_trigger(trigger: Trigger) -> str:
    """Return an English description of a trigger.

    >>> from datetime import timedelta, timezone
    >>> from zoneinfo import ZoneInfo
    >>> from nimburion.scheduler.triggers import parse_trigger
    >>> explain_trigger(parse_trigger("30 9 * * MON-FRI", ZoneInfo("Europe/Rome")))
    'At 09:30 on Monday through Friday (time zone Europe/Rome)'
    >>> explain_trigger(parse_trigger(timedelta(minutes=90), ZoneInfo("UTC")))
    'Every 1 hour 30 minutes'
    """
    if isinstance(trigger, CronTrigger):
        return f"{_explain_expression(trigger)} (time zone {trigger.zone.key})"
    if isinstance(trigger, IntervalTrigger):
        return f"Every {_format_span(trigger.seconds)}"
    if isinstance(trigger, OnceTrigger):
        return f"Once, at {datetime.fromtimestamp(trigger.at).astimezone():%Y-%m-%d %H:%M:%S %z}"
    return trigger.text


def _explain_expression(trigger: CronTrigger) -> str:
    from cronsim.explain import Expression  # imported only when needed

    explained = Expression(["0", *(field.text for field in trigger.expression.fields)]).explain()
    if trigger.expression.fixed or trigger.zone.key == "UTC":
        return explained
    return f"{explained}, also while the clock changes"


def _format_span(seconds: int) -> str:
    parts = []
    for unit, name in _UNIT_NAMES:
        count, seconds = divmod(seconds, unit)
        if count:
            parts.append(f"{count} {name}{'' if count == 1 else 's'}")
    return " ".join(parts)
