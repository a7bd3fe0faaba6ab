"""From times on the wall to instants, and what happens when clocks are changed.

The rule is that of Debian's cron. An expression that names times of day (neither minute nor hour
begins with `*`) runs once for each: a time that clocks skip runs right after the gap, one that
they show twice runs at the first. Any other follows real time: what clocks skip is not there,
what they show twice comes twice.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from nimburion.scheduler.cron import CronExpression

_REACH = 25 * 3600
"""Clocks were never set back by more than a day (and a date line crossed)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOCAL_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (of times on the wall)
_SECOND = timedelta(seconds=1)


def find_next_instant(expression: CronExpression, zone: ZoneInfo, after: int) -> int | None:
    """The first epoch second after `after` at which the expression comes true there."""
    now = datetime.fromtimestamp(after, zone)
    local = expression.next_after(now.replace(tzinfo=None))
    if local is None:
        return None
    offset = _read_offset(now)
    instant = (local - _LOCAL_EPOCH - offset) // _SECOND
    if instant - after <= _REACH:
        then = datetime.fromtimestamp(instant, zone)
        if not then.fold and then.utcoffset() == offset:
            return instant  # clocks are not changed in between
    return _find_by_wall_clock(expression, zone, after, now)


def _find_by_wall_clock(
    expression: CronExpression, zone: ZoneInfo, after: int, now: datetime
) -> int | None:
    local: datetime | None = _find_start(zone, after, now)
    best: int | None = None
    while local is not None and (local := expression.next_after(local)) is not None:
        first, second = _to_instant(local, zone, 0), _to_instant(local, zone, 1)
        for instant in _list_candidates(expression, zone, first, second):
            if instant > after and (best is None or instant < best):
                best = instant
        if best is not None and min(first, second) >= best:
            break
    return best


def _find_start(zone: ZoneInfo, after: int, now: datetime) -> datetime:
    """What clocks show now; less, where they are about to show some times again."""
    soon = datetime.fromtimestamp(after + _REACH, zone)
    back = _read_offset(now) - _read_offset(soon)
    local = now.replace(tzinfo=None)
    return local - back if back > timedelta(0) else local


def _read_offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta(0)


def _to_instant(local: datetime, zone: ZoneInfo, fold: int) -> int:
    """The second at which clocks show this, taking the offset before (0) or after (1) a change."""
    return (local.replace(tzinfo=zone, fold=fold) - _EPOCH) // _SECOND


def _list_candidates(
    expression: CronExpression, zone: ZoneInfo, first: int, second: int
) -> tuple[int, ...]:
    if first == second:
        return (first,)
    if first < second:  # shown twice
        return (first,) if expression.fixed else (first, second)
    return (_find_change(zone, second, first),) if expression.fixed else ()  # skipped


def _find_change(zone: ZoneInfo, low: int, high: int) -> int:
    """The second at which clocks jump, in (low, high]."""
    before = _read_offset(datetime.fromtimestamp(low, zone))
    while high - low > 1:
        middle = (low + high) // 2
        if _read_offset(datetime.fromtimestamp(middle, zone)) == before:
            low = middle
        else:
            high = middle
    return high
