"""The rule about changed clocks, written a second time: minute by minute, and by another library.

Which local times an expression means is asked of cronsim, on a calendar without zones; what the
clocks show is asked of the zone for each real minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

FIRST, LAST = 2010, 2037
EXPRESSIONS = (
    "* * * * *",
    "*/15 * * * *",
    "7 * * * *",
    "10 */2 * * *",
    "*/20 2 * * *",
    "0 0 * * *",
    "30 1 * * *",
    "30 2 * * *",
    "0 3 * * *",
    "15,45 0-3 * * *",
    "0,30 0,1,2,3 * * *",
    "59 23 * * *",
    "0 12 * * SUN",
    "30 2 L * *",
)
AROUND = 4 * 60
"""Minutes looked at on both sides of a change."""


class Change(NamedTuple):
    """A moment at which the clocks of a zone are changed."""

    zone: str
    at: int


def changes(zone: str) -> Iterator[Change]:
    """Every change of a zone, from 2010 to 2037."""
    there = ZoneInfo(zone)
    day = int(datetime(FIRST, 1, 1, tzinfo=UTC).timestamp())
    offset = shown(day, there)
    end = int(datetime(LAST + 1, 1, 1, tzinfo=UTC).timestamp())
    while day < end:
        before, offset = offset, shown(day + 86_400, there)
        if before != offset:
            yield Change(zone, exactly(day, day + 86_400, there))
        day += 86_400


def exactly(low: int, high: int, zone: ZoneInfo) -> int:
    """The second of a change in (low, high]."""
    before = shown(low, zone)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if shown(middle, zone) == before else (low, middle)
    return high


def shown(instant: int, zone: ZoneInfo) -> timedelta | None:
    """The offset of the clocks."""
    return datetime.fromtimestamp(instant, zone).utcoffset()


@lru_cache(maxsize=4096)
def local_at(instant: int, zone: ZoneInfo) -> datetime:
    """What the clocks show."""
    return datetime.fromtimestamp(instant, zone).replace(tzinfo=None)


@cache
def means(expression: str, local: datetime) -> bool:
    """Whether a minute of the calendar is one of the expression."""
    found: datetime = next(CronSim(expression, local - timedelta(minutes=1)))
    return found == local


def ticks_around(expression: str, change: Change) -> list[int]:
    """When it must tick, within `AROUND` minutes of a change on a whole minute."""
    zone = ZoneInfo(change.zone)
    minutes = range(change.at - AROUND * 60, change.at + AROUND * 60 + 1, 60)
    fixed = not any(field.startswith("*") for field in expression.split()[:2])
    found: set[int] = set()
    seen: set[datetime] = set()
    for instant in minutes:
        local = local_at(instant, zone)
        if means(expression, local) and not (fixed and local in seen):
            found.add(instant)
        seen.add(local)
    if fixed and any(means(expression, local) for local in skipped(change, zone)):
        found.add(change.at)
    return sorted(found)


def skipped(change: Change, zone: ZoneInfo) -> Iterator[datetime]:
    """The minutes that the clocks never show."""
    local = local_at(change.at - 60, zone) + timedelta(minutes=1)
    while local < local_at(change.at, zone):
        yield local
        local += timedelta(minutes=1)
